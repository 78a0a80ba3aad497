"""From checked operands to the launch of the convolution kernel: what is folded, masked, aligned and sized, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.triton import weights as packed
from tracenet_kernels.triton.cellwise import check_pdl, launch_options
from tracenet_kernels.triton.configs import ConvConfig, ConvKey, bucket, conv_config
from tracenet_kernels.triton.launch import Cost, Launch
from tracenet_kernels.triton.operands import ACTIVATIONS, as_residual, as_vector
from tracenet_kernels.triton.operands import PRECISIONS as TENSOR_CORE_PRECISIONS
from tracenet_kernels.triton.planes import (
    DTYPES,
    DevicePlane,
    Windows,
    as_windows,
    capability_of,
    interpreted,
    same_device,
)
from tracenet_kernels.triton.split_k import Scratch
from tracenet_kernels.triton.weights import DeviceWeight
from tracenet_kernels.window import Window

PRECISIONS = ("ieee", *TENSOR_CORE_PRECISIONS)
MAX_LEVELS = 5
SWIZZLE = 8
"""Cell tiles that run through all column tiles together, where those are more than as many."""
SPLIT_SUMS = 32
"""Sums per thread beside the two parts of both operands of ``tf32x3``."""
_OUT_DTYPES = tuple(dtype for dtype in DTYPES if dtype != torch.uint8)
_EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)


@dataclass(frozen=True, slots=True)
class Operands:
    """What a convolution reads and writes; several levels are several (x, out, scale, bias) of one weight."""

    xs: tuple[DevicePlane, ...]
    weight: DeviceWeight
    outs: tuple[DevicePlane, ...]
    scales: tuple[Tensor | None, ...]
    biases: tuple[Tensor | None, ...]
    residual: DevicePlane | None
    residual_factor: int
    activation: str
    precision: str


def bind(
    kernel: Any,
    operands: Operands,
    windows: Windows | Window | Sequence[Window],
    rows: tuple[int, ...] | None,
    config: ConvConfig | None,
    scratch: Scratch | None,
    pdl: bool,
    name: str,
    family: str,
) -> Launch:
    """The launch over ``windows``; ``rows`` gives the level of each, None where there is but one plane."""
    device = _check(operands)
    table = _windows(operands, windows, rows)
    x, out, weight, residual = operands.xs[0], operands.outs[0], operands.weight, operands.residual
    out_channels = weight.out_channels // weight.groups
    config = _config(operands, table, config, family)
    tiles_per_tap = -(-weight.tensor.shape[2] // config.block_k)
    split = min(config.split_k, weight.taps * tiles_per_tap)
    column_tiles = weight.groups * -(-out_channels // config.block_n)
    tiles = -(-table.cells // config.block_m) * column_tiles
    check_pdl(pdl)
    border = _reads_border(operands)
    folded = _fold(operands, config.block_k)
    partials, counters = _scratch(operands, config, scratch, device, tiles * table.count, split)
    residual_scale, residual_zero = _residual_factors(operands)
    args = {
        "x": x.tensor,
        "weight": weight.tensor,
        "out": out.tensor,
        "residual": out.tensor if residual is None else residual.tensor,
        "scale": table.table if folded.scale is None else folded.scale,
        "bias": table.table if folded.bias is None else folded.bias,
        "shift": table.table if folded.shift is None else folded.shift,
        "border": x.tensor if folded.border is None else folded.border,
        "windows": table.table,
        "levels": table.table if rows is None else _level_table(operands, rows, config.block_k),
        "partials": partials,
        "counters": counters,
        "first_window": table.first,
        "x_offset": x.offset,
        "x_row_stride": x.row_stride,
        "x_pixel_stride": x.pixel_stride,
        "x_height": x.plane[0],
        "x_width": x.plane[1],
        "out_offset": out.offset,
        "out_row_stride": out.row_stride,
        "out_pixel_stride": out.pixel_stride,
        "out_zero": _zero_point(out),
        "residual_offset": 0 if residual is None else residual.offset,
        "residual_row_stride": 0 if residual is None else residual.row_stride,
        "residual_pixel_stride": 0 if residual is None else residual.pixel_stride,
        "residual_scale": residual_scale,
        "residual_zero": residual_zero,
        "group_channels": weight.group_channels,
        "padded_channels": weight.tensor.shape[2],
        "group_outputs": out_channels,
    }
    meta = {
        "KERNEL_X": weight.kernel[1],
        "TAPS": weight.taps,
        "TILES_PER_TAP": tiles_per_tap if weight.taps > 1 else 0,
        "STRIDE_Y": weight.stride[0],
        "STRIDE_X": weight.stride[1],
        "PAD_Y": weight.padding[0],
        "PAD_X": weight.padding[1],
        "DILATION_Y": weight.dilation[0],
        "DILATION_X": weight.dilation[1],
        "GROUPS": weight.groups,
        "LEVELS": rows is not None,
        "BORDER": border,
        "FILL": border and folded.border is not None,
        "EVEN_X": weight.group_channels % config.block_k == 0,
        "EVEN_W": weight.tensor.shape[2] % config.block_k == 0,
        "EVEN_N": out_channels % config.block_n == 0,
        "VECTOR_X": min(_vector(plane, weight.group_channels) for plane in operands.xs),
        "VECTOR_OUT": min(_vector(plane, out_channels) for plane in operands.outs),
        "VECTOR_RESIDUAL": 1 if residual is None else _vector(residual, out_channels),
        "SCALE": folded.scale is not None,
        "BIAS": folded.bias is not None,
        "SHIFT": folded.shift is not None,
        "RESIDUAL_FACTOR": 0 if residual is None else operands.residual_factor,
        "RESIDUAL_SCALED": residual_scale != 1.0 or residual_zero != 0,
        "RELU": operands.activation == "relu",
        "PRECISION": operands.precision if x.dtype == torch.float32 else "ieee",
        "INTERPRETED": interpreted(),
        "SPLIT": split,
        "SWAP": config.swap,
        "PDL": pdl,
        "GROUP_M": 1 if pdl or column_tiles <= SWIZZLE else SWIZZLE,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
    }
    return Launch(
        name=name,
        kernel=kernel,
        grid=(tiles, table.count, split),
        args=args,
        meta=meta,
        options=launch_options(config.warps, config.stages, pdl=pdl),
        tensor_cores=x.dtype != torch.float32 or operands.precision != "ieee",
        cost=_cost(operands, table, rows, split),
    )


def _check(operands: Operands) -> torch.device:
    """The device of all operands, which fit each other."""
    xs, outs, weight, residual = operands.xs, operands.outs, operands.weight, operands.residual
    if not 1 <= len(xs) <= MAX_LEVELS or not len(xs) == len(outs) == len(operands.scales) == len(operands.biases):
        raise InputError(
            f"{len(xs)} inputs, {len(outs)} outputs, {len(operands.scales)} scales, {len(operands.biases)} biases; "
            f"pass as many of each, {MAX_LEVELS} at most"
        )
    _check_dtypes(operands)
    for level, (x, out) in enumerate(zip(xs, outs, strict=True)):
        if x.channels != weight.in_channels:
            raise InputError(f"x has {x.channels} channels (level {level}), the weight takes {weight.in_channels}")
        if out.channels != weight.out_channels:
            raise InputError(f"out has {out.channels} channels (level {level}), the weight gives {weight.out_channels}")
    if residual is not None:
        as_residual(residual, operands.residual_factor, outs[0], _OUT_DTYPES)
    for kind, vectors in (("scale", operands.scales), ("bias", operands.biases)):
        for vector in vectors:
            as_vector(vector, kind, weight.out_channels)
    if operands.activation not in ACTIVATIONS:
        raise InputError(f"activation {operands.activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
    if operands.precision not in PRECISIONS:
        raise InputError(f"precision {operands.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    planes = (*xs, *outs) if residual is None else (*xs, *outs, residual)
    device = same_device(
        *(plane.tensor for plane in planes), weight.tensor, *operands.scales, *operands.biases, weight.scales
    )
    if len(xs) > 1:
        _one_storage(xs, "xs")
        _one_storage(outs, "outs")
    fp8 = any(plane.dtype == torch.float8_e4m3fn for plane in planes)
    if fp8 and not interpreted() and capability_of(device) < (8, 9):
        raise InputError("fp8 planes need compute capability 8.9; use int8 or half precision on this device")
    return device


def _check_dtypes(operands: Operands) -> None:
    xs, outs, weight, residual = operands.xs, operands.outs, operands.weight, operands.residual
    allowed = ", ".join(map(str, packed.DTYPES))
    for kind, planes in (("x", xs), ("out", outs)):
        if len({plane.dtype for plane in planes}) > 1:
            raise InputError(f"levels of {kind} hold {[str(plane.dtype) for plane in planes]}; pass one dtype")
    if xs[0].dtype != weight.tensor.dtype:
        raise InputError(
            f"x holds {xs[0].dtype}, the weight {weight.tensor.dtype}; both must be the same one of {allowed}"
        )
    if outs[0].dtype not in _OUT_DTYPES:
        raise InputError(f"out holds {outs[0].dtype}; pass one of {allowed}")
    for plane in (*xs, *outs, *([residual] if residual else [])):
        if plane.dtype in _EIGHT_BITS:
            limits = (-128, 127) if plane.dtype == torch.int8 else (0, 0)
            if not 0 < plane.scale < math.inf or not limits[0] <= plane.zero_point <= limits[1]:
                raise InputError(
                    f"a {plane.dtype} plane has scale {plane.scale}, zero point {plane.zero_point}; scales are "
                    f"positive, zero points within {limits}"
                )
    if weight.tensor.dtype in _EIGHT_BITS and weight.scales is None:
        raise InputError(f"a {weight.tensor.dtype} weight has no scales; pack it with pack_weight")
    if weight.tensor.dtype == torch.int8 and weight.sums is None:
        raise InputError("an int8 weight has no sums; pack it with pack_weight")


def _one_storage(planes: Sequence[DevicePlane], name: str) -> None:
    if len({plane.tensor.untyped_storage().data_ptr() for plane in planes}) > 1:
        raise InputError(f"{name} lie in several allocations; make them views of one tensor, such as a workspace")
    first = planes[0].tensor.data_ptr()
    if any((plane.tensor.data_ptr() - first) % plane.tensor.element_size() for plane in planes):
        raise InputError(f"{name} are not whole elements apart; align them to {planes[0].tensor.element_size()} bytes")


def _windows(operands: Operands, windows: Windows | Window | Sequence[Window], rows: tuple[int, ...] | None) -> Windows:
    """The windows' table; those that the host knows must lie where their planes are in memory, and what they read."""
    if isinstance(windows, Windows):
        table = as_windows(windows, operands.outs[0])
    else:
        known = [windows] if isinstance(windows, Window) else [Window(*window) for window in windows]
        for index, window in enumerate(known):
            level = rows[index] if rows is not None and index < len(rows) else 0
            if 0 <= level < len(operands.outs):
                _check_window(operands, window, level)
        table = Windows.of(known, operands.outs[0].tensor.device)
    if rows is not None and (len(rows) != table.count or not all(0 <= row < len(operands.xs) for row in rows)):
        raise InputError(
            f"levels {list(rows)} of {table.count} windows; pass a level from 0 to {len(operands.xs) - 1} for each"
        )
    return table


