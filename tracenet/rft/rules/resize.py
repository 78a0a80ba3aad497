"""Every resize as taps: each output row (column) is a weighted sum of a few input rows (columns).

A resized crop is not a crop of the resized plane, so taps are computed once for the whole axis, in the arithmetic of
the operator (float32, or float64 for such tensors), and a window uses its part of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracenet.graph.graph import Layout, Node
from tracenet.rft.rules.registry import Demand, Reader, Rule, image_demand, image_layout, register_rule
from tracenet_kernels.errors import UnsupportedOpError
from tracenet_kernels.window import Window

Real = type[Any]
"""``np.float32`` or ``np.float64``."""


class Taps(NamedTuple):
    """``output[i] = sum_t weight[i, t] * input[taken[i, t]]`` along one axis of ``length`` input cells.

    ``taken [out, T]`` int64; ``weight [out, T]``, or None where T is 1 and the weight is one. Unused taps repeat the
    first index with weight zero, so they never widen a demand.
    """

    taken: np.ndarray
    weight: np.ndarray | None

    def demand(self, a: int, b: int) -> tuple[int, int]:
        if b <= a:
            return (0, 0)
        rows = self.taken[a:b]
        return (int(rows.min()), int(rows.max()) + 1)

    def apply(self, x: Tensor, axis: int, a: int, b: int, origin: int) -> Tensor:
        """Taps of outputs ``[a, b)`` on a crop that starts at input cell ``origin``; half types sum in float32."""
        index = torch.from_numpy(self.taken[a:b] - origin).to(x.device)
        if self.weight is None:
            return x.index_select(axis, index[:, 0])
        weight = torch.from_numpy(self.weight[a:b]).to(x.device)
        shape = [1] * x.ndim
        shape[axis] = b - a
        total = x.index_select(axis, index[:, 0]) * weight[:, 0].view(shape)
        for t in range(1, index.shape[1]):
            total = total + x.index_select(axis, index[:, t]) * weight[:, t].view(shape)
        return total.to(x.dtype)


def _ratio(length: int, out: int, scale: float | None, real: Real) -> np.floating:
    """Input cells per output cell: 1 / scale_factor where one was given, else in / out."""
    return real(1.0 / scale) if scale is not None and scale > 0 else real(length) / real(out)


def corner_ratio(length: int, out: int, scale: float | None, align_corners: bool, real: Real) -> np.floating:
    if align_corners:
        return real(length - 1) / real(out - 1) if out > 1 else real(0)
    return _ratio(length, out, scale, real)


def _copies(index: np.ndarray, length: int) -> Taps:
    return Taps(np.minimum(index.astype(np.int64), length - 1)[:, None], None)


def nearest_taps(length: int, out: int, scale: float | None, small: bool = True, real: Real = np.float32) -> Taps:
    """``floor(i * r)``.

    Where a scale factor does not divide evenly, the operator's answer depends on the kernel it picks: for ``small``
    outputs it works in float32 and takes the factors one and two from the sizes.
    """
    i = np.arange(out)
    if small and out in (length, 2 * length):
        return _copies(i * length // out, length)
    real = np.float32 if small else real
    return _copies(np.floor((i.astype(real) * _ratio(length, out, scale, real)).astype(np.float32)), length)


def nearest_exact_taps(length: int, out: int, scale: float | None, small: bool = True, real: Real = np.float32) -> Taps:
    """``floor((i + 0.5) * r)``; kernels for other than ``small`` outputs compute ``((i + 0.5) * r - 0.5) + 0.5``."""
    i = np.arange(out) + 0.5
    if small:
        return _copies(np.floor(i.astype(np.float32) * _ratio(length, out, scale, np.float32)), length)
    source = (i * np.float64(_ratio(length, out, scale, real)) - 0.5).astype(real)  # one rounding: a fused multiply-add
    return _copies(np.floor((source + real(0.5)).astype(np.float32)), length)


def _source(length: int, out: int, scale: float | None, align_corners: bool, real: Real) -> np.ndarray:
    ratio = corner_ratio(length, out, scale, align_corners, real)
    i = np.arange(out, dtype=real)
    return i * ratio if align_corners else (i + real(0.5)) * ratio - real(0.5)


def linear_taps(length: int, out: int, scale: float | None, align_corners: bool, real: Real = np.float32) -> Taps:
    """Two neighbours, the edge replicated; both are demanded even where one weighs nothing, but not if sizes agree."""
    if out == length:
        return _copies(np.arange(out), length)
    source = np.maximum(_source(length, out, scale, align_corners, real), real(0))
    low = np.minimum(np.floor(source).astype(np.int64), length - 1)
    fraction = np.clip(source - low.astype(real), 0, 1)
    index = np.stack([low, np.minimum(low + 1, length - 1)], axis=1)
    return Taps(index, np.stack([1 - fraction, fraction], axis=1).astype(real))


def cubic_taps(length: int, out: int, scale: float | None, align_corners: bool, real: Real = np.float32) -> Taps:
    """Four neighbours with Keys' kernel, A = -0.75, edges replicated."""
    source = _source(length, out, scale, align_corners, real)
    low = np.floor(source)
    t = (source - low).astype(real)
    weight = np.stack([_keys(t + 1, -0.75), _keys(t, -0.75), _keys(1 - t, -0.75), _keys(2 - t, -0.75)], axis=1)
    index = low.astype(np.int64)[:, None] + np.arange(-1, 3)
    return Taps(np.clip(index, 0, length - 1), weight.astype(real))


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def antialias_taps(
    length: int, out: int, scale: float | None, align_corners: bool, cubic: bool, real: Real = np.float32
) -> Taps:
    """Triangle or Keys (A = -0.5) filter whose support grows with the shrink factor, normalised per output.

    An axis whose sizes agree is copied, whatever the scale factor.
    """
    if out == length:
        return _copies(np.arange(out), length)
    ratio = float(corner_ratio(length, out, scale, align_corners, real))
    reach = (2.0 if cubic else 1.0) * max(ratio, 1.0)
    inverse = 1.0 / ratio if ratio >= 1.0 else 1.0
    center = ratio * (np.arange(out) + 0.5)
    start = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    stop = np.minimum((center + reach + 0.5).astype(np.int64), length)
    offset = np.arange(int((stop - start).max()))
    index = start[:, None] + offset
    used = index < stop[:, None]
    x = (index - center[:, None] + 0.5) * inverse
    weight = _keys(x, -0.5) if cubic else np.maximum(1.0 - np.abs(x), 0.0)
    weight = np.where(used, weight, 0.0)
    weight = weight / weight.sum(axis=1, keepdims=True)
    return Taps(np.where(used, index, start[:, None]), weight.astype(real))


