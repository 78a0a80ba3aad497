"""One click per object, at its deepest interior point: IoU of the mask that the predictor would return.

    python -m tracenet.evaluation.one_click --images DIR --annotations F --checkpoint F --json out.json

Tracing is exact, so the full network runs once per image and every click reads its outputs; level choice, mask
window and resizing are the predictor's own functions (:mod:`tracenet.inference`). IoU is measured at the photo's
resolution.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor

from tracenet.data import CocoDataset, deepest_interior_point
from tracenet.evaluation.metrics import HIT
from tracenet.files import save_json
from tracenet.inference import (
    PredictorSettings,
    box_window,
    click_scores,
    fit_canvas,
    half_logits,
    photo_logits,
    predictions_at,
    prepare_image,
    rank_levels,
    to_working,
)
from tracenet.models import TraceNet
from tracenet.models.fpn import LEVELS
from tracenet.models.weights import bundled_checkpoint, load_checkpoint

SMALL, MEDIUM = 32**2, 96**2
"""COCO's limits on ``area``: small below the first, large from the second on."""


@dataclass(frozen=True)
class ClickResult:
    """One click: its object, the overlap of the mask with the truth in pixels, and what was chosen."""

    instance: int
    image: int
    area: float
    intersection: int
    union: int
    level: int
    score: float

    @property
    def iou(self) -> float:
        return self.intersection / self.union


@torch.inference_mode()
def segment_clicks(
    model: TraceNet, settings: PredictorSettings, photo: Image.Image, points: Tensor
) -> Iterator[tuple[NDArray[np.bool_], int, float]]:
    """Best mask ``[H, W]``, its level (3..7) and its score for every click ``[N, 2]`` (x, y) on one photo.

    The full network runs once; masks come one at a time, hundreds of them would not fit beside each other.
    """
    canvas = fit_canvas(photo.width, photo.height, settings.working_size)
    clicks = to_working(points, canvas)
    outputs = model(prepare_image(photo, canvas, model.config))
    at = predictions_at(outputs, clicks, model.config.anchor_offset)
    levels = rank_levels(at, settings)[:, 0]
    scores = click_scores(at, settings.score)
    for i, level in enumerate(levels.tolist()):
        k = level - LEVELS[0]
        window = box_window(at["boxes"][i, k], clicks[i], canvas, settings)
        logits = half_logits(model, outputs["maskfeat"], at["theta"][i, k][None], clicks[i][None], level)[0]
        mask = photo_logits(logits[window.y0 : window.y1, window.x0 : window.x1], window, canvas) > 0
        yield mask.numpy(), level, float(scores[i, k])


def evaluate(model: TraceNet, settings: PredictorSettings, dataset: CocoDataset) -> list[ClickResult]:
    """Click every instance of ``dataset`` once, at its deepest interior point."""
    results = []
    for record in track(dataset.records, description="one click"):
        truths = dataset.masks(record)
        if not truths:
            continue
        points = torch.tensor([deepest_interior_point(mask) for _, mask in truths], dtype=torch.float32)
        found = segment_clicks(model, settings, dataset.image(record), points)
        for (instance, truth), (mask, level, score) in zip(truths, found, strict=True):
            area = instance.area if instance.area >= 0 else float(truth.sum())
            overlap, union = int((mask & truth).sum()), int((mask | truth).sum())
            results.append(ClickResult(instance.id, record.id, area, overlap, union, level, score))
    return results


def summarise(results: Sequence[ClickResult]) -> dict[str, Any]:
    """Mean IoU, pooled IoU (sum of intersections over sum of unions) and hit rate; overall and by object size."""

    def group(some: Sequence[ClickResult]) -> dict[str, Any]:
        if not some:
            return {"instances": 0, "one_click_miou": None, "one_click_pooled": None, "hit_rate_70": None}
        ious = np.array([r.iou for r in some])
        return {
            "instances": len(some),
            "one_click_miou": float(ious.mean()),
            "one_click_pooled": sum(r.intersection for r in some) / sum(r.union for r in some),
            "hit_rate_70": float((ious >= HIT).mean()),
        }

    return {
        **group(results),
        "images": len({r.image for r in results}),
        "by_size": {
            "small": group([r for r in results if r.area < SMALL]),
            "medium": group([r for r in results if SMALL <= r.area < MEDIUM]),
            "large": group([r for r in results if r.area >= MEDIUM]),
        },
        "levels": {f"P{level}": sum(r.level == level for r in results) for level in LEVELS},
        "score_error": float(np.mean([abs(r.score - r.iou) for r in results])) if results else None,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of the photos")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO json")
    parser.add_argument("--checkpoint", type=Path, help="the bundled one by default")
    parser.add_argument("--json", type=Path, help="write the numbers here, with one row per instance")
    parser.add_argument("--working-size", type=int, help="instead of the checkpoint's own")
    args = parser.parse_args(arguments)
    model, info = load_checkpoint(args.checkpoint or bundled_checkpoint())
    # NHWC is the faster layout for convolutions on a CPU; torch leaves this overload untyped.
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings = info.predictor
    if args.working_size:
        settings = replace(settings, working_size=args.working_size)
    results = evaluate(model, settings, CocoDataset(args.images, args.annotations))
    summary = {**summarise(results), "quantisation": info.quantisation, "predictor": settings.to_dict()}
    print(json.dumps(summary, indent=2))
    if args.json:
        rows = [
            {"annotation": r.instance, "image": r.image, "iou": round(r.iou, 5), "level": r.level, "score": r.score}
            for r in results
        ]
        save_json({**summary, "rows": rows}, args.json)


if __name__ == "__main__":
    main()
