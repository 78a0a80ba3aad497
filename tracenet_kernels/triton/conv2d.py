"""``conv2d`` on windows of a plane: an implicit matrix product with its epilogue.

``y = act(scale * conv(x) + bias + residual)``; per output channel ``scale`` and ``bias`` (fp32), ``residual`` a plane
whose cell ``(y // f, x // f)`` is added, ``f = residual_factor``. Sums are fp32.

8-bit planes and weights. int8 products are summed in int32, fp8 (e4m3) ones in fp32; border cells stand for real
zero, so they hold the zero point. With ``real = (q - zero_point) * plane.scale`` and ``w = weight.scales[c] * q``::

    y = act(acc * x.scale * weight.scales[c] * scale[c] + bias[c] + real(residual))
    q = clamp(round(y / out.scale) + out.zero_point, -128, 127)

with ``acc`` the sum over ``(q_x - zero_point) * q_w`` and halves rounded to even. All factors are folded into one per
channel when a launch is bound, those of the output included: ReLU commutes with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from tracenet_kernels.triton.configs import ConvConfig
from tracenet_kernels.triton.conv2d_launch import Operands, bind
from tracenet_kernels.triton.conv2d_tile import accumulate, finish, prefetch, tile_of
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.operands import aligned
from tracenet_kernels.triton.planes import DevicePlane, Windows, as_plane
from tracenet_kernels.triton.split_k import Scratch, hand_in, sum_of_partials
from tracenet_kernels.triton.weights import DeviceWeight
from tracenet_kernels.window import Window


# Numbers that only add or compare: specialised, 1 and the multiples of 16 among them would be kernels of their own.
@triton.jit(do_not_specialize=("first_window", "x_height", "x_width", "out_zero", "residual_zero"))
def conv2d_kernel(
    x,
    weight,
    out,
    residual,
    scale,
    bias,
    shift,
    border,
    windows,
    levels,  # int64 [jobs, 11], where LEVELS: what the eleven integers from x_offset to out_zero are for each job
    partials,
    counters,
    first_window,
    x_offset,
    x_row_stride,
    x_pixel_stride,
    x_height,
    x_width,
    out_offset,
    out_row_stride,
    out_pixel_stride,
    out_zero,
    residual_offset,
    residual_row_stride,
    residual_pixel_stride,
    residual_scale,
    residual_zero,
    group_channels,
    padded_channels,
    group_outputs,
    KERNEL_X: tl.constexpr,
    TAPS: tl.constexpr,
    TILES_PER_TAP: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr,
    PAD_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    GROUPS: tl.constexpr,
    LEVELS: tl.constexpr,
    BORDER: tl.constexpr,
    FILL: tl.constexpr,
    EVEN_X: tl.constexpr,
    EVEN_W: tl.constexpr,
    EVEN_N: tl.constexpr,
    VECTOR_X: tl.constexpr,
    VECTOR_OUT: tl.constexpr,
    VECTOR_RESIDUAL: tl.constexpr,
    SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    SHIFT: tl.constexpr,
    RESIDUAL_FACTOR: tl.constexpr,
    RESIDUAL_SCALED: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    SPLIT: tl.constexpr,
    SWAP: tl.constexpr,
    PDL: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid: tiles of the largest window, windows, splits. The arguments are those of ``conv2d_launch.bind``."""
    program, job, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group_tiles = (group_outputs + BLOCK_N - 1) // BLOCK_N
    column_tiles = GROUPS * group_tiles
    row_length = TAPS * padded_channels
    if PDL:
        # Weights are no kernel's output, and GROUP_M is 1: which rows are needed does not depend on the window.
        # Programs of the same columns share them out; those past the window help.
        own = program % column_tiles
        ahead = tl.minimum(own % group_tiles * BLOCK_N + tl.arange(0, BLOCK_N), group_outputs - 1)
        prefetch(
            weight,
            (own // group_tiles * group_outputs + ahead) * row_length,
            row_length * split // SPLIT,
            row_length * (split + 1) // SPLIT,
            program // column_tiles,
            tl.num_programs(0) // column_tiles,
        )
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    window = windows + (first_window + job) * 4
    y0, y1, x0, x1 = tl.load(window), tl.load(window + 1), tl.load(window + 2), tl.load(window + 3)
    if LEVELS:
        level = levels + job * 11
        x_offset = tl.load(level)
        x_row_stride = tl.load(level + 1).to(tl.int32)
        x_pixel_stride = tl.load(level + 2).to(tl.int32)
        x_height = tl.load(level + 3).to(tl.int32)
        x_width = tl.load(level + 4).to(tl.int32)
        out_offset = tl.load(level + 5)
        out_row_stride = tl.load(level + 6).to(tl.int32)
        out_pixel_stride = tl.load(level + 7).to(tl.int32)
        out_zero = tl.load(level + 8).to(tl.int32)
        channel_offset = tl.load(level + 9).to(tl.int32)
        border += tl.load(level + 10)
        scale += channel_offset
        bias += channel_offset
        shift += channel_offset
    window_width = x1 - x0
    cells = tl.maximum(y1 - y0, 0) * tl.maximum(window_width, 0)
    cell_tiles = (cells + BLOCK_M - 1) // BLOCK_M
    if program >= cell_tiles * column_tiles:
        return
    cell_tile, column_tile = tile_of(program, cell_tiles, column_tiles, GROUP_M)
    if GROUPS == 1:
        group = 0
        column = column_tile * BLOCK_N
    else:
        group = column_tile // group_tiles
        column = column_tile % group_tiles * BLOCK_N

    x += aligned(x_offset + group * group_channels, VECTOR_X)
    # Cells and channels past the end repeat the last one: loads need no mask, and nothing of them is stored.
    cell = cell_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = tl.minimum(cell, cells - 1)
    y, x_out = y0 + inside // window_width, x0 + inside % window_width
    channel = column + tl.arange(0, BLOCK_N)
    rows = (group * group_outputs + tl.minimum(channel, group_outputs - 1)) * row_length
    steps = TAPS * ((padded_channels + BLOCK_K - 1) // BLOCK_K)
    acc = accumulate(
        x,
        weight,
        border,
        rows,
        y * STRIDE_Y - PAD_Y,
        x_out * STRIDE_X - PAD_X,
        aligned(x_row_stride, VECTOR_X),
        aligned(x_pixel_stride, VECTOR_X),
        x_height,
        x_width,
        aligned(group_channels, VECTOR_X),
        padded_channels,
        split * steps // SPLIT,
        (split + 1) * steps // SPLIT,
        TAPS,
        KERNEL_X,
        TILES_PER_TAP,
        DILATION_Y,
        DILATION_X,
        BORDER,
        FILL,
        EVEN_X,
        EVEN_W,
        PRECISION,
        INTERPRETED,
        SWAP,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    if SPLIT > 1:
        tile = job * tl.num_programs(0) + program
        if hand_in(partials, counters, tile, split, acc, SPLIT) < SPLIT - 1:
            return
        acc = sum_of_partials(partials, counters, tile, acc, SPLIT)
    if SWAP:
        acc = tl.trans(acc)
    finish(
        acc,
        out + aligned(out_offset, VECTOR_OUT),
        residual + aligned(residual_offset, VECTOR_RESIDUAL),
        scale,
        bias,
        shift,
        y,
        x_out,
        cell < cells,
        aligned(group * group_outputs, VECTOR_OUT) + column + tl.arange(0, BLOCK_N),
        aligned((group + 1) * group_outputs, VECTOR_OUT),
        aligned(out_row_stride, VECTOR_OUT),
        aligned(out_pixel_stride, VECTOR_OUT),
        aligned(residual_row_stride, VECTOR_RESIDUAL),
        aligned(residual_pixel_stride, VECTOR_RESIDUAL),
        residual_scale,
        residual_zero,
        out_zero,
        SCALE,
        BIAS,
        SHIFT,
        RESIDUAL_FACTOR,
        RESIDUAL_SCALED,
        RELU,
        INTERPRETED,
        EVEN_N,
    )


def conv2d_launches(
    x: DevicePlane | Tensor,
    weight: DeviceWeight,
    out: DevicePlane | Tensor,
    windows: Windows | Window | Sequence[Window],
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: DevicePlane | Tensor | None = None,
    residual_factor: int = 1,
    activation: str = "none",
    precision: str = "ieee",
    config: ConvConfig | None = None,
    scratch: Scratch | None = None,
    pdl: bool = False,
    name: str = "conv2d",
) -> list[Launch]:
    """The launch that computes ``windows`` of ``out``, and nothing else of it.

    Args:
        x: [H, W, in channels] of the weight's dtype.
        out: [H_out, W_out, out channels], any dtype but uint8; 8-bit ones are quantised with the plane's scale.
        scale, bias: fp32 [out channels].
        residual: [ceil(H_out / f), ceil(W_out / f), out channels], any dtype but uint8.
        activation: ``none`` or ``relu``.
        precision: of fp32 products: ``ieee``, or on tensor cores ``tf32`` (10 bits) or ``tf32x3`` (three products).
        scratch: for split sums; one for all launches of a stream. A new one where none is given.
        pdl: programmatic dependent launch: weights may be fetched while the previous kernel ends (sm_90 and newer).

    Raises:
        InputError: operands that do not fit each other, dtypes without a kernel, a configuration that cannot be.
        WindowError: a window, or what it reads, is not within the part of a plane that is in memory.
    """
    operands = Operands(
        xs=(as_plane(x, "x"),),
        weight=weight,
        outs=(as_plane(out, "out"),),
        scales=(scale,),
        biases=(bias,),
        residual=None if residual is None else as_plane(residual, "residual"),
        residual_factor=residual_factor,
        activation=activation,
        precision=precision,
    )
    return [bind(conv2d_kernel, operands, windows, None, config, scratch, pdl, name, "conv2d")]


def conv2d(
    x: DevicePlane | Tensor,
    weight: DeviceWeight,
    out: DevicePlane | Tensor,
    windows: Windows | Window | Sequence[Window],
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: DevicePlane | Tensor | None = None,
    residual_factor: int = 1,
    activation: str = "none",
    precision: str = "ieee",
    config: ConvConfig | None = None,
    scratch: Scratch | None = None,
) -> None:
    """Run :func:`conv2d_launches` at once."""
    for launch in conv2d_launches(
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
    ):
        launch()


def conv2d_levels_launches(
    xs: Sequence[DevicePlane | Tensor],
    weight: DeviceWeight,
    outs: Sequence[DevicePlane | Tensor],
    windows: Windows | Sequence[Window],
    *,
    levels: Sequence[int] | None = None,
    scales: Sequence[Tensor | None] | None = None,
    biases: Sequence[Tensor | None] | None = None,
    activation: str = "none",
    precision: str = "ieee",
    config: ConvConfig | None = None,
    scratch: Scratch | None = None,
    pdl: bool = False,
    name: str = "conv2d_levels",
) -> list[Launch]:
    """One launch over several levels that share a weight: window i is computed on level ``levels[i]``.

    Args:
        xs, outs: planes of one dtype that lie in one allocation, per level; see :func:`conv2d_launches`.
        levels: of each window; None: window i is of level i.
        scales, biases: fp32 [out channels] or None, per level.
    """
    count = len(xs)
    operands = Operands(
        xs=tuple(as_plane(x, f"xs[{level}]") for level, x in enumerate(xs)),
        weight=weight,
        outs=tuple(as_plane(out, f"outs[{level}]") for level, out in enumerate(outs)),
        scales=(None,) * count if scales is None else tuple(scales),
        biases=(None,) * count if biases is None else tuple(biases),
        residual=None,
        residual_factor=1,
        activation=activation,
        precision=precision,
    )
    rows = tuple(range(count)) if levels is None else tuple(levels)
    return [bind(conv2d_kernel, operands, windows, rows, config, scratch, pdl, name, "conv2d_levels")]


def conv2d_levels(
    xs: Sequence[DevicePlane | Tensor],
    weight: DeviceWeight,
    outs: Sequence[DevicePlane | Tensor],
    windows: Windows | Sequence[Window],
    *,
    levels: Sequence[int] | None = None,
    scales: Sequence[Tensor | None] | None = None,
    biases: Sequence[Tensor | None] | None = None,
    activation: str = "none",
    precision: str = "ieee",
    config: ConvConfig | None = None,
    scratch: Scratch | None = None,
) -> None:
    """Run :func:`conv2d_levels_launches` at once."""
    for launch in conv2d_levels_launches(
        xs,
        weight,
        outs,
        windows,
        levels=levels,
        scales=scales,
        biases=biases,
        activation=activation,
        precision=precision,
        config=config,
        scratch=scratch,
    ):
        launch()
