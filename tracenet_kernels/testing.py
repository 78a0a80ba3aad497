"""How results are compared: one tolerance per dtype, errors relative to the reference, poisoned outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tracenet_kernels.window import Window


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed errors; ``None`` does not limit that one.

    Attributes:
        max_relative: ``max|actual - ref| / max|ref|``.
        frobenius: ``||actual - ref|| / ||ref||``.
    """

    max_relative: float | None = None
    frobenius: float | None = None


EXACT = Tolerance(max_relative=0.0)

TOLERANCES = {
    torch.float64: Tolerance(max_relative=1e-10),
    torch.float32: Tolerance(max_relative=1e-4),
    # Half precision is judged on the whole: single elements may cancel. References are float64.
    torch.float16: Tolerance(frobenius=1e-2),
    torch.bfloat16: Tolerance(frobenius=1e-2),
}
"""The only tolerances in the project; integers and booleans must be exact."""


@dataclass(frozen=True)
class Errors:
    """How far a result is from its reference, computed in float64."""

    max_abs: float
    max_ref: float
    frobenius: float
    worst: tuple[int, ...]

    @property
    def max_relative(self) -> float:
        """``max_abs / max_ref``; 0 where both are 0, infinite where only the reference is."""
        if self.max_ref:
            return self.max_abs / self.max_ref
        return math.inf if self.max_abs else 0.0

    def within(self, tolerance: Tolerance) -> bool:
        """True where no limit of ``tolerance`` is passed."""
        if tolerance.max_relative is not None and self.max_relative > tolerance.max_relative:
            return False
        return tolerance.frobenius is None or self.frobenius <= tolerance.frobenius

    def __str__(self) -> str:
        return (
            f"max abs error {self.max_abs:.3e} at {self.worst}, max|ref| {self.max_ref:.3e}, "
            f"ratio {self.max_relative:.3e}, relative Frobenius error {self.frobenius:.3e}"
        )


def errors(actual: Tensor, reference: Tensor) -> Errors:
    """Errors of ``actual`` against ``reference``: same shape, finite, not complex."""
    ref = reference.detach().double().cpu()
    difference = actual.detach().double().cpu() - ref
    if not difference.numel():
        return Errors(0.0, 0.0, 0.0, ())
    distance = difference.abs()
    worst = torch.unravel_index(distance.argmax(), distance.shape)
    norm, ref_norm = difference.norm().item(), ref.norm().item()
    return Errors(
        max_abs=distance.max().item(),
        max_ref=ref.abs().max().item(),
        frobenius=norm / ref_norm if ref_norm else (math.inf if norm else 0.0),
        worst=tuple(int(axis) for axis in worst),
    )


def assert_close(
    actual: Tensor, reference: Tensor, *, dtype: torch.dtype | None = None, what: str = "result"
) -> Errors:
    """Fail where ``actual`` is further from ``reference`` than its dtype allows.

    Args:
        actual: the tensor under test, any device.
        reference: same shape; in float64 where ``actual`` is half precision.
        dtype: the precision ``actual`` was computed in, where it is not ``actual.dtype``.
        what: how to call the tensor in the message.

    Returns:
        The measured errors, for a report.

    Raises:
        AssertionError: the shapes differ, infinities or NaNs sit in different places, or an error is too large.
    """
    if actual.shape != reference.shape:
        raise AssertionError(f"{what} has shape {tuple(actual.shape)}, the reference {tuple(reference.shape)}")
    dtype = dtype or actual.dtype
    tolerance = TOLERANCES.get(dtype, EXACT)
    actual, reference = actual.detach().double().cpu(), reference.detach().double().cpu()
    finite = reference.isfinite()
    same = torch.where(finite, actual.isfinite(), (actual == reference) | (actual.isnan() & reference.isnan()))
    if not same.all():
        first = tuple((~same).nonzero()[0].tolist())
        raise AssertionError(
            f"{what} has {int((~same).sum())} of {same.numel()} elements that are NaN or infinite where the "
            f"reference is not, or the other way round; first at {first}: {actual[first].item()} "
            f"against {reference[first].item()}"
        )
    measured = errors(torch.where(finite, actual, 0.0), torch.where(finite, reference, 0.0))
    if not measured.within(tolerance):
        raise AssertionError(f"{what} in {dtype} is too far from its reference: {measured}; allowed: {tolerance}")
    return measured


def poisoned(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """An output buffer in which an element that was never written, or read too early, shows.

    Filled with NaN, or with the most negative value (the largest one where unsigned) of an integer dtype.
    """
    return torch.full(shape, _poison(dtype), dtype=dtype, device=device)


def _poison(dtype: torch.dtype) -> float | int:
    if dtype.is_floating_point:
        return math.nan
    info = torch.iinfo(dtype)
    return info.min or info.max


def assert_only_written(output: Tensor, windows: Iterable[Window], *, axes: tuple[int, int] = (-2, -1)) -> None:
    """Fail where a :func:`poisoned` buffer was written outside ``windows`` or not written inside them.

    Args:
        output: the buffer after the run.
        windows: windows on its plane, clipped to it.
        axes: the row and column axis of ``output``; ``(-3, -2)`` for channels-last.
    """
    plane = output.movedim(axes, (-2, -1))
    poison = _poison(output.dtype)
    untouched = plane.isnan() if math.isnan(poison) else plane == poison
    inside = torch.zeros(plane.shape[-2:], dtype=torch.bool, device=output.device)
    for window in windows:
        inside[window.slices] = True
    if (~untouched & ~inside).any():
        first = (~untouched & ~inside).nonzero()[0].tolist()
        raise AssertionError(f"written outside the windows, first at row {first[-2]}, column {first[-1]}")
    if (untouched & inside).any():
        first = (untouched & inside).nonzero()[0].tolist()
        raise AssertionError(f"not written inside the windows, first at row {first[-2]}, column {first[-1]}")
