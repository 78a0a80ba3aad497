"""Operations that keep the window: element-wise with broadcasting, stored-statistics normalisation, channel reductions.

Where an operation mixes rows or columns after all (a softmax over x, a mean over the plane), the rule demands the
whole plane and reports a barrier.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from tracenet.graph.fold import is_batch_norm
from tracenet.graph.graph import Layout, Node
from tracenet.rft.rules.registry import Demand, Reader, Rule, call, register_rule, whole
from tracenet_kernels.errors import UnsupportedOpError
from tracenet_kernels.window import Window


def crop_axes(axes: tuple[int | None, int | None], window: Window) -> Window:
    """``window`` with absent axes replaced by one row or column."""
    y = (window.y0, window.y1) if axes[0] is not None else (0, 1)
    x = (window.x0, window.x1) if axes[1] is not None else (0, 1)
    return Window(*y, *x)


class Pointwise(Rule):
    """Every output cell reads the same cell of each operand; axes of size one broadcast and stay whole."""

    def layout(self, node: Node) -> Layout | None:
        best: Layout | None = None
        for operand in node.operands:
            source = operand.layout
            if source is None:
                continue
            shift = node.ndim - operand.ndim
            if source.merged:
                return source.moved(source.y + shift, source.x + shift)
            y, x = source.y + shift, source.x + shift
            layout = Layout(y, x, node.shape[y], node.shape[x])
            if (source.height, source.width) == (layout.height, layout.width):
                return layout
            best = best or layout
        return best

    def _operand(self, node: Node, operand: Node, window: Window) -> Demand:
        """Where an operand is read, by right-aligned broadcasting against the output."""
        layout = node.layout
        assert layout is not None
        shift = node.ndim - operand.ndim
        if layout.merged:
            axis = layout.y - shift
            single = axis < 0 or operand.shape[axis] == 1
            return whole(operand) if single else Demand(operand, window, (axis, axis), node.plane)
        axes: list[int | None] = []
        ranges: list[int] = []
        for axis, full, a, b in (
            (layout.y - shift, layout.height, window.y0, window.y1),
            (layout.x - shift, layout.width, window.x0, window.x1),
        ):
            if axis < 0:
                axes.append(None)
                ranges += (0, 1)
                continue
            axes.append(axis)
            ranges += (0, 1) if operand.shape[axis] == 1 and full != 1 else (a, b)
        return Demand(operand, Window(*ranges), (axes[0], axes[1]))

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        if node.layout is None:
            return [whole(operand) for operand in node.operands if not operand.is_constant]
        return [self._operand(node, operand, window) for operand in node.operands if not operand.is_constant]

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        if node.layout is None:
            return call(node, {}, read)
        crops = {i: read(self._operand(node, operand, window)) for i, operand in enumerate(node.operands)}
        return call(node, crops, read)


register_rule(
    *(
        f"aten.{name}"
        for name in """
        abs acos add addcdiv addcmul alias alpha_dropout asin atan atan2 bitwise_and bitwise_not bitwise_or
        bitwise_xor ceil celu clamp clamp_max clamp_min clone contiguous copy copysign cos cosh detach div dropout elu
        eq erf exp exp2 expm1 feature_dropout fill floor floor_divide fmod frac ge gelu gt hardshrink
        hardsigmoid hardswish hardtanh isfinite isinf isnan le leaky_relu lerp lift_fresh lift_fresh_copy log log10
        log1p log2 log_sigmoid logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum
        mish mul nan_to_num ne neg pow reciprocal relu relu6 remainder round rrelu rsqrt rsub selu sgn
        sigmoid sign silu sin sinh softplus softshrink sqrt square sub tan tanh threshold to _to_copy
        true_divide trunc type_as where xlogy
        __and__ __or__ __xor__
        """.split()
    )
)(Pointwise())


class FirstOperand(Rule):
    """The first operand is windowed; the others (weights, statistics) are read whole."""

    def layout(self, node: Node) -> Layout | None:
        return node.args[0].layout

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        x, *others = node.operands
        yield Demand(x, window, x.layout.axes) if x.layout is not None else whole(x)
        for other in others:
            if not other.is_constant:
                yield whole(other)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        x = node.args[0]
        return call(node, {0: read(Demand(x, window, x.layout.axes))} if x.layout is not None else {}, read)


@register_rule("aten.batch_norm", "aten._native_batch_norm_legit_no_training", "aten.prelu")
class ChannelParameters(FirstOperand):
    """BatchNorm with stored statistics, and PReLU: one set of parameters per channel."""

    def layout(self, node: Node) -> Layout | None:
        if node.op != "aten.prelu" and not is_batch_norm(node):
            raise UnsupportedOpError(
                f"node {node.name!r} normalises with batch statistics (track_running_stats=False or training mode); "
                "give the BatchNorm running statistics"
            )
        return super().layout(node)


register_rule(
    "aten.fake_quantize_per_tensor_affine", "aten.fake_quantize_per_channel_affine",
    "quantized_decomposed.quantize_per_tensor", "quantized_decomposed.dequantize_per_tensor",
    "quantized_decomposed.quantize_per_channel", "quantized_decomposed.dequantize_per_channel",
)(FirstOperand())  # fmt: skip


class Mixing(FirstOperand):
    """Same window unless the operation mixes along a plane axis; then the whole plane is read and cropped."""

    def mixed_axes(self, node: Node) -> set[int]:
        """Tensor axes of the first operand along which the operation mixes cells."""
        raise NotImplementedError

    def _mixes(self, node: Node) -> bool:
        layout = node.args[0].layout
        return layout is not None and bool({layout.y, layout.x} & self.mixed_axes(node))

    def barrier(self, node: Node) -> str | None:
        return "mixes cells along the plane" if self._mixes(node) else None

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        if self._mixes(node):
            return [whole(operand) for operand in node.operands if not operand.is_constant]
        return super().demands(node, window)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        if self._mixes(node):
            return crop_output(node, call(node, {}, read), window)
        return super().run(node, window, read)


def crop_output(node: Node, full: Tensor, window: Window) -> Tensor:
    """Cut ``window`` out of a node's full output (all of it if the node is flat)."""
    layout = node.layout
    if layout is None:
        return full
    if layout.merged:
        plane = full.unflatten(layout.y, (layout.height, layout.width))
        plane = plane.narrow(layout.y, window.y0, window.height).narrow(layout.y + 1, window.x0, window.width)
        return plane.flatten(layout.y, layout.y + 1)
    return full.narrow(layout.y, window.y0, window.height).narrow(layout.x, window.x0, window.width)


