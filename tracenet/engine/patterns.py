"""What single graph nodes mean to a schedule: which are planes, which change nothing, which attributes a step takes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from tracenet.graph.fold import BATCH_NORMS, is_batch_norm
from tracenet.graph.graph import Graph, Node
from tracenet.rft.context import is_global_vector
from tracenet.rft.rules.convolution import ConvSpec, conv_spec
from tracenet.rft.rules.pointwise import Reduce
from tracenet.rft.rules.pooling import Pool
from tracenet.rft.rules.registry import find_rule
from tracenet.rft.rules.resize import TapsRule, corner_ratio, scale_factor
from tracenet_kernels.errors import InputError

CONVOLUTIONS = ("aten.conv2d", "aten.convolution")
RESIZES = ("aten.upsample_nearest2d", "aten.upsample_bilinear2d", "tracenet.aligned_bilinear")

_UNCHANGED = frozenset(
    f"aten.{name}"
    for name in """
    alias detach clone contiguous lift_fresh lift_fresh_copy to _to_copy expand expand_as broadcast_to view reshape
    _unsafe_view slice dropout feature_dropout alpha_dropout
    """.split()
)
"""Operations that give their operand back whenever shape and dtype stay the same; a graph's draw no random numbers."""


def is_plane(node: Node) -> bool:
    """Whether kernels can hold a node's output: fp32, one image, ``[1, C, H, W]``."""
    layout = node.layout
    return (
        layout is not None
        and node.ndim == 4
        and node.shape[0] == 1
        and layout.axes == (2, 3)
        and not layout.merged
        and node.dtype == torch.float32
        and node.layout_error is None
    )


def is_vector(node: Node) -> bool:
    """Whether a node is a flat fp32 value, which kernels hold as one cell."""
    return node.layout is None and node.layout_error is None and node.dtype == torch.float32


def is_unchanged(node: Node) -> bool:
    """Whether a node's values are those of its first operand, element for element."""
    x = node.args[0] if node.args else None
    if not isinstance(x, Node) or x.is_constant or (x.shape, x.dtype) != (node.shape, node.dtype):
        return False
    if node.op in _UNCHANGED:
        return x.layout == node.layout
    if node.op in RESIZES and is_plane(node) and is_plane(x):
        rule = find_rule(node)
        assert isinstance(rule, TapsRule)
        return all(
            taps.weight is None and np.array_equal(taps.taken[:, 0], np.arange(size))
            for taps, size in zip(rule.taps(node), node.plane, strict=True)
        )
    return False


def sources(graph: Graph) -> dict[Node, Node]:
    """For every node the one that computes its values: itself, or what it passes on unchanged."""
    source: dict[Node, Node] = {}
    for node in graph.nodes:
        source[node] = source[node.args[0]] if is_unchanged(node) else node
    return source


def array(node: Node) -> np.ndarray:
    """A constant's values; shares its memory where it is contiguous and on the CPU.

    Raises:
        InputError: it has no values (the network was captured on the meta device).
    """
    assert node.value is not None
    if node.value.is_meta:
        raise InputError(f"{node.name!r} is on the meta device and has no values; capture the network with its weights")
    return node.value.detach().cpu().contiguous().numpy()


class Affine(NamedTuple):
    """``x * scale + shift`` per channel; both float64 ``[C]``."""

    x: Node
    scale: np.ndarray
    shift: np.ndarray


def affine(node: Node) -> Affine | None:
    """A plane times and plus stored numbers: BatchNorm, and products, quotients, sums and differences."""
    if not is_plane(node):
        return None
    if is_batch_norm(node):
        return _batch_norm(node)
    kind = node.op.removeprefix("aten.")
    if kind not in ("add", "sub", "rsub", "mul", "div") or node.kwargs.get("rounding_mode") is not None:
        return None
    operands = [node.args[0], node.arg(1, "other")]
    if kind == "rsub":
        kind, operands = "sub", operands[::-1]
    planes = [isinstance(operand, Node) and not operand.is_constant for operand in operands]
    if planes.count(True) != 1 or (kind == "div" and not planes[0]):
        return None
    x, other = operands if planes[0] else operands[::-1]
    number = _per_channel(other, node.shape[1])
    if number is None or x.shape != node.shape or not is_plane(x):
        return None
    alpha, one = float(node.arg(2, "alpha", 1)), np.ones(node.shape[1])
    if kind == "mul":
        return Affine(x, number, 0 * one)
    if kind == "div":
        return Affine(x, 1 / number, 0 * one)
    signs = (1.0, alpha) if planes[0] else (alpha, 1.0)  # of x, of the stored number
    if kind == "sub":
        signs = (1.0, -alpha) if planes[0] else (-alpha, 1.0)
    return Affine(x, signs[0] * one, signs[1] * number)


def _batch_norm(node: Node) -> Affine | None:
    x, *parameters = node.args[:5]
    if not is_plane(x) or any(isinstance(p, Node) and not p.is_constant for p in parameters):
        return None
    gamma, beta, mean, var = (None if p is None else array(p).astype(np.float64) for p in parameters)
    assert mean is not None and var is not None
    scale = 1 / np.sqrt(var + float(node.args[BATCH_NORMS[node.op][1]]))
    if gamma is not None:
        scale = scale * gamma
    return Affine(x, scale, -mean * scale + (0 if beta is None else beta))


