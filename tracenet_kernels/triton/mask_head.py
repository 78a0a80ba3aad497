"""The dynamic mask head on windows (CondInst, arXiv 2003.05664): coordinates, three 1x1 layers, upsampling, sigmoid.

Upsampled, a program computes the logits of a small tile of feature cells once, in fp32, and gathers from them on chip:
first along rows, then along columns. Tiles overlap by one cell, whose logit both compute. A head is 152 multiply-adds
per cell with weights that differ from click to click, far below what would pay for tensor cores.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tracenet_kernels.errors import InputError
from tracenet_kernels.triton.cellwise import (
    WindowsLike,
    await_inputs,
    cell_addresses,
    cell_of,
    check_pdl,
    check_same_plane,
    float_plane,
    launch_options,
    plane_args,
    power_of_two,
    relu,
    run_all,
    table_of,
    window_of,
)
from tracenet_kernels.triton.launch import Cost, Launch
from tracenet_kernels.triton.planes import DevicePlane, Windows, as_windows, same_device

FEATURES = 8
PARAMETERS = 169
_MACS = 80 + 64 + 8
_CELLS = 128
_MOST_OUTPUTS = 4096
LARGEST_FACTOR = 64
_LARGEST_STRIDE = 65536


@triton.jit
def _sum_of_eight(weights, total, a, b, c, d, e, f, g, h):
    """``total`` plus eight products with neighbouring weights, in order."""
    total += a * tl.load(weights)
    total += b * tl.load(weights + 1)
    total += c * tl.load(weights + 2)
    total += d * tl.load(weights + 3)
    total += e * tl.load(weights + 4)
    total += f * tl.load(weights + 5)
    total += g * tl.load(weights + 6)
    return total + h * tl.load(weights + 7)


@triton.jit
def _first_unit(theta, UNIT: tl.constexpr, rel_x, rel_y, a, b, c, d, e, f, g, h):
    weights = theta + UNIT * 10
    total = tl.load(theta + (152 + UNIT)) + rel_x * tl.load(weights) + rel_y * tl.load(weights + 1)
    return relu(_sum_of_eight(weights + 2, total, a, b, c, d, e, f, g, h))


@triton.jit
def _second_unit(theta, UNIT: tl.constexpr, a, b, c, d, e, f, g, h):
    return relu(_sum_of_eight(theta + (80 + UNIT * 8), tl.load(theta + (160 + UNIT)), a, b, c, d, e, f, g, h))


@triton.jit
def _logits(at, theta, origin, size_of_interest, y, x, wanted, STRIDE: tl.constexpr):
    """Of cells ``(y, x)``, whose features lie at ``at``."""
    size = tl.load(size_of_interest)
    rel_x = (tl.load(origin) - (x * STRIDE + STRIDE // 2).to(tl.float32)) / size
    rel_y = (tl.load(origin + 1) - (y * STRIDE + STRIDE // 2).to(tl.float32)) / size
    a = tl.load(at, mask=wanted, other=0.0).to(tl.float32)
    b = tl.load(at + 1, mask=wanted, other=0.0).to(tl.float32)
    c = tl.load(at + 2, mask=wanted, other=0.0).to(tl.float32)
    d = tl.load(at + 3, mask=wanted, other=0.0).to(tl.float32)
    e = tl.load(at + 4, mask=wanted, other=0.0).to(tl.float32)
    f = tl.load(at + 5, mask=wanted, other=0.0).to(tl.float32)
    g = tl.load(at + 6, mask=wanted, other=0.0).to(tl.float32)
    h = tl.load(at + 7, mask=wanted, other=0.0).to(tl.float32)

    i = _first_unit(theta, 0, rel_x, rel_y, a, b, c, d, e, f, g, h)
    j = _first_unit(theta, 1, rel_x, rel_y, a, b, c, d, e, f, g, h)
    k = _first_unit(theta, 2, rel_x, rel_y, a, b, c, d, e, f, g, h)
    l = _first_unit(theta, 3, rel_x, rel_y, a, b, c, d, e, f, g, h)  # noqa: E741 - eight units in order
    m = _first_unit(theta, 4, rel_x, rel_y, a, b, c, d, e, f, g, h)
    n = _first_unit(theta, 5, rel_x, rel_y, a, b, c, d, e, f, g, h)
    o = _first_unit(theta, 6, rel_x, rel_y, a, b, c, d, e, f, g, h)
    p = _first_unit(theta, 7, rel_x, rel_y, a, b, c, d, e, f, g, h)

    a = _second_unit(theta, 0, i, j, k, l, m, n, o, p)
    b = _second_unit(theta, 1, i, j, k, l, m, n, o, p)
    c = _second_unit(theta, 2, i, j, k, l, m, n, o, p)
    d = _second_unit(theta, 3, i, j, k, l, m, n, o, p)
    e = _second_unit(theta, 4, i, j, k, l, m, n, o, p)
    f = _second_unit(theta, 5, i, j, k, l, m, n, o, p)
    g = _second_unit(theta, 6, i, j, k, l, m, n, o, p)
    h = _second_unit(theta, 7, i, j, k, l, m, n, o, p)
    return _sum_of_eight(theta + 144, tl.load(theta + 168), a, b, c, d, e, f, g, h)


@triton.jit
def _cells_kernel(
    features, features_offset, features_row, features_pixel, theta, origin, size_of_interest,
    out, out_offset, out_row, out_pixel, table,
    STRIDE: tl.constexpr, SIGMOID: tl.constexpr, BLOCK_M: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    await_inputs(PDL)
    y0, x0, rows, columns = window_of(table)
    first = tl.program_id(0) * BLOCK_M
    if (first >= rows * columns) | (rows <= 0) | (columns <= 0):
        return
    m = first + tl.arange(0, BLOCK_M)
    y, x = cell_of(y0, x0, columns, m)
    wanted = m < rows * columns
    at = cell_addresses(features, features_offset, features_row, features_pixel, y, x)
    value = _logits(at, theta, origin, size_of_interest, y, x, wanted, STRIDE)
    if SIGMOID:
        value = tl.sigmoid(value)
    to = cell_addresses(out, out_offset, out_row, out_pixel, y, x)
    tl.store(to, value.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def _cell_before(i, FACTOR: tl.constexpr):
    """``floor((i - f // 2) / f)`` of outputs ``i >= 0``; -1 before the first cell."""
    return (i + (FACTOR - FACTOR // 2)) // FACTOR - 1


@triton.jit
def _taps_in_tile(i, tile, length, FACTOR: tl.constexpr, CELLS: tl.constexpr):
    """Both cells of outputs ``i``, counted from ``tile``, and the second one's weight.

    Outputs before the first cell's centre or past the last one's read that cell alone.
    """
    before = _cell_before(i, FACTOR)
    between = (before >= 0) & (before < length - 1)
    rest = tl.where(between, i - FACTOR // 2 - before * FACTOR, 0)
    # Outputs that the tile does not write may lie past its cells.
    low = tl.minimum(before - tile, CELLS - 1)
    high = tl.minimum(low + (rest > 0).to(tl.int32), CELLS - 1)
    return low, high, rest.to(tl.float32) * (1.0 / FACTOR)


@triton.jit
def _upsampled_kernel(
    features, features_offset, features_row, features_pixel, theta, origin, size_of_interest,
    out, out_offset, out_row, out_pixel, table, height, width,
    STRIDE: tl.constexpr, FACTOR: tl.constexpr, SIGMOID: tl.constexpr, CELLS_Y: tl.constexpr, CELLS_X: tl.constexpr,
    OUT_Y: tl.constexpr, OUT_X: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    await_inputs(PDL)
    y0, x0, rows, columns = window_of(table)
    first_y = _cell_before(y0, FACTOR) + tl.program_id(1) * (CELLS_Y - 1)
    first_x = _cell_before(x0, FACTOR) + tl.program_id(0) * (CELLS_X - 1)
    last_y = _cell_before(y0 + rows - 1, FACTOR)
    last_x = _cell_before(x0 + columns - 1, FACTOR)
    if (rows <= 0) | (columns <= 0) | (first_y > last_y) | (first_x > last_x):
        return

    # Only cells that some output of the window reads: the others need not be in memory.
    reach_y = last_y + ((y0 + rows - 1 - FACTOR // 2) > last_y * FACTOR).to(tl.int32)
    reach_x = last_x + ((x0 + columns - 1 - FACTOR // 2) > last_x * FACTOR).to(tl.int32)
    m = tl.arange(0, CELLS_Y * CELLS_X)
    cell_y, cell_x = first_y + m // CELLS_X, first_x + m % CELLS_X
    wanted = (cell_y <= tl.minimum(reach_y, height - 1)) & (cell_x <= tl.minimum(reach_x, width - 1))
    y, x = tl.maximum(cell_y, 0), tl.maximum(cell_x, 0)
    at = cell_addresses(features, features_offset, features_row, features_pixel, y, x)
    logits = _logits(at, theta, origin, size_of_interest, y, x, wanted, STRIDE)
    logits = tl.reshape(logits, [CELLS_Y, CELLS_X])

    oy = first_y * FACTOR + FACTOR // 2 + tl.arange(0, OUT_Y)
    ox = first_x * FACTOR + FACTOR // 2 + tl.arange(0, OUT_X)
    low, high, weight = _taps_in_tile(ox, first_x, width, FACTOR, CELLS_X)
    left = tl.gather(logits, tl.broadcast_to(low[None, :], [CELLS_Y, OUT_X]), 1)
    right = tl.gather(logits, tl.broadcast_to(high[None, :], [CELLS_Y, OUT_X]), 1)
    across = left * (1.0 - weight)[None, :] + right * weight[None, :]  # [CELLS_Y, OUT_X]
    low, high, weight = _taps_in_tile(oy, first_y, height, FACTOR, CELLS_Y)
    top = tl.gather(across, tl.broadcast_to(low[:, None], [OUT_Y, OUT_X]), 0)
    bottom = tl.gather(across, tl.broadcast_to(high[:, None], [OUT_Y, OUT_X]), 0)
    value = top * (1.0 - weight)[:, None] + bottom * weight[:, None]
    if SIGMOID:
        value = tl.sigmoid(value)

    # Outputs of the tile are those between its cells, also where it holds a power of two more.
    inside_y = (oy >= y0) & (oy < y0 + rows) & (tl.arange(0, OUT_Y) < (CELLS_Y - 1) * FACTOR)
    inside_x = (ox >= x0) & (ox < x0 + columns) & (tl.arange(0, OUT_X) < (CELLS_X - 1) * FACTOR)
    to = out + out_offset + (oy * out_row)[:, None] + (ox * out_pixel)[None, :]
    tl.store(to, value.to(out.dtype.element_ty), mask=inside_y[:, None] & inside_x[None, :])


def mask_head_launches(
    features: Tensor | DevicePlane,
    theta: Tensor,
    origin: Tensor,
    size_of_interest: Tensor,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    *,
    stride: int = 8,
    factor: int = 0,
    sigmoid: bool = False,
    name: str = "mask_head",
    pdl: bool = False,
) -> list[Launch]:
    """Three 1x1 layers 10 -> 8 -> 8 -> 1, ReLU after the first two, over the features and where their cells lie.

    The input of cell ``(y, x)`` is ``[(origin_x - px) / soi, (origin_y - py) / soi, 8 features]`` with
    ``p = stride * i + stride // 2``. Everything is computed in fp32 and rounded once.

    Args:
        features: [h, w, 8] plane of fp32, fp16 or bf16.
        theta: fp32 [169] on the device: weights (80, 64, 8; each row-major out, in), then biases (8, 8, 1).
        origin: fp32 [2] on the device: (x, y) in input pixels.
        size_of_interest: fp32 [1] on the device: the ``soi`` of the level that predicted ``theta``.
        out: [h, w, 1] plane, or ``factor`` times that, of fp32, fp16 or bf16.
        windows: of ``out``.
        stride: input pixels per cell.
        factor: 0 for values on the features' plane; f for aligned bilinear upsampling by f after the layers.
        sigmoid: of the (upsampled) logits.
        name: of the launch.
        pdl: programmatic dependent launch (sm_90 on).

    Raises:
        InputError: planes, parameters, a stride or factor that do not fit.
        WindowError: a window is not within ``out``.
    """
    source, target = float_plane(features, "features"), float_plane(out, "out")
    _check(source, target, stride, factor)
    for tensor, label, length in ((theta, "theta", PARAMETERS), (origin, "origin", 2), (size_of_interest, "soi", 1)):
        if tensor.dtype != torch.float32 or tensor.numel() != length or not tensor.is_contiguous():
            raise InputError(f"{label} is {tensor.dtype} {tuple(tensor.shape)}; pass {length} contiguous float32")
    same_device(source.tensor, target.tensor, theta, origin, size_of_interest)
    rows = as_windows(windows, target)
    args = {
        **plane_args("features", source),
        "theta": theta,
        "origin": origin,
        "size_of_interest": size_of_interest,
        **plane_args("out", target),
        "table": table_of(rows),
    }
    meta = {"STRIDE": stride, "SIGMOID": bool(sigmoid), "PDL": check_pdl(pdl)}
    if factor < 2:
        return [_on_cells(name, rows, args, meta, pdl)]
    args.update(height=source.plane[0], width=source.plane[1])
    return [_upsampled(name, rows, args, {**meta, "FACTOR": factor}, pdl)]


def mask_head(
    features: Tensor | DevicePlane,
    theta: Tensor,
    origin: Tensor,
    size_of_interest: Tensor,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    **attributes: Any,
) -> None:
    """Run :func:`mask_head_launches`."""
    run_all(mask_head_launches(features, theta, origin, size_of_interest, out, windows, **attributes))


def _check(features: DevicePlane, out: DevicePlane, stride: int, factor: int) -> None:
    if features.channels != FEATURES or out.channels != 1:
        raise InputError(
            f"the mask head maps 8 channels to 1, but the features have {features.channels} and out {out.channels}"
        )
    if not 1 <= stride <= _LARGEST_STRIDE:
        raise InputError(f"mask features of stride {stride}; pass 1 to {_LARGEST_STRIDE}")
    if not 0 <= factor <= LARGEST_FACTOR:
        raise InputError(f"upsampling by {factor}; pass 0 (none) to {LARGEST_FACTOR}, and resize the rest of the way")
    if factor == 0:
        check_same_plane(features, out, "features")
    elif out.plane != (factor * features.plane[0], factor * features.plane[1]):
        raise InputError(
            f"upsampling by {factor} from {features.plane[0]} x {features.plane[1]} cells to {out.plane[0]} x "
            f"{out.plane[1]}; pass an output plane that many times as large"
        )


def _on_cells(name: str, windows: Windows, args: dict[str, Any], meta: dict[str, Any], pdl: bool) -> Launch:
    block = min(_CELLS, power_of_two(windows.cells))
    grid = (-(-windows.cells // block), 1, windows.count)
    options = launch_options(max(1, block // 32), pdl=pdl)
    return Launch(
        name, _cells_kernel, grid, args, {**meta, "BLOCK_M": block}, options, cost=_cost(windows.cells, windows, args)
    )


def _upsampled(name: str, windows: Windows, args: dict[str, Any], meta: dict[str, Any], pdl: bool) -> Launch:
    """Tiles of 8 x 16 cells, smaller where they would have more outputs than registers hold."""
    factor, (height, width) = meta["FACTOR"], windows.bound
    cells_y, cells_x = 8, 16
    while power_of_two((cells_y - 1) * factor) * power_of_two((cells_x - 1) * factor) > _MOST_OUTPUTS:
        cells_y, cells_x = (cells_y, cells_x // 2) if cells_x > cells_y else (cells_y // 2, cells_x)
    # An axis of n outputs has at most this many cells at or before one of them.
    tall, wide = ((n + 2 * factor - 2) // factor for n in (height, width))
    grid = (-(-wide // (cells_x - 1)), -(-tall // (cells_y - 1)), windows.count)
    meta = {
        **meta,
        "CELLS_Y": cells_y,
        "CELLS_X": cells_x,
        "OUT_Y": power_of_two((cells_y - 1) * factor),
        "OUT_X": power_of_two((cells_x - 1) * factor),
    }
    return Launch(
        name,
        _upsampled_kernel,
        grid,
        args,
        meta,
        launch_options(max(1, cells_y * cells_x // 32), pdl=pdl),
        cost=_cost((tall + 1) * (wide + 1), windows, args),
    )


def _cost(cells: int, windows: Windows, args: dict[str, Any]) -> Cost:
    """For ``cells`` feature cells of every window."""
    count = windows.count
    read = cells * count * FEATURES * args["features"].element_size() + 4 * PARAMETERS
    return Cost(cells * count * _MACS, read, windows.cells * count * args["out"].element_size())
