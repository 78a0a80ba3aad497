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


def miou_t(objects: Sequence[ObjectClicks], band: int | None = None) -> float | None:
    """Equation 1 over all clicks, or over those of one band; None without any click."""
    intersections = unions = 0
    for one in objects:
        chosen = slice(None) if band is None else one.bands == band
        intersections += int(one.intersections[chosen].sum())
        unions += int(one.unions[chosen].sum())
    return intersections / unions if unions else None


def mta(objects: Sequence[ObjectClicks], band: int | None = None, threshold: float = HIT) -> float | None:
    """Equation 2 estimated from clicks: sum of band hit rate times band pixels, over the pixels of all objects.

    With ``band``, only that band's pixels count, above and below the line. A band without clicks (it has no pixels)
    adds nothing. None without any pixel.
    """
    hit = area = 0.0
    for one in objects:
        for number in range(len(one.areas)) if band is None else (band,):
            clicks = one.ious[one.bands == number]
            if len(clicks):
                hit += float((clicks >= threshold).mean()) * int(one.areas[number])
                area += int(one.areas[number])
    return hit / area if area else None
