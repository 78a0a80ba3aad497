"""The paper's protocol: 25 simulated clicks per object in five bands, mIoU-T and mTA, and one deepest-interior click.

Tracing is exact, so the full network runs once per image and every click reads its outputs, with the level choice, the
mask window and the resizing of the predictor itself. A sample of clicks is run again through the tracer and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import track

from tracenet.data import CocoDataset, deepest_interior_point, simulate_clicks
from tracenet.data.clicks import BANDS, CLICKS_PER_BAND
from tracenet.evaluation.full_network import segment_clicks
from tracenet.evaluation.metrics import HIT, ObjectClicks, miou_t, mta
from tracenet.exactness import full_network_error
from tracenet.inference import PredictorSettings
from tracenet.models import TraceNet
from tracenet.models.fpn import LEVELS
from tracenet.predictor import Predictor
from tracenet_kernels.errors import InputError

SMALL, MEDIUM = 32**2, 96**2
"""COCO's limits on ``area``: small below the first, large from the second on."""


@dataclass(frozen=True)
class ObjectResult:
    """One object: its simulated clicks, and the mask of its deepest interior click: overlap, level and score."""

    instance: int
    image: int
    category: int
    area: float
    clicks: ObjectClicks
    intersection: int
    union: int
    level: int
    score: float

    @property
    def iou(self) -> float:
        return self.intersection / self.union


def evaluate_dataset(
    model: TraceNet,
    settings: PredictorSettings,
    dataset: CocoDataset,
    clicks: int = BANDS * CLICKS_PER_BAND,
    seed: int = 0,
) -> list[ObjectResult]:
    """Click every instance of ``dataset``: ``clicks`` times in five bands, and once at its deepest interior point.

    Clicks depend on the seed and the annotation's id only.

    Raises:
        InputError: ``clicks`` is not a positive multiple of five.
    """
    if clicks < BANDS or clicks % BANDS:
        raise InputError(f"{clicks} clicks per object; give a positive multiple of {BANDS}, the paper takes 25")
    results = []
    for record in track(dataset.records, description="clicks"):
        truths = dataset.masks(record)
        if not truths:
            continue
        drawn = [simulate_clicks(m, np.random.default_rng([seed, i.id]), clicks // BANDS) for i, m in truths]
        points = [
            np.concatenate([[deepest_interior_point(mask)], one.points])
            for (_, mask), one in zip(truths, drawn, strict=True)
        ]
        photo = dataset.image(record)
        found = segment_clicks(model, settings, photo, torch.from_numpy(np.concatenate(points)).float())
        for (instance, truth), one, own in zip(truths, drawn, points, strict=True):
            mask, level, score = next(found)
            pixels = np.array([_overlap(m, truth) for m in (mask, *(next(found)[0] for _ in own[1:]))])
            results.append(
                ObjectResult(
                    instance.id,
                    record.id,
                    instance.category_id,
                    instance.area if instance.area >= 0 else float(truth.sum()),
                    ObjectClicks(pixels[1:, 0], pixels[1:, 1], one.bands, one.areas),
                    int(pixels[0, 0]),
                    int(pixels[0, 1]),
                    level,
                    score,
                )
            )
    return results


def _overlap(mask: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    return int((mask & truth).sum()), int((mask | truth).sum())


def check_tracing(model: TraceNet, settings: PredictorSettings, dataset: CocoDataset, sample: int) -> tuple[int, float]:
    """Run one object of ``sample`` evenly spread images through the tracer.

    Returns how many were run, and the largest error of their mask logits over ``max|full|``.
    """
    predictor = Predictor(model, settings)
    records = dataset.records
    worst, checked = 0.0, 0
    for i in range(min(sample, len(records))):
        record = records[i * len(records) // min(sample, len(records))]
        truths = dataset.masks(record)
        if truths:
            predictor.set_image(dataset.image(record))
            x, y = deepest_interior_point(truths[0][1])
            error, peak = full_network_error(predictor, (float(x), float(y)))
            worst, checked = max(worst, error / peak), checked + 1
    return checked, worst


def summarise(results: Sequence[ObjectResult], categories: dict[int, str]) -> dict[str, Any]:
    """All metrics overall, per band, per size and per category, as plain data."""
    sizes = {
        "small": [r for r in results if r.area < SMALL],
        "medium": [r for r in results if SMALL <= r.area < MEDIUM],
        "large": [r for r in results if r.area >= MEDIUM],
    }
    found = sorted({r.category for r in results})
    objects = [r.clicks for r in results]
    return {
        **_metrics(results),
        "images": len({r.image for r in results}),
        "levels": {f"P{level}": sum(r.level == level for r in results) for level in LEVELS},
        "by_band": [
            {"band": band + 1, "miou_t": miou_t(objects, band), "mta": mta(objects, band)} for band in range(BANDS)
        ],
        "by_size": {name: _metrics(some) for name, some in sizes.items()},
        "by_category": {
            categories.get(number, str(number)): _metrics([r for r in results if r.category == number])
            for number in found
        },
    }


def _metrics(results: Sequence[ObjectResult]) -> dict[str, Any]:
    objects = [r.clicks for r in results]
    unions = sum(r.union for r in results)
    return {
        "one_click_miou": float(np.mean([r.iou for r in results])) if results else None,
        "one_click_pooled": sum(r.intersection for r in results) / unions if unions else None,
        "hit_rate_70": float(np.mean([r.iou >= HIT for r in results])) if results else None,
        "miou_t": miou_t(objects),
        "mta": mta(objects),
        "clicks": sum(len(one.bands) for one in objects),
        "instances": len(results),
    }
