"""Depthwise convolution on windows of planes: one filter per channel, bound by memory.

    y[oy, ox, c] = act(scale[c] * sum_{ky, kx} w[c, ky, kx] * x[oy * s - p + ky * d, ox * s - p + kx * d, c]
                       + bias[c] + residual[oy // f, ox // f, c])

Products of a channel with itself alone are no matrix product, so there is no work for tensor cores. Every program
takes cells times channels; neighbouring cells find the taps they share in the caches. Sums are fp32, tap by tap.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tracenet_kernels.errors import InputError
from tracenet_kernels.triton.cellwise import (
    FLOATS,
    WindowsLike,
    await_inputs,
    cell_of,
    cellwise_launch,
    check_channels,
    float_plane,
    plane_args,
    relu,
    run_all,
    window_of,
)
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.operands import (
    ACTIVATIONS,
    alignment,
    as_residual,
    as_vector,
    cell_offsets,
    refuse_overlap,
    scaled,
    split_absent,
)
from tracenet_kernels.triton.planes import DevicePlane, as_windows, same_device
from tracenet_kernels.triton.weights import DeviceWeight

MOST_UNROLLED = 25
"""Taps of which all loads are in flight at once; larger kernels loop over their rows."""


@triton.jit
def _row_of_taps(
    acc, x, weight, channel, present, inside, iy, ix, offset, row, pixel, width, ALIGN: tl.constexpr,
    C: tl.constexpr, KX: tl.constexpr, DX: tl.constexpr,
):  # fmt: skip
    """``acc`` and the products of one row of taps, which the cells ``inside`` have; ``weight``: of its first tap."""
    for kx in tl.static_range(KX):
        column = ix + kx * DX
        cells = cell_offsets(iy, column, offset, row, pixel, ALIGN)
        mask = (inside & (column >= 0) & (column < width))[:, None] & present[None, :]
        value = tl.load(x + cells[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        # Each thread reads the factors of its own channels: a vector of them would go through shared memory.
        factors = weight + tl.broadcast_to((kx * C + channel)[None, :], value.shape)
        acc += value * tl.load(factors, mask=mask, other=0.0).to(tl.float32)
    return acc


@triton.jit
def depthwise_kernel(
    x, x_offset, x_row, x_pixel, height, width, weight, scale, bias, table, channels,
    out, out_offset, out_row, out_pixel, residual, residual_offset, residual_row, residual_pixel,
    C: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
    PY: tl.constexpr, PX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
    FACTOR: tl.constexpr, RELU: tl.constexpr, UNROLL: tl.constexpr,
    X_ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr, RESIDUAL_ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_M cells x BLOCK_C channels: grid (tiles of cells, blocks of channels, windows)."""
    await_inputs(PDL)
    y0, x0, rows, columns = window_of(table)
    first = tl.program_id(0) * BLOCK_M
    if (first >= rows * columns) | (rows <= 0) | (columns <= 0):
        return
    m = first + tl.arange(0, BLOCK_M)
    inside = m < rows * columns
    oy, ox = cell_of(y0, x0, columns, m)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    present = channel < C

    iy = oy * SY - PY
    ix = ox * SX - PX
    acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    if UNROLL:
        for ky in tl.static_range(KY):
            line = iy + ky * DY
            acc = _row_of_taps(
                acc, x, weight + ky * KX * C, channel, present, inside & (line >= 0) & (line < height), line, ix,
                x_offset, x_row, x_pixel, width, X_ALIGN, C, KX, DX,
            )  # fmt: skip
    else:
        for ky in range(KY):
            line = iy + ky * DY
            acc = _row_of_taps(
                acc, x, weight + ky * KX * C, channel, present, inside & (line >= 0) & (line < height), line, ix,
                x_offset, x_row, x_pixel, width, X_ALIGN, C, KX, DX,
            )  # fmt: skip

    acc = scaled(acc, scale, bias, channel, C)
    mask = inside[:, None] & present[None, :]
    if residual is not None:
        cells = cell_offsets(oy // FACTOR, ox // FACTOR, residual_offset, residual_row, residual_pixel, RESIDUAL_ALIGN)
        acc += tl.load(residual + cells[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    if RELU:
        acc = relu(acc)
    cells = cell_offsets(oy, ox, out_offset, out_row, out_pixel, OUT_ALIGN)
    tl.store(out + cells[:, None] + channel[None, :], acc.to(out.dtype.element_ty), mask=mask)


def depthwise_launches(
    x: Tensor | DevicePlane,
    weight: DeviceWeight,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | DevicePlane | None = None,
    residual_factor: int = 1,
    activation: str = "none",
    pdl: bool = False,
    name: str = "depthwise",
) -> list[Launch]:
    """Bind a depthwise convolution to its planes.

    Args:
        x: [rows, columns, channels].
        weight: any geometry with ``groups == in == out``, of the dtype of ``x``; its filters are copied to
            [taps, channels].
        out: what is written, at ``windows`` only, in any dtype of real values; shares memory with nothing that is read.
        windows: cells of the output's plane.
        scale, bias: fp32 [channels]; None: 1 and 0.
        residual: plane with as many channels; cell ``(y // residual_factor, x // residual_factor)`` is added.
        activation: one of :data:`~tracenet_kernels.triton.operands.ACTIVATIONS`, applied last.
        pdl: programmatic dependent launch (sm_90 and newer).
        name: of the step.

    Raises:
        InputError: a dtype, shape, geometry or device does not fit.
        WindowError: a window of the host is not within the output.
    """
    x, out = float_plane(x, "x"), float_plane(out, "out")
    check_channels(x, out)
    if not weight.groups == weight.in_channels == weight.out_channels == x.channels:
        raise InputError(
            f"the weight takes {weight.in_channels} channels in {weight.groups} groups, gives {weight.out_channels}; "
            f"x has {x.channels}: pass as many groups and outputs as channels, or take conv2d"
        )
    if weight.tensor.dtype != x.dtype:
        raise InputError(f"the weight is {weight.tensor.dtype}, x {x.dtype}; pack the weight in the dtype of x")
    if activation not in ACTIVATIONS:
        raise InputError(f"activation {activation!r} is not known; pass one of {ACTIVATIONS}")
    inputs = {"x": x}
    if residual is not None:
        residual = inputs["residual"] = as_residual(residual, residual_factor, out, FLOATS)
    refuse_overlap({"out": out}, inputs)
    table = as_windows(windows, out)
    scale, bias = (as_vector(value, kind, x.channels) for kind, value in (("scale", scale), ("bias", bias)))
    same_device(*(plane.tensor for plane in (*inputs.values(), out)), weight.tensor, scale, bias, table.table)

    addend = dict.fromkeys(("residual", "residual_offset", "residual_row", "residual_pixel"))
    args, absent = split_absent(
        {
            **plane_args("x", x),
            "height": x.plane[0],
            "width": x.plane[1],
            "weight": weight.tensor[:, :, 0].t().contiguous(),
            "scale": scale,
            "bias": bias,
            **plane_args("out", out),
            **(addend if residual is None else plane_args("residual", residual)),
        }
    )
    meta = {
        **absent,
        "C": x.channels,
        "KY": weight.kernel[0],
        "KX": weight.kernel[1],
        "SY": weight.stride[0],
        "SX": weight.stride[1],
        "PY": weight.padding[0],
        "PX": weight.padding[1],
        "DY": weight.dilation[0],
        "DX": weight.dilation[1],
        "FACTOR": residual_factor,
        "RELU": activation == "relu",
        "UNROLL": weight.taps <= MOST_UNROLLED,
        "X_ALIGN": alignment(x),
        "OUT_ALIGN": alignment(out),
        "RESIDUAL_ALIGN": 1 if residual is None else alignment(residual),
    }
    # What several taps read counts once.
    shared = min(weight.taps, weight.stride[0] * weight.stride[1])
    return [
        cellwise_launch(
            name,
            depthwise_kernel,
            table,
            x.channels,
            args,
            meta,
            cell_bytes=shared * x.tensor.element_size() + (0 if residual is None else residual.tensor.element_size()),
            macs=weight.taps,
            pdl=pdl,
        )
    ]


def depthwise(
    x: Tensor | DevicePlane,
    weight: DeviceWeight,
    out: Tensor | DevicePlane,
    windows: WindowsLike,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | DevicePlane | None = None,
    residual_factor: int = 1,
    activation: str = "none",
) -> None:
    """Run :func:`depthwise_launches` at once."""
    run_all(
        depthwise_launches(
            x,
            weight,
            out,
            windows,
            scale=scale,
            bias=bias,
            residual=residual,
            residual_factor=residual_factor,
            activation=activation,
        )
    )
