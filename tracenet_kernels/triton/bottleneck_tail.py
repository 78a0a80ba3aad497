"""The tail of a bottleneck block in one kernel: 3x3, then 1x1 with residual, then the next block's first 1x1.

    t = relu(conv3x3(x) * s + b)                 stays on chip
    y = relu(conv1x1(t) * s + b + residual)      block_out
    z = relu(conv1x1(y) * s + b)                 next_out, where there is a next block

Both followers are 1x1, so all three share one window and no cell is computed twice. A program holds one tile of cells
with all middle channels in registers, rounded to the planes' dtype, as is what it hands on: the values are those of
three launches. The output channels go by in chunks, and each chunk is added at once to the next block's sum. Under
programmatic dependent launch, the weights are drawn into the L2 cache before the wait for the launches before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tracenet_kernels.errors import InputError
from tracenet_kernels.triton.cellwise import (
    await_inputs,
    cell_of,
    check_pdl,
    launch_options,
    plane_args,
    relu,
    run_all,
    table_of,
    window_of,
)
from tracenet_kernels.triton.configs import ConvConfig, ConvKey, bucket, conv_config
from tracenet_kernels.triton.launch import Cost, Launch
from tracenet_kernels.triton.operands import (
    aligned,
    alignment,
    as_vector,
    cell_offsets,
    check_precision,
    draw_into_l2,
    refuse_overlap,
    scaled,
    split_absent,
)
from tracenet_kernels.triton.planes import DevicePlane, Windows, as_plane, as_windows, interpreted, same_device
from tracenet_kernels.triton.weights import DeviceWeight
from tracenet_kernels.window import Window

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_MID = 256
MAX_NEXT = 256
"""Channels that a tile keeps in registers at most; twice as many of fp32 do not fit."""

PROGRAMS = 96
"""Programs that a launch should have at least, where the window is large enough."""


def fits(mid: int, out: int, dtype: torch.dtype, next_channels: int = 0) -> bool:
    """Whether the fused kernel takes a block of these channels; a caller falls back to single convolutions.

    Args:
        mid, out: output channels of the 3x3 and of the 1x1 that follows it.
        dtype: of the planes.
        next_channels: output channels of the next block's first 1x1, 0 where there is none.
    """
    if dtype not in DTYPES or min(mid, out) < 1 or next_channels < 0:
        return False
    share = 2 if dtype == torch.float32 else 1
    return mid * share <= MAX_MID and next_channels * share <= MAX_NEXT


@triton.jit
def bottleneck_tail_kernel(
    x, x_offset, x_row, x_pixel, height, width, steps, chunks,
    residual, residual_offset, residual_row, residual_pixel,
    out, out_offset, out_row, out_pixel,
    following, following_offset, following_row, following_pixel,
    table, mid_weight, mid_scale, mid_bias, expand_weight, expand_scale, expand_bias,
    next_weight, next_scale, next_bias,
    IN: tl.constexpr, IN_PADDED: tl.constexpr, MID: tl.constexpr, MID_PADDED: tl.constexpr,
    OUT: tl.constexpr, OUT_PADDED: tl.constexpr, NEXT: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    X_ALIGN: tl.constexpr, RESIDUAL_ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr, NEXT_ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    MID_BLOCK: tl.constexpr, NEXT_BLOCK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_M cells of one window: grid (tiles, 1, windows)."""
    if PDL:
        draw_into_l2(mid_weight, 0, MID * 9 * IN_PADDED, MID * 9 * IN_PADDED)
        draw_into_l2(expand_weight, 0, OUT * MID_PADDED, OUT * MID_PADDED)
        if NEXT > 0:
            draw_into_l2(next_weight, 0, NEXT * OUT_PADDED, NEXT * OUT_PADDED)
    await_inputs(PDL)
    y0, x0, rows, columns = window_of(table)
    first = tl.program_id(0) * BLOCK_M
    if (first >= rows * columns) | (rows <= 0) | (columns <= 0):
        return
    cell = first + tl.arange(0, BLOCK_M)
    inside = cell < rows * columns
    oy, ox = cell_of(y0, x0, columns, cell)

    # The 3x3 over all its input channels. Loops of a fixed length would be unrolled in full.
    dtype: tl.constexpr = tl.float32 if UPCAST else x.dtype.element_ty
    iy = oy * STRIDE_Y - 1
    ix = ox * STRIDE_X - 1
    cells = x + cell_offsets(iy, ix, x_offset, x_row, x_pixel, X_ALIGN)  # [M]
    k = tl.arange(0, BLOCK_K)
    mid = tl.arange(0, MID_BLOCK)
    mid_rows = mid_weight + mid[None, :] * (9 * IN_PADDED)
    K_BLOCKS: tl.constexpr = (IN + BLOCK_K - 1) // BLOCK_K
    acc = tl.zeros([BLOCK_M, MID_BLOCK], tl.float32)
    for step in range(steps):
        tap = step // K_BLOCKS
        channel = (step % K_BLOCKS) * BLOCK_K + k
        dy = tap // 3
        dx = tap % 3
        valid = inside & (iy + dy >= 0) & (iy + dy < height) & (ix + dx >= 0) & (ix + dx < width)
        shift = dy * aligned(x_row, X_ALIGN) + dx * aligned(x_pixel, X_ALIGN)
        x_mask = valid[:, None]
        weight_mask = mid[None, :] < MID
        if IN % BLOCK_K != 0:
            x_mask &= channel[None, :] < IN
            weight_mask &= channel[:, None] < IN
        a = tl.load((cells + shift)[:, None] + channel[None, :], mask=x_mask, other=0.0)  # [M, K]
        b = tl.load(mid_rows + tap * IN_PADDED + channel[:, None], mask=weight_mask, other=0.0)  # [K, mid]
        acc = tl.dot(a.to(dtype), b.to(dtype), acc, input_precision=PRECISION)
    t = relu(scaled(acc, mid_scale, mid_bias, mid, MID)).to(x.dtype.element_ty).to(dtype)

    # Output channels in chunks; each is part of the next block's sum as soon as it is there.
    residual_cells = residual + cell_offsets(oy, ox, residual_offset, residual_row, residual_pixel, RESIDUAL_ALIGN)
    out_cells = out + cell_offsets(oy, ox, out_offset, out_row, out_pixel, OUT_ALIGN)
    last = tl.arange(0, NEXT_BLOCK)
    z = tl.zeros([BLOCK_M, NEXT_BLOCK], tl.float32)
    for chunk in range(chunks):
        channel = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
        cell_mask = inside[:, None]
        weight_mask = mid[:, None] < MID_PADDED
        if OUT % BLOCK_N != 0:
            cell_mask &= channel[None, :] < OUT
            weight_mask &= channel[None, :] < OUT
        addend = tl.load(residual_cells[:, None] + channel[None, :], mask=cell_mask, other=0.0)
        weight = tl.load(
            expand_weight + channel[None, :] * MID_PADDED + mid[:, None], mask=weight_mask, other=0.0
        )  # [mid, N]
        y = tl.dot(t, weight.to(dtype), input_precision=PRECISION)
        y = relu(scaled(y, expand_scale, expand_bias, channel, OUT) + addend.to(tl.float32)).to(out.dtype.element_ty)
        tl.store(out_cells[:, None] + channel[None, :], y, mask=cell_mask)
        if NEXT > 0:
            weight_mask = last[None, :] < NEXT
            if OUT % BLOCK_N != 0:
                weight_mask &= channel[:, None] < OUT
            weight = tl.load(
                next_weight + last[None, :] * OUT_PADDED + channel[:, None], mask=weight_mask, other=0.0
            )  # [N, next]
            z = tl.dot(y.to(dtype), weight.to(dtype), z, input_precision=PRECISION)
    if NEXT > 0:
        z = relu(scaled(z, next_scale, next_bias, last, NEXT))
        cells = following + cell_offsets(oy, ox, following_offset, following_row, following_pixel, NEXT_ALIGN)
        z_mask = inside[:, None] & (last[None, :] < NEXT)
        tl.store(cells[:, None] + last[None, :], z.to(following.dtype.element_ty), mask=z_mask)


