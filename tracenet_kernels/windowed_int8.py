"""Convolution of 8-bit planes on windows where they lie in memory.

    real(q) = (q - zero_point) * scale                                      a plane's :class:`Quantisation`
    sum[o]  = sum_{ky, kx, i} w[o, i, ky, kx] * (x[oy * s - p + ky * d, ox * s - p + kx * d, i] - zero_point)
    y[o]    = act(sum[o] * m[o] + bias[o] + residual[oy // f, ox // f, o]),  m[o] = x.scale * w.scale[o] * scale[o]
    output  = y in fp32, or clamp(round_half_even(y / out.scale) + out.zero_point, 0, 255)

Activations are uint8, weights int8; cells off the plane are real 0. Sums are exact 32-bit integers and what follows is
one fp32 rounding per operation, so a value depends neither on the window it is computed in, nor on the number of
threads, nor on the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracenet_kernels import native
from tracenet_kernels.arrays import Array, Plane, as_array, as_plane
from tracenet_kernels.errors import InputError
from tracenet_kernels.window import Window
from tracenet_kernels.windowed import ACTIVATIONS, Pair, as_pair

KERNELS = ("avx512_vnni", "avx2", "portable")

WEIGHT_LIMIT = 127
"""Quantised weights lie in [-127, 127]."""

MOST_TERMS = 32896
"""Terms of one sum, kernel_y * kernel_x * in / groups: more might leave 32 bits."""


class Quantisation(NamedTuple):
    """How the integers of a uint8 plane stand for real values: ``(q - zero_point) * scale``."""

    scale: float
    zero_point: int

    @classmethod
    def of_range(cls, low: float, high: float) -> Quantisation:
        """The finest one that represents 0 exactly and all of [low, high].

        Raises:
            InputError: the range is not finite or ends before it starts.
        """
        if not (np.isfinite(low) and np.isfinite(high)) or high < low:
            raise InputError(f"the range [{low}, {high}] is no range; pass finite ends, low <= high")
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / 255))
        if scale < np.finfo(np.float32).tiny:  # nothing to represent but 0
            return cls(1.0, 0)
        return cls(scale, int(np.clip(np.rint(-low / scale), 0, 255)))


def quantise_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric weights, one scale per output channel.

    Args:
        weight: fp32 [out, ...].

    Returns:
        int8 weights in [-127, 127] and ``scale[o] = max|w[o]| / 127`` (1 where all are 0), so that
        ``w ~ int8 * scale``.
    """
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scale = np.where(largest > 0, largest / np.float32(WEIGHT_LIMIT), 1).astype(np.float32)
    steps = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return np.clip(steps, -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8), scale


class PackedInt8Conv:
    """Weights in the order the kernels read them.

    Args:
        weight: int8 [out, in / groups, kernel_y, kernel_x]; copied.
        scale: fp32 [out], of the weights.
        stride, padding, dilation: as in torch; padding is the leading one.
        groups: of channels.

    Raises:
        BackendError: the extension is not built.
        InputError: not a convolution, or a sum has more terms than 32 bits hold (:data:`MOST_TERMS`).
    """

    def __init__(
        self,
        weight: Array,
        scale: Array,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
    ) -> None:
        self.handle = native.require().PackedInt8Conv(
            np.ascontiguousarray(as_array(weight, "weight", np.int8)),
            np.ascontiguousarray(as_array(scale, "scale")),
            as_pair(stride),
            as_pair(padding),
            as_pair(dilation),
            groups,
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


@dataclass(frozen=True, slots=True)
class Int8ConvJob:
    """One window of one plane.

    Attributes:
        x: uint8 input, and ``x_quantisation``.
        out: what is written, at ``window`` only: fp32, or uint8 with ``out_quantisation``.
        window: cells of the output's plane.
        scale, bias: fp32 [out]; None: 1 and 0.
        residual: plane with the output's channels, fp32 or uint8 with ``residual_quantisation``; cell
            ``(y // residual_factor, x // residual_factor)`` is added. It may be ``out`` itself where the factor is 1.
        activation: one of :data:`tracenet_kernels.windowed.ACTIVATIONS`, applied before the output is quantised.
    """

    x: Array | Plane
    x_quantisation: Quantisation
    out: Array | Plane
    window: Window
    out_quantisation: Quantisation | None = None
    scale: Array | None = None
    bias: Array | None = None
    residual: Array | Plane | None = None
    residual_quantisation: Quantisation | None = None
    residual_factor: int = 1
    activation: str = "none"

    def _native(self) -> tuple[Any, ...]:
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation {self.activation!r} is not known; pass one of {ACTIVATIONS}")
        return (
            _plane(self.x, "x", self.x_quantisation),
            tuple(self.x_quantisation),
            _plane(self.out, "out", self.out_quantisation),
            None if self.out_quantisation is None else tuple(self.out_quantisation),
            Window(*self.window),
            None if self.scale is None else as_array(self.scale, "scale"),
            None if self.bias is None else as_array(self.bias, "bias"),
            None if self.residual is None else _plane(self.residual, "residual", self.residual_quantisation),
            None if self.residual_quantisation is None else tuple(self.residual_quantisation),
            self.residual_factor,
            ACTIVATIONS.index(self.activation),
        )


def _plane(value: Array | Plane, name: str, quantisation: Quantisation | None) -> Plane:
    """``value``, which holds uint8 where there is a quantisation and fp32 where there is none."""
    return as_plane(value, name, dtype=np.float32 if quantisation is None else np.uint8)


def conv2d_int8_jobs(packed: PackedInt8Conv, jobs: Sequence[Int8ConvJob], *, kernel: str | None = None) -> None:
    """Run several windows, of one plane or of many, with the same weights in one parallel region.

    Args:
        packed: the weights.
        jobs: the windows.
        kernel: one of :data:`KERNELS`; by default the fastest this processor has. All give the same bits.

    Raises:
        InputError, WindowError: before anything is written, where an array, extent, window or quantisation does not
            fit, outputs overlap, an output overlaps with what is read, or the processor lacks the kernel.
    """
    native.require().conv2d_int8(packed.handle, tuple(job._native() for job in jobs), kernel)


def quantise(x: Array | Plane, quantisation: Quantisation, out: Array | Plane, window: Window) -> None:
    """``out = clamp(round_half_even(x / scale) + zero_point, 0, 255)`` at ``window``; fp32 to uint8, NaN to 0."""
    native.require().quantise(
        as_plane(x, "x"), tuple(quantisation), as_plane(out, "out", dtype=np.uint8), Window(*window)
    )


def dequantise(x: Array | Plane, quantisation: Quantisation, out: Array | Plane, window: Window) -> None:
    """``out = (x - zero_point) * scale`` at ``window``; uint8 to fp32."""
    native.require().dequantise(
        as_plane(x, "x", dtype=np.uint8), tuple(quantisation), as_plane(out, "out"), Window(*window)
    )
