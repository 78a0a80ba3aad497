"""Translations of convolutions, pools, normalisations and matrix products."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tracenet.graph.onnx.op import Op, Translation, translation

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]
"""Padding: top, left, bottom, right, as ONNX orders it."""


def _sides(op: Op, plane: Pair, kernel: Pair, strides: Pair, dilations: Pair) -> Sides:
    auto = op.attr("auto_pad", "NOTSET")
    if auto == "VALID":
        return 0, 0, 0, 0
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for size, k, s, d in zip(plane, kernel, strides, dilations, strict=True):
            total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            small, large = total // 2, total - total // 2
            before.append(small if auto == "SAME_UPPER" else large)
            after.append(large if auto == "SAME_UPPER" else small)
        return before[0], before[1], after[0], after[1]
    if auto != "NOTSET":
        raise op.refusal(f"auto_pad is {auto!r}, which ONNX does not define")
    pads = op.attr("pads", [0, 0, 0, 0])
    if len(pads) != 4:
        raise op.refusal(f"pads are {list(pads)}; two-dimensional planes take four numbers")
    if min(pads) < 0:
        raise op.refusal(f"pads are {list(pads)}; they must not be negative")
    return pads[0], pads[1], pads[2], pads[3]


def _padded(x: Tensor, sides: Sides, fill: float) -> Tensor:
    top, left, bottom, right = sides
    return F.pad(x, (left, right, top, bottom), value=fill) if any(sides) else x


def _symmetric(sides: Sides) -> bool:
    return sides[:2] == sides[2:]


def _kernel(op: Op, weight: Tensor) -> Pair:
    if weight.ndim != 4:
        raise op.refusal(f"its weight has shape {list(weight.shape)}; only two-dimensional kernels can be traced")
    kernel = (weight.shape[2], weight.shape[3])
    if "kernel_shape" in op.node.attributes and op.pair("kernel_shape", 1) != kernel:
        raise op.refusal(f"kernel_shape is {op.pair('kernel_shape', 1)}, but its weight's kernel is {kernel}")
    return kernel


def conv(op: Op, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    plane, kernel = op.plane(x), _kernel(op, weight)
    strides, dilations = op.pair("strides", 1), op.pair("dilations", 1)
    sides = _sides(op, plane, kernel, strides, dilations)
    padding = sides[:2] if _symmetric(sides) else (0, 0)
    if not _symmetric(sides):
        x = _padded(x, sides, 0.0)
    return F.conv2d(x, weight, bias, strides, padding, dilations, op.attr("group", 1))


def conv_transpose(op: Op, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    plane, kernel = op.plane(x), _kernel(op, weight)
    strides, dilations, extra = op.pair("strides", 1), op.pair("dilations", 1), op.pair("output_padding", 0)
    full = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(plane, strides, dilations, kernel, strict=True)]
    sides = _transposed_sides(op, plane, full, strides, extra)
    size = [full[i] + extra[i] - sides[i] - sides[i + 2] for i in (0, 1)]
    groups = op.attr("group", 1)
    missing = [size[i] - (full[i] - 2 * sides[i]) for i in (0, 1)]
    fits = all(0 <= missing[i] < max(strides[i], dilations[i]) for i in (0, 1))
    if fits:
        return F.conv_transpose2d(x, weight, bias, strides, sides[:2], missing, groups, dilations)
    out = F.conv_transpose2d(x, weight, None, strides, 0, 0, groups, dilations)
    top, left = sides[:2]
    out = F.pad(out, (-left, left + size[1] - full[1], -top, top + size[0] - full[0]))
    return out if bias is None else out + bias.view(-1, 1, 1)


def _transposed_sides(op: Op, plane: Pair, full: list[int], strides: Pair, extra: Pair) -> Sides:
    auto, wanted = op.attr("auto_pad", "NOTSET"), op.attr("output_shape", None)
    if auto == "VALID" or (auto == "NOTSET" and wanted is None):
        return _sides(op, plane, (1, 1), strides, (1, 1))
    if auto not in ("NOTSET", "SAME_UPPER", "SAME_LOWER"):
        raise op.refusal(f"auto_pad is {auto!r}, which ONNX does not define")
    if wanted is None:
        wanted = [n * s for n, s in zip(plane, strides, strict=True)]
    if len(wanted) not in (2, 4):
        raise op.refusal(f"output_shape is {list(wanted)}; two-dimensional planes take two numbers")
    totals = [full[i] + extra[i] - wanted[len(wanted) - 2 + i] for i in (0, 1)]
    if min(totals) < 0:
        raise op.refusal(f"output_shape {list(wanted)} is larger than the kernel reaches ({full}); add output_padding")
    # An odd cell is cut off at the beginning, but for SAME_UPPER at the end.
    before = [total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals]
    return before[0], before[1], totals[0] - before[0], totals[1] - before[1]


def _pool(op: Op, x: Tensor) -> tuple[Pair, Pair, Pair, Sides]:
    plane, kernel = op.plane(x), op.pair("kernel_shape", 1)
    op.required("kernel_shape")
    if not x.dtype.is_floating_point:
        raise op.refusal(f"pools {x.dtype}; only floating-point planes can be traced")
    strides, dilations = op.pair("strides", 1), op.pair("dilations", 1)
    sides = _sides(op, plane, kernel, strides, dilations)
    return kernel, strides, dilations, sides


def _inside_kernel(sides: Sides, kernel: Pair) -> bool:
    return _symmetric(sides) and all(2 * sides[i] <= kernel[i] for i in (0, 1))


def max_pool(op: Op, x: Tensor) -> Tensor:
    kernel, strides, dilations, sides = _pool(op, x)
    if op.attr("storage_order", 0):
        raise op.refusal("storage_order 1 orders indices, which a crop cannot give")
    ceil = bool(op.attr("ceil_mode", 0))
    if _inside_kernel(sides, kernel):
        return F.max_pool2d(x, kernel, strides, sides[:2], dilations, ceil)
    if ceil:
        raise op.refusal(f"ceil_mode with pads {list(sides)}; only equal pads of at most half the kernel can be traced")
    return F.max_pool2d(_padded(x, sides, -math.inf), kernel, strides, 0, dilations)


def average_pool(op: Op, x: Tensor) -> Tensor:
    kernel, strides, dilations, sides = _pool(op, x)
    if dilations != (1, 1):
        raise op.refusal(f"dilations are {list(dilations)}; only averages over adjacent cells can be traced")
    ceil, include = bool(op.attr("ceil_mode", 0)), bool(op.attr("count_include_pad", 0))
    if _inside_kernel(sides, kernel):
        return F.avg_pool2d(x, kernel, strides, sides[:2], ceil, include)
    if ceil:
        raise op.refusal(f"ceil_mode with pads {list(sides)}; only equal pads of at most half the kernel can be traced")
    padded = _padded(x, sides, 0.0)
    if include:
        return F.avg_pool2d(padded, kernel, strides)
    cells = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    counts = F.avg_pool2d(_padded(cells, sides, 0.0), kernel, strides, divisor_override=1)
    return F.avg_pool2d(padded, kernel, strides, divisor_override=1) / counts


def global_average_pool(op: Op, x: Tensor) -> Tensor:
    op.plane(x)
    return F.adaptive_avg_pool2d(x, 1)


def global_max_pool(op: Op, x: Tensor) -> Tensor:
    op.plane(x)
    return torch.amax(x, (2, 3), keepdim=True)


def batch_norm(op: Op, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if op.attr("training_mode", 0):
        raise op.refusal("training_mode is 1; export the model in evaluation mode")
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, op.attr("epsilon", 1e-5))


def instance_norm(op: Op, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=op.attr("epsilon", 1e-5))


def group_norm(op: Op, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = op.required("num_groups")
    if op.opset < 21:  # one number per group
        scale, bias = (p.repeat_interleave(x.shape[1] // groups) for p in (scale, bias))
    return F.group_norm(x, groups, scale, bias, op.attr("epsilon", 1e-5))


def layer_norm(op: Op, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = op.axis(op.attr("axis", -1), x.ndim)
    if op.attr("stash_type", 1) != 1:
        raise op.refusal("stash_type is not 1; only statistics in float32 can be traced")
    return F.layer_norm(x, x.shape[axis:], scale, bias, op.attr("epsilon", 1e-5))


def gemm(op: Op, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.t() if op.attr("transA", 0) else a
    alpha, beta = op.attr("alpha", 1.0), op.attr("beta", 1.0)
    if alpha == 1.0 and op.known[1] is not None and (c is None or (beta == 1.0 and c.shape == (b.shape[op_out(op)],))):
        return F.linear(a, b if op.attr("transB", 0) else b.t(), c)
    product = torch.matmul(a, b.t() if op.attr("transB", 0) else b)
    product = product if alpha == 1.0 else product * alpha
    if c is None:
        return product
    return product + (c if beta == 1.0 else c * beta)


def op_out(op: Op) -> int:
    """The axis of Gemm's second operand that its output keeps."""
    return 0 if op.attr("transB", 0) else 1