def _per_channel(value: Any, channels: int) -> np.ndarray | None:
    """A number or a constant that broadcasts over rows and columns, as float64 ``[C]``."""
    if isinstance(value, (int, float)):
        return np.full(channels, float(value))
    if not isinstance(value, Node) or value.value is None or value.ndim > 4:
        return None
    shape = (1,) * (4 - value.ndim) + value.shape
    if shape[1] not in (1, channels) or (shape[0], *shape[2:]) != (1, 1, 1):
        return None
    return np.broadcast_to(array(value).astype(np.float64).reshape(-1), (channels,)).copy()


class Activation(NamedTuple):
    """A function of single values: its name in :data:`~tracenet.engine.schedule.ACTIVATIONS`, and its numbers."""

    name: str
    floats: dict[str, float]


_ACTIVATIONS = {
    "relu": "relu",
    "relu6": "clip",
    "hardtanh": "clip",
    "clamp": "clip",
    "clamp_min": "clip",
    "clamp_max": "clip",
    "leaky_relu": "leaky_relu",
    "hardsigmoid": "hard_sigmoid",
    "hardswish": "hard_swish",
    "silu": "silu",
    "gelu": "gelu",
    "tanh": "tanh",
}


def activation(node: Node) -> Activation | None:
    """The activation of a plane that a node computes; a sigmoid is an operation of its own."""
    kind = node.op.removeprefix("aten.")
    name = _ACTIVATIONS.get(kind)
    if name is None or not is_plane(node) or not is_plane(node.args[0]):
        return None
    if name == "clip":
        bounds = _bounds(node, kind)
        return None if bounds is None else Activation(name, {"a": bounds[0], "b": bounds[1]})
    if name == "leaky_relu":
        return Activation(name, {"a": float(node.arg(1, "negative_slope", 0.01))})
    if name == "gelu" and node.kwargs.get("approximate", "none") == "tanh":
        name = "gelu_tanh"
    return Activation(name, {})


def _bounds(node: Node, kind: str) -> tuple[float, float] | None:
    """Bounds of a clip that are plain numbers."""
    if kind == "relu6":
        return 0.0, 6.0
    if kind == "hardtanh":
        low, high = node.arg(1, "min_val", -1.0), node.arg(2, "max_val", 1.0)
    elif kind == "clamp":
        low, high = node.arg(1, "min"), node.arg(2, "max")
    else:
        given = node.arg(1, kind.removeprefix("clamp_"))
        low, high = (given, None) if kind == "clamp_min" else (None, given)
    if any(bound is not None and not isinstance(bound, (int, float)) for bound in (low, high)):
        return None
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def product(node: Node) -> list[Node] | None:
    """``[a, b]`` of a product of planes: of one size, or b one cell with a factor per channel. A square is one."""
    if not is_plane(node) or node.op not in ("aten.mul", "aten.square", "aten.pow"):
        return None
    operands = [node.args[0], node.arg(1, "other") if node.op == "aten.mul" else node.args[0]]
    if node.op == "aten.pow" and (not isinstance(node.args[1], (int, float)) or node.args[1] != 2):
        return None
    if not all(isinstance(o, Node) and not o.is_constant and is_plane(o) for o in operands):
        return None
    a, b = operands if operands[0].shape == node.shape else operands[::-1]
    if a.shape != node.shape or b.shape not in (node.shape, (1, node.shape[1], 1, 1)):
        return None
    return [a, b]


def is_plane_mean(node: Node) -> bool:
    """Whether a node is the mean of a plane over rows and columns, as a plane of one cell."""
    if not is_plane(node) or node.op not in ("aten.mean", "aten.adaptive_avg_pool2d") or not is_global_vector(node):
        return False
    rule = find_rule(node)
    return is_plane(node.args[0]) and (not isinstance(rule, Reduce) or rule.dims(node) == {2, 3})


def group_norm(node: Node) -> tuple[Node | None, Node | None] | None:
    """Stored (weight, bias) of a GroupNorm of a plane."""
    if node.op != "aten.group_norm" or not is_plane(node) or not is_plane(node.args[0]):
        return None
    weight, bias = node.arg(2, "weight"), node.arg(3, "bias")
    stored = all(p is None or (isinstance(p, Node) and p.is_constant) for p in (weight, bias))
    return (weight, bias) if stored else None


def first_channel(node: Node) -> int | None:
    """The first channel of a slice of a plane's channels without gaps."""
    if node.op != "aten.slice" or not is_plane(node) or not is_plane(node.args[0]):
        return None
    channels = node.args[0].shape[1]
    if node.arg(1, "dim", 0) % 4 != 1 or node.arg(4, "step", 1) != 1:
        return None
    start = node.arg(2, "start")
    start = 0 if start is None else start
    if not isinstance(start, int):
        return None
    return min(max(start + channels if start < 0 else start, 0), channels)


