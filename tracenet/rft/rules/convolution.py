"""Convolution and transposed convolution (the recursive cases of the paper, section III-A).

Per axis, output ``[a, b)``, kernel k, stride s, padding p, dilation d:

- convolution reads ``[a * s - p, (b - 1) * s - p + d * (k - 1) + 1)``;
- transposed convolution reads ``[ceil((a + p - d * (k - 1)) / s), floor((b - 1 + p) / s) + 1)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tracenet.graph.graph import Layout, Node
from tracenet.rft.rules.pointwise import crop_output
from tracenet.rft.rules.registry import Demand, Reader, Rule, call, image_demand, image_layout, register_rule, whole
from tracenet_kernels.errors import UnsupportedOpError
from tracenet_kernels.window import Window


def pair(value: Any, default: Any = None) -> tuple[int, int]:
    """An operator's integer-list argument for two axes; an empty list means the default."""
    if value is None or (isinstance(value, Sequence) and len(value) == 0):
        value = default
    if isinstance(value, int):
        return (value, value)
    return (int(value[0]), int(value[0])) if len(value) == 1 else (int(value[0]), int(value[1]))


def sliding_demand(a: int, b: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int]:
    """Unclipped input range of a convolution or pooling along one axis."""
    if b <= a:
        return (a * stride - padding, a * stride - padding)
    return (a * stride - padding, (b - 1) * stride - padding + dilation * (kernel - 1) + 1)


