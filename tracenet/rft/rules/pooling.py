"""Max and average pooling with fixed kernels, and adaptive pooling to a grid.

Demands are those of a convolution. Cells off the plane count as -inf for max pooling; average pooling divides by
what the operator says: ``divisor_override``, the kernel clipped to the padded plane (``count_include_pad``), or the
kernel clipped to the plane.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from tracenet.graph.graph import Layout, Node
from tracenet.rft.rules.convolution import pair, sliding_demand
from tracenet.rft.rules.registry import Demand, Reader, Rule, image_demand, image_layout, register_rule
from tracenet_kernels.errors import UnsupportedOpError
from tracenet_kernels.window import Window


class Pool(Rule):
    """Shared by max and average pooling: both slide a kernel."""

    dilation_position: int | None = None

    def layout(self, node: Node) -> Layout | None:
        return image_layout(node.shape)

    def geometry(self, node: Node) -> tuple[tuple[int, int], ...]:
        kernel = pair(node.arg(1, "kernel_size"))
        dilation = (1, 1) if self.dilation_position is None else pair(node.arg(self.dilation_position, "dilation"), 1)
        return kernel, pair(node.arg(2, "stride"), kernel), pair(node.arg(3, "padding"), 0), dilation

    def _demand(self, node: Node, window: Window) -> Demand:
        kernel, stride, padding, dilation = self.geometry(node)
        y = sliding_demand(window.y0, window.y1, kernel[0], stride[0], padding[0], dilation[0])
        x = sliding_demand(window.x0, window.x1, kernel[1], stride[1], padding[1], dilation[1])
        return image_demand(node.args[0], Window(*y, *x))

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        yield self._demand(node, window)


@register_rule("aten.max_pool2d", "aten.max_pool2d_with_indices")
class MaxPool(Pool):
    """Maximum over the kernel; indices are not available (they would count in the crop)."""

    dilation_position = 4

    def layout(self, node: Node) -> Layout | None:
        if node.item == 1:
            raise UnsupportedOpError(f"node {node.name!r} uses the indices of a max pooling, which a crop cannot give")
        return super().layout(node)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        kernel, stride, _, dilation = self.geometry(node)
        return F.max_pool2d(read(self._demand(node, window), fill=-math.inf), kernel, stride, 0, dilation)


@register_rule("aten.avg_pool2d")
class AvgPool(Pool):
    """Mean over the kernel, with every divisor convention of the operator."""

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        kernel, stride, padding, _ = self.geometry(node)
        sums = F.avg_pool2d(read(self._demand(node, window), fill=0.0), kernel, stride, divisor_override=1)
        divisor = node.arg(6, "divisor_override")
        if divisor is not None:
            return sums / divisor
        include = bool(node.arg(5, "count_include_pad", True))
        height, width = node.args[0].shape[-2:]
        rows = _divisors(window.y0, window.y1, kernel[0], stride[0], padding[0], height, include).to(sums)
        cols = _divisors(window.x0, window.x1, kernel[1], stride[1], padding[1], width, include).to(sums)
        return sums / (rows.view(-1, 1) * cols)


def _divisors(a: int, b: int, kernel: int, stride: int, padding: int, length: int, include_pad: bool) -> Tensor:
    """Cells each output of ``[a, b)`` averages over along one axis."""
    start = torch.arange(a, b) * stride - padding
    stop = torch.clamp(start + kernel, max=length + padding)
    if not include_pad:
        start, stop = start.clamp(min=0), stop.clamp(max=length)
    return stop - start


@register_rule("aten.adaptive_avg_pool2d", "aten.adaptive_max_pool2d", "aten._adaptive_avg_pool2d")
class AdaptivePool(Rule):
    """Output ``i`` of ``out`` reads ``[floor(i * n / out), ceil((i + 1) * n / out))``; one output cell is a barrier."""

    def layout(self, node: Node) -> Layout | None:
        if node.item == 1:
            raise UnsupportedOpError(f"node {node.name!r} uses the indices of a max pooling, which a crop cannot give")
        return image_layout(node.shape)

    def _demand(self, node: Node, window: Window) -> Demand:
        height, width = node.args[0].shape[-2:]
        out_h, out_w = node.shape[-2:]
        return image_demand(
            node.args[0],
            Window(
                window.y0 * height // out_h,
                -(-window.y1 * height // out_h),
                window.x0 * width // out_w,
                -(-window.x1 * width // out_w),
            ),
        )

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        yield self._demand(node, window)

    def barrier(self, node: Node) -> str | None:
        if tuple(node.shape[-2:]) == (1, 1) and math.prod(node.args[0].shape[-2:]) > 1:
            return "pools the whole plane to one cell"
        return None

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        demand = self._demand(node, window)
        x = read(demand)
        reduce = torch.amax if "max" in node.op else torch.mean
        x = _reduce_bins(x, -2, window.y0, window.y1, node.shape[-2], node.args[0].shape[-2], demand.window.y0, reduce)
        return _reduce_bins(
            x, -1, window.x0, window.x1, node.shape[-1], node.args[0].shape[-1], demand.window.x0, reduce
        )


def _reduce_bins(x: Tensor, axis: int, a: int, b: int, out: int, length: int, origin: int, reduce) -> Tensor:  # type: ignore[no-untyped-def]
    bins = [(i * length // out - origin, -(-(i + 1) * length // out) - origin) for i in range(a, b)]
    return torch.cat([reduce(x.narrow(axis, s, e - s), dim=axis, keepdim=True) for s, e in bins], dim=axis)
