"""Mask AP of one-click masks, by pycocotools: a cross-check against code that we did not write.

AP was made for detectors, which find objects by themselves. Here every true object is clicked at its deepest interior
point and its mask enters as one detection with the model's own score: the clicks are oracle prompts, so there are as
many detections as objects and no spurious ones. AP then says how good the masks are, averaged over IoU thresholds of
0.50 to 0.95, and how well the scores order them; it must not be compared with a detector's AP. Categories are ignored:
a mask counts for whatever object it covers best.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tracenet.evaluation.results import SIZES, ObjectResult


def average_precision(results: Sequence[ObjectResult]) -> dict[str, float | None]:
    """``ap`` (mean over IoU 0.50, 0.55 .. 0.95), ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large``.

    None without objects (of that size).
    """
    names = ("ap", "ap50", "ap75", *(f"ap_{size}" for size in SIZES))
    if not results:
        return dict.fromkeys(names)
    most = max(np.unique([one.image for one in results], return_counts=True)[1])
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = _as_coco(results)
        scoring = COCOeval(truth, found, "segm")
        scoring.params.useCats = 0
        scoring.params.maxDets = [int(most)]
        # pycocotools counts both ends in; a size class ends before its second.
        ends = [(low, np.nextafter(beyond, 0.0)) for low, beyond in SIZES.values()]
        scoring.params.areaRng = [[0.0, float("inf")], *map(list, ends)]
        scoring.params.areaRngLbl = ["all", *SIZES]
        scoring.evaluate()
        scoring.accumulate()
    precision = scoring.eval["precision"][:, :, 0, :, 0]  # [IoU thresholds, recalls, areas]
    thresholds = list(np.round(scoring.params.iouThrs, 2))
    every = precision[:, :, 0]
    chosen = [
        every,
        every[thresholds.index(0.5)],
        every[thresholds.index(0.75)],
        *np.moveaxis(precision[:, :, 1:], 2, 0),
    ]
    return {name: _mean(values) for name, values in zip(names, chosen, strict=True)}


def _mean(precision: Any) -> float | None:
    """pycocotools marks what it has no objects for with -1."""
    return float(precision.mean()) if (precision > -1).all() else None


def _as_coco(results: Sequence[ObjectResult]) -> tuple[COCO, COCO]:
    """The true masks and the predicted ones as two sets of annotations of the same images, all of one category."""
    sizes = {one.image: one.truth["size"] for one in results}
    images = [{"id": number, "height": height, "width": width} for number, (height, width) in sorted(sizes.items())]
    sets = (COCO(), COCO())
    for which, coco in zip(("truth", "prediction"), sets, strict=True):
        coco.dataset = {
            "images": images,
            "categories": [{"id": 1}],
            "annotations": [
                {
                    "id": number,
                    "image_id": one.image,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": one.area if which == "truth" else float(rle.area(one.prediction)),
                    "score": one.score,
                    "segmentation": getattr(one, which),
                }
                for number, one in enumerate(results, start=1)
            ],
        }
        coco.createIndex()
    return sets