def bottleneck_tail_launches(
    x: Tensor | DevicePlane,
    mid: DeviceWeight,
    expand: DeviceWeight,
    next: DeviceWeight | None,
    *,
    residual: Tensor | DevicePlane,
    block_out: Tensor | DevicePlane,
    next_out: Tensor | DevicePlane | None,
    windows: Windows | Window | Sequence[Window],
    mid_scale: Tensor | None = None,
    mid_bias: Tensor | None = None,
    expand_scale: Tensor | None = None,
    expand_bias: Tensor | None = None,
    next_scale: Tensor | None = None,
    next_bias: Tensor | None = None,
    precision: str = "tf32x3",
    config: ConvConfig | None = None,
    pdl: bool = False,
    name: str = "bottleneck_tail",
) -> list[Launch]:
    """Bind the fused tail to its planes.

    Args:
        x: [rows, columns, in], the output of the block's first 1x1.
        mid: 3x3 with padding 1, any stride.
        expand: 1x1, ``mid`` channels to those of ``block_out``.
        next: 1x1 of the following block, or None.
        residual: plane of the output's size and channels.
        block_out, next_out: what is written, at ``windows`` only; they share memory with nothing that is read.
        windows: cells of the outputs' planes.
        mid_scale, mid_bias, expand_scale, expand_bias, next_scale, next_bias: fp32 [out]; None: 1 and 0.
        precision: of fp32 products, one of :data:`~tracenet_kernels.triton.operands.PRECISIONS`.
        config: tile sizes; ``block_n`` output channels make one chunk; ``split_k`` and ``swap`` mean nothing here.
        pdl: programmatic dependent launch (sm_90 and newer).
        name: of the step.

    Raises:
        InputError: a dtype, shape, geometry or device does not fit, too many channels (see :func:`fits`), or an
            output shares memory with another plane.
        WindowError: a window of the host is not within the outputs.
    """
    x = as_plane(x, "x", DTYPES)
    residual = as_plane(residual, "residual", (x.dtype,))
    block_out = as_plane(block_out, "block_out", (x.dtype,))
    if (next is None) != (next_out is None):
        raise InputError("pass both next and next_out, or neither")
    following = None if next_out is None else as_plane(next_out, "next_out", (x.dtype,))
    weights = {"mid": mid, "expand": expand} | ({} if next is None else {"next": next})
    _check_weights(x, weights)
    outputs = {"block_out": block_out} | ({} if following is None else {"next_out": following})
    inputs = {"x": x, "residual": residual}
    for plane_name, plane, channels in (
        ("residual", residual, expand.out_channels),
        ("block_out", block_out, expand.out_channels),
        ("next_out", following, 0 if next is None else next.out_channels),
    ):
        if plane is not None and (plane.channels != channels or plane.plane != block_out.plane):
            raise InputError(
                f"{plane_name} is {plane.channels} channels on a plane of {plane.plane}; "
                f"pass {channels} channels on {block_out.plane}, that of block_out"
            )
    refuse_overlap(outputs, inputs)
    for other in (residual, following):
        if other is not None:
            as_windows(windows, other)
    table = as_windows(windows, block_out)
    vectors = {
        f"{role}_{kind}": as_vector(value, f"{role}_{kind}", weight.out_channels if weight else 0)
        for role, weight, values in (
            ("mid", mid, (mid_scale, mid_bias)),
            ("expand", expand, (expand_scale, expand_bias)),
            ("next", next, (next_scale, next_bias)),
        )
        for kind, value in zip(("scale", "bias"), values, strict=True)
    }
    tensors = [plane.tensor for plane in (*inputs.values(), *outputs.values())]
    same_device(*tensors, *(weight.tensor for weight in weights.values()), *vectors.values(), table.table)

    next_channels = 0 if next is None else next.out_channels
    scalar = min(alignment(plane) for plane in (residual, *outputs.values())) == 1
    chosen = config or _bounded(x.dtype, mid, expand.out_channels, next_channels, table, scalar)
    next_args: dict[str, Any] = dict.fromkeys(
        ("following", "following_offset", "following_row", "following_pixel", "next_weight")
    )
    if next is not None and following is not None:
        next_args = plane_args("following", following) | {"next_weight": next.tensor}
    args, absent = split_absent(
        plane_args("x", x)
        | {
            "height": x.plane[0],
            "width": x.plane[1],
            "steps": 9 * triton.cdiv(x.channels, chosen.block_k),
            "chunks": triton.cdiv(expand.out_channels, chosen.block_n),
        }
        | plane_args("residual", residual)
        | plane_args("out", block_out)
        | next_args
        | {"table": table_of(table), "mid_weight": mid.tensor, "expand_weight": expand.tensor}
        | vectors
    )
    meta = {
        **absent,
        "IN": x.channels,
        "IN_PADDED": mid.tensor.shape[2],
        "MID": mid.out_channels,
        "MID_PADDED": expand.tensor.shape[2],
        "OUT": expand.out_channels,
        "OUT_PADDED": 0 if next is None else next.tensor.shape[2],
        "NEXT": next_channels,
        "STRIDE_Y": mid.stride[0],
        "STRIDE_X": mid.stride[1],
        "X_ALIGN": alignment(x),
        "RESIDUAL_ALIGN": alignment(residual),
        "OUT_ALIGN": alignment(block_out),
        "NEXT_ALIGN": 1 if following is None else alignment(following),
        "BLOCK_M": chosen.block_m,
        "BLOCK_K": chosen.block_k,
        "BLOCK_N": chosen.block_n,
        "MID_BLOCK": _block(mid.out_channels),
        "NEXT_BLOCK": _block(next_channels),
        "PRECISION": check_precision(precision),
        "UPCAST": interpreted(),
        "PDL": check_pdl(pdl),
    }
    return [
        Launch(
            name,
            bottleneck_tail_kernel,
            (triton.cdiv(table.cells, chosen.block_m), 1, table.count),
            args,
            meta,
            launch_options(chosen.warps, chosen.stages, pdl=pdl),
            tensor_cores=True,
            cost=_cost(x, list(weights.values()), mid, table),
        )
    ]


