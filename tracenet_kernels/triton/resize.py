"""Resizes on windows of planes, with an optional addend, in one pass.

Coordinates are those of the whole plane and come out bit for bit as the planner and the other backends compute them:
another rounding could read a cell next to what a window demands, which nobody computed. They are computed on the fly
rather than read from tables, so that a cell's address depends on one load only, its window's row. Products are rounded
on their own: no fused multiply-add takes part in a coordinate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl
from torch import Tensor

from tracenet_kernels.errors import InputError
from tracenet_kernels.triton.cellwise import (
    WindowsLike,
    await_inputs,
    cell_addresses,
    cell_of,
    cellwise_launch,
    check_channels,
    check_same_plane,
    float_plane,
    plane_args,
    run_all,
    window_of,
)
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.planes import DevicePlane, as_windows, interpreted, same_device

RESIZE_MODES = ("nearest", "bilinear", "bilinear_align_corners", "aligned_bilinear")

_LONGEST_AXIS = 1 << 24
"""Beyond this, float32 indices skip cells."""


@triton.jit
def _rounded_product(a, b, INTERPRETED: tl.constexpr):
    """``a * b`` in fp32, rounded before anything is added to it."""
    if INTERPRETED:
        return a * b
    # Compilers contract products that say nothing of rounding, and leave alone those that do.
    return tl.inline_asm_elementwise("mul.rn.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def aligned_taps(i, length, FACTOR: tl.constexpr):
    """Both cells of output ``i`` and the second one's weight: ``t = clamp((i - f // 2) / f, 0, length - 1)``.

    In integers: an output that falls on a cell reads that cell only.
    """
    scaled = tl.minimum(tl.maximum(i - FACTOR // 2, 0), (length - 1) * FACTOR)
    low = scaled // FACTOR
    rest = scaled - low * FACTOR
    return low, low + (rest > 0).to(tl.int32), rest.to(tl.float32) * (1.0 / FACTOR)


@triton.jit
def _taps(i, length, ratio, MODE: tl.constexpr, FACTOR: tl.constexpr, COPY: tl.constexpr, INTERPRETED: tl.constexpr):
    """Both cells of outputs ``i`` along an axis, and the second one's weight."""
    if MODE == "aligned_bilinear":
        low, high, weight = aligned_taps(i, length, FACTOR)
    else:
        if COPY:  # an axis that keeps its length is copied, whatever the ratio
            low, high, weight = i, i, tl.zeros_like(i).to(tl.float32)
        else:
            index = i.to(tl.float32)
            if MODE == "bilinear":
                source = tl.maximum(_rounded_product(index + 0.5, ratio, INTERPRETED) - 0.5, 0.0)
            else:
                source = _rounded_product(index, ratio, INTERPRETED)
            low = tl.minimum(tl.floor(source).to(tl.int32), length - 1)
            high = tl.minimum(low + 1, length - 1)
            weight = tl.minimum(tl.maximum(source - low.to(tl.float32), 0.0), 1.0)
    return low, high, weight