def _check_window(operands: Operands, window: Window, level: int) -> None:
    if window.is_empty:
        return
    x, out, residual = operands.xs[level], operands.outs[level], operands.residual
    if not out.extent.contains(window):
        raise WindowError(f"window {window} is not within {out.extent}, the part of the output in memory")
    demand = _demand(operands.weight, window).clip(*x.plane)
    if not x.extent.contains(demand):
        raise WindowError(f"window {window} reads {demand} of x, of which {x.extent} is in memory")
    if residual is not None:
        f = operands.residual_factor
        cells = Window(window.y0 // f, (window.y1 - 1) // f + 1, window.x0 // f, (window.x1 - 1) // f + 1)
        if not residual.extent.contains(cells):
            raise WindowError(f"window {window} reads {cells} of the residual, of which {residual.extent} is in memory")


def _demand(weight: DeviceWeight, window: Window) -> Window:
    """What a window that is not empty reads of x, border included."""
    ends = []
    for axis, (start, stop) in enumerate(((window.y0, window.y1), (window.x0, window.x1))):
        first = start * weight.stride[axis] - weight.padding[axis]
        reach = (weight.kernel[axis] - 1) * weight.dilation[axis] + 1
        ends += [first, first + (stop - 1 - start) * weight.stride[axis] + reach]
    return Window(*ends)


def _reads_border(operands: Operands) -> bool:
    """Whether any cell of an output reads off its input's plane."""
    for x, out in zip(operands.xs, operands.outs, strict=True):
        if not Window.full(*x.plane).contains(_demand(operands.weight, Window.full(*out.plane))):
            return True
    return False


def _config(operands: Operands, windows: Windows, config: ConvConfig | None, family: str) -> ConvConfig:
    """The given configuration, checked, or the one that is chosen for such a launch."""
    weight, dtype = operands.weight, operands.xs[0].dtype
    least_k = 32 if dtype in _EIGHT_BITS else 16
    if config is None:
        key = ConvKey(
            family,
            str(dtype).removeprefix("torch."),
            bucket(windows.cells),
            weight.group_channels,
            weight.out_channels // weight.groups,
            weight.taps,
            windows.count,
        )
        config = conv_config(key)
        if dtype == torch.float32 and operands.precision == "ieee":
            # Without tensor cores a thread holds all of a tile's inner axis in registers.
            config = replace(config, block_k=16)
        elif dtype == torch.float32 and operands.precision == "tf32x3":
            # Operands are split in registers: with more sums than these, a thread has none left.
            config = replace(config, warps=max(config.warps, config.block_m * config.block_n // (32 * SPLIT_SUMS)))
    for name, size, least in (
        ("block_m", config.block_m, 16),
        ("block_n", config.block_n, 16),
        ("block_k", config.block_k, least_k),
    ):
        if size < least or size & (size - 1):
            raise InputError(f"{name} is {size}; pass a power of two >= {least} for {dtype}")
    if config.split_k < 1 or config.stages < 1 or config.warps not in (1, 2, 4, 8, 16):
        raise InputError(f"{config}: split_k and stages are >= 1, warps one of 1, 2, 4, 8, 16")
    return config


@dataclass(frozen=True, slots=True)
class _Folded:
    """The epilogue's vectors [levels * out channels], None where they would change nothing.

    Attributes:
        scale, bias: fp32, in units of the output's integers where that is 8-bit.
        shift: int32, what zero points of x add to the sums.
        border: [levels, block_k] of x's dtype, what stands for real zero where that is not 0.
    """

    scale: Tensor | None
    bias: Tensor | None
    shift: Tensor | None
    border: Tensor | None


def _fold(operands: Operands, block_k: int) -> _Folded:
    weight, device = operands.weight, operands.weight.tensor.device
    scales, biases, shifts = [], [], []
    for x, out, scale, bias in zip(operands.xs, operands.outs, operands.scales, operands.biases, strict=True):
        unit = out.scale if out.dtype in _EIGHT_BITS else 1.0
        factor = torch.full((weight.out_channels,), 1.0 / unit, dtype=torch.float64, device=device)
        if x.dtype in _EIGHT_BITS:
            factor *= x.scale
        if weight.scales is not None:
            factor *= weight.scales
        scales.append(factor if scale is None else factor * scale)
        biases.append(torch.zeros_like(factor) if bias is None else bias.double() / unit)
        zeros = torch.zeros(weight.out_channels, dtype=torch.int32, device=device)
        shifts.append(zeros if weight.sums is None else weight.sums * _zero_point(x))
    quantised = weight.scales is not None or operands.outs[0].dtype in _EIGHT_BITS
    has_scale = quantised or any(scale is not None for scale in operands.scales)
    has_zero = any(_zero_point(x) for x in operands.xs)
    border = None
    if has_zero:
        zero_points = torch.tensor([_zero_point(x) for x in operands.xs], dtype=torch.int8, device=device)
        border = zero_points.view(-1, 1).repeat(1, block_k)
    return _Folded(
        torch.cat(scales).float() if has_scale else None,
        torch.cat(biases).float() if any(bias is not None for bias in operands.biases) else None,
        torch.cat(shifts) if has_zero else None,
        border,
    )


def _zero_point(plane: DevicePlane) -> int:
    return plane.zero_point if plane.dtype == torch.int8 else 0


def _residual_factors(operands: Operands) -> tuple[float, int]:
    """What is a residual's unit in those of the output, and its zero point."""
    residual, out = operands.residual, operands.outs[0]
    if residual is None:
        return 1.0, 0
    unit = residual.scale if residual.dtype in _EIGHT_BITS else 1.0
    return unit / (out.scale if out.dtype in _EIGHT_BITS else 1.0), _zero_point(residual)


def _level_table(operands: Operands, rows: tuple[int, ...], block_k: int) -> Tensor:
    """int64 [windows, 11]: what the kernel's integers are for the level of each window."""
    table = []
    for row in rows:
        x, out = operands.xs[row], operands.outs[row]
        table.append(
            [
                _distance(operands.xs[0], x) + x.offset,
                x.row_stride,
                x.pixel_stride,
                *x.plane,
                _distance(operands.outs[0], out) + out.offset,
                out.row_stride,
                out.pixel_stride,
                _zero_point(out),
                row * operands.weight.out_channels,
                row * block_k,
            ]
        )
    return torch.tensor(table, dtype=torch.int64, device=operands.weight.tensor.device)


def _distance(first: DevicePlane, plane: DevicePlane) -> int:
    """Elements from one plane's first one in memory to another's."""
    return (plane.tensor.data_ptr() - first.tensor.data_ptr()) // plane.tensor.element_size()


def _vector(plane: DevicePlane, group_channels: int) -> int:
    """Elements that divide the addresses of cells and the channels of a group: one access, 16 bytes at most."""
    size = plane.tensor.element_size()
    offsets = (plane.offset, plane.row_stride, plane.pixel_stride, group_channels)
    return max(1, math.gcd(16, plane.tensor.data_ptr(), *(offset * size for offset in offsets)) // size)


def _scratch(
    operands: Operands, config: ConvConfig, scratch: Scratch | None, device: torch.device, tiles: int, split: int
) -> tuple[Tensor, Tensor]:
    if split == 1:
        return operands.xs[0].tensor, operands.xs[0].tensor
    scratch = Scratch(device) if scratch is None else scratch
    same_device(operands.xs[0].tensor, scratch.counters(0))
    partials = scratch.partials(tiles * split * config.block_m * config.block_n)
    if operands.xs[0].dtype == torch.int8:
        partials = partials.view(torch.int32)
    return partials, scratch.counters(tiles)


def _cost(operands: Operands, windows: Windows, rows: tuple[int, ...] | None, split: int) -> Cost:
    weight, residual = operands.weight, operands.residual
    macs = read = written = 0
    for row in (0,) * windows.count if rows is None else rows:
        x, out = operands.xs[row], operands.outs[row]
        bound = min(windows.bound[0], out.plane[0]), min(windows.bound[1], out.plane[1])
        cells = min(windows.cells, bound[0] * bound[1])
        seen = _demand(weight, Window(0, bound[0], 0, bound[1]))
        inputs = min(seen.height, x.plane[0]) * min(seen.width, x.plane[1]) * cells // (bound[0] * bound[1])
        macs += cells * weight.out_channels * weight.group_channels * weight.taps
        read += inputs * x.channels * x.tensor.element_size()
        written += cells * out.channels * out.tensor.element_size()
        if residual is not None:
            read += cells // operands.residual_factor**2 * residual.channels * residual.tensor.element_size()
        if split > 1:
            read += cells * out.channels * split * 4
            written += cells * out.channels * split * 4
    return Cost(macs, read + weight.tensor.numel() * weight.tensor.element_size(), written)
