"""What matrix-shaped kernels share about their operands: alignment, absent ones, overlaps, addresses, epilogues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tracenet_kernels.errors import InputError
from tracenet_kernels.triton.planes import DevicePlane, as_plane

ACTIVATIONS = ("none", "relu")
PRECISIONS = ("tf32", "tf32x3")
"""Of fp32 products on tensor cores: 10 bits, or the sum of three products, which is as good as fp32."""
ACCESS_BYTES = 16
"""The widest access to global memory of one thread."""


def alignment(plane: DevicePlane) -> int:
    """Elements, a power of two up to one 16-byte access, that divide both strides and the offset of ``plane``."""
    most = ACCESS_BYTES // plane.tensor.element_size()
    return next(
        n
        for n in (16, 8, 4, 2, 1)
        if n <= most and not any(value % n for value in (plane.row_stride, plane.pixel_stride, plane.offset))
    )


def as_vector(value: Tensor | None, name: str, length: int) -> Tensor | None:
    """A checked scale or bias.

    Raises:
        InputError: not contiguous fp32 [length].
    """
    if value is None:
        return None
    if value.dtype != torch.float32 or tuple(value.shape) != (length,) or not value.is_contiguous():
        raise InputError(f"{name} is {value.dtype} {tuple(value.shape)}; pass contiguous float32 [{length}] or None")
    return value


def as_residual(
    value: Tensor | DevicePlane, factor: int, out: DevicePlane, dtypes: Sequence[torch.dtype]
) -> DevicePlane:
    """A checked residual: its cell ``(y // factor, x // factor)`` is added to cell ``(y, x)`` of ``out``.

    Raises:
        InputError: other channels, too small a plane, a factor below 1.
    """
    residual = as_plane(value, "residual", dtypes)
    least = tuple(-(-n // max(1, factor)) for n in out.plane)
    covers = all(a >= b for a, b in zip(residual.plane, least, strict=True))
    if factor < 1 or residual.channels != out.channels or not covers:
        raise InputError(
            f"residual is {residual.channels} channels on a plane of {residual.plane} with factor {factor}; "
            f"pass {out.channels} channels on at least {least}, and a factor >= 1"
        )
    return residual


def check_precision(precision: str) -> str:
    """Raises InputError where tensor cores do not have it."""
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} has no tensor cores; pass one of {PRECISIONS}, or take conv2d")
    return precision


def split_absent(args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, None]]:
    """Arguments that are there, and those that are None: the latter are compile-time constants."""
    present = {name: value for name, value in args.items() if value is not None}
    return present, {name: None for name in args if name not in present}


def overlap(a: DevicePlane, b: DevicePlane) -> bool:
    """Whether the address ranges of two planes have a byte in common."""

    def span(tensor: Tensor) -> tuple[int, int]:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()

    (a0, a1), (b0, b1) = span(a.tensor), span(b.tensor)
    return a.tensor.device == b.tensor.device and a0 < b1 and b0 < a1


def refuse_overlap(outputs: Mapping[str, DevicePlane], inputs: Mapping[str, DevicePlane]) -> None:
    """Raises InputError where an output shares memory with an input or with another output."""
    names = list(outputs)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]] + [(a, b) for a in names for b in inputs]
    both = {**inputs, **outputs}
    for a, b in pairs:
        if overlap(both[a], both[b]):
            raise InputError(f"{a} and {b} share memory; give each output memory of its own")


@triton.jit
def aligned(value, ALIGN: tl.constexpr):
    """``value``, a multiple of ALIGN, in a form that shows it: hints on arguments of functions get lost."""
    return value // ALIGN * ALIGN


@triton.jit
def cell_offsets(y, x, offset, row, pixel, ALIGN: tl.constexpr):
    """Elements from a plane's pointer to the first channel of cells (y, x)."""
    return aligned(offset, ALIGN) + y * aligned(row, ALIGN) + x * aligned(pixel, ALIGN)


@triton.jit
def draw_into_l2(data, first, COUNT: tl.constexpr, END: tl.constexpr):
    """Prefetch ``data[first : first + COUNT]``, the part before END: each program of axis 0 takes a share."""
    LINE: tl.constexpr = 1024 // data.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = 128
    for block in range(tl.program_id(0), (COUNT + LINE * LINES - 1) // (LINE * LINES), tl.num_programs(0)):
        element = first + (block * LINES + tl.arange(0, LINES)) * LINE
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
            "=r,l",
            [data + tl.minimum(element, END - 1)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def scaled(values, scale, bias, channel, channels):
    """``values * scale + bias`` in fp32, per channel of the last axis; absent pointers are None."""
    present = channel < channels
    if scale is not None:
        values *= tl.load(scale + channel, mask=present, other=0.0)[None, :]
    if bias is not None:
        values += tl.load(bias + channel, mask=present, other=0.0)[None, :]
    return values