@triton.jit
def _resize_kernel(
    x, x_offset, x_row, x_pixel, addend, addend_offset, addend_row, addend_pixel,
    out, out_offset, out_row, out_pixel, table, height, width, ratio_y, ratio_x, channels,
    MODE: tl.constexpr, FACTOR: tl.constexpr, COPY_Y: tl.constexpr, COPY_X: tl.constexpr, HAS_ADDEND: tl.constexpr,
    INTERPRETED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    await_inputs(PDL)
    y0, x0, rows, columns = window_of(table)
    first = tl.program_id(0) * BLOCK_M
    if (first >= rows * columns) | (rows <= 0) | (columns <= 0):
        return
    m = first + tl.arange(0, BLOCK_M)
    oy, ox = cell_of(y0, x0, columns, m)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    wanted = (m < rows * columns)[:, None]
    if not EVEN_C:
        wanted = wanted & (c < channels)[None, :]
    if HAS_ADDEND:
        at = cell_addresses(addend, addend_offset, addend_row, addend_pixel, oy, ox)
        plus = tl.load(at[:, None] + c[None, :], mask=wanted).to(tl.float32)

    top, bottom, ty = _taps(oy, height, ratio_y, MODE, FACTOR, COPY_Y, INTERPRETED)
    left, right, tx = _taps(ox, width, ratio_x, MODE, FACTOR, COPY_X, INTERPRETED)
    base = x + x_offset
    upper = base + (top * x_row)[:, None] + c[None, :]
    a = tl.load(upper + (left * x_pixel)[:, None], mask=wanted).to(tl.float32)
    if MODE == "nearest":
        value = a
    else:
        lower = base + (bottom * x_row)[:, None] + c[None, :]
        b = tl.load(upper + (right * x_pixel)[:, None], mask=wanted).to(tl.float32)
        d = tl.load(lower + (left * x_pixel)[:, None], mask=wanted).to(tl.float32)
        e = tl.load(lower + (right * x_pixel)[:, None], mask=wanted).to(tl.float32)
        ty, tx = ty[:, None], tx[:, None]
        value = (a * (1.0 - ty) + d * ty) * (1.0 - tx) + (b * (1.0 - ty) + e * ty) * tx
    if HAS_ADDEND:
        value += plus
    to = cell_addresses(out, out_offset, out_row, out_pixel, oy, ox)
    tl.store(to[:, None] + c[None, :], value.to(out.dtype.element_ty), mask=wanted)


def resize_launches(
    x: Tensor | DevicePlane,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    *,
    mode: str,
    ratio: tuple[float, float] = (1.0, 1.0),
    factor: int = 1,
    addend: Tensor | DevicePlane | None = None,
    name: str = "resize",
    pdl: bool = False,
) -> list[Launch]:
    """``out = resize(x) + addend``, computed in fp32 and rounded once.

    ==========================  ==================================================================================
    mode                        cells that output i of an axis with n input cells reads, in fp32
    ==========================  ==================================================================================
    ``nearest``                 ``min(floor(i * ratio), n - 1)``
    ``bilinear``                both neighbours of ``max((i + 0.5) * ratio - 0.5, 0)``, the last cell replicated
    ``bilinear_align_corners``  both neighbours of ``i * ratio``, the last cell replicated
    ``aligned_bilinear``        both neighbours of ``clamp((i - f // 2) / f, 0, n - 1)``; one where that is a cell
    ==========================  ==================================================================================

    An axis of the same length before and after is copied, but by ``nearest`` and ``aligned_bilinear``.

    Args:
        x, out: [H, W, C] and [H', W', C] planes of fp32, fp16 or bf16.
        windows: of ``out``.
        mode: one of :data:`RESIZE_MODES`.
        ratio: input cells per output cell and axis (y, x), as torch computes it: ``1 / scale_factor`` or ``in / out``,
            or ``(in - 1) / (out - 1)`` with aligned corners. Not used by ``aligned_bilinear``.
        factor: of ``aligned_bilinear``.
        addend: on the plane of ``out``; may be ``out`` itself.
        name: of the launch.
        pdl: programmatic dependent launch (sm_90 on).

    Raises:
        InputError: planes, a mode, ratio or factor that do not fit.
        WindowError: a window is not within ``out``.
    """
    source, target = float_plane(x, "x"), float_plane(out, "out")
    plus = target if addend is None else float_plane(addend, "addend")
    _check(source, target, mode, ratio, factor)
    check_channels(source, target)
    check_channels(plus, target, "addend")
    check_same_plane(plus, target, "addend")
    same_device(source.tensor, plus.tensor, target.tensor)
    rows = as_windows(windows, target)
    args = {
        **plane_args("x", source),
        **plane_args("addend", plus),
        **plane_args("out", target),
        "height": source.plane[0],
        "width": source.plane[1],
        "ratio_y": float(np.float32(ratio[0])),
        "ratio_x": float(np.float32(ratio[1])),
    }
    meta = {
        "MODE": mode,
        "FACTOR": factor if mode == "aligned_bilinear" else 1,
        "COPY_Y": mode.startswith("bilinear") and source.plane[0] == target.plane[0],
        "COPY_X": mode.startswith("bilinear") and source.plane[1] == target.plane[1],
        "HAS_ADDEND": addend is not None,
        "INTERPRETED": interpreted(),
    }
    # Enlarged planes are read less often than they are written; what is read twice comes from a cache.
    shrink = (source.plane[0] * source.plane[1]) / (target.plane[0] * target.plane[1])
    taps = min(1 if mode == "nearest" else 4, max(1, round(shrink)))
    cell_bytes = taps * source.tensor.element_size() + (0 if addend is None else plus.tensor.element_size())
    macs = 0 if mode == "nearest" else 4
    return [
        cellwise_launch(
            name, _resize_kernel, rows, target.channels, args, meta, cell_bytes=cell_bytes, macs=macs, pdl=pdl
        )
    ]


def resize(x: Tensor | DevicePlane, out: Tensor | DevicePlane, windows: WindowsLike, **attributes: Any) -> None:
    """Run :func:`resize_launches`."""
    run_all(resize_launches(x, out, windows, **attributes))


def _check(x: DevicePlane, out: DevicePlane, mode: str, ratio: tuple[float, float], factor: int) -> None:
    if mode not in RESIZE_MODES:
        raise InputError(f"resize mode {mode!r}; choose one of {', '.join(RESIZE_MODES)}")
    if max(*x.plane, *out.plane) > _LONGEST_AXIS:
        raise InputError(f"resize from {x.plane} to {out.plane} cells; pass planes with sides up to 2^24")
    if mode == "aligned_bilinear":
        if factor < 1 or out.plane != (factor * x.plane[0], factor * x.plane[1]):
            raise InputError(
                f"aligned bilinear resize by {factor} from {x.plane[0]} x {x.plane[1]} to {out.plane[0]} x "
                f"{out.plane[1]}; pass a factor >= 1 and an output plane that many times as large"
            )
    elif not all(0 <= value <= _LONGEST_AXIS for value in ratio):
        raise InputError(f"resize with {ratio} input cells per output cell; pass ratios >= 0 that are finite")
