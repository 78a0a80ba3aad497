"""Global vectors: reductions of a whole plane to one cell, and how a plan may come by their values.

Squeeze-and-excitation and global pooling need one vector of the whole plane, which makes everything before it whole.
A plan reduces the plane (``"exact"``), takes vectors computed earlier as constants and traces nothing behind them
(``"cached"``), or reduces the window that other consumers need of the plane (``"window"``, an approximation).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tracenet.graph.graph import Node
from tracenet.rft.rules.pointwise import Reduce
from tracenet.rft.rules.pooling import AdaptivePool, Pool
from tracenet.rft.rules.registry import Demand, Reader, Rule, call, find_rule
from tracenet_kernels.window import Window

EXACT, CACHED, WINDOW = "exact", "cached", "window"
MODES = (EXACT, CACHED, WINDOW)

_REDUCTIONS = ("aten.mean", "aten.sum", "aten.amax", "aten.amin", "aten.linalg_vector_norm", "aten.norm")


@dataclass(frozen=True, slots=True)
class Approximation:
    """A node whose value is not that of the full network, and how it was come by."""

    name: str
    how: str


def is_global_vector(node: Node) -> bool:
    """Whether a node reduces all rows and columns of a plane of floats to one cell, in a way that windows can imitate.

    These are means, sums, extrema and p-norms over both axes of the plane, and pools of the whole plane.
    """
    x = node.args[0] if node.args else None
    if not isinstance(x, Node) or x.layout is None or x.full_window.area <= 1 or node.layout_error is not None:
        return False
    if not node.dtype.is_floating_point or node.full_window.area != 1:
        return False
    rule = find_rule(node)
    if isinstance(rule, Reduce):
        reduced = {x.layout.y, x.layout.x} <= rule.dims(node)
        return reduced and node.op in _REDUCTIONS and _exponent(node) is not None
    on_last_axes = x.layout.axes == (x.ndim - 2, x.ndim - 1) and not x.layout.merged
    if isinstance(rule, AdaptivePool):
        return on_last_axes
    return isinstance(rule, Pool) and on_last_axes and _covers_plane(node, rule)


def global_vectors(nodes: Iterable[Node]) -> list[Node]:
    """The global vectors among nodes."""
    return [node for node in nodes if is_global_vector(node)]


def _covers_plane(node: Node, rule: Pool) -> bool:
    kernel, _, padding, dilation = rule.geometry(node)
    plain = padding == (0, 0) and dilation == (1, 1) and node.arg(6, "divisor_override") is None
    return plain and kernel == tuple(node.args[0].plane)


def _exponent(node: Node) -> float | None:
    """e where a reduction grows with the plane's cells to the power e; None for a norm that no window can imitate."""
    if node.op not in ("aten.linalg_vector_norm", "aten.norm"):
        return 1.0 if node.op == "aten.sum" else 0.0
    p = node.arg(1, "p" if node.op == "aten.norm" else "ord", 2)
    p = 2 if p is None else p
    return 1 / p if isinstance(p, (int, float)) and p >= 1 else None  # 0 for the maximum, p = infinity


def growth(node: Node, ratio: float) -> float:
    """By what a global vector grows when the plane has ``ratio`` times as many cells of the same kind."""
    return float(ratio ** (_exponent(node) or 0.0))


def reduce_window(node: Node, source: Window, read: Reader) -> Tensor:
    """A global vector as if the whole plane looked like ``source``; sums and norms are scaled up to the plane."""
    x: Node = node.args[0]
    assert x.layout is not None
    crop = read(Demand(x, source, x.layout.axes))
    rule: Rule = find_rule(node)
    if isinstance(rule, Reduce):
        factor = growth(node, x.full_window.area / source.area)
        value = call(node, {0: crop}, read)
        return value if factor == 1.0 else value * factor
    reduction = torch.amax if "max" in node.op else torch.mean
    return reduction(crop, dim=(-2, -1), keepdim=True)
