"""The body of the convolution kernels: one tile of an implicit matrix product, and its epilogue.

Rows of the product are cells of a window, flattened; columns are output channels; the inner axis is taps times
channels of a group. Nothing is copied into a matrix: each step of the inner loop gathers the cells of one tap.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tracenet_kernels.triton.cellwise import relu


@triton.jit
def tile_of(program, cell_tiles, column_tiles, GROUP_M: tl.constexpr):
    """(cell tile, column tile) of a program, so that programs that run together share cells and weights in L2.

    ``GROUP_M`` cell tiles take all column tiles together, cell tiles fastest; with 1, columns are fastest.
    """
    if GROUP_M == 1:
        return program // column_tiles, program % column_tiles
    first = program // (GROUP_M * column_tiles) * GROUP_M
    rows = tl.minimum(cell_tiles - first, GROUP_M)
    inner = program % (GROUP_M * column_tiles)
    return first + inner % rows, inner // rows


@triton.jit
def prefetch(weight, rows, first, last, part, parts):
    """Ask the L2 cache for columns [first, last) of weight rows that start at ``rows``: one part of so many."""
    LINES: tl.constexpr = 8
    LINE: tl.constexpr = 1024 // weight.dtype.element_ty.primitive_bitwidth  # elements of 128 bytes
    for start in range(first + part * (LINES * LINE), last, parts * (LINES * LINE)):
        columns = tl.minimum(start + tl.arange(0, LINES) * LINE, last - 1)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
            "=r,l",
            [weight + (rows[:, None] + columns[None, :])],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def accumulate(
    x,  # cell (0, 0) and first channel of the group
    weight,
    border,  # BLOCK_K elements that stand for real zero; read where FILL
    weight_rows,  # [BLOCK_N] offsets of the rows of the output channels, multiples of 16
    y,  # [BLOCK_M] first input row of each output cell; may lie off the plane
    x_column,  # [BLOCK_M] first input column
    row_stride,
    pixel_stride,
    height,
    width,
    group_channels,
    padded_channels,
    first,
    last,  # inner tiles [first, last)
    TAPS: tl.constexpr,
    KERNEL_X: tl.constexpr,
    TILES_PER_TAP: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    BORDER: tl.constexpr,
    FILL: tl.constexpr,
    EVEN_X: tl.constexpr,
    EVEN_W: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    SWAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sum of inner tiles [first, last): [BLOCK_M, BLOCK_N] in fp32, or in int32 of 8-bit integers.

    SWAP makes output channels the rows of the tensor-core product, for windows of few cells.
    """
    CELL_K: tl.constexpr = 0 if SWAP else 1  # the inner axis of the cells' operand; the weights' has the other one
    FP8: tl.constexpr = weight.dtype.element_ty.primitive_bitwidth == 8 and not weight.dtype.element_ty.is_int8()
    SUM: tl.constexpr = tl.int32 if weight.dtype.element_ty.is_int8() else tl.float32
    if SWAP:
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=SUM)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=SUM)
    ZERO: tl.constexpr = 0 if weight.dtype.element_ty.is_int8() else 0.0
    k = tl.arange(0, BLOCK_K)
    cells = tl.expand_dims(y * row_stride + x_column * pixel_stride, CELL_K)
    rows = tl.expand_dims(tl.multiple_of(weight_rows, 16), 1 - CELL_K)
    for step in range(first, last):
        if TAPS == 1:
            channel = step * BLOCK_K
            dy, dx, shift, column = 0, 0, channel, channel
        else:
            tap = step // TILES_PER_TAP
            channel = (step % TILES_PER_TAP) * BLOCK_K
            dy = tap // KERNEL_X * DILATION_Y
            dx = tap % KERNEL_X * DILATION_X
            shift = dy * row_stride + dx * pixel_stride + channel
            column = tl.multiple_of(tap * padded_channels, 16) + channel
        pointers = x + (cells + tl.expand_dims(shift + k, 1 - CELL_K))
        if BORDER:
            # As unsigned numbers, coordinates before the plane are past it.
            inside = ((y + dy).to(tl.uint32) < height) & ((x_column + dx).to(tl.uint32) < width)
            inside = tl.expand_dims(inside, CELL_K)
            if FILL:
                pointers = tl.where(inside, pointers, border + tl.expand_dims(k, 1 - CELL_K))
        exists = tl.expand_dims(channel + k < group_channels, 1 - CELL_K)
        if BORDER and not FILL:
            if EVEN_X:
                gathered = tl.load(pointers, mask=inside, other=ZERO)
            else:
                gathered = tl.load(pointers, mask=inside & exists, other=ZERO)
        else:
            if EVEN_X:
                gathered = tl.load(pointers)
            else:
                gathered = tl.load(pointers, mask=exists, other=ZERO)
        weights = weight + (rows + tl.expand_dims(column + k, CELL_K))
        if EVEN_W:
            packed = tl.load(weights)
        else:
            packed = tl.load(weights, mask=tl.expand_dims(channel + k < padded_channels, CELL_K), other=ZERO)
        if INTERPRETED and tl.float32 == SUM:
            # Its products of bfloat16 are wrong.
            gathered = gathered.to(tl.float32)
            packed = packed.to(tl.float32)
        if SWAP:
            left, right = packed, gathered
        else:
            left, right = gathered, packed
        if FP8 and not INTERPRETED:
            # Hopper adds fp8 products in fewer bits: each tile's sum goes to a full fp32 one.
            acc = tl.dot(left, right, acc, max_num_imprecise_acc=BLOCK_K)
        elif tl.int32 == SUM:
            acc = tl.dot(left, right, acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(left, right, acc, input_precision=PRECISION)
    return acc


@triton.jit
def rounded_to_fp8(value):
    """The nearest value that e4m3 holds: the interpreter's own conversion loses a carry into the exponent."""
    bits = value.to(tl.int32, bitcast=True)
    normal = (bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF
    subnormal = (value + 24576.0) - 24576.0  # 1.5 * 2^14 leaves multiples of 2^-9
    return tl.where(tl.abs(value) < 0.015625, subnormal, normal.to(tl.float32, bitcast=True))


@triton.jit
def finish(
    acc,  # [BLOCK_M, BLOCK_N]
    out,  # cell (0, 0) and channel 0
    residual,
    scale,
    bias,
    shift,
    y,  # [BLOCK_M] output rows
    x,  # [BLOCK_M] output columns
    written,  # [BLOCK_M] whether the cell is one of the window
    columns,  # [BLOCK_N] channels
    last_column,
    out_row_stride,
    out_pixel_stride,
    residual_row_stride,
    residual_pixel_stride,
    residual_scale,
    residual_zero,
    out_zero,
    SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    SHIFT: tl.constexpr,
    RESIDUAL_FACTOR: tl.constexpr,
    RESIDUAL_SCALED: tl.constexpr,
    RELU: tl.constexpr,
    INTERPRETED: tl.constexpr,
    EVEN_N: tl.constexpr,
):
    """``act((acc - shift) * scale + bias + residual)`` to the output, rounded and clamped where that is 8-bit.

    Scales hold what turns integers into reals and reals into the integers of the output; see ``conv2d.py``.
    """
    exists = columns < last_column
    if SHIFT:
        acc -= tl.load(shift + columns, mask=exists)[None, :]
    value = acc.to(tl.float32)
    if SCALE:
        value *= tl.load(scale + columns, mask=exists)[None, :]
    if BIAS:
        value += tl.load(bias + columns, mask=exists)[None, :]
    if EVEN_N:
        mask = written[:, None]
    else:
        mask = written[:, None] & exists[None, :]
    if RESIDUAL_FACTOR > 0:
        cells = y // RESIDUAL_FACTOR * residual_row_stride + x // RESIDUAL_FACTOR * residual_pixel_stride
        added = tl.load(residual + (cells[:, None] + columns[None, :]), mask=mask).to(tl.float32)
        if RESIDUAL_SCALED:
            added = (added - residual_zero) * residual_scale
        value += added
    if RELU:
        value = relu(value)
    if out.dtype.element_ty.is_int8():
        value = tl.minimum(tl.maximum(value, -128.0 - out_zero), 127.0 - out_zero)
        # Adding 1.5 * 2^23 leaves no bits for a fraction: the hardware rounds, halves to even.
        value = ((value + 12582912.0) - 12582912.0) + out_zero
    elif out.dtype.element_ty.primitive_bitwidth == 8:
        value = tl.minimum(tl.maximum(value, -448.0), 448.0)
        if INTERPRETED:
            value = rounded_to_fp8(value)
    cells = y * out_row_stride + x * out_pixel_stride
    tl.store(out + (cells[:, None] + columns[None, :]), value.to(out.dtype.element_ty), mask=mask)
