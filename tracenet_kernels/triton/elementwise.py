"""Operations whose output cell reads one cell of each input: add, sigmoid, copies, conversions, images to planes.

Values are computed in fp32 and rounded once, to the dtype of the output. ``out`` may be one of the inputs where their
dtypes agree: a program reads its cells before it writes them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
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
    check_same_plane,
    float_plane,
    plane_args,
    relu,
    run_all,
    window_of,
)
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.planes import MAX_ELEMENTS, DevicePlane, as_plane, as_windows, same_device

ACTIVATIONS = ("none", "relu")
CONVERTED = (*FLOATS, torch.int8, torch.float8_e4m3fn)
_QUANTISED = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


@triton.jit
def _add_kernel(
    a, a_offset, a_row, a_pixel, b, b_offset, b_row, b_pixel, out, out_offset, out_row, out_pixel, table, channels,
    HAS_B: tl.constexpr, RELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    await_inputs(PDL)
    y0, x0, rows, columns = window_of(table)
    first = tl.program_id(0) * BLOCK_M
    if (first >= rows * columns) | (rows <= 0) | (columns <= 0):
        return
    m = first + tl.arange(0, BLOCK_M)
    y, x = cell_of(y0, x0, columns, m)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    wanted = (m < rows * columns)[:, None]
    if not EVEN_C:
        wanted = wanted & (c < channels)[None, :]
    value = tl.load(cell_addresses(a, a_offset, a_row, a_pixel, y, x)[:, None] + c[None, :], mask=wanted).to(tl.float32)
    if HAS_B:
        other = tl.load(cell_addresses(b, b_offset, b_row, b_pixel, y, x)[:, None] + c[None, :], mask=wanted)
        value += other.to(tl.float32)
    if RELU:
        value = relu(value)
    to = cell_addresses(out, out_offset, out_row, out_pixel, y, x)
    tl.store(to[:, None] + c[None, :], value.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def _sigmoid_kernel(
    x, x_offset, x_row, x_pixel, out, out_offset, out_row, out_pixel, table, channels,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    await_inputs(PDL)
    y0, x0, rows, columns = window_of(table)
    first = tl.program_id(0) * BLOCK_M
    if (first >= rows * columns) | (rows <= 0) | (columns <= 0):
        return
    m = first + tl.arange(0, BLOCK_M)
    iy, ix = cell_of(y0, x0, columns, m)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    wanted = (m < rows * columns)[:, None]
    if not EVEN_C:
        wanted = wanted & (c < channels)[None, :]
    value = tl.load(cell_addresses(x, x_offset, x_row, x_pixel, iy, ix)[:, None] + c[None, :], mask=wanted)
    value = tl.sigmoid(value.to(tl.float32))
    to = cell_addresses(out, out_offset, out_row, out_pixel, iy, ix)
    tl.store(to[:, None] + c[None, :], value.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def _copy_kernel(
    x, x_offset, x_row, x_pixel, out, out_offset, out_row, out_pixel, table, channels,
    x_scale, x_zero, out_inverse, out_zero, SAME: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    await_inputs(PDL)
    y0, x0, rows, columns = window_of(table)
    first = tl.program_id(0) * BLOCK_M
    if (first >= rows * columns) | (rows <= 0) | (columns <= 0):
        return
    m = first + tl.arange(0, BLOCK_M)
    iy, ix = cell_of(y0, x0, columns, m)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    wanted = (m < rows * columns)[:, None]
    if not EVEN_C:
        wanted = wanted & (c < channels)[None, :]
    value = tl.load(cell_addresses(x, x_offset, x_row, x_pixel, iy, ix)[:, None] + c[None, :], mask=wanted)
    to = cell_addresses(out, out_offset, out_row, out_pixel, iy, ix)[:, None] + c[None, :]
    if SAME:
        tl.store(to, value, mask=wanted)
    else:
        value = value.to(tl.float32)
        if FROM != "real":
            value = (value - x_zero) * x_scale
        if TO == "int8":
            steps = tl.minimum(tl.maximum(value * out_inverse, -128.0 - out_zero), 127.0 - out_zero)
            # 1.5 * 2^23 leaves no bits for a fraction: the sum is rounded, halves to even.
            value = ((steps + 12582912.0) - 12582912.0) + out_zero
        if TO == "fp8":
            value = tl.minimum(tl.maximum(value * out_inverse + out_zero, -448.0), 448.0)
        tl.store(to, value.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def _planar_kernel(
    image, image_channel, image_row, out, out_offset, out_row, out_pixel, table, channels,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    await_inputs(PDL)
    y0, x0, rows, columns = window_of(table)
    first = tl.program_id(0) * BLOCK_M
    if (first >= rows * columns) | (rows <= 0) | (columns <= 0):
        return
    m = first + tl.arange(0, BLOCK_M)
    y, x = cell_of(y0, x0, columns, m)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    wanted = (m < rows * columns)[:, None]
    if not EVEN_C:
        wanted = wanted & (c < channels)[None, :]
    value = tl.load(image + (y * image_row + x)[:, None] + (c * image_channel)[None, :], mask=wanted)
    to = cell_addresses(out, out_offset, out_row, out_pixel, y, x)
    tl.store(to[:, None] + c[None, :], value.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def of_three(c, first, second, third):
    """Per channel ``c``: the first, second or third value."""
    return tl.where(c == 0, first, tl.where(c == 1, second, third))


@triton.jit
def _pixels_kernel(
    photo, photo_offset, photo_row, photo_pixel, out, out_offset, out_row, out_pixel, table, channels,
    height, width, mean0, mean1, mean2, std0, std1, std2, REVERSE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    await_inputs(PDL)
    y0, x0, rows, columns = window_of(table)
    first = tl.program_id(0) * BLOCK_M
    if (first >= rows * columns) | (rows <= 0) | (columns <= 0):
        return
    m = first + tl.arange(0, BLOCK_M)
    y, x = cell_of(y0, x0, columns, m)
    c = tl.arange(0, BLOCK_C)
    wanted = (m < rows * columns)[:, None] & (c < channels)[None, :]
    inside = wanted & ((y < height) & (x < width))[:, None]
    colour = (2 - c) if REVERSE else c
    at = cell_addresses(photo, photo_offset, photo_row, photo_pixel, y, x)
    pixel = tl.load(at[:, None] + colour[None, :], mask=inside, other=0).to(tl.float32)
    mean, std = of_three(c, mean0, mean1, mean2), of_three(c, std0, std1, std2)
    value = tl.where(inside, tl.div_rn(pixel - mean[None, :], tl.zeros_like(pixel) + std[None, :]), 0.0)
    to = cell_addresses(out, out_offset, out_row, out_pixel, y, x)
    tl.store(to[:, None] + c[None, :], value.to(out.dtype.element_ty), mask=wanted)


def add_launches(
    a: Tensor | DevicePlane,
    b: Tensor | DevicePlane | None,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    *,
    activation: str = "none",
    name: str = "add",
    pdl: bool = False,
) -> list[Launch]:
    """``out = act(a + b)``, or ``act(a)`` without ``b``; a NaN stays one.

    Args:
        a, b, out: [H, W, C] planes of fp32, fp16 or bf16, of one size.
        windows: of ``out``.
        activation: one of :data:`ACTIVATIONS`.
        name: of the launch.
        pdl: programmatic dependent launch (sm_90 on).

    Raises:
        InputError: planes that do not fit, an unknown activation.
        WindowError: a window is not within ``out``.
    """
    target, first = float_plane(out, "out"), float_plane(a, "a")
    second = first if b is None else float_plane(b, "b")
    if activation not in ACTIVATIONS:
        raise InputError(f"activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    for plane, label in ((first, "a"), (second, "b")):
        _check_cellwise(plane, target, label)
    args = {**plane_args("a", first), **plane_args("b", second), **plane_args("out", target)}
    meta = {"HAS_B": b is not None, "RELU": activation == "relu"}
    cell_bytes = first.tensor.element_size() + (0 if b is None else second.tensor.element_size())
    rows = as_windows(windows, target)
    return [cellwise_launch(name, _add_kernel, rows, target.channels, args, meta, cell_bytes=cell_bytes, pdl=pdl)]


def sigmoid_launches(
    x: Tensor | DevicePlane,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    *,
    name: str = "sigmoid",
    pdl: bool = False,
) -> list[Launch]:
    """``out = 1 / (1 + exp(-x))`` for [H, W, C] planes of fp32, fp16 or bf16, of one size.

    Raises:
        InputError: planes that do not fit.
        WindowError: a window is not within ``out``.
    """
    source, target = float_plane(x, "x"), float_plane(out, "out")
    _check_cellwise(source, target, "x")
    args = {**plane_args("x", source), **plane_args("out", target)}
    rows, cell_bytes = as_windows(windows, target), source.tensor.element_size()
    return [cellwise_launch(name, _sigmoid_kernel, rows, target.channels, args, {}, cell_bytes=cell_bytes, pdl=pdl)]


def copy_channels_launches(
    x: Tensor | DevicePlane,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    *,
    first: int = 0,
    name: str = "copy_channels",
    pdl: bool = False,
) -> list[Launch]:
    """``out[..., first : first + channels of x] = x``, converted as by :func:`convert_launches`; the rest stays.

    Raises:
        InputError: planes that do not fit, channels past those of ``out``.
        WindowError: a window is not within ``out``.
    """
    source, target = as_plane(x, "x", CONVERTED), as_plane(out, "out", CONVERTED)
    if first < 0 or first + source.channels > target.channels:
        raise InputError(
            f"channels {first} to {first + source.channels} of an output with {target.channels}; "
            "pass a first channel >= 0 from which all channels of x fit"
        )
    check_same_plane(source, target)
    same_device(source.tensor, target.tensor)
    rows = as_windows(windows, target)
    part = DevicePlane(
        target.tensor[:, :, first : first + source.channels],
        target.plane,
        target.origin,
        target.scale,
        target.zero_point,
    )
    one = np.float32(1)
    args = {
        **plane_args("x", source),
        **plane_args("out", part),
        "x_scale": float(source.scale),
        "x_zero": float(source.zero_point),
        "out_inverse": float(one / np.float32(target.scale)),
        "out_zero": float(target.zero_point),
    }
    meta = {
        "SAME": _meaning(source) == _meaning(target),
        "FROM": _QUANTISED.get(source.dtype, "real"),
        "TO": _QUANTISED.get(target.dtype, "real"),
    }
    cell_bytes = source.tensor.element_size()
    return [cellwise_launch(name, _copy_kernel, rows, source.channels, args, meta, cell_bytes=cell_bytes, pdl=pdl)]


def convert_launches(
    x: Tensor | DevicePlane,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    *,
    name: str = "convert",
    pdl: bool = False,
) -> list[Launch]:
    """``out = x`` in the dtype of ``out``: fp32, fp16, bf16, int8 or fp8 (e4m3; sm_89 on), from any of them.

    ``q`` of an int8 or fp8 plane stands for ``(q - zero_point) * scale``. To int8:
    ``q = clamp(round_half_even(v * (1 / scale)) + zero_point, -128, 127)``; to fp8: ``v * (1 / scale) + zero_point``,
    clamped to +-448 and rounded to the nearest. A NaN becomes the lowest value of an 8-bit plane.

    Raises:
        InputError: planes that do not fit.
        WindowError: a window is not within ``out``.
    """
    source, target = as_plane(x, "x", CONVERTED), as_plane(out, "out", CONVERTED)
    check_channels(source, target)
    return copy_channels_launches(source, target, windows, name=name, pdl=pdl)


def planar_launches(
    image: Tensor,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    *,
    name: str = "planar",
    pdl: bool = False,
) -> list[Launch]:
    """``out[y, x, c] = image[c, y, x]``: torch's layout to the kernels'.

    Args:
        image: [C, H, W] of fp32, fp16 or bf16: the whole planes, columns contiguous, any channel and row stride.
        out: [H, W, C] plane of one of these dtypes.
        windows: of ``out``.
        name: of the launch.
        pdl: programmatic dependent launch (sm_90 on).

    Raises:
        InputError: an image or a plane that does not fit.
        WindowError: a window is not within ``out``.
    """
    target = float_plane(out, "out")
    check_planar(image, "image")
    if tuple(image.shape) != (target.channels, *target.plane):
        raise InputError(
            f"an image {tuple(image.shape)} and an output of {target.channels} channels of {target.plane[0]} x "
            f"{target.plane[1]} cells; pass [channels, rows, columns] of the output"
        )
    same_device(image, target.tensor)
    args = {
        "image": image,
        "image_channel": image.stride(0),
        "image_row": image.stride(1),
        **plane_args("out", target),
    }
    rows, cell_bytes = as_windows(windows, target), image.element_size()
    return [cellwise_launch(name, _planar_kernel, rows, target.channels, args, {}, cell_bytes=cell_bytes, pdl=pdl)]


def pixels_launches(
    photo: Tensor | DevicePlane,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    reverse: bool = False,
    name: str = "pixels",
    pdl: bool = False,
) -> list[Launch]:
    """``out = (photo - mean) / std``, 0 to the right of the photo and below it.

    Args:
        photo: uint8 [rows, columns, 3]; its plane is the photo without padding.
        out: [H, W, 3] plane of fp32, fp16 or bf16 that holds the photo.
        windows: of ``out``.
        mean, std: in the order of the output's channels.
        reverse: channel c of the output is channel 2 - c of the photo, for BGR networks.
        name: of the launch.
        pdl: programmatic dependent launch (sm_90 on).

    Raises:
        InputError: planes that do not fit, a mean or std that is not finite, a std of 0.
        WindowError: a window is not within ``out``.
    """
    source, target = as_plane(photo, "photo", (torch.uint8,)), float_plane(out, "out")
    if source.channels != 3 or target.channels != 3:
        raise InputError(f"the photo has {source.channels} channels and out {target.channels}; pass 3 and 3")
    if target.plane[0] < source.plane[0] or target.plane[1] < source.plane[1]:
        raise InputError(
            f"the photo is {source.plane[0]} x {source.plane[1]}, the padded plane {target.plane[0]} x "
            f"{target.plane[1]}; pass a plane that holds the photo"
        )
    same_device(source.tensor, target.tensor)
    args = {
        **plane_args("photo", source),
        **plane_args("out", target),
        "height": source.plane[0],
        "width": source.plane[1],
        **normalisation(mean, std),
    }
    rows = as_windows(windows, target)
    return [cellwise_launch(name, _pixels_kernel, rows, 3, args, {"REVERSE": bool(reverse)}, cell_bytes=1, pdl=pdl)]


def normalisation(mean: tuple[float, float, float], std: tuple[float, float, float]) -> dict[str, float]:
    """The checked mean and std as arguments ``mean0`` to ``std2``.

    Raises:
        InputError: not three finite numbers each, or a std of 0.
    """
    fits = len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std))) and all(std)
    if not fits:
        raise InputError(f"mean {mean} and std {std}; pass three finite numbers each, none of std 0")
    names = ("mean0", "mean1", "mean2", "std0", "std1", "std2")
    return {key: float(value) for key, value in zip(names, (*mean, *std), strict=True)}


def check_planar(image: Tensor, name: str) -> None:
    """Raises InputError where ``image`` is not [C, H, W] of a real dtype with contiguous columns."""
    if not isinstance(image, Tensor) or image.ndim != 3 or 0 in image.shape or image.dtype not in FLOATS:
        found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise InputError(f"{name} is {found}; pass [channels, rows, columns] of fp32, fp16 or bf16")
    if image.stride(2) != 1 or min(image.stride()) < 1:
        raise InputError(f"{name} has strides {image.stride()}; its columns must be contiguous: pass x.contiguous()")
    if (image.shape[0] - 1) * image.stride(0) + image.shape[1] * image.stride(1) > MAX_ELEMENTS:
        raise InputError(f"{name} spans more than {MAX_ELEMENTS} elements; pass smaller planes")


def add(
    a: Tensor | DevicePlane,
    b: Tensor | DevicePlane | None,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    **attributes: Any,
) -> None:
    """Run :func:`add_launches`."""
    run_all(add_launches(a, b, out, windows, **attributes))


def sigmoid(x: Tensor | DevicePlane, out: Tensor | DevicePlane, windows: WindowsLike) -> None:
    """Run :func:`sigmoid_launches`."""
    run_all(sigmoid_launches(x, out, windows))


def copy_channels(x: Tensor | DevicePlane, out: Tensor | DevicePlane, windows: WindowsLike, *, first: int = 0) -> None:
    """Run :func:`copy_channels_launches`."""
    run_all(copy_channels_launches(x, out, windows, first=first))


def convert(x: Tensor | DevicePlane, out: Tensor | DevicePlane, windows: WindowsLike) -> None:
    """Run :func:`convert_launches`."""
    run_all(convert_launches(x, out, windows))


def planar(image: Tensor, out: Tensor | DevicePlane, windows: WindowsLike) -> None:
    """Run :func:`planar_launches`."""
    run_all(planar_launches(image, out, windows))


def pixels(photo: Tensor | DevicePlane, out: Tensor | DevicePlane, windows: WindowsLike, **attributes: Any) -> None:
    """Run :func:`pixels_launches`."""
    run_all(pixels_launches(photo, out, windows, **attributes))


def _meaning(plane: DevicePlane) -> tuple[Any, ...]:
    """Equal for planes whose bits stand for the same values."""
    return (plane.dtype, plane.scale, plane.zero_point) if plane.dtype in _QUANTISED else (plane.dtype,)


def _check_cellwise(x: DevicePlane, out: DevicePlane, name: str) -> None:
    check_channels(x, out, name)
    check_same_plane(x, out, name)
    same_device(x.tensor, out.tensor)
