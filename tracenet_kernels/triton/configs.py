"""Tile sizes of the kernels: which configuration a launch takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConvConfig:
    """Of a matrix-shaped kernel.

    Attributes:
        block_m, block_n, block_k: output cells, output channels and input channels of one tile.
        split_k: programs that share one tile's sum.
        warps, stages: of Triton.
        swap: output channels are the rows of the tensor-core product and cells its columns: a window of few cells
            then wastes no rows of an instruction that takes 64.
    """

    block_m: int = 64
    block_n: int = 64
    block_k: int = 32
    split_k: int = 1
    warps: int = 4
    stages: int = 3
    swap: bool = False


@dataclass(frozen=True, slots=True)
class ConvKey:
    """What a configuration depends on, and nothing else.

    Attributes:
        family: ``conv2d``, ``conv2d_levels``, ``conv2d_tma``, ``bottleneck_tail``.
        dtype: of the planes, such as ``float16``.
        cells: of the window, rounded up to a power of two (at least 16).
        in_channels, out_channels: of one group.
        taps: kernel_y * kernel_x.
        jobs: windows per launch.
    """

    family: str
    dtype: str
    cells: int
    in_channels: int
    out_channels: int
    taps: int
    jobs: int = 1


def bucket(cells: int) -> int:
    """Cells rounded up to a power of two, at least 16."""
    return max(16, 1 << (max(1, cells) - 1).bit_length())


def conv_config(key: ConvKey) -> ConvConfig:
    """The configuration of a launch on the current device."""
    block_m = 16 if key.cells <= 16 else 32 if key.cells <= 64 else 64
    block_n = 16 if key.out_channels <= 16 else 32 if key.out_channels <= 32 else 64
    return ConvConfig(block_m, block_n, 64 if key.in_channels >= 64 else 32)
