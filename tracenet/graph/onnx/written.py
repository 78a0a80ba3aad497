"""The table of every operation that can be written as standard ONNX operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from tracenet.graph.fold import BATCH_NORMS
from tracenet.graph.graph import Graph, Node
from tracenet.graph.onnx.writer import Writer
from tracenet.rft.rules.convolution import ConvSpec, conv_spec, pair
from tracenet_kernels.errors import UnsupportedOpError

Function = Callable[[Writer, Node], str]
Sides = tuple[int, int, int, int]
"""Padding: top, left, bottom, right, as ONNX orders it."""
_NO_SIDES: Sides = (0, 0, 0, 0)


def _refusal(node: Node, what: str) -> UnsupportedOpError:
    return UnsupportedOpError(f"node {node.name!r} ({node.op}) {what}, which has no standard ONNX form here")


def _dims(value: Any, rank: int) -> list[int]:
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return list(range(rank))
    return [int(d) % rank for d in (value if isinstance(value, (list, tuple)) else [value])]


# Padding, convolutions, pools


def _pads(node: Node) -> list[tuple[int, int]]:
    """Amounts before and after every axis."""
    amounts, rank = list(node.args[1]), node.ndim
    pads = [(0, 0)] * rank
    for i in range(len(amounts) // 2):
        pads[rank - 1 - i] = (int(amounts[2 * i]), int(amounts[2 * i + 1]))
    return pads


def _pad_fill(node: Node) -> float | None:
    """The value of a constant padding; None for other modes."""
    if node.op == "aten.constant_pad_nd":
        return float(node.arg(2, "value", 0.0) or 0.0)
    if node.op == "aten.pad" and node.arg(2, "mode", "constant") == "constant":
        return float(node.arg(3, "value") or 0.0)
    return None


def _sides(node: Any, fill: float) -> Sides | None:
    """Rows and columns of ``fill`` that a node adds around a plane, if it does nothing else."""
    if not isinstance(node, Node) or node.op not in ("aten.pad", "aten.constant_pad_nd") or node.ndim != 4:
        return None
    pads = _pads(node)
    if _pad_fill(node) != fill or pads[:2] != [(0, 0)] * 2 or min(min(p) for p in pads) < 0:
        return None
    return pads[2][0], pads[3][0], pads[2][1], pads[3][1]


def _own_fill(node: Node, padded: Node) -> float | None:
    """What a node pads with, if it can take over the padding of its first operand."""
    if node.operands.count(padded) != 1 or node.args[0] is not padded:
        return None
    if node.op in ("aten.conv2d", "aten.convolution"):
        spec = conv_spec(node)
        return 0.0 if spec.weight.is_constant and not spec.transposed else None
    if node.op not in ("aten.max_pool2d", "aten.max_pool2d_with_indices"):
        return None
    sides, kernel = _sides(padded, -math.inf), pair(node.arg(1, "kernel_size"))
    inside = sides is not None and all(side < kernel[i % 2] for i, side in enumerate(sides))
    return -math.inf if inside and not node.arg(5, "ceil_mode", False) else None


def absorbed_padding(graph: Graph) -> set[Node]:
    """Padding nodes whose readers all can pad by themselves."""
    users, outputs = graph.users(), set(graph.outputs.values())
    absorbed = set()
    for node in graph.nodes:
        fills = {_own_fill(user, node) for user in users[node]} if node.op in WRITTEN_PADS else {None}
        fill = next(iter(fills)) if len(fills) == 1 else None
        if fill is not None and node not in outputs and _sides(node, fill) is not None:
            absorbed.add(node)
    return absorbed


WRITTEN_PADS = ("aten.pad", "aten.constant_pad_nd")


def _source(w: Writer, x: Node, fill: float) -> tuple[str, Sides]:
    """The plane that a node reads and what is padded around it first."""
    if x not in w.absorbed:
        return w.tensor(x), _NO_SIDES
    sides = _sides(x, fill)
    assert sides is not None
    return w.tensor(x.args[0]), sides


def _added(sides: Sides, before: Sequence[int], after: Sequence[int]) -> list[int]:
    return [sides[0] + before[0], sides[1] + before[1], sides[2] + after[0], sides[3] + after[1]]


def convolution(w: Writer, node: Node) -> str:
    spec = conv_spec(node)
    if spec.transposed:
        return _transposed(w, node, spec)
    if not spec.weight.is_constant and _is_product(spec):
        return _product(w, node, spec)
    x, sides = _source(w, spec.x, 0.0)
    parameters = [w.tensor(p) for p in (spec.weight, spec.bias) if p is not None]
    before, after = zip(*spec.padding, strict=True)
    return w.emit(
        "Conv", x, *parameters, strides=spec.stride, pads=_added(sides, before, after), dilations=spec.dilation,
        group=spec.groups, kernel_shape=spec.kernel,
    )  # fmt: skip


def _is_product(spec: ConvSpec) -> bool:
    return spec.kernel == spec.stride == (1, 1) and not any(map(sum, spec.padding)) and spec.x.shape[0] == 1


def _product(w: Writer, node: Node, spec: ConvSpec) -> str:
    """A 1x1 convolution whose weight is an input: one matrix product per group."""
    groups, (height, width) = spec.groups, node.shape[-2:]
    out, inner = node.shape[1], spec.weight.shape[1]
    weight = w.reshape(w.tensor(spec.weight), (groups, out // groups, inner))
    x = w.reshape(w.tensor(spec.x), (groups, inner, height * width))
    result = w.reshape(w.emit("MatMul", weight, x), (1, out, height, width))
    return result if spec.bias is None else w.emit("Add", result, w.reshape(w.tensor(spec.bias), (1, out, 1, 1)))


def _transposed(w: Writer, node: Node, spec: ConvSpec) -> str:
    extra = pair(node.arg(7 if node.op == "aten.convolution" else 5, "output_padding"), 0)
    parameters = [w.tensor(p) for p in (spec.x, spec.weight, spec.bias) if p is not None]
    before, after = zip(*spec.padding, strict=True)
    return w.emit(
        "ConvTranspose", *parameters, strides=spec.stride, pads=[*before, *after], dilations=spec.dilation,
        group=spec.groups, kernel_shape=spec.kernel, output_padding=extra,
    )  # fmt: skip


def max_pool(w: Writer, node: Node) -> str:
    if node.item == 1:
        raise _refusal(node, "gives indices")
    x, sides = _source(w, node.args[0], -math.inf)
    kernel = pair(node.arg(1, "kernel_size"))
    padding = pair(node.arg(3, "padding"), 0)
    return w.emit(
        "MaxPool", x, kernel_shape=kernel, strides=pair(node.arg(2, "stride"), kernel),
        pads=_added(sides, padding, padding), dilations=pair(node.arg(4, "dilation"), 1),
        ceil_mode=int(bool(node.arg(5, "ceil_mode", False))),
    )  # fmt: skip


def average_pool(w: Writer, node: Node) -> str:
    kernel, padding = pair(node.arg(1, "kernel_size")), pair(node.arg(3, "padding"), 0)
    divisor = node.arg(6, "divisor_override")
    if node.arg(4, "ceil_mode", False):
        raise _refusal(node, "rounds its size up")
    result = w.emit(
        "AveragePool", w.tensor(node.args[0]), kernel_shape=kernel, strides=pair(node.arg(2, "stride"), kernel),
        pads=[*padding, *padding],
        count_include_pad=int(divisor is not None or bool(node.arg(5, "count_include_pad", True))),
    )  # fmt: skip
    if divisor is None:
        return result
    return w.emit("Mul", result, w.tensor(kernel[0] * kernel[1] / divisor, node.dtype))


def pad(w: Writer, node: Node) -> str:
    pads, fill = _pads(node), _pad_fill(node)
    mode = "constant"
    if fill is None:
        name = node.op if node.op != "aten.pad" else str(node.args[2])
        mode = next((onnx for ours, onnx in (("refl", "reflect"), ("repl", "edge")) if ours in name), "")
    if not mode:
        raise _refusal(node, "wraps around")
    amounts = w.ints([p[0] for p in pads] + [p[1] for p in pads])
    x = w.tensor(node.args[0])
    return w.emit("Pad", x, amounts, *([] if fill is None else [w.tensor(fill, node.dtype)]), mode=mode)


# Normalisation and products


def batch_norm(w: Writer, node: Node) -> str:
    x, weight, bias, mean, variance = node.args[:5]
    channels = x.shape[1]
    scale = w.tensor(weight) if weight is not None else w.constant(torch.ones(channels, dtype=node.dtype))
    shift = w.tensor(bias) if bias is not None else w.constant(torch.zeros(channels, dtype=node.dtype))
    epsilon = float(node.args[BATCH_NORMS[node.op][1]])
    return w.emit("BatchNormalization", w.tensor(x), scale, shift, w.tensor(mean), w.tensor(variance), epsilon=epsilon)


def _affine(w: Writer, result: str, weight: Node | None, bias: Node | None, shape: Sequence[int]) -> str:
    for kind, parameter in (("Mul", weight), ("Add", bias)):
        if parameter is not None:
            result = w.emit(kind, result, w.reshape(w.tensor(parameter), shape))
    return result


def _normalised(w: Writer, x: Node, groups: int, epsilon: float) -> str:
    """``groups`` of channels with zero mean and unit variance each."""
    flat = w.reshape(w.tensor(x), (x.shape[0], groups, -1))
    one, zero = (w.constant(torch.full((groups,), v, dtype=x.dtype)) for v in (1.0, 0.0))
    return w.reshape(w.emit("InstanceNormalization", flat, one, zero, epsilon=epsilon), x.shape)


def group_norm(w: Writer, node: Node) -> str:
    x, groups, weight, bias = node.args[0], int(node.args[1]), node.arg(2, "weight"), node.arg(3, "bias")
    per_channel = (-1, *[1] * (x.ndim - 2))
    return _affine(w, _normalised(w, x, groups, float(node.arg(4, "eps", 1e-5))), weight, bias, per_channel)


def instance_norm(w: Writer, node: Node) -> str:
    x, weight, bias, mean, variance, batch_statistics, _, epsilon = node.args[:8]
    if not batch_statistics:
        one, zero = (w.constant(torch.full((x.shape[1],), v, dtype=x.dtype)) for v in (1.0, 0.0))
        parameters = (w.tensor(weight) if weight is not None else one, w.tensor(bias) if bias is not None else zero)
        statistics = (w.tensor(mean), w.tensor(variance))
        return w.emit("BatchNormalization", w.tensor(x), *parameters, *statistics, epsilon=float(epsilon))
    per_channel = (-1, *[1] * (x.ndim - 2))
    return _affine(w, _normalised(w, x, x.shape[1], float(epsilon)), weight, bias, per_channel)


def layer_norm(w: Writer, node: Node) -> str:
    x, shape = node.args[0], list(node.args[1])
    weight, bias = node.arg(2, "weight"), node.arg(3, "bias")
    scale = w.tensor(weight) if weight is not None else w.constant(torch.ones(shape, dtype=node.dtype))
    inputs = [w.tensor(x), scale, *([] if bias is None else [w.tensor(bias)])]
    return w.emit("LayerNormalization", *inputs, axis=-len(shape), epsilon=float(node.arg(4, "eps", 1e-5)))


def linear(w: Writer, node: Node) -> str:
    x, weight, bias = node.args[0], node.args[1], node.arg(2, "bias")
    result = w.emit("MatMul", w.tensor(x), w.emit("Transpose", w.tensor(weight), perm=[1, 0]))
    return result if bias is None else w.emit("Add", result, w.tensor(bias))


def matmul(w: Writer, node: Node) -> str:
    return w.emit("MatMul", w.tensor(node.args[0]), w.tensor(node.args[1]))


def added_product(w: Writer, node: Node) -> str:
    bias, a, b = node.args[:3]
    beta, alpha = node.arg(3, "beta", 1), node.arg(4, "alpha", 1)
    product = w.emit("MatMul", w.tensor(a), w.tensor(b))
    if alpha != 1:
        product = w.emit("Mul", product, w.tensor(alpha, node.dtype))
    added = w.tensor(bias) if beta == 1 else w.emit("Mul", w.tensor(bias), w.tensor(beta, node.dtype))
    return w.emit("Add", product, added)


def attention(w: Writer, node: Node) -> str:
    q, k, v = node.args[:3]
    if node.arg(5, "is_causal", False):
        raise _refusal(node, "is causal")
    mask, scale = node.arg(3, "attn_mask"), node.arg(6, "scale")
    factor = w.tensor(1 / math.sqrt(q.shape[-1]) if scale is None else scale, node.dtype)
    perm = [*range(k.ndim - 2), k.ndim - 1, k.ndim - 2]
    scores = w.emit("MatMul", w.emit("Mul", w.tensor(q), factor), w.emit("Transpose", w.tensor(k), perm=perm))
    if mask is not None and mask.dtype == torch.bool:
        scores = w.emit("Where", w.tensor(mask), scores, w.tensor(-math.inf, node.dtype))
    elif mask is not None:
        scores = w.emit("Add", scores, w.tensor(mask))
    return w.emit("MatMul", w.emit("Softmax", scores, axis=-1), w.tensor(v))


# Element-wise


def _unary(kind: str, **attributes: Any) -> Function:
    return lambda w, node: w.emit(kind, w.tensor(node.args[0], node.dtype), **attributes)


def _binary(kind: str) -> Function:
    def write(w: Writer, node: Node) -> str:
        operands = node.args[0], node.arg(1, "other")
        if kind == "Sub" and node.op == "aten.rsub":
            operands = operands[::-1]
        alpha = node.arg(2, "alpha", 1) if kind in ("Add", "Sub") else 1
        names = [w.tensor(operand, node.dtype) for operand in operands]
        if alpha != 1:
            names[1] = w.emit("Mul", names[1], w.tensor(alpha, node.dtype))
        return w.emit(kind, *names)

    return write


def _logical(kind: str) -> Function:
    """A bitwise operation, which on truth values is a logical one."""

    def write(w: Writer, node: Node) -> str:
        if node.dtype != torch.bool:
            raise _refusal(node, f"combines the bits of {node.dtype}")
        return w.emit(kind, *(w.tensor(operand) for operand in node.operands))

    return write


def divide(w: Writer, node: Node) -> str:
    rounding = node.kwargs.get("rounding_mode")
    if rounding is not None:
        raise _refusal(node, f"rounds in mode {rounding!r}")
    return _binary("Div")(w, node)


def _compared(kind: str) -> Function:
    def write(w: Writer, node: Node) -> str:
        a, b = node.args[0], node.arg(1, "other")
        dtype = torch.result_type(*(torch.empty(v.shape, dtype=v.dtype) if isinstance(v, Node) else v for v in (a, b)))
        if dtype == torch.bool:
            dtype = torch.int32
        result = w.emit(kind.removeprefix("Not"), w.tensor(a, dtype), w.tensor(b, dtype))
        return w.emit("Not", result) if kind.startswith("Not") else result

    return write


def power(w: Writer, node: Node) -> str:
    return w.emit("Pow", w.tensor(node.args[0], node.dtype), w.tensor(node.args[1], node.dtype))


def _bounded(w: Writer, node: Node, low: Any, high: Any) -> str:
    x = w.tensor(node.args[0], node.dtype)
    if low is not None:
        x = w.emit("Max", x, w.tensor(low, node.dtype))
    return x if high is None else w.emit("Min", x, w.tensor(high, node.dtype))


def clamp(w: Writer, node: Node) -> str:
    return _bounded(w, node, node.arg(1, "min"), node.arg(2, "max"))


def hard_tanh(w: Writer, node: Node) -> str:
    return _bounded(w, node, node.arg(1, "min_val", -1.0), node.arg(2, "max_val", 1.0))


def silu(w: Writer, node: Node) -> str:
    x = w.tensor(node.args[0])
    return w.emit("Mul", x, w.emit("Sigmoid", x))


def mish(w: Writer, node: Node) -> str:
    x = w.tensor(node.args[0])
    return w.emit("Mul", x, w.emit("Tanh", w.emit("Softplus", x)))


def gelu(w: Writer, node: Node) -> str:
    x = w.tensor(node.args[0])

    def number(value: float) -> str:
        return w.tensor(value, node.dtype)

    if node.kwargs.get("approximate", "none") == "tanh":
        cubed = w.emit("Mul", w.emit("Mul", w.emit("Mul", x, x), x), number(0.044715))
        inner = w.emit("Tanh", w.emit("Mul", w.emit("Add", x, cubed), number(math.sqrt(2 / math.pi))))
    else:
        inner = w.emit("Erf", w.emit("Mul", x, number(math.sqrt(0.5))))
    return w.emit("Mul", w.emit("Mul", x, number(0.5)), w.emit("Add", inner, number(1.0)))


def softplus(w: Writer, node: Node) -> str:
    beta = float(node.arg(1, "beta", 1))
    x = w.tensor(node.args[0])
    if beta == 1.0:
        return w.emit("Softplus", x)
    return w.emit("Div", w.emit("Softplus", w.emit("Mul", x, w.tensor(beta, node.dtype))), w.tensor(beta, node.dtype))


def leaky_relu(w: Writer, node: Node) -> str:
    return w.emit("LeakyRelu", w.tensor(node.args[0]), alpha=float(node.arg(1, "negative_slope", 0.01)))


def elu(w: Writer, node: Node) -> str:
    if (node.arg(2, "scale", 1), node.arg(3, "input_scale", 1)) != (1, 1):
        raise _refusal(node, "scales its input or output")
    return w.emit("Elu", w.tensor(node.args[0]), alpha=float(node.arg(1, "alpha", 1.0)))


def prelu(w: Writer, node: Node) -> str:
    x, slope = node.args[:2]
    return w.emit("PRelu", w.tensor(x), w.reshape(w.tensor(slope), (-1, *[1] * max(x.ndim - 2, 0))))


def glu(w: Writer, node: Node) -> str:
    x = node.args[0]
    axis = int(node.arg(1, "dim", -1)) % x.ndim
    half, name = x.shape[axis] // 2, w.tensor(x)
    return w.emit("Mul", w.slice(name, axis, 0, half), w.emit("Sigmoid", w.slice(name, axis, half, 2 * half)))


def square(w: Writer, node: Node) -> str:
    x = w.tensor(node.args[0])
    return w.emit("Mul", x, x)


def rsqrt(w: Writer, node: Node) -> str:
    return w.emit("Reciprocal", w.emit("Sqrt", w.tensor(node.args[0])))


def where(w: Writer, node: Node) -> str:
    condition, a, b = node.args[:3]
    return w.emit("Where", w.tensor(condition, torch.bool), w.tensor(a, node.dtype), w.tensor(b, node.dtype))


def masked_fill(w: Writer, node: Node) -> str:
    x, mask, value = node.args[:3]
    return w.emit("Where", w.tensor(mask, torch.bool), w.tensor(value, node.dtype), w.tensor(x))


def softmax(w: Writer, node: Node) -> str:
    kind = "LogSoftmax" if "log" in node.op else "Softmax"
    return w.emit(kind, w.tensor(node.args[0], node.dtype), axis=int(node.args[1]))


def _reduced(kind: str) -> Function:
    def write(w: Writer, node: Node) -> str:
        x = node.args[0]
        axes, keep = _dims(node.arg(1, "dim"), x.ndim), int(node.ndim == x.ndim)
        name = w.tensor(x, node.dtype)
        if kind == "ReduceSum":  # the only one that takes its axes as an input in this set
            return w.emit(kind, name, w.ints(axes), keepdims=keep)
        return w.emit(kind, name, axes=axes, keepdims=keep)

    return write


def extremum(w: Writer, node: Node) -> str:
    kind = node.op.removeprefix("aten.").title()
    if isinstance(node.arg(1, "other"), Node):
        return w.emit(kind, w.tensor(node.args[0], node.dtype), w.tensor(node.args[1], node.dtype))
    if node.item == 1:
        raise _refusal(node, "gives indices")
    return _reduced(f"Reduce{kind}")(w, node)


def adaptive_pool(w: Writer, node: Node) -> str:
    if tuple(node.shape[-2:]) != (1, 1):
        raise _refusal(node, "pools to a grid")
    return w.emit("GlobalMaxPool" if "max" in node.op else "GlobalAveragePool", w.tensor(node.args[0]))


# Shapes


def unchanged(w: Writer, node: Node) -> str:
    return w.tensor(node.args[0], node.dtype)


def reshape(w: Writer, node: Node) -> str:
    x = node.args[0]
    return w.tensor(x) if x.shape == node.shape else w.reshape(w.tensor(x), node.shape)


def expand(w: Writer, node: Node) -> str:
    x = node.args[0]
    return w.tensor(x) if x.shape == node.shape else w.emit("Expand", w.tensor(x), w.ints(node.shape))


def permute(w: Writer, node: Node) -> str:
    from tracenet.rft.rules.reshape import Permute

    return w.emit("Transpose", w.tensor(node.args[0]), perm=Permute().moved(node))


def slices(w: Writer, node: Node) -> str:
    x = node.args[0]
    axis = int(node.arg(1, "dim", 0)) % x.ndim
    start, stop, step = node.arg(2, "start"), node.arg(3, "end"), int(node.arg(4, "step", 1))
    if node.op == "aten.narrow":
        start = int(node.args[2]) % max(x.shape[axis], 1)
        stop, step = start + int(node.args[3]), 1
    kept = range(*slice(start, stop, step).indices(x.shape[axis]))
    if len(kept) == x.shape[axis]:
        return w.tensor(x)
    return w.slice(w.tensor(x), axis, kept.start, kept.stop, step)


def select(w: Writer, node: Node) -> str:
    x, axis = node.args[0], int(node.args[1]) % node.args[0].ndim
    index = torch.tensor(int(node.args[2]) % x.shape[axis])
    return w.emit("Gather", w.tensor(x), w.constant(index), axis=axis)


def index_select(w: Writer, node: Node) -> str:
    x, axis, taken = node.args[0], int(node.args[1]) % node.ndim, node.args[2]
    if taken.value is not None and torch.equal(taken.value, torch.arange(x.shape[axis])):
        return w.tensor(x)
    return w.emit("Gather", w.tensor(x), w.tensor(taken), axis=axis)


def index(w: Writer, node: Node) -> str:
    given = [(axis, value) for axis, value in enumerate(node.args[1]) if value is not None]
    if len(given) != 1 or given[0][1].dtype != torch.int64:
        raise _refusal(node, "indexes several axes or by a mask")
    axis, values = given[0]
    return w.emit("Gather", w.tensor(node.args[0]), w.tensor(values), axis=axis)


def concatenate(w: Writer, node: Node) -> str:
    parts = [part for part in node.args[0] if math.prod(part.shape)]
    axis = int(node.arg(1, "dim", 0)) % node.ndim
    return w.emit("Concat", *(w.tensor(part, node.dtype) for part in parts), axis=axis)


def stack(w: Writer, node: Node) -> str:
    axis = int(node.arg(1, "dim", 0)) % node.ndim
    parts = [w.emit("Unsqueeze", w.tensor(part, node.dtype), w.ints([axis])) for part in node.args[0]]
    return w.emit("Concat", *parts, axis=axis)


def slice_scatter(w: Writer, node: Node) -> str:
    x, source = node.args[:2]
    axis = int(node.arg(2, "dim", 0)) % node.ndim
    kept = range(*slice(node.arg(3, "start"), node.arg(4, "end"), node.arg(5, "step", 1)).indices(x.shape[axis]))
    if kept.step != 1:
        raise _refusal(node, "writes with a step")
    parts = [w.tensor(source, node.dtype)]
    if kept.start > 0:
        parts.insert(0, w.slice(w.tensor(x), axis, 0, kept.start))
    if kept.stop < x.shape[axis]:
        parts.append(w.slice(w.tensor(x), axis, kept.stop, x.shape[axis]))
    return w.emit("Concat", *parts, axis=axis)


def index_copy(w: Writer, node: Node) -> str:
    """``x`` with ``source`` at a fixed index along one axis: a selection from both, one after the other."""
    x, axis, index, source = node.args[0], int(node.args[1]) % node.ndim, node.args[2], node.args[3]
    if not index.is_constant:
        raise _refusal(node, "writes to an index computed from data")
    taken = torch.arange(x.shape[axis])
    taken[index.value] = x.shape[axis] + torch.arange(source.shape[axis])
    both = w.emit("Concat", w.tensor(x), w.tensor(source, node.dtype), axis=axis)
    return w.emit("Gather", both, w.constant(taken), axis=axis)


def copy(w: Writer, node: Node) -> str:
    source = node.args[1]
    name = w.tensor(source, node.dtype)
    return name if source.shape == node.shape else w.emit("Expand", name, w.ints(node.shape))


def flip(w: Writer, node: Node) -> str:
    name = w.tensor(node.args[0])
    for axis in (int(d) % node.ndim for d in node.args[1]):
        name = w.slice(name, axis, -1, np.iinfo(np.int64).min, -1)
    return name


def roll(w: Writer, node: Node) -> str:
    name = w.tensor(node.args[0])
    shifts, dims = (list(v) if isinstance(v, (list, tuple)) else [v] for v in node.args[1:3])
    for shift, dim in zip(shifts, dims, strict=True):
        axis, length = dim % node.ndim, node.shape[dim]
        cut = length - shift % length
        name = w.emit("Concat", w.slice(name, axis, cut, length), w.slice(name, axis, 0, cut), axis=axis)
    return name


def repeat(w: Writer, node: Node) -> str:
    x, times = node.args[0], list(node.args[1])
    name = w.reshape(w.tensor(x), [1] * (len(times) - x.ndim) + list(x.shape)) if len(times) > x.ndim else w.tensor(x)
    return w.emit("Tile", name, w.ints(times))


def pixel_shuffle(w: Writer, node: Node) -> str:
    x, r = node.args[0], int(node.args[1])
    (n, c, h, width), name = x.shape, w.tensor(x)
    if node.op == "aten.pixel_shuffle":
        return w.emit("DepthToSpace", name, blocksize=r, mode="CRD")
    blocks = w.reshape(name, (n, c, h // r, r, width // r, r))
    return w.reshape(w.emit("Transpose", blocks, perm=[0, 1, 3, 5, 2, 4]), node.shape)


_UNARY = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "hardswish": "HardSwish", "erf": "Erf", "sqrt": "Sqrt",
    "neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "reciprocal": "Reciprocal", "floor": "Floor",
    "ceil": "Ceil", "round": "Round", "sign": "Sign", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin",
    "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "selu": "Selu", "logical_not": "Not",
}  # fmt: skip

_TABLE: dict[str, Function] = {
    **{name: _unary(kind) for name, kind in _UNARY.items()},
    **{name: _binary(kind) for name, kind in (("add", "Add"), ("sub", "Sub"), ("rsub", "Sub"), ("mul", "Mul"),
                                              ("maximum", "Max"), ("minimum", "Min"), ("logical_and", "And"),
                                              ("logical_or", "Or"), ("logical_xor", "Xor"))},
    **{name: _logical(kind) for name, kind in (("__and__", "And"), ("__or__", "Or"), ("__xor__", "Xor"),
                                               ("bitwise_and", "And"), ("bitwise_or", "Or"), ("bitwise_xor", "Xor"),
                                               ("bitwise_not", "Not"))},
    **{name: _compared(kind) for name, kind in (("eq", "Equal"), ("ne", "NotEqual"), ("gt", "Greater"), ("lt", "Less"),
                                                ("ge", "GreaterOrEqual"), ("le", "LessOrEqual"))},
    **{name: _reduced(kind) for name, kind in (("mean", "ReduceMean"), ("sum", "ReduceSum"), ("amax", "ReduceMax"),
                                               ("amin", "ReduceMin"), ("logsumexp", "ReduceLogSumExp"))},
    **dict.fromkeys("""alias detach clone contiguous lift_fresh lift_fresh_copy to _to_copy type_as dropout
                       feature_dropout alpha_dropout""".split(), unchanged),
    **dict.fromkeys("""view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as""".split(),
                    reshape),
    **dict.fromkeys("expand broadcast_to expand_as".split(), expand),
    **dict.fromkeys("permute transpose t mT movedim moveaxis swapaxes swapdims".split(), permute),
    **dict.fromkeys("pad constant_pad_nd reflection_pad2d replication_pad2d".split(), pad),
    **dict.fromkeys("conv2d convolution conv_transpose2d".split(), convolution),
    **dict.fromkeys("batch_norm _native_batch_norm_legit_no_training".split(), batch_norm),
    **dict.fromkeys("softmax _softmax log_softmax _log_softmax".split(), softmax),
    **dict.fromkeys("max_pool2d max_pool2d_with_indices".split(), max_pool),
    **dict.fromkeys("adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d".split(), adaptive_pool),
    **dict.fromkeys("div true_divide".split(), divide),
    **dict.fromkeys("matmul bmm mm".split(), matmul),
    **dict.fromkeys("addmm baddbmm".split(), added_product),
    **dict.fromkeys("cat concat concatenate".split(), concatenate),
    **dict.fromkeys("max min".split(), extremum),
    **dict.fromkeys("slice narrow".split(), slices),
    **dict.fromkeys("pixel_shuffle pixel_unshuffle".split(), pixel_shuffle),
    "avg_pool2d": average_pool, "group_norm": group_norm, "instance_norm": instance_norm, "layer_norm": layer_norm,
    "linear": linear, "scaled_dot_product_attention": attention, "pow": power, "clamp": clamp, "hardtanh": hard_tanh,
    "relu6": lambda w, node: _bounded(w, node, 0.0, 6.0),
    "clamp_min": lambda w, node: _bounded(w, node, node.args[1], None),
    "clamp_max": lambda w, node: _bounded(w, node, None, node.args[1]),
    "hardsigmoid": lambda w, node: w.emit("HardSigmoid", w.tensor(node.args[0]), alpha=1 / 6, beta=0.5),
    "silu": silu, "mish": mish, "gelu": gelu, "softplus": softplus, "leaky_relu": leaky_relu, "elu": elu,
    "prelu": prelu, "glu": glu, "square": square, "rsqrt": rsqrt, "where": where, "masked_fill": masked_fill,
    "select": select, "index_select": index_select, "index": index, "stack": stack, "slice_scatter": slice_scatter,
    "index_copy": index_copy, "copy": copy, "flip": flip, "roll": roll, "repeat": repeat,
}  # fmt: skip

WRITTEN: Mapping[str, Function] = MappingProxyType({f"aten.{name}": function for name, function in _TABLE.items()})