def bottleneck_tail(
    x: Tensor | DevicePlane,
    mid: DeviceWeight,
    expand: DeviceWeight,
    next: DeviceWeight | None,
    *,
    residual: Tensor | DevicePlane,
    block_out: Tensor | DevicePlane,
    next_out: Tensor | DevicePlane | None,
    windows: Windows | Window | Sequence[Window],
    mid_scale: Tensor | None = None,
    mid_bias: Tensor | None = None,
    expand_scale: Tensor | None = None,
    expand_bias: Tensor | None = None,
    next_scale: Tensor | None = None,
    next_bias: Tensor | None = None,
    precision: str = "tf32x3",
    config: ConvConfig | None = None,
) -> None:
    """Run :func:`bottleneck_tail_launches` at once."""
    run_all(
        bottleneck_tail_launches(
            x, mid, expand, next, residual=residual, block_out=block_out, next_out=next_out, windows=windows,
            mid_scale=mid_scale, mid_bias=mid_bias, expand_scale=expand_scale, expand_bias=expand_bias,
            next_scale=next_scale, next_bias=next_bias, precision=precision, config=config,
        )
    )  # fmt: skip


def _check_weights(x: DevicePlane, weights: dict[str, DeviceWeight]) -> None:
    channels = x.channels
    for role, weight in weights.items():
        kernel, padding = ((3, 3), (1, 1)) if role == "mid" else ((1, 1), (0, 0))
        stride = weight.stride if role == "mid" else (1, 1)
        geometry = weight.kernel, weight.padding, weight.stride, weight.dilation, weight.groups
        if geometry != (kernel, padding, stride, (1, 1), 1):
            raise InputError(
                f"{role} has kernel, padding, stride, dilation, groups {geometry}; "
                f"pass {(kernel, padding, 'any' if role == 'mid' else stride, (1, 1), 1)}"
            )
        if weight.in_channels != channels or weight.tensor.dtype != x.dtype:
            raise InputError(
                f"{role} takes {weight.in_channels} channels of {weight.tensor.dtype}; "
                f"it is given {channels} of {x.dtype}"
            )
        channels = weight.out_channels
    sizes = [weight.out_channels for weight in weights.values()]
    if not fits(sizes[0], sizes[1], x.dtype, sizes[2] if len(sizes) > 2 else 0):
        raise InputError(
            f"middle, output and next channels {sizes} of {x.dtype}: at most {MAX_MID} middle and {MAX_NEXT} next ones "
            "(half as many of float32) stay on chip; run single convolutions"
        )


