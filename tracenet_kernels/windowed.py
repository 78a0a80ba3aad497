"""Convolution on windows of planes where they lie in memory: nothing is cropped, padded or copied.

    y[oy, ox, o] = act(scale[o] * sum_{ky, kx, i} w[o, i, ky, kx] * x[oy * s - p + ky * d, ox * s - p + kx * d, i]
                       + bias[o] + residual[oy // f, ox // f, o])

Planes are fp32 [rows, columns, channels]. An array holds the cells from (0, 0) on; one that holds another part is
passed as :func:`tracenet_kernels.arrays.as_plane` makes it. Cells off the plane count as 0. A value does not depend on
the window it is computed in, on the number of threads, or on the instruction set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracenet_kernels import native
from tracenet_kernels.arrays import Array, Plane, as_array, as_plane
from tracenet_kernels.errors import InputError
from tracenet_kernels.window import Window

ACTIVATIONS = ("none", "relu")

Pair = int | tuple[int, int]
"""One integer for both axes, or (y, x)."""


def as_pair(value: Pair) -> tuple[int, int]:
    """``(y, x)``; one number stands for both."""
    return value if isinstance(value, tuple) else (value, value)


class PackedConv:
    """Weights in the order the kernels read them.

    Args:
        weight: fp32 [out, in / groups, kernel_y, kernel_x]; copied.
        stride, padding, dilation: as in torch; padding is the leading one.
        groups: of channels; ``groups == in == out`` is depthwise.
        isa: ``"avx512"``, ``"avx2"``, ``"neon"`` or ``"portable"``; by default the best this processor has, or what
            the environment variable ``TRACENET_ISA`` says.

    Raises:
        BackendError: the extension is not built.
        InputError: not a convolution, or the instruction set is unknown or, where none was passed, missing.
    """

    def __init__(
        self,
        weight: Array,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        isa: str | None = None,
    ) -> None:
        array = np.ascontiguousarray(as_array(weight, "weight"))
        self.handle = native.require().PackedConv(
            array, as_pair(stride), as_pair(padding), as_pair(dilation), groups, isa
        )

    @property
    def in_channels(self) -> int:
        """Input channels of all groups."""
        count: int = self.handle.in_channels
        return count

    @property
    def out_channels(self) -> int:
        """Output channels of all groups."""
        count: int = self.handle.out_channels
        return count

    @property
    def isa(self) -> str:
        """The instruction set the weights are packed for."""
        name: str = self.handle.isa
        return name


@dataclass(frozen=True, slots=True)
class ConvJob:
    """One window of one plane.

    Attributes:
        x: the input.
        out: what is written, at ``window`` only.
        window: cells of the output's plane.
        scale, bias: fp32 [out]; None: 1 and 0.
        residual: plane with the output's channels; cell ``(y // residual_factor, x // residual_factor)`` is added. It
            may be ``out`` itself where the factor is 1.
        activation: one of :data:`ACTIVATIONS`, applied last.
    """

    x: Array | Plane
    out: Array | Plane
    window: Window
    scale: Array | None = None
    bias: Array | None = None
    residual: Array | Plane | None = None
    residual_factor: int = 1
    activation: str = "none"

    def _native(self) -> tuple[Any, ...]:
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation {self.activation!r} is not known; pass one of {ACTIVATIONS}")
        return (
            as_plane(self.x, "x"),
            as_plane(self.out, "out"),
            Window(*self.window),
            None if self.scale is None else as_array(self.scale, "scale"),
            None if self.bias is None else as_array(self.bias, "bias"),
            None if self.residual is None else as_plane(self.residual, "residual"),
            self.residual_factor,
            ACTIVATIONS.index(self.activation),
        )


def conv2d_jobs(packed: PackedConv, jobs: Sequence[ConvJob]) -> None:
    """Run several windows, of one plane or of many, with the same weights in one parallel region.

    Raises:
        InputError, WindowError: before anything is written, where an array, extent or window does not fit, outputs
            overlap, or an output overlaps with what is read.
    """
    prepare(packed, jobs)()


def prepare(packed: PackedConv, jobs: Sequence[ConvJob]) -> Callable[[], None]:
    """:func:`conv2d_jobs` for arrays that are used again and again: a function that runs the jobs, and no more Python.

    Raises:
        InputError, WindowError: as :func:`conv2d_jobs`; what depends on several arrays is checked by the function.
    """
    bound = native.require().ConvJobs(packed.handle, tuple(job._native() for job in jobs))
    run: Callable[[], None] = bound.run
    return run


def conv2d(
    x: Array | Plane,
    packed: PackedConv,
    window: Window,
    *,
    extent: Window | None = None,
    plane: tuple[int, int] | None = None,
    out: Array | Plane | None = None,
    bias: Array | None = None,
    scale: Array | None = None,
    residual: Array | Plane | None = None,
    residual_factor: int = 1,
    activation: str = "none",
) -> np.ndarray[Any, Any]:
    """Convolve one window.

    Args:
        x: [rows, columns, in].
        packed: the weights.
        window: cells of the output's plane.
        extent, plane: which part of a plane of which height and width ``x`` holds.
        out: where to write; by default a new array of the window's size.
        scale, bias, residual, residual_factor, activation: as in :class:`ConvJob`.

    Returns:
        The output's array; only the window's cells are written.

    Raises:
        InputError, WindowError: as :func:`conv2d_jobs`.
    """
    window = Window(*window)
    if out is None:
        fresh = np.empty((window.height, window.width, packed.out_channels), np.float32)
        out = as_plane(fresh, "out", extent=window)
    else:
        out = as_plane(out, "out")
    source = as_plane(x, "x", extent=extent, plane=plane)
    conv2d_jobs(packed, [ConvJob(source, out, window, scale, bias, residual, residual_factor, activation)])
    return out.array