def zero_padding(node: Node) -> tuple[int, int] | None:
    """(top, left) where a node pads rows and columns of a plane with zeros."""
    if node.op not in ("aten.pad", "aten.constant_pad_nd") or not is_plane(node) or not is_plane(node.args[0]):
        return None
    amounts = list(node.arg(1, "pad"))
    mode = node.arg(2, "mode", "constant") if node.op == "aten.pad" else "constant"
    value = node.arg(3, "value") if node.op == "aten.pad" else node.arg(2, "value", 0)
    if mode != "constant" or value not in (None, 0) or not all(isinstance(n, int) and n >= 0 for n in amounts):
        return None
    amounts += [0] * (4 - len(amounts))
    return None if any(amounts[4:]) else (amounts[2], amounts[0])


def window_attributes(kernel: Any, stride: Any, padding: Any, dilation: Any, prefix: str = "") -> dict[str, int]:
    """Window attributes of a step from (y, x) pairs."""
    names = ("kernel", "stride", "pad", "dilation")
    pairs = zip(names, (kernel, stride, padding, dilation), strict=True)
    return {f"{prefix}{name}_{axis}": int(value[i]) for name, value in pairs for i, axis in enumerate("yx")}


def convolution(node: Node) -> ConvSpec | None:
    """The spec of a two-dimensional convolution of a plane with stored weights."""
    if node.op not in CONVOLUTIONS or not is_plane(node) or not is_plane(node.args[0]):
        return None
    spec = conv_spec(node)
    stored = [p.is_constant for p in (spec.weight, spec.bias) if p is not None]
    return spec if all(stored) and not spec.transposed else None


def pooling(node: Node) -> tuple[str, dict[str, int]] | None:
    """``(op, ints)`` of a max or average pooling of a plane."""
    rule = find_rule(node)
    if not isinstance(rule, Pool) or not is_plane(node) or not is_plane(node.args[0]):
        return None
    kernel, stride, padding, dilation = rule.geometry(node)
    ints = window_attributes(kernel, stride, padding, dilation)
    if "max_pool" in node.op:
        return "max_pool2d", ints
    divisor = node.arg(6, "divisor_override")
    if divisor is not None and divisor < 1:
        return None
    ints["count_include_pad"] = int(bool(node.arg(5, "count_include_pad", True)))
    ints["divisor"] = int(divisor or 0)
    return "avg_pool2d", ints


def resize(node: Node) -> tuple[str, dict[str, int], dict[str, float]] | None:
    """``(mode, ints, floats)`` of a resize of a plane whose taps are those of the mode's formula."""
    if node.op not in RESIZES or not is_plane(node) or not is_plane(node.args[0]):
        return None
    if node.op == "tracenet.aligned_bilinear":
        return "aligned_bilinear", {"factor": int(node.args[1])}, {}
    rule = find_rule(node)
    assert isinstance(rule, TapsRule)
    nearest, align = node.op == "aten.upsample_nearest2d", bool(node.op != RESIZES[0] and node.arg(2, "align_corners"))
    floats: dict[str, float] = {}
    for axis, taps in enumerate(rule.taps(node)):
        length, out = node.args[0].plane[axis], node.plane[axis]
        scale = scale_factor(node, axis, nearest)
        candidates = {corner_ratio(length, out, s, align, np.float32) for s in ((scale, None) if nearest else (scale,))}
        if not nearest and taps.weight is None:  # sizes agree on this axis, which is then copied
            candidates = {np.float32(1)}
        fitting = [
            r for r in candidates if not nearest or np.array_equal(nearest_cells(r, length, out), taps.taken[:, 0])
        ]
        if not fitting:
            return None
        floats[f"ratio_{'yx'[axis]}"] = float(fitting[0])
    return "nearest" if nearest else "bilinear_align_corners" if align else "bilinear", {}, floats


def nearest_cells(ratio: Any, length: int, out: int) -> np.ndarray:
    """Input cell of each output cell, ``min(floor(i * ratio), length - 1)`` in float32."""
    cells = np.floor(np.arange(out, dtype=np.float32) * np.float32(ratio)).astype(np.int64)
    return np.minimum(cells, length - 1)


def nearest_factor(node: Node) -> int:
    """f where output cell i of a nearest resize reads cell i // f on both axes and f > 1, else 0."""
    source = node.args[0]
    if resize(node) is None or node.op != "aten.upsample_nearest2d":
        return 0
    factor = node.plane[0] // source.plane[0]
    if factor < 2 or node.plane != (factor * source.plane[0], factor * source.plane[1]):
        return 0
    rule = find_rule(node)
    assert isinstance(rule, TapsRule)
    exact = all(
        np.array_equal(t.taken[:, 0], np.arange(n) // factor) for t, n in zip(rule.taps(node), node.plane, strict=True)
    )
    return factor if exact else 0


def concatenation(node: Node) -> list[Node] | None:
    """Operands of a concatenation of planes over channels."""
    if node.op != "aten.cat" or not is_plane(node) or node.arg(1, "dim", 0) % 4 != 1:
        return None
    parts = list(node.args[0])
    return parts if all(not part.is_constant and is_plane(part) for part in parts) else None
