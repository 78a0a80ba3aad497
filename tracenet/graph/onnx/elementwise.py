"""Translations of element-wise operations, comparisons, reductions and softmax."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tracenet.graph.onnx.model import DTYPES
from tracenet.graph.onnx.op import Function, Op, Translation, translation


def _plain(function: Callable[..., Tensor]) -> Function:
    """An operation without attributes that PyTorch has under another name."""
    return lambda op, *inputs: function(*inputs)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    """An operation over any number of inputs, two at a time."""
    return lambda op, *inputs: functools.reduce(function, inputs)


def mean(op: Op, *inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs) / len(inputs)


def divide(op: Op, a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b) if a.dtype.is_floating_point else torch.div(a, b, rounding_mode="trunc")


def power(op: Op, x: Tensor, exponent: Tensor) -> Tensor:
    known = op.known[1]
    if known is not None and known.size == 1 and exponent.ndim <= x.ndim:
        return torch.pow(x, known.reshape(-1)[0].item()).to(x.dtype)
    return torch.pow(x, exponent).to(x.dtype)


def modulo(op: Op, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if op.attr("fmod", 0) else torch.remainder(a, b)


def leaky_relu(op: Op, x: Tensor) -> Tensor:
    return F.leaky_relu(x, op.attr("alpha", 0.01))


def elu(op: Op, x: Tensor) -> Tensor:
    return F.elu(x, op.attr("alpha", 1.0))


def celu(op: Op, x: Tensor) -> Tensor:
    return F.celu(x, op.attr("alpha", 1.0))


_SELU = (1.6732632423543772, 1.0507009873554805)


def selu(op: Op, x: Tensor) -> Tensor:
    alpha, gamma = op.attr("alpha", _SELU[0]), op.attr("gamma", _SELU[1])
    return gamma * torch.where(x > 0, x, alpha * (torch.exp(x) - 1))


def thresholded_relu(op: Op, x: Tensor) -> Tensor:
    return torch.where(x > op.attr("alpha", 1.0), x, torch.zeros_like(x))


def gelu(op: Op, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=op.attr("approximate", "none"))


def hard_sigmoid(op: Op, x: Tensor) -> Tensor:
    alpha, beta = op.attr("alpha", 0.2), op.attr("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def softplus(op: Op, x: Tensor) -> Tensor:
    return F.softplus(x)


def clip(op: Op, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    live = [bound for i, bound in ((1, low), (2, high)) if bound is not None and op.known[i] is None]
    if live:
        x = x if low is None else torch.maximum(x, low)
        return x if high is None else torch.minimum(x, high)
    bounds = op.number("min", 1), op.number("max", 2)
    if bounds == (0, 6) and x.dtype.is_floating_point:
        return F.relu6(x)
    return torch.clamp(x, *bounds) if bounds != (None, None) else x.clone()


def cast(op: Op, x: Tensor) -> Tensor:
    dtype = DTYPES.get(op.required("to"))
    if dtype is None:
        raise op.refusal(f"casts to data type {op.required('to')}, which cannot be traced")
    return x.to(dtype)


def cast_like(op: Op, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def softmax(op: Op, x: Tensor) -> Tensor:
    function = torch.log_softmax if op.kind == "LogSoftmax" else torch.softmax
    axis = op.axis(op.attr("axis", -1 if op.opset >= 13 else 1), x.ndim)
    if op.opset >= 13 or axis == x.ndim - 1:
        return function(x, axis)
    return function(x.flatten(axis), axis).reshape(x.shape)  # older sets take all trailing axes together


def _axes(op: Op, x: Tensor) -> list[int] | None:
    """Axes of a reduction; None where it changes nothing."""
    axes = op.ints("axes", 1)
    if not axes:
        return None if op.attr("noop_with_empty_axes", 0) else list(range(x.ndim))
    return [op.axis(axis, x.ndim) for axis in axes]


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Translation:
    def reduce(op: Op, x: Tensor, axes: Tensor | None = None) -> Tensor:
        over = _axes(op, x)
        return x.clone() if over is None else function(x, over, bool(op.attr("keepdims", 1)))

    return translation(reduce, "axes keepdims noop_with_empty_axes")


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def arg_extremum(op: Op, x: Tensor) -> Tensor:
    if op.attr("select_last_index", 0):
        raise op.refusal("select_last_index is 1; only the first of equal values can be traced")
    function = torch.argmax if op.kind == "ArgMax" else torch.argmin
    return function(x, op.axis(op.attr("axis", 0), x.ndim), bool(op.attr("keepdims", 1)))


def is_infinite(op: Op, x: Tensor) -> Tensor:
    if (op.attr("detect_negative", 1), op.attr("detect_positive", 1)) != (1, 1):
        raise op.refusal("looks for one sign of infinity only; both can be traced")
    return torch.isinf(x)


_PLAIN: dict[str, Callable[..., Tensor]] = {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "HardSwish": F.hardswish, "Mish": F.mish,
    "Softsign": F.softsign, "Erf": torch.erf, "Sqrt": torch.sqrt, "Neg": torch.neg, "Abs": torch.abs,
    "Exp": torch.exp, "Log": torch.log, "Reciprocal": torch.reciprocal, "Floor": torch.floor, "Ceil": torch.ceil,
    "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan,
    "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh,
    "IsNaN": torch.isnan, "Not": torch.logical_not, "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "Equal": torch.eq,
    "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le,
    "Where": torch.where,
}  # fmt: skip

ELEMENTWISE: dict[str, Translation] = {
    **{name: translation(_plain(function)) for name, function in _PLAIN.items()},
    "Sum": translation(_folded(torch.add)),
    "Min": translation(_folded(torch.minimum)),
    "Max": translation(_folded(torch.maximum)),
    "Mean": translation(mean),
    "Div": translation(divide),
    "Pow": translation(power),
    "Mod": translation(modulo, "fmod"),
    "LeakyRelu": translation(leaky_relu, "alpha"),
    "Elu": translation(elu, "alpha"),
    "Celu": translation(celu, "alpha"),
    "Selu": translation(selu, "alpha gamma"),
    "ThresholdedRelu": translation(thresholded_relu, "alpha"),
    "Gelu": translation(gelu, "approximate"),
    "HardSigmoid": translation(hard_sigmoid, "alpha beta"),
    "Softplus": translation(softplus),
    "Clip": translation(clip, "min max"),
    "Cast": translation(cast, "to saturate"),
    "CastLike": translation(cast_like, "saturate"),
    "Softmax": translation(softmax, "axis"),
    "LogSoftmax": translation(softmax, "axis"),
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMin": _reduction(torch.amin),
    "ReduceProd": _reduction(_product),
    "ReduceL1": _reduction(lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keep))),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: torch.sum(x * x, axes, keep)),
    "ReduceLogSum": _reduction(lambda x, axes, keep: torch.log(torch.sum(x, axes, keep))),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ArgMax": translation(arg_extremum, "axis keepdims select_last_index"),
    "ArgMin": translation(arg_extremum, "axis keepdims select_last_index"),
    "IsInf": translation(is_infinite, "detect_negative detect_positive"),
}
