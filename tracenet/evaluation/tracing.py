"""A sample of the protocol's clicks run again through the tracer: what was scored is what a traced click gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracenet.data import CocoDataset, ImageRecord, deepest_interior_point
from tracenet.evaluation.protocol import ClickProtocol
from tracenet.exactness import full_network_error
from tracenet.predictor import Predictor

CLICKS_PER_IMAGE = 3
"""Several, so that features kept from earlier clicks are reused and checked too."""


def spread(records: Sequence[ImageRecord], clicks: int) -> list[tuple[ImageRecord, int]]:
    """Images evenly spread over ``records``, and how many of ``clicks`` each of them gets."""
    images = min(-(-clicks // CLICKS_PER_IMAGE), len(records))
    if not images:
        return []
    parts = np.full(images, min(clicks // images, CLICKS_PER_IMAGE))
    parts[: max(0, min(clicks, images * CLICKS_PER_IMAGE) - parts.sum())] += 1
    return [(records[i * len(records) // images], int(count)) for i, count in enumerate(parts)]


def check_tracing(
    predictor: Predictor, dataset: CocoDataset, sample: Sequence[tuple[ImageRecord, int]], protocol: ClickProtocol
) -> tuple[int, float]:
    """Trace the clicks of ``sample``, see :func:`spread`.

    Of each image's clicks, as many as asked for are taken evenly: deepest interior and simulated ones, all objects.

    Returns:
        How many were traced, and the largest error of their mask logits over ``max|full|``.
    """
    worst, checked = 0.0, 0
    for record, count in sample:
        truths = dataset.masks(record)
        points = [
            point
            for instance, mask in truths
            for point in ([*deepest_interior_point(mask)], *protocol.simulate(instance, mask).points.tolist())
        ]
        if points:
            predictor.set_image(dataset.image(record))
        for i in range(min(count, len(points))):
            x, y = points[i * len(points) // count]
            error, peak = full_network_error(predictor, (float(x), float(y)))
            worst, checked = max(worst, error / peak), checked + 1
    return checked, worst