def _block(channels: int) -> int:
    """A tensor core's multiple that is a power of two."""
    return max(16, triton.next_power_of_2(max(1, channels)))


def _bounded(
    dtype: torch.dtype, mid: DeviceWeight, out: int, following: int, windows: Windows, scalar: bool
) -> ConvConfig:
    """Tile sizes whose sums stay in registers and whose stages in 99 KiB of shared memory.

    Every program reads all weights, so tiles are as small as it takes to occupy a large GPU's processors. Planes whose
    elements are accessed one by one (``scalar``) need more registers for addresses.
    """
    key = ConvKey(
        "bottleneck_tail",
        str(dtype).removeprefix("torch."),
        bucket(windows.cells),
        mid.in_channels,
        out,
        mid.taps,
        windows.count,
    )
    base = conv_config(key)
    widest = max(_block(mid.out_channels), _block(following)) * dtype.itemsize // 2
    largest = (64 if widest <= 128 and dtype != torch.float32 else 32) // (2 if scalar else 1)
    block_m = min(base.block_m, largest, _block(windows.cells * windows.count // PROGRAMS))
    return ConvConfig(
        block_m=block_m,
        block_n=max(16, min(base.block_n, 64, _block(out), 8192 // widest)),
        block_k=max(16, min(base.block_k, 8192 // widest)),
        warps=4 if widest <= 64 and block_m < 64 else 8,
        stages=min(base.stages, 3 if widest <= 64 else 2),
    )


def _cost(x: DevicePlane, weights: list[DeviceWeight], mid: DeviceWeight, windows: Windows) -> Cost:
    cells = windows.cells * windows.count
    size = x.tensor.element_size()
    channels = [weight.out_channels for weight in weights]
    macs = cells * sum(weight.out_channels * weight.taps * weight.in_channels for weight in weights)
    rows, columns = ((n - 1) * s + 3 for n, s in zip(windows.bound, mid.stride, strict=True))
    read = rows * columns * windows.count * x.channels + cells * channels[1]
    read += sum(weight.tensor.numel() for weight in weights)
    return Cost(macs, read * size, cells * sum(channels[1:]) * size)