def _axis(node: Node, position: int, name: str, default: int = -1) -> int:
    return int(node.arg(position, name, default)) % node.args[0].ndim


@register_rule("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax", "aten.cumsum", "aten.sort",
               "aten.cumprod", "aten.logcumsumexp")  # fmt: skip
class AlongAxis(Mixing):
    """Softmax, cumulative sums and sorting along one axis: free if it is the channel axis."""

    def mixed_axes(self, node: Node) -> set[int]:
        return {_axis(node, 1, "dim")}


@register_rule("aten.glu")
class Glu(AlongAxis):
    """Gated linear unit along the channels; over rows or columns it has no rule."""

    def layout(self, node: Node) -> Layout | None:
        if self._mixes(node):
            raise UnsupportedOpError(f"node {node.name!r} is a GLU along the plane; only the channel axis has a rule")
        return super().layout(node)


@register_rule("aten.layer_norm", "aten.native_layer_norm", "aten.rms_norm")
class LayerNorm(Mixing):
    """Normalisation over the trailing axes: free over channels (ConvNeXt), a barrier over the plane."""

    def mixed_axes(self, node: Node) -> set[int]:
        n = node.args[0].ndim
        return set(range(n - len(node.args[1]), n))


@register_rule("aten.linear")
class Linear(Mixing):
    """``y = x W^T + b`` over the last axis: a 1x1 convolution on channels-last planes."""

    def mixed_axes(self, node: Node) -> set[int]:
        return {node.args[0].ndim - 1}

    def layout(self, node: Node) -> Layout | None:
        return None if self._mixes(node) else super().layout(node)

    def macs(self, node: Node, window: Window) -> int:
        cells = math.prod(node.shape[:-1])
        full = node.full_window.area if node.layout is not None else 1
        area = window.area if node.layout is not None else 1
        return cells // full * area * math.prod(node.args[1].shape)


@register_rule("aten.mean", "aten.sum", "aten.amax", "aten.amin", "aten.argmax", "aten.argmin", "aten.var", "aten.std",
               "aten.var_mean", "aten.std_mean", "aten.norm", "aten.linalg_vector_norm", "aten.prod", "aten.logsumexp",
               "aten.all", "aten.any")  # fmt: skip
class Reduce(Rule):
    """Reductions over any axes: free over channels, a barrier on the plane axes they run over."""

    def dims(self, node: Node) -> set[int]:
        """Tensor axes that are reduced."""
        n = node.args[0].ndim
        position = 2 if node.op in ("aten.norm", "aten.linalg_vector_norm") else 1
        dims = node.arg(position, "dim")
        if isinstance(dims, (bool, float)) or dims is None or (isinstance(dims, (list, tuple)) and not dims):
            return set(range(n))
        return {int(d) % n for d in (dims if isinstance(dims, (list, tuple)) else [dims])}

    def layout(self, node: Node) -> Layout | None:
        source = node.args[0].layout
        if source is None:
            return None
        dims = self.dims(node)
        if node.ndim == node.args[0].ndim:
            if source.merged:
                return None if source.y in dims else source
            return Layout(source.y, source.x, node.shape[source.y], node.shape[source.x])
        if {source.y, source.x} & dims:
            return None
        return source.moved(*(axis - sum(d < axis for d in dims) for axis in source.axes))

    def barrier(self, node: Node) -> str | None:
        source = node.args[0].layout
        if source is None or not {source.y, source.x} & self.dims(node):
            return None
        return "reduces over the plane"

    def _demand(self, node: Node, window: Window) -> Demand:
        x = node.args[0]
        if node.layout is None or x.layout is None:
            return whole(x)
        dims, (height, width) = self.dims(node), x.plane
        y = (0, height) if x.layout.y in dims else (window.y0, window.y1)
        cols = (0, width) if x.layout.x in dims else (window.x0, window.x1)
        return Demand(x, Window(*y, *cols), x.layout.axes)

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        yield self._demand(node, window)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        if node.layout is None or node.args[0].layout is None:
            return call(node, {}, read)
        return call(node, {0: read(self._demand(node, window))}, read)


@register_rule("aten.max", "aten.min")
class Extremum(Rule):
    """A reduction, or the element-wise maximum (minimum) of two tensors."""

    def _rule(self, node: Node) -> Rule:
        return _POINTWISE if isinstance(node.arg(1, "other"), Node) else _REDUCE

    def layout(self, node: Node) -> Layout | None:
        return self._rule(node).layout(node)

    def barrier(self, node: Node) -> str | None:
        return self._rule(node).barrier(node)

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        return self._rule(node).demands(node, window)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        return self._rule(node).run(node, window, read)


_POINTWISE, _REDUCE = Pointwise(), Reduce()
