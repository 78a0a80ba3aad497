"""Translation of Resize and Upsample.

Nearest neighbours are a fixed choice of rows and columns whatever the modes, so all of them can be traced: as PyTorch's
own resize where each cell is repeated, else as a selection. Linear and cubic resizes are traced in the coordinate modes
that PyTorch computes too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tracenet.graph.onnx.op import Op, Translation, translation

LINEAR_MODES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners")
_RESIZE = """mode coordinate_transformation_mode nearest_mode cubic_coeff_a exclude_outside extrapolation_value
             antialias axes keep_aspect_ratio_policy"""


def resize(op: Op, x: Tensor, *rest: Tensor | None) -> Tensor:
    plane = op.plane(x)
    scales, size = _geometry(op, x)
    if size == plane:
        return x
    old = op.kind == "Upsample" or op.opset < 11
    coordinates = op.attr("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    mode = op.attr("mode", "nearest")
    if op.attr("antialias", 0):
        raise op.refusal("antialias is 1, which cannot be traced; resize without it")
    if mode == "nearest":
        rounding = op.attr("nearest_mode", "floor" if old else "round_prefer_floor")
        return _nearest(op, x, size, scales, coordinates, rounding)
    if mode in ("linear", "bilinear", "cubic"):
        return _smooth(op, x, size, scales, coordinates, cubic=mode == "cubic")
    raise op.refusal(f"mode is {mode!r}, which ONNX does not define")


def _geometry(op: Op, x: Tensor) -> tuple[tuple[float, float], tuple[int, int]]:
    """Scales and size of rows and columns; scales as float32 holds them."""
    if op.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise op.refusal("keep_aspect_ratio_policy must be 'stretch' to be traced")
    position = 1 if op.kind == "Upsample" or op.opset < 11 else 2
    given = op.value(position, "scales").reshape(-1) if op.given(position) else np.zeros(0)
    sizes = op.ints("sizes", 3) if position == 2 else None
    count = len(sizes) if sizes else given.size
    axes = [op.axis(axis, 4) for axis in op.ints("axes") or range(4)]
    if count != len(axes) or (given.size == 0) == (not sizes):
        raise op.refusal(f"scales {given.tolist()} and sizes {sizes}: give one of them, a number for each of {axes}")
    scale, size = [1.0] * 4, list(x.shape)
    for i, axis in enumerate(axes):
        length = np.float32(x.shape[axis])
        if sizes:
            size[axis], scale[axis] = sizes[i], float(np.float32(sizes[i]) / length)
        else:
            size[axis], scale[axis] = int(np.float32(given[i]) * length), float(np.float32(given[i]))
    if size[:2] != list(x.shape[:2]) or min(size) < 1:
        raise op.refusal(f"resizes {list(x.shape)} to {size}; only rows and columns can be resized, to one at least")
    return (scale[2], scale[3]), (size[2], size[3])


def _nearest(
    op: Op, x: Tensor, size: tuple[int, int], scales: tuple[float, float], coordinates: str, rounding: str
) -> Tensor:
    plane = op.plane(x)
    index = [_index(op, *row, coordinates, rounding) for row in zip(plane, size, scales, strict=True)]
    repeated = all(
        out % length == 0 and np.array_equal(taken, np.arange(out) // (out // length))
        for taken, length, out in zip(index, plane, size, strict=True)
    )
    if repeated:
        return F.interpolate(x, size=size, mode="nearest")
    for axis, taken in enumerate(index):
        if not np.array_equal(taken, np.arange(plane[axis])):
            x = torch.index_select(x, axis + 2, torch.tensor(taken.tolist(), dtype=torch.int64, device=op.device))
    return x


def _index(op: Op, length: int, out: int, scale: float, coordinates: str, rounding: str) -> np.ndarray:
    """Which cell each output cell copies, in float32 as ONNX Runtime computes it."""
    i, ratio = np.arange(out, dtype=np.float32), np.float32(scale)
    half = np.float32(0.5)
    if scale == 1.0:
        source = i
    elif coordinates == "asymmetric":
        source = i / ratio
    elif coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and out > 1):
        source = (i + half) / ratio - half
    elif coordinates == "pytorch_half_pixel":
        source = 0 * i
    elif coordinates == "tf_half_pixel_for_nn":
        source = (i + half) / ratio
    elif coordinates == "align_corners":
        source = i * np.float32(length - 1) / np.float32(out - 1) if out > 1 else 0 * i
    else:
        raise op.refusal(f"coordinate_transformation_mode {coordinates!r} cannot be traced with nearest neighbours")
    roundings: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - half),
        "round_prefer_ceil": lambda v: np.floor(v + half),
    }
    if rounding not in roundings:
        raise op.refusal(f"nearest_mode is {rounding!r}, which ONNX does not define")
    if scale != 1.0 and coordinates != "asymmetric":
        _refuse_unsure(op, source, 0.5 if rounding.startswith("round") else 0.0)
    return np.clip(roundings[rounding](source).astype(np.int64), 0, length - 1)


def _refuse_unsure(op: Op, source: np.ndarray, edge: float) -> None:
    """Where the last bit of a coordinate decides which cell is copied, runtimes differ."""
    away = np.abs((source.astype(np.float64) - edge) - np.rint(source.astype(np.float64) - edge))
    unsure = (away > 0) & (away < 4 * np.spacing(np.abs(source) + np.float32(1)))
    if unsure.any():
        raise op.refusal(
            f"the coordinate {source[unsure][0]} lies so near a boundary that rounding decides which cell is copied; "
            "use sizes or scales that divide evenly, or coordinate_transformation_mode 'asymmetric'"
        )


def _smooth(
    op: Op, x: Tensor, size: tuple[int, int], scales: tuple[float, float], coordinates: str, cubic: bool
) -> Tensor:
    plane = op.plane(x)
    exact = all(np.float32(s) == np.float32(o) / np.float32(n) for s, o, n in zip(scales, size, plane, strict=True))
    shrunk = any(out == 1 != length for out, length in zip(size, plane, strict=True))
    if coordinates not in LINEAR_MODES or (coordinates == "half_pixel_symmetric" and not exact):
        raise op.refusal(
            f"coordinate_transformation_mode {coordinates!r} cannot be traced with mode {op.attr('mode', '')!r}; "
            f"use one of {LINEAR_MODES}, or nearest"
        )
    if coordinates == "pytorch_half_pixel" and shrunk:
        raise op.refusal("pytorch_half_pixel to a single row or column cannot be traced; use half_pixel")
    if cubic and (op.attr("cubic_coeff_a", -0.75) != -0.75 or op.attr("exclude_outside", 0)):
        raise op.refusal("only cubic_coeff_a -0.75 with exclude_outside 0 can be traced")
    align = coordinates == "align_corners"
    if exact or align:
        return F.interpolate(x, size=size, mode="bicubic" if cubic else "bilinear", align_corners=align)
    function = torch.ops.aten.upsample_bicubic2d.default if cubic else torch.ops.aten.upsample_bilinear2d.default
    return function(x, size, align, *scales)


RESIZES: dict[str, Translation] = {
    "Resize": translation(resize, _RESIZE),
    "Upsample": translation(resize, "mode"),
}
