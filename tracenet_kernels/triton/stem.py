"""The stem on windows: photo or planar image -> convolution -> scale, bias, ReLU -> maximum pooling, in one launch.

The convolution is a matrix product per tile of its cells and per kernel row, ``[cells, K] x [K, channels]`` with K
running over the row's columns and four colours, the fourth of weight 0: an image tile is gathered, normalised and
rounded to the weight's dtype on the way to the tensor cores. The plane between convolution and pooling is never stored.

Pooling 3 x 3 with stride 2 has a kernel of its own. A program walks down a strip of pooled rows and computes every
row of the convolution in it once, in tiles of neighbouring columns; what a pooled cell needs of them is compared on
chip. Strips overlap by one row of the convolution and tiles by two columns: 10 % (large windows) to 29 % (small ones)
of the work is done twice, where every pooled cell for itself would do 125 % more. Any other pooling does just that, tap
by tap: where it is too much, run :func:`stem_conv_launches` and a pooling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from tracenet_kernels.errors import InputError
from tracenet_kernels.triton.cellwise import (
    FLOATS,
    WindowsLike,
    await_inputs,
    cell_addresses,
    cell_of,
    check_pdl,
    float_plane,
    launch_options,
    plane_args,
    power_of_two,
    relu,
    run_all,
    table_of,
    window_of,
)
from tracenet_kernels.triton.configs import ConvConfig
from tracenet_kernels.triton.elementwise import ACTIVATIONS, check_planar, normalisation, of_three
from tracenet_kernels.triton.launch import Cost, Launch
from tracenet_kernels.triton.planes import DevicePlane, Windows, as_plane, as_windows, interpreted, same_device
from tracenet_kernels.triton.weights import DeviceWeight, Pair, as_pair

COLOURS = 4
"""Channels per tap of a packed weight: three, and one of zeros."""
_STRIPS = (8, 4, 2)
"""Pooled rows that a program may walk down: one more row of the convolution for twice as many."""
_PROGRAMS = 128
"""About as many as a large GPU has multiprocessors: strips are as long as leaves this many."""


@triton.jit
def _row_exists(y, inside, height, UNIFORM: tl.constexpr):
    """``inside`` where row ``y``, one for all cells or one per cell, is on the image."""
    on_image = (y >= 0) & (y < height)
    if not UNIFORM:
        on_image = on_image[:, None]
    return inside & on_image


@triton.jit
def _image_tile(image, image_row, height, y, offsets, inside, UNIFORM: tl.constexpr):
    """[cells, BLOCK_K] of rows ``y`` of the image as they are stored; 0 off the image."""
    row = y * image_row
    if not UNIFORM:
        row = row[:, None]
    return tl.load(image + (row + offsets), mask=_row_exists(y, inside, height, UNIFORM), other=0)


@triton.jit
def _conv_cells(
    image, image_row, image_pixel, image_channel, height, width, mean0, mean1, mean2, inverse0, inverse1, inverse2,
    weight, scale, bias, channels, conv_height, conv_width, cy, cx, wanted, n,
    KY: tl.constexpr, KX: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr,
    DY: tl.constexpr, DX: tl.constexpr, PHOTO: tl.constexpr, REVERSE: tl.constexpr, SCALE: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, UPCAST: tl.constexpr, UNIFORM: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_N] activated cells ``(cy, cx)`` of the convolution; -inf off its plane.

    One product per kernel row. Which columns a cell reads, and where they lie in a row, is the same for all of them.
    """
    k = tl.arange(0, BLOCK_K)
    c, dx = k % 4, k // 4 * DX
    colour = (2 - c) if REVERSE else c
    mean = of_three(c, mean0, mean1, mean2)[None, :]
    inverse = of_three(c, inverse0, inverse1, inverse2)[None, :]
    exists = wanted & (cx >= 0) & (cx < conv_width)
    if not UNIFORM:
        exists = exists & (cy >= 0) & (cy < conv_height)
    y, x = cy * SY - PY, cx * SX - PX
    columns = x[:, None] + dx[None, :]
    used = (c < 3) & (dx < KX * DX)
    inside = exists[:, None] & used[None, :] & (columns >= 0) & (columns < width)
    offsets = (x * image_pixel)[:, None] + (dx * image_pixel + colour * image_channel)[None, :]

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    kernel_row = weight + (n * (KY * BLOCK_K))[None, :] + k[:, None]
    # The next row is on its way while this one is multiplied.
    following = _image_tile(image, image_row, height, y, offsets, inside, UNIFORM)
    for ky in range(KY):
        a = following
        if ky + 1 < KY:
            following = _image_tile(image, image_row, height, y + (ky + 1) * DY, offsets, inside, UNIFORM)
        if PHOTO:
            on_image = _row_exists(y + ky * DY, inside, height, UNIFORM)
            a = tl.where(on_image, (a.to(tl.float32) - mean) * inverse, 0.0)
        a, b = a.to(weight.dtype.element_ty), tl.load(kernel_row + ky * BLOCK_K)
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    if SCALE:
        acc *= tl.load(scale + n, mask=n < channels, other=0.0)[None, :]
    if BIAS:
        acc += tl.load(bias + n, mask=n < channels, other=0.0)[None, :]
    if RELU:
        acc = relu(acc)
    if UNIFORM:
        exists = exists & (cy >= 0) & (cy < conv_height)
    return tl.where(exists[:, None], acc, float("-inf"))


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _strip_kernel(
    image, image_offset, image_row, image_pixel, image_channel, height, width,
    mean0, mean1, mean2, inverse0, inverse1, inverse2, weight, scale, bias,
    out, out_offset, out_row, out_pixel, table, channels, conv_height, conv_width, strip,
    KY: tl.constexpr, KX: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr,
    DY: tl.constexpr, DX: tl.constexpr, PHOTO: tl.constexpr, REVERSE: tl.constexpr, SCALE: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    POOL_PY: tl.constexpr, POOL_PX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Pooling 3 x 3 with stride 2: BLOCK_M neighbouring columns of the convolution are BLOCK_M / 2 - 1 pooled ones."""
    await_inputs(PDL)
    y0, x0, rows, columns = window_of(table)
    POOLED: tl.constexpr = BLOCK_M // 2
    across = (columns + POOLED - 2) // (POOLED - 1)
    if (rows <= 0) | (columns <= 0):
        return
    down = tl.program_id(0) // across * strip
    if down >= rows:
        return
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = x0 + tl.program_id(0) % across * (POOLED - 1)
    cx = first * 2 - POOL_PX + tl.arange(0, BLOCK_M)
    last = (x0 + columns) * 2 - POOL_PX
    p = tl.arange(0, POOLED)
    ox = first + p
    written = ((p < POOLED - 1) & (ox < x0 + columns))[:, None] & (n < channels)[None, :]
    third = tl.broadcast_to(tl.minimum(2 * p + 2, BLOCK_M - 1)[:, None], [POOLED, BLOCK_N])
    image += image_offset

    top = (y0 + down) * 2 - POOL_PY
    largest = tl.full([BLOCK_M, BLOCK_N], float("-inf"), tl.float32)
    for row in range(2 * tl.minimum(strip, rows - down) + 1):
        cells = _conv_cells(
            image, image_row, image_pixel, image_channel, height, width, mean0, mean1, mean2,
            inverse0, inverse1, inverse2, weight, scale, bias, channels, conv_height, conv_width,
            top + row, cx, cx <= last, n, KY, KX, SY, SX, PY, PX, DY, DX, PHOTO, REVERSE,
            SCALE, BIAS, RELU, UPCAST, True, BLOCK_K, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        largest = _larger(largest, cells)
        if row % 2 == 0:
            if row > 0:
                # Two columns of a pooled cell are neighbours in the tile; the third starts the next pair. Rounding
                # keeps the order, so that it may come before the comparison.
                pairs = tl.reduce(tl.reshape(largest, [POOLED, 2, BLOCK_N]), 1, _larger)
                rest = tl.gather(largest.to(out.dtype.element_ty), third, 0)
                value = _larger(pairs, rest.to(tl.float32)).to(out.dtype.element_ty)
                oy = y0 + down + row // 2 - 1
                to = out + out_offset + oy * out_row + (ox * out_pixel)[:, None] + n[None, :]
                tl.store(to, value, mask=written)
            largest = cells


@triton.jit
def _taps_kernel(
    image, image_offset, image_row, image_pixel, image_channel, height, width,
    mean0, mean1, mean2, inverse0, inverse1, inverse2, weight, scale, bias,
    out, out_offset, out_row, out_pixel, table, channels, conv_height, conv_width,
    KY: tl.constexpr, KX: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr,
    DY: tl.constexpr, DX: tl.constexpr, PHOTO: tl.constexpr, REVERSE: tl.constexpr, SCALE: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, POOL_KY: tl.constexpr, POOL_KX: tl.constexpr,
    POOL_SY: tl.constexpr, POOL_SX: tl.constexpr, POOL_PY: tl.constexpr, POOL_PX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Any pooling, tap by tap; 1 x 1 is none."""
    await_inputs(PDL)
    y0, x0, rows, columns = window_of(table)
    start = tl.program_id(0) * BLOCK_M
    if (start >= rows * columns) | (rows <= 0) | (columns <= 0):
        return
    m = start + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    wanted = m < rows * columns
    oy, ox = cell_of(y0, x0, columns, m)
    image += image_offset
    value = tl.full([BLOCK_M, BLOCK_N], float("-inf"), tl.float32)
    for tap in range(POOL_KY * POOL_KX):
        cy, cx = oy * POOL_SY - POOL_PY + tap // POOL_KX, ox * POOL_SX - POOL_PX + tap % POOL_KX
        cells = _conv_cells(
            image, image_row, image_pixel, image_channel, height, width, mean0, mean1, mean2,
            inverse0, inverse1, inverse2, weight, scale, bias, channels, conv_height, conv_width,
            cy, cx, wanted, n, KY, KX, SY, SX, PY, PX, DY, DX, PHOTO, REVERSE,
            SCALE, BIAS, RELU, UPCAST, False, BLOCK_K, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        value = _larger(value, cells)
    to = cell_addresses(out, out_offset, out_row, out_pixel, oy, ox)
    mask = wanted[:, None] & (n < channels)[None, :]
    tl.store(to[:, None] + n[None, :], value.to(out.dtype.element_ty), mask=mask)


@dataclass(frozen=True, slots=True)
class _Pool:
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


def stem_launches(
    image: Tensor | DevicePlane,
    weight: DeviceWeight,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    *,
    conv_plane: tuple[int, int],
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "relu",
    pool_kernel: Pair = 3,
    pool_stride: Pair = 2,
    pool_padding: Pair = 1,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    reverse: bool = False,
    name: str = "stem",
    config: ConvConfig | None = None,
    pdl: bool = False,
) -> list[Launch]:
    """``out = max over the pool's taps of act(conv(image) * scale + bias)``.

    Products and sums are fp32, of operands rounded to the weight's dtype; fp32 weights are multiplied without tf32.
    Cells off the convolution's plane are -inf for the pooling. NaN wins.

    Args:
        image: uint8 [rows, columns, 3], a photo that is normalised on the way, ``(pixel - mean) / std``, or
            [3, H, W] of fp32, fp16 or bf16 that already is, with contiguous columns. Off the image is 0.
        weight: packed fp32, fp16 or bf16 weight of three input channels and one group.
        out: [H', W', out channels] plane of fp32, fp16 or bf16.
        windows: of ``out``.
        conv_plane: rows and columns of the plane between convolution and pooling.
        scale, bias: fp32 [out channels], or none.
        activation: ``none`` or ``relu``.
        pool_kernel, pool_stride, pool_padding: of the pooling, per axis.
        mean, std: of a photo, in the order of the network's channels.
        reverse: channel c of the network is channel 2 - c of the photo.
        name: of the launch.
        config: ``block_m`` cells and ``block_n`` channels per tile, warps and stages.
        pdl: programmatic dependent launch (sm_90 on).

    Raises:
        InputError: an image, weight, plane or attribute that does not fit.
        WindowError: a window is not within ``out``.
    """
    pool = _Pool(as_pair(pool_kernel), as_pair(pool_stride), as_pair(pool_padding))
    if min(*pool.kernel, *pool.stride) < 1 or min(pool.padding) < 0:
        raise InputError(
            f"pooling with kernel {pool_kernel}, stride {pool_stride}, padding {pool_padding}; pass kernel and stride "
            ">= 1 and padding >= 0"
        )
    if min(conv_plane) < 1:
        raise InputError(f"a convolution's plane of {conv_plane[0]} x {conv_plane[1]} cells; pass its rows and columns")
    target = float_plane(out, "out")
    source = _image(image, mean, std, reverse)
    _check(weight, target, scale, bias, activation)
    same_device(source.args["image"], weight.tensor, target.tensor, scale, bias)
    rows = as_windows(windows, target)
    strip = pool.kernel == (3, 3) and pool.stride == (2, 2)
    tile = config or _default_config(weight)
    block_k = max(16, power_of_two(weight.kernel[1]) * COLOURS)
    packed = _packed(weight, block_k, tile.block_n)
    args = {
        **source.args,
        "weight": packed,
        "scale": packed if scale is None else scale,
        "bias": packed if bias is None else bias,
        **plane_args("out", target),
        "table": table_of(rows),
        "channels": weight.out_channels,
        "conv_height": conv_plane[0],
        "conv_width": conv_plane[1],
    }
    meta = {
        **dict(zip(("KY", "KX"), weight.kernel, strict=True)),
        **dict(zip(("SY", "SX", "PY", "PX"), (*weight.stride, *weight.padding), strict=True)),
        **dict(zip(("DY", "DX"), weight.dilation, strict=True)),
        "PHOTO": source.photo,
        "REVERSE": bool(reverse),
        "SCALE": scale is not None,
        "BIAS": bias is not None,
        "RELU": activation == "relu",
        "UPCAST": interpreted() and weight.tensor.dtype == torch.bfloat16,
        "BLOCK_K": block_k,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        **dict(zip(("POOL_PY", "POOL_PX"), pool.padding, strict=True)),
        "PDL": check_pdl(pdl),
    }
    blocks = packed.shape[0] // tile.block_n
    options = launch_options(tile.warps, tile.stages, pdl=pdl)
    tensor_cores = weight.tensor.dtype != torch.float32
    cost = _cost(weight, pool, rows, args)
    if strip:
        wide = -(-rows.bound[1] // (tile.block_m // 2 - 1))
        args["strip"] = _strip_of(rows.bound[0], wide * blocks * rows.count)
        grid = (-(-rows.bound[0] // args["strip"]) * wide, blocks, rows.count)
        return [Launch(name, _strip_kernel, grid, args, meta, options, tensor_cores, cost)]
    meta.update(zip(("POOL_KY", "POOL_KX", "POOL_SY", "POOL_SX"), (*pool.kernel, *pool.stride), strict=True))
    grid = (-(-rows.cells // tile.block_m), blocks, rows.count)
    return [Launch(name, _taps_kernel, grid, args, meta, options, tensor_cores, cost)]


def stem_conv_launches(
    image: Tensor | DevicePlane,
    weight: DeviceWeight,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    **attributes: Any,
) -> list[Launch]:
    """The convolution of a stem alone: ``out = act(conv(image) * scale + bias)``.

    Takes the arguments of :func:`stem_launches` but for the pooling and ``conv_plane``, which is the plane of ``out``.
    """
    target = float_plane(out, "out")
    attributes = {"name": "stem_conv", **attributes, "pool_kernel": 1, "pool_stride": 1, "pool_padding": 0}
    return stem_launches(image, weight, target, windows, conv_plane=target.plane, **attributes)


def stem(
    image: Tensor | DevicePlane,
    weight: DeviceWeight,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    **attributes: Any,
) -> None:
    """Run :func:`stem_launches`."""
    run_all(stem_launches(image, weight, out, windows, **attributes))


def stem_conv(
    image: Tensor | DevicePlane,
    weight: DeviceWeight,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    **attributes: Any,
) -> None:
    """Run :func:`stem_conv_launches`."""
    run_all(stem_conv_launches(image, weight, out, windows, **attributes))


@dataclass(frozen=True, slots=True)
class _Image:
    args: dict[str, Any]
    photo: bool


def _image(
    image: Tensor | DevicePlane,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    reverse: bool,
) -> _Image:
    """A photo or a planar image as arguments of the kernels."""
    if isinstance(image, Tensor) and image.dtype != torch.uint8:
        check_planar(image, "image")
        if image.shape[0] != 3 or mean is not None or std is not None or reverse:
            raise InputError(
                f"a planar image of {image.shape[0]} channels, mean {mean}, std {std}, reverse {reverse}; pass three "
                "channels that are normalised already, in the network's order, and neither mean, std nor reverse"
            )
        strides = (0, image.stride(1), 1, image.stride(0))
        return _Image(_image_args(image, strides, (image.shape[1], image.shape[2]), (0.0,) * 3, (1.0,) * 3), False)
    plane = as_plane(image, "image", (torch.uint8,))
    if plane.channels != 3:
        raise InputError(f"the photo has {plane.channels} channels; pass 3")
    if mean is None or std is None:
        raise InputError("a photo is normalised on the way; pass its mean and std")
    normalisation(mean, std)
    strides = (plane.offset, plane.row_stride, plane.pixel_stride, 1)
    return _Image(_image_args(plane.tensor, strides, plane.plane, mean, std), True)


def _image_args(
    image: Tensor, strides: tuple[int, ...], size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    names = ("offset", "row", "pixel", "channel")
    return {
        "image": image,
        **{f"image_{key}": value for key, value in zip(names, strides, strict=True)},
        "height": size[0],
        "width": size[1],
        **{f"mean{c}": float(value) for c, value in enumerate(mean)},
        **{f"inverse{c}": 1.0 / value for c, value in enumerate(std)},
    }


def _check(weight: DeviceWeight, out: DevicePlane, scale: Tensor | None, bias: Tensor | None, activation: str) -> None:
    if weight.in_channels != 3 or weight.groups != 1 or weight.tensor.dtype not in FLOATS:
        raise InputError(
            f"a stem's weight of {weight.tensor.dtype}, {weight.in_channels} input channels in {weight.groups} groups; "
            "pass fp32, fp16 or bf16 of 3 in one group"
        )
    if out.channels != weight.out_channels:
        raise InputError(f"the weight has {weight.out_channels} output channels and out {out.channels}")
    if activation not in ACTIVATIONS:
        raise InputError(f"activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    for tensor, label in ((scale, "scale"), (bias, "bias")):
        if tensor is None:
            continue
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != (weight.out_channels,) or tensor.stride(0) != 1:
            raise InputError(
                f"{label} is {tensor.dtype} {tuple(tensor.shape)}; pass {weight.out_channels} contiguous float32"
            )


_PACKED: Any = WeakTensorKeyDictionary()


def _strip_of(tall: int, programs: int) -> int:
    """Rows per strip of a window ``tall`` rows high, where every strip is ``programs`` programs."""
    return next((rows for rows in _STRIPS if -(-tall // rows) * programs >= _PROGRAMS), _STRIPS[-1])


def _default_config(weight: DeviceWeight) -> ConvConfig:
    """fp32 has no tensor cores: its operands lie in registers, which small tiles leave enough of."""
    block_m, most, warps = (32, 32, 4) if weight.tensor.dtype == torch.float32 else (64, 64, 8)
    return ConvConfig(block_m, min(most, max(16, power_of_two(weight.out_channels))), 0, 1, warps, 2)


def _packed(weight: DeviceWeight, block_k: int, block_n: int) -> Tensor:
    """[out, kernel_y * block_k] with whole blocks of channels; kept as long as the weight is, and until it changes."""
    key = (block_k, block_n, weight.kernel, weight.tensor._version)
    kept = _PACKED.get(weight.tensor)
    if kept is None or kept[0] != key:
        (ky, kx), out = weight.kernel, weight.out_channels
        padded = -(-out // block_n) * block_n
        taps = weight.tensor.new_zeros(padded, ky, block_k // COLOURS, COLOURS)
        taps[:out, :, :kx, :3] = weight.tensor.view(out, ky, kx, -1)[..., :3]
        kept = _PACKED[weight.tensor] = (key, taps.view(padded, ky * block_k))
    packed: Tensor = kept[1]
    return packed


def _cost(weight: DeviceWeight, pool: _Pool, windows: Windows, args: dict[str, Any]) -> Cost:
    """Multiply-adds without padding; every cell of the convolution and of the image counted once."""
    sides = [(n - 1) * min(s, k) + k for n, s, k in zip(windows.bound, pool.stride, pool.kernel, strict=True)]
    image = math.prod((n - 1) * min(s, k) + k for n, s, k in zip(sides, weight.stride, weight.kernel, strict=True))
    cells, channels = math.prod(sides) * windows.count, weight.out_channels
    read = image * windows.count * 3 * args["image"].element_size()
    written = windows.cells * windows.count * channels * args["out"].element_size()
    return Cost(cells * channels * weight.taps * 3, read + args["weight"].nbytes, written)
