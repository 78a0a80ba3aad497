"""Translations of what moves values without computing: shapes, axes, slices, pads, gathers, constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tracenet.graph.onnx.op import Op, Translation, translation


def constant(op: Op) -> Tensor:
    found = [name for name in ("value", "value_float", "value_floats", "value_int", "value_ints")
             if name in op.node.attributes]  # fmt: skip
    if len(found) != 1:
        raise op.refusal(f"holds {sorted(op.node.attributes)}; only numbers and dense tensors can be traced")
    value: Any = op.node.attributes[found[0]]
    if found[0] == "value":
        return value
    return torch.tensor(value, dtype=torch.float32 if "float" in found[0] else torch.int64)


def constant_of_shape(op: Op, shape: Tensor) -> Tensor:
    value = op.attr("value", torch.zeros(1))
    if value.numel() != 1:
        raise op.refusal(f"value has {value.numel()} elements; it must have one")
    sizes = op.value(0, "the shape").reshape(-1).tolist()
    return torch.full(sizes, value.reshape(-1)[0].item(), dtype=value.dtype, device=op.device)


def number_range(op: Op, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    values = [op.number(name, i) for i, name in enumerate(("start", "limit", "delta"))]
    return torch.arange(*values, dtype=start.dtype, device=op.device)


def shape(op: Op, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[slice(op.attr("start", None), op.attr("end", None))], dtype=torch.int64)


def size(op: Op, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def identity(op: Op, x: Tensor) -> Tensor:
    return x


def dropout(op: Op, x: Tensor, *rest: Tensor | None) -> Tensor:
    if op.given(2) and op.number("training_mode", 2):
        raise op.refusal("training_mode is on; export the model in evaluation mode")
    return x


def reshape(op: Op, x: Tensor, target: Tensor) -> Tensor:
    sizes = op.ints("shape", 1) or []
    if not op.attr("allowzero", 0):
        if any(size == 0 and axis >= x.ndim for axis, size in enumerate(sizes)):
            raise op.refusal(f"shape {sizes} copies an axis that its input {list(x.shape)} does not have")
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(op: Op, x: Tensor) -> Tensor:
    axis = int(op.attr("axis", 1))
    axis = axis if axis == x.ndim else op.axis(axis, x.ndim)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(op: Op, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = op.ints("axes", 1)
    dropped = [axis for axis in range(x.ndim) if x.shape[axis] == 1]
    if given is not None:
        dropped = [op.axis(axis, x.ndim) for axis in given]
        if any(x.shape[axis] != 1 for axis in dropped):
            raise op.refusal(f"axes {given} are to be dropped, but the shape is {list(x.shape)}")
    return torch.squeeze(x, dropped) if dropped else x


def unsqueeze(op: Op, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = op.ints("axes", 1) or []
    for axis in sorted(op.axis(axis, x.ndim + len(given)) for axis in given):
        x = torch.unsqueeze(x, axis)
    return x


def transpose(op: Op, x: Tensor) -> Tensor:
    return x.permute(op.attr("perm", list(range(x.ndim))[::-1]))


def concat(op: Op, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, op.axis(op.required("axis"), inputs[0].ndim))


def split(op: Op, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis, parts = op.axis(op.attr("axis", 0), x.ndim), op.ints("split", 1)
    if parts is None:
        count = op.attr("num_outputs", len(op.node.outputs))
        each = -(-x.shape[axis] // count)
        parts = [min(each, max(x.shape[axis] - i * each, 0)) for i in range(count)]
    if sum(parts) != x.shape[axis] or min(parts, default=0) < 0:
        raise op.refusal(f"splits {x.shape[axis]} cells into parts of {parts}")
    return torch.split(x, parts, axis)


def slices(op: Op, x: Tensor, *rest: Tensor | None) -> Tensor:
    starts, ends = op.ints("starts", 1), op.ints("ends", 2)
    if starts is None or ends is None:
        raise op.refusal("has no starts or no ends")
    axes, steps = op.ints("axes", 3) or list(range(len(starts))), op.ints("steps", 4) or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise op.refusal(f"starts {starts}, ends {ends}, axes {axes} and steps {steps} do not fit together")
    for start, end, raw_axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = op.axis(raw_axis, x.ndim)
        kept = range(*slice(start, end, step).indices(x.shape[axis]))
        if step < 0:
            x = _take(op, x, axis, list(kept))
        elif len(kept) != x.shape[axis]:
            x = x[(slice(None),) * axis + (slice(kept.start, max(kept.stop, kept.start), step),)]
    return x


def _take(op: Op, x: Tensor, axis: int, index: list[int]) -> Tensor:
    return torch.index_select(x, axis, torch.tensor(index, dtype=torch.int64, device=op.device))


_PAD_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def pad(op: Op, x: Tensor, *rest: Tensor | None) -> Tensor:
    mode, pads = op.attr("mode", "constant"), op.ints("pads", 1)
    axes = [op.axis(axis, x.ndim) for axis in op.ints("axes", 3) or range(x.ndim)]
    if pads is None or len(pads) != 2 * len(axes):
        raise op.refusal(f"pads are {pads}; its {len(axes)} axes take two numbers each")
    amounts = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    used = [axis for axis, pair in amounts.items() if pair != (0, 0)]
    if not used:
        return x
    if mode == "constant":
        fill = op.number("constant_value", 2) if op.opset >= 11 else op.attr("value", 0.0)
        return F.pad(x, _torch_pads(amounts, x.ndim, min(used)), value=0 if fill is None else fill)
    if mode not in _PAD_MODES:
        raise op.refusal(f"mode is {mode!r}, which ONNX does not define")
    if x.ndim != 4 or min(used) < 2 or min(min(amounts[axis]) for axis in used) < 0:
        raise op.refusal(f"pads {pads} in mode {mode!r}: only rows and columns can be padded so, by positive amounts")
    if mode != "edge" and any(max(amounts[axis]) >= x.shape[axis] + (mode == "wrap") for axis in used):
        raise op.refusal(f"pads {pads} in mode {mode!r} reach further than the plane of {list(x.shape[2:])}")
    return F.pad(x, _torch_pads(amounts, x.ndim, 2), mode=_PAD_MODES[mode])


def _torch_pads(amounts: dict[int, tuple[int, int]], rank: int, first: int) -> list[int]:
    """Amounts from the last axis to axis ``first``, as PyTorch orders them."""
    return [amount for axis in range(rank - 1, first - 1, -1) for amount in amounts.get(axis, (0, 0))]


def gather(op: Op, x: Tensor, indices: Tensor) -> Tensor:
    axis = op.axis(op.attr("axis", 0), x.ndim)
    index = op.value(1, "the index").astype(np.int64)
    length = x.shape[axis]
    if index.size and (index.min() < -length or index.max() >= length):
        raise op.refusal(f"indices {index.min()} to {index.max()} do not lie in an axis of {length}")
    index = np.where(index < 0, index + length, index)
    if index.ndim == 0:
        return torch.select(x, axis, int(index))
    taken = _take(op, x, axis, index.reshape(-1).tolist())
    return taken if index.ndim == 1 else taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def expand(op: Op, x: Tensor, target: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(op.ints("shape", 1) or ())))


def tile(op: Op, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(op.ints("repeats", 1) or [])


def depth_to_space(op: Op, x: Tensor) -> Tensor:
    height, width = op.plane(x)
    r, mode = op.required("blocksize"), op.attr("mode", "DCR")
    if mode == "CRD":
        return F.pixel_shuffle(x, r)
    if mode != "DCR":
        raise op.refusal(f"mode is {mode!r}; DCR and CRD can be traced")
    n, c = x.shape[:2]
    blocks = x.reshape(n, r, r, c // (r * r), height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // (r * r), height * r, width * r)


def space_to_depth(op: Op, x: Tensor) -> Tensor:
    height, width = op.plane(x)
    r, (n, c) = op.required("blocksize"), x.shape[:2]
    blocks = x.reshape(n, c, height // r, r, width // r, r).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * r * r, height // r, width // r)


SHAPES: dict[str, Translation] = {
    "Constant": translation(
        constant, "value value_float value_floats value_int value_ints value_string value_strings sparse_value"
    ),
    "ConstantOfShape": translation(constant_of_shape, "value"),
    "Range": translation(number_range),
    "Shape": translation(shape, "start end"),
    "Size": translation(size),
    "Identity": translation(identity),
    "Dropout": translation(dropout, "ratio seed"),
    "Reshape": translation(reshape, "allowzero"),
    "Flatten": translation(flatten, "axis"),
    "Squeeze": translation(squeeze, "axes"),
    "Unsqueeze": translation(unsqueeze, "axes"),
    "Transpose": translation(transpose, "perm"),
    "Concat": translation(concat, "axis"),
    "Split": translation(split, "axis split num_outputs"),
    "Slice": translation(slices, "starts ends axes"),
    "Pad": translation(pad, "mode pads value"),
    "Gather": translation(gather, "axis"),
    "Expand": translation(expand),
    "Tile": translation(tile),
    "DepthToSpace": translation(depth_to_space, "blocksize mode"),
    "SpaceToDepth": translation(space_to_depth, "blocksize"),
}