def transposed_demand(
    a: int, b: int, kernel: int, stride: int, padding: int, dilation: int, length: int
) -> tuple[int, int]:
    """Input range of a transposed convolution along one axis, clipped to ``[0, length)``; may be empty."""
    start = max(-((dilation * (kernel - 1) - a - padding) // stride), 0)
    stop = min((b - 1 + padding) // stride + 1, length)
    return (start, start) if b <= a or stop <= start else (start, stop)


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """A convolution's arguments, read from either of the operators that carry them."""

    x: Node
    weight: Node
    bias: Node | None
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    """(before, after) per axis; 'same' padding may be asymmetric."""
    dilation: tuple[int, int]
    groups: int
    transposed: bool

    @property
    def kernel(self) -> tuple[int, int]:
        return (self.weight.shape[-2], self.weight.shape[-1])


def conv_spec(node: Node) -> ConvSpec:
    """Read a convolution node. Raises UnsupportedOpError for one- and three-dimensional planes."""
    spec = node.cache.get("conv")
    if spec is None:
        spec = node.cache["conv"] = _read_spec(node)
    return spec


def _read_spec(node: Node) -> ConvSpec:
    x, weight = node.args[0], node.arg(1, "weight")
    if len(weight.shape) != 4:
        raise UnsupportedOpError(
            f"node {node.name!r} ({node.op}) has a {len(weight.shape) - 2}-dimensional kernel over a plane; "
            "only two-dimensional convolutions have a backward rule"
        )
    bias, stride = node.arg(2, "bias"), pair(node.arg(3, "stride"), 1)
    transposed = False
    if node.op == "aten.conv_transpose2d":
        padding, groups = node.arg(4, "padding", 0), node.arg(6, "groups", 1)
        dilation, transposed = node.arg(7, "dilation", 1), True
    elif node.op == "aten.convolution":
        padding, dilation, transposed, groups = node.args[4], node.args[5], bool(node.args[6]), node.args[8]
    else:
        padding, dilation, groups = node.arg(4, "padding", 0), node.arg(5, "dilation", 1), node.arg(6, "groups", 1)
    dilation = pair(dilation, 1)
    if isinstance(padding, str):
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.shape[-2:], strict=True)]
        pads = tuple((t // 2, t - t // 2) for t in totals)
    else:
        pads = tuple((p, p) for p in pair(padding, 0))
    return ConvSpec(x, weight, bias, stride, pads, dilation, int(groups), transposed)  # type: ignore[arg-type]


@register_rule("aten.conv2d", "aten.convolution", "aten.conv_transpose2d")
class Convolution(Rule):
    """Any two-dimensional convolution: strided, dilated, grouped, depthwise, transposed, 'same' padding."""

    def layout(self, node: Node) -> Layout | None:
        conv_spec(node)
        return image_layout(node.shape)

    def _window(self, node: Node, spec: ConvSpec, window: Window) -> Window:
        ranges: list[int] = []
        for axis, (a, b) in enumerate(((window.y0, window.y1), (window.x0, window.x1))):
            k, s, d, p = spec.kernel[axis], spec.stride[axis], spec.dilation[axis], spec.padding[axis][0]
            if spec.transposed:
                ranges += transposed_demand(a, b, k, s, p, d, spec.x.shape[axis - 2])
            else:
                ranges += sliding_demand(a, b, k, s, p, d)
        return Window(*ranges)

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        spec = conv_spec(node)
        yield image_demand(spec.x, self._window(node, spec, window))
        for parameter in (spec.weight, spec.bias):
            if parameter is not None and not parameter.is_constant:
                yield whole(parameter)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        spec = conv_spec(node)
        demand = image_demand(spec.x, self._window(node, spec, window))
        x, weight = read(demand, fill=0.0), read.whole(spec.weight)
        bias = read.whole(spec.bias) if spec.bias is not None else None
        if not spec.transposed:
            return F.conv2d(x, weight, bias, spec.stride, 0, spec.dilation, spec.groups)
        return self._run_transposed(node, spec, window, demand.window, x, weight, bias)

    @staticmethod
    def _run_transposed(
        node: Node, spec: ConvSpec, window: Window, source: Window, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        out = x.new_zeros((*node.shape[:-2], window.height, window.width))
        if not source.is_empty:
            part = F.conv_transpose2d(x, weight, None, spec.stride, 0, 0, spec.groups, spec.dilation)
            # Row 0 of `part` is row source.y0 * s - p of the full output; rows without any source stay zero.
            top = source.y0 * spec.stride[0] - spec.padding[0][0]
            left = source.x0 * spec.stride[1] - spec.padding[1][0]
            covered = Window(top, top + part.shape[-2], left, left + part.shape[-1]).intersect(window)
            if not covered.is_empty:
                rows, columns = covered.shift(-top, -left).slices
                sides = (covered.x0 - window.x0, window.x1 - covered.x1, covered.y0 - window.y0, window.y1 - covered.y1)
                out = F.pad(part[..., rows, columns], sides)
        return out if bias is None else out + bias.view(-1, 1, 1)

    def macs(self, node: Node, window: Window) -> int:
        spec = conv_spec(node)
        batch = math.prod(node.shape[:-3])
        per_tap = math.prod(spec.weight.shape)
        if not spec.transposed:
            return batch * window.area * per_tap
        pairs = math.prod(
            _transposed_pairs(a, b, spec, axis)
            for axis, (a, b) in enumerate(((window.y0, window.y1), (window.x0, window.x1)))
        )
        return batch * pairs * (per_tap // math.prod(spec.kernel))


def _transposed_pairs(a: int, b: int, spec: ConvSpec, axis: int) -> int:
    """How many (input cell, tap) pairs land in output ``[a, b)`` of a transposed convolution."""
    k, s, d, p = spec.kernel[axis], spec.stride[axis], spec.dilation[axis], spec.padding[axis][0]
    start, stop = transposed_demand(a, b, k, s, p, d, spec.x.shape[axis - 2])
    landing = torch.arange(start, stop).view(-1, 1) * s - p + torch.arange(k).view(1, -1) * d
    return int(((landing >= a) & (landing < b)).sum())


@register_rule("aten.conv1d", "aten.conv3d")
class OtherConvolution(Rule):
    """One- and three-dimensional convolutions.

    Along rows and columns that it slides over a window is enough; where it mixes them as channels, or slides over both
    flattened into one axis, it reads the whole plane.
    """

    def _spatial(self, node: Node) -> range:
        """The axes that the kernel slides over."""
        return range(node.ndim - (node.args[1].ndim - 2), node.ndim)

    def _windowed(self, node: Node) -> bool:
        source = node.args[0].layout
        batch = self._spatial(node).start - 2
        sizes = not isinstance(node.arg(4, "padding", 0), str)
        return (
            source is not None
            and not source.merged
            and sizes
            and all(axis in self._spatial(node) or 0 <= axis == batch for axis in source.axes)
        )

    def _sizes(self, node: Node, position: int, name: str, default: int) -> list[int]:
        value = node.arg(position, name, default)
        values = list(value) if isinstance(value, Sequence) else [value]
        count = len(self._spatial(node))
        return [int(v) for v in (values * count if len(values) == 1 else values)]

    def layout(self, node: Node) -> Layout | None:
        source = node.args[0].layout
        if source is None:
            return None
        if self._windowed(node):
            return Layout(source.y, source.x, node.shape[source.y], node.shape[source.x])
        return source if node.shape == node.args[0].shape else None

    def barrier(self, node: Node) -> str | None:
        x = node.args[0]
        return None if x.layout is None or self._windowed(node) else "convolves rows and columns as one axis"

    def _demand(self, node: Node, window: Window) -> Demand:
        x = node.args[0]
        stride, padding = self._sizes(node, 3, "stride", 1), self._sizes(node, 4, "padding", 0)
        dilation, first = self._sizes(node, 5, "dilation", 1), self._spatial(node).start
        ranges: list[int] = []
        for axis, a, b in ((x.layout.y, window.y0, window.y1), (x.layout.x, window.x0, window.x1)):
            i = axis - first
            if i < 0:
                ranges += (a, b)
            else:
                ranges += sliding_demand(a, b, node.args[1].shape[2 + i], stride[i], padding[i], dilation[i])
        return Demand(x, Window(*ranges), x.layout.axes)

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        x, *others = node.operands
        yield self._demand(node, window) if self._windowed(node) else whole(x)
        yield from (whole(other) for other in others if not other.is_constant)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        x, weight, bias = node.args[0], read.whole(node.args[1]), node.arg(2, "bias")
        if not self._windowed(node):
            return crop_output(node, call(node, {}, read), window)
        first, padding = self._spatial(node).start, self._sizes(node, 4, "padding", 0)
        for axis in x.layout.axes:
            if axis >= first:
                padding[axis - first] = 0  # it comes with the crop
        convolve = F.conv1d if node.op == "aten.conv1d" else F.conv3d
        return convolve(
            read(self._demand(node, window), fill=0.0),
            weight,
            None if bias is None else read.whole(bias),
            self._sizes(node, 3, "stride", 1),
            padding,
            self._sizes(node, 5, "dilation", 1),
            int(node.arg(6, "groups", 1)),
        )

    def macs(self, node: Node, window: Window) -> int:
        cells = math.prod(node.shape)
        if node.layout is not None and self._windowed(node):
            cells = cells // node.full_window.area * window.area
        return cells * math.prod(node.args[1].shape[1:])