def aligned_taps(length: int, factor: int, real: Real = np.float32) -> Taps:
    """AdelaiDet's aligned bilinear: ``t = clamp((i - f // 2) / f, 0, n - 1)``; weight 0 demands nothing."""
    source = np.clip((np.arange(factor * length) - factor // 2) / factor, 0, length - 1)
    low = np.floor(source).astype(np.int64)
    fraction = source - low
    index = np.stack([low, low + (fraction > 0)], axis=1)
    return Taps(index, np.stack([1 - fraction, fraction], axis=1).astype(real))


class TapsRule(Rule):
    """A resize of the last two axes described by one :class:`Taps` per axis."""

    def axis_taps(self, node: Node, axis: int) -> Taps:
        """Taps of rows (axis 0) or columns (axis 1) over the whole plane."""
        raise NotImplementedError

    def taps(self, node: Node) -> tuple[Taps, Taps]:
        cached = node.cache.get("taps")
        if cached is None:
            cached = node.cache["taps"] = (self.axis_taps(node, 0), self.axis_taps(node, 1))
        return cached

    def layout(self, node: Node) -> Layout | None:
        return image_layout(node.shape)

    def _demand(self, node: Node, window: Window) -> Demand:
        rows, cols = self.taps(node)
        return image_demand(
            node.args[0], Window(*rows.demand(window.y0, window.y1), *cols.demand(window.x0, window.x1))
        )

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        yield self._demand(node, window)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        rows, cols = self.taps(node)
        demand = self._demand(node, window)
        x = read(demand)
        x = rows.apply(x, x.ndim - 2, window.y0, window.y1, demand.window.y0)
        return cols.apply(x, x.ndim - 1, window.x0, window.x1, demand.window.x0)


@register_rule(
    "aten.upsample_nearest2d",
    "aten._upsample_nearest_exact2d",
    "aten.upsample_bilinear2d",
    "aten.upsample_bicubic2d",
    "aten._upsample_bilinear2d_aa",
    "aten._upsample_bicubic2d_aa",
)
class Interpolate(TapsRule):
    """``torch.nn.functional.interpolate`` in all of its two-dimensional modes but area (an adaptive pooling)."""

    def axis_taps(self, node: Node, axis: int) -> Taps:
        length, out, real = node.args[0].shape[axis - 2], node.shape[axis - 2], real_type(node)
        nearest = "nearest" in node.op
        scale = scale_factor(node, axis, nearest)
        if nearest:
            copies = nearest_taps if node.op == "aten.upsample_nearest2d" else nearest_exact_taps
            return copies(length, out, scale, small=sum(node.shape[-2:]) <= 128, real=real)
        if not node.dtype.is_floating_point:
            raise UnsupportedOpError(f"node {node.name!r} interpolates {node.dtype}; convert to a floating type before")
        align_corners = bool(node.arg(2, "align_corners"))
        if node.op.endswith("_aa"):
            return antialias_taps(length, out, scale, align_corners, cubic="bicubic" in node.op, real=real)
        taps = cubic_taps if "bicubic" in node.op else linear_taps
        return taps(length, out, scale, align_corners, real)


def real_type(node: Node) -> Real:
    """The type in which an operator computes coordinates and weights."""
    return np.float64 if node.dtype == torch.float64 else np.float32


def scale_factor(node: Node, axis: int, nearest: bool) -> float | None:
    """The scale factor given for an axis: ``.vec`` overloads carry a list, the others one number per axis."""
    position = 2 if nearest else 3
    overload = getattr(node.target, "_overloadname", "")
    if overload == "vec":
        factors = node.arg(position, "scale_factors")
        return None if factors is None else float(factors[axis])
    value = node.arg(position + axis, ("scales_h", "scales_w")[axis])
    return None if value is None else float(value)


@register_rule("tracenet.aligned_bilinear")
class AlignedBilinear(TapsRule):
    """:func:`tracenet_kernels.ops.aligned_bilinear`."""

    def axis_taps(self, node: Node, axis: int) -> Taps:
        return aligned_taps(node.args[0].shape[axis - 2], int(node.args[1]), real_type(node))
