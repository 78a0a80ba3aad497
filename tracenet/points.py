"""Clicks as users give them, checked: ``(N, 2)`` on one object or ``(B, N, 2)`` on B objects, with their labels."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracenet_kernels.errors import ClickError


def check_points(coords: Any, labels: Any) -> tuple[list[NDArray[np.float64]], bool]:
    """Clicks as a list of ``[N, 2]`` float64 arrays, and whether they came as (B, N, 2).

    Raises:
        ClickError: they are no numbers, of another shape, or labelled other than 1.
    """
    points = _numbers(coords)
    if points is None:
        raise ClickError(f"point_coords are {_shown(coords)}, not numbers; pass [[x, y]] in photo pixels")
    if points.ndim not in (2, 3) or points.shape[-1] != 2 or 0 in points.shape:
        raise ClickError(f"point_coords have shape {points.shape}; pass (N, 2) or (B, N, 2) with at least one click")
    if labels is not None:
        given = _array(labels)
        if given is None or given.dtype.kind not in "biu":
            raise ClickError(
                f"point_labels are {_shown(labels)}, not integers; pass 1 for each click, shaped {points.shape[:-1]}"
            )
        if given.shape != points.shape[:-1]:
            raise ClickError(f"point_labels have shape {given.shape}; the clicks ask for {points.shape[:-1]}")
        if not (given == 1).all():
            bad = sorted({int(v) for v in given[given != 1]})[:8]
            raise ClickError(
                f"point_labels hold {bad}; only 1 (a click on the object) is supported, negative clicks are not yet"
            )
    batched = points.ndim == 3
    return list(points if batched else points[None]), batched


def _array(values: Any) -> np.ndarray | None:
    """As an array of whatever type; None for ragged lists and what NumPy cannot hold."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        return None


def _numbers(values: Any) -> np.ndarray | None:
    """Real numbers as float64, integers too large for it as infinity; None for anything else (text, None, ragged)."""
    raw = _array(values)
    if raw is None or raw.dtype.kind not in "iufO":
        return None
    if raw.dtype.kind != "O":
        return raw.astype(np.float64)
    if not all(isinstance(value, Real) for value in raw.flat):
        return None
    return np.array([_saturated(value) for value in raw.flat]).reshape(raw.shape)


def _saturated(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _shown(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python refuses to print very large integers
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
