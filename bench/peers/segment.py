"""A SAM-style ONNX pair as the evaluation asks for models: clicks on a photo in, one mask per click out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tracenet.sam_onnx import SamOnnxPredictor


class SamSegment:
    """:class:`tracenet.evaluation.protocol.Segment` of a pair; the photo is encoded once, each click decoded apart.

    Args:
        single: take the single-mask answer instead of the mask of the highest predicted IoU.
    """

    def __init__(self, predictor: SamOnnxPredictor, single: bool = False) -> None:
        self.predictor = predictor
        self.single = single

    def __call__(
        self, photo: Image.Image, points: NDArray[np.float32]
    ) -> Iterator[tuple[NDArray[np.bool_], int | None, float]]:
        self.predictor.set_image(photo)
        for point in points:
            yield self.click(point)

    def click(self, point: NDArray[np.float32]) -> tuple[NDArray[np.bool_], None, float]:
        """Mask and score of one click on the current photo."""
        found = self.predictor.predict(point[None, None])
        taken = int(found.best(self.single)[0])
        return found.masks[0, taken], None, float(found.scores[0, taken])