def matmul(op: Op, a: Tensor, b: Tensor) -> Tensor:
    if op.known[1] is not None and b.ndim == 2 and a.ndim >= 2:
        return F.linear(a, b.t())
    return torch.matmul(a, b)


def prelu(op: Op, x: Tensor, slope: Tensor) -> Tensor:
    per_channel = x.ndim >= 2 and slope.ndim == x.ndim - 1 and slope.shape[0] == slope.numel() == x.shape[1]
    if slope.numel() == 1 or per_channel:
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x >= 0, x, x * slope)


_WINDOW = "auto_pad dilations kernel_shape pads strides"

LAYERS: dict[str, Translation] = {
    "Conv": translation(conv, f"{_WINDOW} group"),
    "ConvTranspose": translation(conv_transpose, f"{_WINDOW} group output_padding output_shape"),
    "MaxPool": translation(max_pool, f"{_WINDOW} ceil_mode storage_order"),
    "AveragePool": translation(average_pool, f"{_WINDOW} ceil_mode count_include_pad"),
    "GlobalAveragePool": translation(global_average_pool),
    "GlobalMaxPool": translation(global_max_pool),
    "BatchNormalization": translation(batch_norm, "epsilon momentum training_mode"),
    "InstanceNormalization": translation(instance_norm, "epsilon"),
    "GroupNormalization": translation(group_norm, "epsilon num_groups stash_type"),
    "LayerNormalization": translation(layer_norm, "axis epsilon stash_type"),
    "Gemm": translation(gemm, "alpha beta transA transB"),
    "MatMul": translation(matmul),
    "PRelu": translation(prelu),
}
