"""What an evaluation keeps of every clicked object and every image, as plain data that a file can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from tracenet.evaluation.metrics import ObjectClicks

SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
"""COCO's size classes by ``area``: name -> first area in it, first area beyond it."""


@dataclass(frozen=True)
class DenseClicks:
    """Clicks on every pixel of an object (``step`` 1), or on those of its pixels on a grid of ``step`` pixels."""

    hits: int
    clicks: int
    step: int


@dataclass(frozen=True)
class ObjectResult:
    """One object and what its clicks gave.

    Attributes:
        instance, image, category: ids of the annotation file; no category where it states none.
        area: the annotation's ``area`` in pixels, or the mask's where the file states none.
        clicks: the simulated clicks.
        intersection, union: pixels, of the mask of the deepest interior click with the true one.
        level: pyramid level of that mask; None from a model without levels.
        score: the model's own rating of that mask.
        truth, prediction: both masks as COCO's compressed RLE, ``{"size": [height, width], "counts": text}``.
        dense: clicks for the full definition of mTA, where they were asked for.
    """

    instance: int
    image: int
    category: int | None
    area: float
    clicks: ObjectClicks
    intersection: int
    union: int
    level: int | None
    score: float
    truth: dict[str, Any]
    prediction: dict[str, Any]
    dense: DenseClicks | None = None

    @property
    def iou(self) -> float:
        return self.intersection / self.union

    @property
    def pixels(self) -> int:
        """Of the true mask."""
        return int(self.clicks.areas.sum())

    @property
    def size(self) -> str:
        """Name in :data:`SIZES`."""
        return next(name for name, (_, beyond) in SIZES.items() if self.area < beyond)

    def to_row(self) -> dict[str, Any]:
        """Plain data (JSON-ready) that :meth:`from_row` restores to the same bits."""
        clicks = self.clicks
        return {
            **{k: v for k, v in vars(self).items() if k not in ("clicks", "dense")},
            "intersections": clicks.intersections.tolist(),
            "unions": clicks.unions.tolist(),
            "bands": clicks.bands.tolist(),
            "areas": clicks.areas.tolist(),
            "dense": None if self.dense is None else vars(self.dense),
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> ObjectResult:
        rest = dict(row)
        clicks = ObjectClicks(
            *(np.array(rest.pop(name), np.int64) for name in ("intersections", "unions", "bands", "areas"))
        )
        dense = rest.pop("dense")
        return cls(clicks=clicks, dense=None if dense is None else DenseClicks(**dense), **rest)


@dataclass(frozen=True)
class ImageResult:
    """One image: its objects, what was left out of it and why, and seconds spent.

    Attributes:
        seconds: from reading the photo to the last overlap.
        first_mask_seconds: of these, until the model gave its first mask.
        masks_seconds: of these, the model's for the ``masks - 1`` others.
        masks: how many the model gave.
    """

    image: int
    objects: list[ObjectResult]
    problems: list[str]
    seconds: float = 0.0
    first_mask_seconds: float = 0.0
    masks_seconds: float = 0.0
    masks: int = 0

    def to_row(self) -> dict[str, Any]:
        """Plain data (JSON-ready) that :meth:`from_row` restores."""
        return {**vars(self), "objects": [one.to_row() for one in self.objects]}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> ImageResult:
        return cls(**{**row, "objects": [ObjectResult.from_row(one) for one in row["objects"]]})


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Mask ``[H, W]`` -> COCO's compressed RLE with its counts as text."""
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
