"""Photos held back from training, and the weights that answer their clicks best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tracenet.data import CocoDataset, deepest_interior_point
from tracenet.distributed import Ranks
from tracenet.evaluation.full_network import segment_clicks
from tracenet.evaluation.metrics import HIT
from tracenet.files import save_text
from tracenet.inference import PredictorSettings
from tracenet.models import TraceNet, TraceNetConfig
from tracenet.models.weights import save_checkpoint
from tracenet_kernels.errors import InputError

BEST = "best.safetensors"
ROWS = "selection.jsonl"


def held_out(ids: Sequence[int], count: int) -> set[int]:
    """``count`` of the sorted image ids, evenly spaced.

    Raises:
        InputError: nothing would be left to train on.
    """
    if count >= len(ids) > 0 or (count and not ids):
        raise InputError(f"hold_out = {count} of {len(ids)} photos leaves none to train on; hold back fewer")
    return {ids[i * len(ids) // count] for i in range(count)}


@dataclass(frozen=True)
class OneClick:
    """One click at the deepest interior point of every object.

    Attributes:
        mean: of the IoUs.
        pooled: sum of intersections over sum of unions.
        hit_rate: share of IoUs of at least 0.7.
        objects: clicked.
    """

    mean: float
    pooled: float
    hit_rate: float
    objects: int


def one_click(
    model: TraceNet, settings: PredictorSettings, datasets: Sequence[CocoDataset], ranks: Ranks | None = None
) -> OneClick:
    """Click every object of ``datasets`` once; processes share the photos, and all return the same.

    Raises:
        ImageError: a photo cannot be used and its dataset does not skip such.
        InputError: there is no object.
    """
    ranks = ranks or Ranks()
    pixels: list[tuple[int, int]] = []
    for dataset, record in ranks.share([(d, r) for d in datasets for r in d.records]):
        truths = [mask for _, mask in dataset.masks(record)]
        photo = dataset.usable_image(record) if truths else None
        if photo is None:
            continue
        points = np.array([deepest_interior_point(mask) for mask in truths], np.float32)
        for truth, (mask, _, _) in zip(truths, segment_clicks(model, settings, photo, points), strict=True):
            pixels.append((int((mask & truth).sum()), int((mask | truth).sum())))
    everything = np.array([pair for part in ranks.gather(pixels) for pair in part])
    if not len(everything):
        raise InputError("the held-back photos show no usable object; hold back more")
    overlaps, unions = everything.T
    ious = overlaps / unions
    return OneClick(
        float(ious.mean()), float(overlaps.sum() / unions.sum()), float((ious >= HIT).mean()), len(everything)
    )


class Selection:
    """Keeps the best weights of a run in ``best.safetensors``, by mean one-click IoU on held-back photos.

    Args:
        config: of the model.
        settings: of the predictor that the checkpoint is for.
        datasets: the held-back photos.
        out: folder of the run; ``selection.jsonl`` there has a row for each reading.
        int8: store weights as int8.
        ranks: processes that share the photos; all call :meth:`read`, the first writes.
    """

    def __init__(
        self,
        config: TraceNetConfig,
        settings: PredictorSettings,
        datasets: Sequence[CocoDataset],
        out: Path,
        int8: bool,
        ranks: Ranks | None = None,
    ) -> None:
        self.config, self.settings, self.datasets, self.out, self.int8 = config, settings, list(datasets), out, int8
        self.ranks = ranks or Ranks()

    def rows(self, before: int | None = None) -> list[dict[str, float]]:
        """Readings so far, in order; those of steps after ``before`` are left out."""
        path = self.out / ROWS
        if not path.exists():
            return []
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [row for row in rows if before is None or row["step"] <= before]

    def read(self, state: dict[str, Tensor], step: int) -> OneClick:
        """Judge ``state`` (of the model) and keep it if it is the best so far."""
        model = TraceNet(self.config)
        model.load_state_dict(state)
        # NHWC is the faster layout for convolutions; torch leaves this overload untyped.
        model = model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        result = one_click(model, self.settings, self.datasets, self.ranks)
        if not self.ranks.first:
            return result
        before = [row for row in self.rows(step) if row["step"] != step]
        if result.mean > max((row["mean"] for row in before), default=-1.0):
            save_checkpoint(model, self.out / BEST, predictor=self.settings, quantize=self.int8)
        row = {"step": step, "mean": result.mean, "pooled": result.pooled, "hit_rate_70": result.hit_rate}
        save_text("".join(json.dumps(r) + "\n" for r in [*before, row]), self.out / ROWS)
        return result
