"""Maximum and average pooling on windows of planes.

Tap ``(ky, kx)`` of output cell ``(y, x)`` is the input cell ``(y * stride - padding + ky * dilation, ...)``. Every
output cell reads its own taps: neighbours share most of them, and find them in the caches.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tracenet_kernels.errors import InputError
from tracenet_kernels.triton.cellwise import (
    FLOATS,
    WindowsLike,
    await_inputs,
    cell_addresses,
    cell_of,
    cellwise_launch,
    check_channels,
    plane_args,
    run_all,
    window_of,
)
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.planes import DevicePlane, as_plane, as_windows, same_device
from tracenet_kernels.triton.weights import Pair, as_pair

_MOST_UNROLLED = 25


@triton.jit
def _row_of_taps(
    acc, row, inside, x, width, pixel_stride, KX: tl.constexpr, SX: tl.constexpr, PX: tl.constexpr, DX: tl.constexpr,
    MAXIMUM: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    """``acc`` with the taps of one row; ``row``: addresses of column 0, ``inside``: which elements have that row."""
    for kx in tl.static_range(KX):
        ix = x * SX + (kx * DX - PX)
        mask = inside & ((ix >= 0) & (ix < width))[:, None]
        if MAXIMUM:
            value = tl.load(row + (ix * pixel_stride)[:, None], mask=mask, other=LOWEST).to(tl.float32)
            acc = tl.maximum(acc, value, propagate_nan=tl.PropagateNan.ALL)
        else:
            acc += tl.load(row + (ix * pixel_stride)[:, None], mask=mask, other=0).to(tl.float32)
    return acc


@triton.jit
def _taps_on_plane(start, length, padding, K: tl.constexpr):
    """Taps from ``start`` on that lie on a plane of ``length`` cells with ``padding`` on both sides."""
    return tl.maximum(tl.minimum(start + K, length + padding) - tl.maximum(start, -padding), 0)


@triton.jit
def _pool_kernel(
    x, x_offset, x_row, x_pixel, out, out_offset, out_row, out_pixel, table, height, width, channels,
    inverse_divisor,
    KY: tl.constexpr, KX: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr,
    DY: tl.constexpr, DX: tl.constexpr, MAXIMUM: tl.constexpr, LOWEST: tl.constexpr, DIVIDE_BY: tl.constexpr,
    UNROLL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, PDL: tl.constexpr,
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

    if MAXIMUM:
        acc = tl.full([BLOCK_M, BLOCK_C], LOWEST, tl.float32)
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    base = x + x_offset
    if UNROLL:
        for ky in tl.static_range(KY):
            iy = oy * SY + (ky * DY - PY)
            row = base + (iy * x_row)[:, None] + c[None, :]
            inside = wanted & ((iy >= 0) & (iy < height))[:, None]
            acc = _row_of_taps(acc, row, inside, ox, width, x_pixel, KX, SX, PX, DX, MAXIMUM, LOWEST)
    else:
        for ky in range(KY):
            iy = oy * SY + (ky * DY - PY)
            row = base + (iy * x_row)[:, None] + c[None, :]
            inside = wanted & ((iy >= 0) & (iy < height))[:, None]
            acc = _row_of_taps(acc, row, inside, ox, width, x_pixel, KX, SX, PX, DX, MAXIMUM, LOWEST)

    if not MAXIMUM:
        # One division per cell, not one per element.
        if DIVIDE_BY == "number":
            acc *= inverse_divisor
        else:
            # Taps past the padding, which ceil_mode allows, never count.
            py: tl.constexpr = PY if DIVIDE_BY == "padded" else 0
            px: tl.constexpr = PX if DIVIDE_BY == "padded" else 0
            taps = _taps_on_plane(oy * SY - PY, height, py, KY) * _taps_on_plane(ox * SX - PX, width, px, KX)
            acc *= (1.0 / tl.maximum(taps, 1).to(tl.float32))[:, None]
    to = cell_addresses(out, out_offset, out_row, out_pixel, oy, ox)
    tl.store(to[:, None] + c[None, :], acc.to(out.dtype.element_ty), mask=wanted)


def max_pool2d_launches(
    x: Tensor | DevicePlane,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair = 0,
    dilation: Pair = 1,
    name: str = "max_pool2d",
    pdl: bool = False,
) -> list[Launch]:
    """``out[y, x, c] = max_k x[y * s - p + d * k_y, x * s - p + d * k_x, c]`` over the taps on the plane; NaN wins.

    Args:
        x, out: [H, W, C] and [H', W', C] planes of one dtype: fp32, fp16, bf16, or int8 of one scale and zero point.
        windows: of ``out``.
        kernel, stride, padding, dilation: per axis; padding before the first row and column.
        name: of the launch.
        pdl: programmatic dependent launch (sm_90 on).

    Raises:
        InputError: dtypes, channels or attributes that do not fit.
        WindowError: a window is not within ``out``.
    """
    source, target = (as_plane(p, n, (*FLOATS, torch.int8)) for p, n in ((x, "x"), (out, "out")))
    if (source.dtype, source.scale, source.zero_point) != (target.dtype, target.scale, target.zero_point):
        raise InputError(
            f"max_pool2d from {source.dtype} (scale {source.scale}, zero point {source.zero_point}) to {target.dtype} "
            f"(scale {target.scale}, zero point {target.zero_point}); pass planes of one dtype, scale and zero point"
        )
    lowest = -128.0 if source.dtype == torch.int8 else float("-inf")
    meta = {"MAXIMUM": True, "LOWEST": lowest, "DIVIDE_BY": "", **_geometry(kernel, stride, padding, dilation)}
    return [_launch(name, source, target, windows, meta, 1, pdl)]


def avg_pool2d_launches(
    x: Tensor | DevicePlane,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair = 0,
    count_include_pad: bool = True,
    divisor: int = 0,
    name: str = "avg_pool2d",
    pdl: bool = False,
) -> list[Launch]:
    """Mean over the taps on the plane, summed in fp32, row by row.

    Args:
        x, out: [H, W, C] and [H', W', C] planes of fp32, fp16 or bf16.
        windows: of ``out``.
        kernel, stride, padding: per axis.
        count_include_pad: divide by the taps on the plane and its padding, not only by those on the plane. Taps past
            the padding, which ``ceil_mode`` allows, never count.
        divisor: divide by this instead, where it is not 0.
        name: of the launch.
        pdl: programmatic dependent launch (sm_90 on).

    Raises:
        InputError: dtypes, channels or attributes that do not fit.
        WindowError: a window is not within ``out``.
    """
    source, target = as_plane(x, "x", FLOATS), as_plane(out, "out", FLOATS)
    if divisor < 0:
        raise InputError(f"avg_pool2d with divisor {divisor}; pass a positive one, or 0 for the number of cells")
    divide_by = "number" if divisor else "padded" if count_include_pad else "taps"
    meta = {"MAXIMUM": False, "LOWEST": 0.0, "DIVIDE_BY": divide_by, **_geometry(kernel, stride, padding, 1)}
    return [_launch(name, source, target, windows, meta, max(1, divisor), pdl)]


def max_pool2d(x: Tensor | DevicePlane, out: Tensor | DevicePlane, windows: WindowsLike, **attributes: Any) -> None:
    """Run :func:`max_pool2d_launches`."""
    run_all(max_pool2d_launches(x, out, windows, **attributes))


def avg_pool2d(x: Tensor | DevicePlane, out: Tensor | DevicePlane, windows: WindowsLike, **attributes: Any) -> None:
    """Run :func:`avg_pool2d_launches`."""
    run_all(avg_pool2d_launches(x, out, windows, **attributes))


def _geometry(kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> dict[str, Any]:
    """The checked window attributes as constants of the kernel."""
    k, s, p, d = (as_pair(value) for value in (kernel, stride, padding, dilation))
    if min(*k, *s, *d) < 1 or min(p) < 0:
        raise InputError(
            f"pooling with kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}; pass kernel, "
            "stride and dilation >= 1 and padding >= 0"
        )
    names = ("KY", "KX", "SY", "SX", "PY", "PX", "DY", "DX")
    return {**dict(zip(names, (*k, *s, *p, *d), strict=True)), "UNROLL": k[0] * k[1] <= _MOST_UNROLLED}


def _launch(
    name: str, x: DevicePlane, out: DevicePlane, windows: WindowsLike, meta: dict[str, Any], divisor: int, pdl: bool
) -> Launch:
    check_channels(x, out)
    same_device(x.tensor, out.tensor)
    rows = as_windows(windows, out)
    args = {
        **plane_args("x", x),
        **plane_args("out", out),
        "height": x.plane[0],
        "width": x.plane[1],
        "inverse_divisor": 1.0 / divisor,
    }
    # Neighbouring windows overlap; each input cell counts once.
    taps = min(meta["KY"], meta["SY"]) * min(meta["KX"], meta["SX"])
    cell_bytes = taps * x.tensor.element_size()
    macs = 0 if meta["MAXIMUM"] else meta["KY"] * meta["KX"]
    return cellwise_launch(
        name, _pool_kernel, rows, out.channels, args, meta, cell_bytes=cell_bytes, macs=macs, pdl=pdl
    )
