"""The paper's two metrics of one-click segmentation (section IV-A) over simulated clicks.

- mIoU-T, equation 1: pooled intersections over pooled unions of all clicks on all objects.
- mTA, equation 2: the share of object pixels whose click gives a mask of IoU >= 0.7. Its numerator counts pixels; with
  sampled clicks it is estimated as each band's hit rate times the band's pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracenet_kernels.errors import InputError

HIT = 0.7
"""The paper's threshold beta."""


@dataclass(frozen=True)
class ObjectClicks:
    """All clicks on one object.

    Attributes:
        intersections, unions: ``[K]`` pixels of each click's mask with the true one.
        bands: ``[K]`` band of each click.
        areas: ``[B]`` pixels of each band, adding up to the object's.
    """

    intersections: NDArray[np.int64]
    unions: NDArray[np.int64]
    bands: NDArray[np.int64]
    areas: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.intersections) == len(self.unions) == len(self.bands):
            raise InputError(
                f"{len(self.intersections)} intersections, {len(self.unions)} unions and {len(self.bands)} bands; "
                "give one of each per click"
            )
        if (self.unions < 1).any() or (self.intersections > self.unions).any():
            raise InputError("a click's union must hold its intersection and at least one pixel")

    @property
    def ious(self) -> NDArray[np.float64]:
        return self.intersections / self.unions


def overlap_sums(objects: Sequence[ObjectClicks], band: int | None = None) -> tuple[int, int]:
    """Intersections and unions of all clicks, or of those of one band, each added up."""
    intersections = unions = 0
    for one in objects:
        chosen = slice(None) if band is None else one.bands == band
        intersections += int(one.intersections[chosen].sum())
        unions += int(one.unions[chosen].sum())
    return intersections, unions


def miou_t(objects: Sequence[ObjectClicks], band: int | None = None) -> float | None:
    """Equation 1 over all clicks, or over those of one band; None without any click."""
    intersections, unions = overlap_sums(objects, band)
    return intersections / unions if unions else None


def tap_areas(objects: Sequence[ObjectClicks], band: int | None = None, threshold: float = HIT) -> tuple[float, int]:
    """Pixels whose click is estimated to hit, and pixels of all objects (with ``band``, of that band only).

    A band counts its hit rate times its pixels. A band without clicks (it has no pixels) adds nothing.
    """
    hit, area = 0.0, 0
    for one in objects:
        for number in range(len(one.areas)) if band is None else (band,):
            clicks = one.ious[one.bands == number]
            if len(clicks):
                hit += float((clicks >= threshold).mean()) * int(one.areas[number])
                area += int(one.areas[number])
    return hit, area


def mta(objects: Sequence[ObjectClicks], band: int | None = None, threshold: float = HIT) -> float | None:
    """Equation 2 estimated from clicks by :func:`tap_areas`; None without any pixel."""
    hit, area = tap_areas(objects, band, threshold)
    return hit / area if area else None


def bootstrap_interval(
    parts: Sequence[tuple[float, float]], samples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of a ratio of sums, resampling what was added up.

    Args:
        parts: numerator and denominator of each independent part (an image: its objects are not independent).
        samples: resamplings, each of as many parts as there are, with replacement.

    Returns:
        Lowest and highest ratio of the middle ``confidence`` share; None where no part has a denominator.
    """
    values = np.array(parts, dtype=np.float64).reshape(-1, 2)
    if not (values[:, 1] > 0).any():
        return None
    drawn = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), size=samples)
    numerators, denominators = (drawn @ values).T
    ratios = numerators[denominators > 0] / denominators[denominators > 0]
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
