"""What the kernels share that compute every cell on its own: tiles of window cells times channels.

A program takes ``BLOCK_M`` consecutive cells of its window, in rows, and ``BLOCK_C`` channels. Axis 0 of the grid
counts tiles of cells, axis 1 blocks of channels, axis 2 windows. The window's row of the table is the only load that
the data's addresses depend on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from tracenet_kernels.errors import InputError
from tracenet_kernels.triton.launch import Cost, Launch
from tracenet_kernels.triton.planes import DevicePlane, Windows, as_plane, interpreted
from tracenet_kernels.window import Window

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
WindowsLike = Windows | Window | Sequence[Window]

# 8 elements per thread and 128 threads: 16-byte accesses of half precision, and programs small enough that windows of
# a few thousand cells still occupy all multiprocessors.
_ELEMENTS = 1024
_LONGEST_BLOCK_C = 128
_SHORTEST_EVEN_BLOCK_C = 32
"""Blocks of at least this many channels that divide them all are better than one that lanes stick out of."""


@triton.jit
def await_inputs(PDL: tl.constexpr):
    """Under programmatic dependent launch, wait for the launches before, then let the next one start."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def window_of(table):
    """First row and column, height and width of this program's window; sides of an empty one are not positive."""
    row = table + tl.program_id(2) * 4
    y0 = tl.load(row)
    y1 = tl.load(row + 1)
    x0 = tl.load(row + 2)
    x1 = tl.load(row + 3)
    return y0, x0, y1 - y0, x1 - x0


@triton.jit
def cell_of(y0, x0, width, m):
    """Row and column of the window's cells ``m``."""
    row = m // width
    return y0 + row, x0 + m - row * width


@triton.jit
def cell_addresses(data, offset, row_stride, pixel_stride, y, x):
    """Of channel 0 of cells ``(y, x)`` of the whole plane."""
    return data + offset + (y * row_stride + x * pixel_stride)


@triton.jit
def relu(value):
    """``max(value, 0)``; NaN stays NaN."""
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@dataclass(frozen=True, slots=True)
class Tiles:
    """How cells times channels are cut into programs."""

    block_m: int
    block_c: int
    grid: tuple[int, int, int]
    warps: int


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below ``value``."""
    return 1 << (max(1, value) - 1).bit_length()


def tiles_of(windows: Windows, channels: int) -> Tiles:
    """Programs for all cells of ``windows`` times ``channels``."""
    even = channels & -channels
    block_c = min(even if even >= _SHORTEST_EVEN_BLOCK_C else power_of_two(channels), _LONGEST_BLOCK_C)
    block_m = min(_ELEMENTS // block_c, power_of_two(windows.cells))
    grid = (-(-windows.cells // block_m), -(-channels // block_c), windows.count)
    return Tiles(block_m, block_c, grid, min(4, max(1, block_m * block_c // 256)))


def plane_args(name: str, plane: DevicePlane) -> dict[str, Any]:
    """A plane as the four arguments ``name``, ``name_offset``, ``name_row`` and ``name_pixel`` of a kernel."""
    return {
        name: plane.tensor,
        f"{name}_offset": plane.offset,
        f"{name}_row": plane.row_stride,
        f"{name}_pixel": plane.pixel_stride,
    }


def table_of(windows: Windows) -> torch.Tensor:
    """The rows that are used."""
    return windows.table[windows.first : windows.first + windows.count]


def cellwise_launch(
    name: str,
    kernel: Any,
    windows: Windows,
    channels: int,
    args: dict[str, Any],
    meta: dict[str, Any],
    *,
    cell_bytes: int,
    macs: int = 0,
    pdl: bool = False,
) -> Launch:
    """A launch over cells times channels.

    Args:
        name: of the launch.
        kernel: takes ``table``, ``channels``, ``BLOCK_M``, ``BLOCK_C``, ``EVEN_C`` and ``PDL`` besides its own.
        windows: of the output.
        channels: how many are computed.
        args, meta: the kernel's own.
        cell_bytes: read per cell and channel.
        macs: per cell and channel.
        pdl: programmatic dependent launch (sm_90 on).
    """
    tiles = tiles_of(windows, channels)
    elements = windows.cells * windows.count * channels
    out: torch.Tensor = args["out"]
    return Launch(
        name,
        kernel,
        tiles.grid,
        {**args, "table": table_of(windows), "channels": channels},
        {
            **meta,
            "BLOCK_M": tiles.block_m,
            "BLOCK_C": tiles.block_c,
            "EVEN_C": channels % tiles.block_c == 0,
            "PDL": check_pdl(pdl),
        },
        launch_options(tiles.warps, pdl=pdl),
        cost=Cost(elements * macs, elements * cell_bytes, elements * out.element_size()),
    )


def launch_options(warps: int, stages: int = 1, *, pdl: bool = False) -> dict[str, Any]:
    """Of a launch; ``launch_pdl`` only where it is asked for, as older devices do not have it."""
    return {"num_warps": warps, "num_stages": stages, **({"launch_pdl": True} if pdl else {})}


def check_pdl(pdl: bool) -> bool:
    """Raises InputError in the interpreter, which launches one program after the other."""
    if pdl and interpreted():
        raise InputError("programmatic dependent launch does not exist in Triton's interpreter; pass pdl=False")
    return pdl


def run_all(launches: Sequence[Launch]) -> None:
    """One after the other on the current stream."""
    for launch in launches:
        launch()


def check_channels(x: DevicePlane, out: DevicePlane, name: str = "x") -> None:
    """Raises InputError where the two have different channels."""
    if x.channels != out.channels:
        raise InputError(f"{name} has {x.channels} channels and out {out.channels}; pass planes with as many")


def check_same_plane(x: DevicePlane, out: DevicePlane, name: str = "x") -> None:
    """Raises InputError where the two are not of one logical size."""
    if x.plane != out.plane:
        raise InputError(
            f"{name} is a plane of {x.plane[0]} x {x.plane[1]} cells and out one of {out.plane[0]} x {out.plane[1]}; "
            "pass planes of one size"
        )


def float_plane(value: torch.Tensor | DevicePlane, name: str) -> DevicePlane:
    """A checked plane of real values."""
    return as_plane(value, name, FLOATS)
