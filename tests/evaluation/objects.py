"""Results made by hand, and a model whose masks are known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tracenet.evaluation.metrics import ObjectClicks
from tracenet.evaluation.results import DenseClicks, ObjectResult, encode_mask


def square(left: int, top: int, side: int, height: int = 40, width: int = 50) -> np.ndarray:
    """A mask ``[height, width]`` of one square."""
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def clicked(
    instance: int,
    truth: np.ndarray,
    prediction: np.ndarray,
    image: int = 1,
    category: int = 1,
    area: float | None = None,
    level: int | None = 4,
    score: float = 0.5,
    clicks: ObjectClicks | None = None,
    dense: DenseClicks | None = None,
) -> ObjectResult:
    """One object whose deepest click gave ``prediction``, and, unless ``clicks`` says otherwise, one click per band."""
    pixels = int(truth.sum())
    intersection, union = int((truth & prediction).sum()), int((truth | prediction).sum())
    if clicks is None:
        fifth = [pixels // 5] * 4 + [pixels - 4 * (pixels // 5)]
        clicks = ObjectClicks(np.full(5, intersection), np.full(5, union), np.arange(5), np.array(fifth))
    return ObjectResult(
        instance,
        image,
        category,
        float(pixels) if area is None else area,
        clicks,
        intersection,
        union,
        level,
        score,
        encode_mask(truth),
        encode_mask(prediction),
        dense,
    )


class Square:
    """Answers a click with the square of a given reach around it; counts its calls."""

    def __init__(self, reach: int = 5) -> None:
        self.reach = reach
        self.calls = 0

    def __call__(
        self, photo: Image.Image, points: NDArray[np.float32]
    ) -> Iterator[tuple[NDArray[np.bool_], int | None, float]]:
        self.calls += 1
        for x, y in points.astype(int):
            mask = np.zeros((photo.height, photo.width), bool)
            mask[max(0, y - self.reach) : y + self.reach + 1, max(0, x - self.reach) : x + self.reach + 1] = True
            yield mask, None, 0.25
