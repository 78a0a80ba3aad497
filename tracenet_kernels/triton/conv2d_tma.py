"""Convolution on windows with the tensor memory accelerator of sm_90 and newer.

    y[oy, ox, o] = act(scale[o] * sum_{ky, kx, i} w[o, i, ky, kx] * x[oy * s - p + ky * d, ox * s - p + kx * d, i]
                       + bias[o] + residual[oy // f, ox // f, o])

A program computes a rectangle of cells from the window's origin on. For each tap and block of channels one copy brings
the rectangle, shifted by the tap, into shared memory; zeros for what lies off the plane are the convolution's padding.
Where a block has 64 output channels or more, these are the rows of the matrix instruction. So tiny windows leave no row
empty, and neither operand goes through registers: the weights are plain two-dimensional boxes, as the first operand has
to be, and the rectangle of cells, a reshaped box, is the second.

Where windows are small, several programs share the sum of one rectangle, in a fixed order
(:mod:`~tracenet_kernels.triton.split_k`). Under programmatic dependent launch, a program draws its share of the weights
into the L2 cache before it waits for the launches before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from tracenet_kernels.errors import InputError
from tracenet_kernels.triton.cellwise import check_pdl, launch_options, plane_args, relu, run_all, table_of
from tracenet_kernels.triton.configs import ConvConfig, ConvKey, bucket, conv_config
from tracenet_kernels.triton.descriptors import DTYPES, plane_descriptor, weight_descriptor, why_not_plane
from tracenet_kernels.triton.launch import Cost, Launch
from tracenet_kernels.triton.operands import (
    ACTIVATIONS,
    alignment,
    as_residual,
    as_vector,
    cell_offsets,
    check_precision,
    draw_into_l2,
    refuse_overlap,
    split_absent,
)
from tracenet_kernels.triton.planes import DevicePlane, Windows, as_plane, as_windows, interpreted, same_device
from tracenet_kernels.triton.split_k import Scratch, hand_in, sum_of_partials
from tracenet_kernels.triton.weights import DeviceWeight
from tracenet_kernels.window import Window

MATRIX_ROWS = 64
"""Of a matrix instruction of one warp group."""


@triton.jit
def conv2d_tma_kernel(
    x, weight, weight_data, scale, bias, table, origin_y, origin_x, partials, counters,
    out, out_offset, out_row, out_pixel, residual, residual_offset, residual_row, residual_pixel,
    OUT: tl.constexpr, PADDED: tl.constexpr, K_BLOCKS: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    STRIDE: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
    FACTOR: tl.constexpr, RELU: tl.constexpr, OUT_ALIGN: tl.constexpr, RESIDUAL_ALIGN: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_H x BLOCK_W cells x BLOCK_N channels: grid (rectangles, blocks of channels x SPLIT, windows)."""
    n0 = tl.program_id(1) // SPLIT * BLOCK_N
    split = tl.program_id(1) % SPLIT
    if PDL:
        ROW: tl.constexpr = KY * KX * PADDED
        draw_into_l2(weight_data, n0 * ROW, BLOCK_N * ROW, OUT * ROW)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = table + tl.program_id(2) * 4
    y0 = tl.load(row)
    y1 = tl.load(row + 1)
    x0 = tl.load(row + 2)
    x1 = tl.load(row + 3)
    across = tl.maximum(tl.cdiv(x1 - x0, BLOCK_W), 1)
    y0 += tl.program_id(0) // across * BLOCK_H
    x0 += tl.program_id(0) % across * BLOCK_W
    if (y0 >= y1) | (x0 >= x1):
        return

    BLOCK_M: tl.constexpr = BLOCK_H * BLOCK_W
    dtype: tl.constexpr = tl.float32 if UPCAST else x.dtype
    if SWAP:
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    STEPS: tl.constexpr = KY * KX * K_BLOCKS
    for step in range(split * STEPS // SPLIT, (split + 1) * STEPS // SPLIT):
        tap = step // K_BLOCKS
        k0 = step % K_BLOCKS * BLOCK_K
        dy = tap // KX * DY - PY - origin_y
        dx = tap % KX * DX - PX - origin_x
        if STRIDE == 1:
            cells = x.load([y0 + dy, x0 + dx, k0])
        else:
            cells = x.load([y0 + (dy >> 1), dy & 1, x0 + (dx >> 1), dx & 1, k0])
        cells = tl.reshape(cells, (BLOCK_M, BLOCK_K)).to(dtype)
        rows = weight.load([n0, tap * PADDED + k0]).to(dtype)  # [N, K]
        if SWAP:
            acc = tl.dot(rows, tl.trans(cells), acc, input_precision=PRECISION)
        else:
            acc = tl.dot(cells, tl.trans(rows), acc, input_precision=PRECISION)

    if SPLIT > 1:
        tile = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * (
            tl.num_programs(1) // SPLIT
        ) + n0 // BLOCK_N
        if hand_in(partials, counters, tile, split, acc, SPLIT) < SPLIT - 1:
            return
        acc = sum_of_partials(partials, counters, tile, acc, SPLIT)

    m = tl.arange(0, BLOCK_M)
    oy = y0 + m // BLOCK_W
    ox = x0 + m % BLOCK_W
    inside = (oy < y1) & (ox < x1)
    n = n0 + tl.arange(0, BLOCK_N)
    channel = n[:, None] if SWAP else n[None, :]
    present = channel < OUT
    mask = present & (inside[None, :] if SWAP else inside[:, None])
    if scale is not None:
        acc *= tl.load(scale + channel, mask=present, other=0.0)
    if bias is not None:
        acc += tl.load(bias + channel, mask=present, other=0.0)
    if residual is not None:
        cell = cell_offsets(oy // FACTOR, ox // FACTOR, residual_offset, residual_row, residual_pixel, RESIDUAL_ALIGN)
        cell = cell[None, :] if SWAP else cell[:, None]
        acc += tl.load(residual + cell + channel, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        acc = relu(acc)
    cell = cell_offsets(oy, ox, out_offset, out_row, out_pixel, OUT_ALIGN)
    cell = cell[None, :] if SWAP else cell[:, None]
    tl.store(out + cell + channel, acc.to(out.dtype.element_ty), mask=mask)


def why_not(x: Tensor | DevicePlane, weight: DeviceWeight) -> str:
    """Why this kernel does not take ``x`` and ``weight``, as a clause; an empty string where it does."""
    x = as_plane(x, "x")
    if weight.groups != 1:
        return f"it has no {weight.groups} groups"
    return why_not_plane(x, weight.stride)


def fits(x: Tensor | DevicePlane, weight: DeviceWeight) -> bool:
    """Whether this kernel takes ``x`` and ``weight``; a caller falls back to the pointer kernel."""
    return not why_not(x, weight)


def conv2d_tma_launches(
    x: Tensor | DevicePlane,
    weight: DeviceWeight,
    out: Tensor | DevicePlane,
    windows: Windows | Window | Sequence[Window],
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | DevicePlane | None = None,
    residual_factor: int = 1,
    activation: str = "none",
    precision: str = "tf32x3",
    config: ConvConfig | None = None,
    scratch: Scratch | None = None,
    pdl: bool = False,
    name: str = "conv2d_tma",
) -> list[Launch]:
    """Bind a convolution to its planes.

    Args:
        x: [rows, columns, in]; base and strides multiples of 16 bytes, any number of channels; for stride 2 an even
            number of rows and columns in memory.
        weight: any kernel, padding and dilation, stride (1, 1) or (2, 2), one group.
        out: what is written, at ``windows`` only; shares memory with nothing that is read.
        windows: cells of the output's plane.
        scale, bias: fp32 [out]; None: 1 and 0.
        residual: plane with the output's channels; cell ``(y // residual_factor, x // residual_factor)`` is added.
        activation: one of :data:`~tracenet_kernels.triton.operands.ACTIVATIONS`, applied last.
        precision: of fp32 products, one of :data:`~tracenet_kernels.triton.operands.PRECISIONS`.
        config: tile sizes; ``swap`` follows from ``block_n``.
        scratch: for split sums; one for all launches of a stream. A new one where none is given.
        pdl: programmatic dependent launch.
        name: of the step.

    Raises:
        InputError: something does not fit, or the pointer kernel has to be taken (see :func:`why_not`).
        WindowError: a window of the host is not within the output.
    """
    x = as_plane(x, "x", DTYPES)
    out = as_plane(out, "out", (x.dtype,))
    if weight.in_channels != x.channels or weight.tensor.dtype != x.dtype:
        raise InputError(
            f"the weight takes {weight.in_channels} channels of {weight.tensor.dtype}; x has {x.channels} of {x.dtype}"
        )
    if reason := why_not(x, weight):
        raise InputError(f"conv2d_tma does not take this convolution: {reason}; take conv2d")
    if weight.out_channels != out.channels:
        raise InputError(f"the weight gives {weight.out_channels} channels, out has {out.channels}; pass as many")
    if activation not in ACTIVATIONS:
        raise InputError(f"activation {activation!r} is not known; pass one of {ACTIVATIONS}")
    inputs = {"x": x}
    if residual is not None:
        residual = inputs["residual"] = as_residual(residual, residual_factor, out, (out.dtype,))
    refuse_overlap({"out": out}, inputs)
    table = as_windows(windows, out)
    scale, bias = (as_vector(value, kind, out.channels) for kind, value in (("scale", scale), ("bias", bias)))
    tensors = [plane.tensor for plane in (*inputs.values(), out)]
    same_device(*tensors, weight.tensor, scale, bias, table.table, None if scratch is None else scratch.counters(0))

    chosen = config or _default(x, weight, table)
    rows, columns = rectangle(chosen.block_m, table.bound)
    height, width = table.bound
    k_blocks = triton.cdiv(x.channels, chosen.block_k)
    split = min(chosen.split_k, weight.taps * k_blocks)
    rectangles = triton.cdiv(height, rows) * triton.cdiv(width, columns)
    blocks = triton.cdiv(out.channels, chosen.block_n)
    grid = (rectangles, blocks * split, table.count)
    partials = counters = None
    if split > 1:
        scratch = Scratch(out.tensor.device) if scratch is None else scratch
        tiles = rectangles * blocks * table.count
        partials = scratch.partials(tiles * split * chosen.block_m * chosen.block_n)
        counters = scratch.counters(tiles)
    addend = dict.fromkeys(("residual", "residual_offset", "residual_row", "residual_pixel"))
    args, absent = split_absent(
        {
            "x": plane_descriptor(x, weight.stride[0], rows, columns, chosen.block_k),
            "weight": weight_descriptor(weight, chosen.block_n, chosen.block_k),
            "weight_data": weight.tensor if pdl else None,
            "scale": scale,
            "bias": bias,
            "table": table_of(table),
            "origin_y": x.origin[0],
            "origin_x": x.origin[1],
            "partials": partials,
            "counters": counters,
            **plane_args("out", out),
            **(addend if residual is None else plane_args("residual", residual)),
        }
    )
    meta = {
        **absent,
        "OUT": out.channels,
        "PADDED": weight.tensor.shape[2],
        "K_BLOCKS": k_blocks,
        "KY": weight.kernel[0],
        "KX": weight.kernel[1],
        "STRIDE": weight.stride[0],
        "PY": weight.padding[0],
        "PX": weight.padding[1],
        "DY": weight.dilation[0],
        "DX": weight.dilation[1],
        "FACTOR": residual_factor,
        "RELU": activation == "relu",
        "OUT_ALIGN": alignment(out),
        "RESIDUAL_ALIGN": 1 if residual is None else alignment(residual),
        "BLOCK_H": rows,
        "BLOCK_W": columns,
        "BLOCK_N": chosen.block_n,
        "BLOCK_K": chosen.block_k,
        "SWAP": chosen.block_n >= MATRIX_ROWS,
        "SPLIT": split,
        "PRECISION": check_precision(precision),
        "UPCAST": interpreted(),
        "PDL": check_pdl(pdl),
    }
    options = launch_options(chosen.warps, chosen.stages, pdl=pdl)
    cost = _cost(x, weight, table, residual, residual_factor, split)
    return [Launch(name, conv2d_tma_kernel, grid, args, meta, options, tensor_cores=True, cost=cost)]


def conv2d_tma(
    x: Tensor | DevicePlane,
    weight: DeviceWeight,
    out: Tensor | DevicePlane,
    windows: Windows | Window | Sequence[Window],
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | DevicePlane | None = None,
    residual_factor: int = 1,
    activation: str = "none",
    precision: str = "tf32x3",
    config: ConvConfig | None = None,
    scratch: Scratch | None = None,
) -> None:
    """Run :func:`conv2d_tma_launches` at once."""
    run_all(
        conv2d_tma_launches(
            x,
            weight,
            out,
            windows,
            scale=scale,
            bias=bias,
            residual=residual,
            residual_factor=residual_factor,
            activation=activation,
            precision=precision,
            config=config,
            scratch=scratch,
        )
    )


def rectangle(cells: int, bound: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns, powers of two, of the rectangle of ``cells`` cells of which the fewest cover ``bound``."""
    shapes = [(cells >> shift, 1 << shift) for shift in reversed(range(cells.bit_length()))]
    return min(shapes, key=lambda s: triton.cdiv(bound[0], s[0]) * triton.cdiv(bound[1], s[1]))


def _default(x: DevicePlane, weight: DeviceWeight, windows: Windows) -> ConvConfig:
    """The configuration of this device for this shape."""
    key = ConvKey(
        "conv2d_tma",
        str(x.dtype).removeprefix("torch."),
        bucket(windows.cells),
        weight.in_channels,
        weight.out_channels,
        weight.taps,
        windows.count,
    )
    return conv_config(key)


def _cost(
    x: DevicePlane,
    weight: DeviceWeight,
    windows: Windows,
    residual: DevicePlane | None,
    factor: int,
    split: int,
) -> Cost:
    size = x.tensor.element_size()
    results = windows.cells * windows.count * weight.out_channels
    rows, columns = (
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(windows.bound, weight.stride, weight.kernel, weight.dilation, strict=True)
    )
    read = rows * columns * windows.count * x.channels + weight.tensor.numel()
    read += 0 if residual is None else triton.cdiv(results, factor * factor)
    partials = 4 * results * split if split > 1 else 0
    return Cost(results * weight.taps * weight.in_channels, read * size + partials, results * size + partials)
