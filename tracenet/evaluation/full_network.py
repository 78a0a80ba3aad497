"""Masks of many clicks on one photo, as the predictor would return them, from one run of the full network per scale.

Tracing is exact, so the full network runs once per photo and scale and every click reads its outputs; the choice of
scale and level, mask window and resizing are the predictor's own (:mod:`tracenet.inference`, :mod:`tracenet.zoom`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tracenet.conventions import LEVELS
from tracenet.inference import (
    Canvas,
    Floats,
    PredictorSettings,
    box_window,
    click_scores,
    half_plane,
    photo_mask,
    predictions_at,
    to_working,
)
from tracenet.models import TraceNet
from tracenet.untraced import half_logits, planes_of
from tracenet.zoom import photo_scales, prepare_scale, rank_candidates, settle, zoom_settings
from tracenet_kernels.window import Window


@dataclass
class _Seen:
    """What the full network gives for all clicks at one scale."""

    model: TraceNet
    canvas: Canvas
    clicks: Floats
    features: Floats
    at: dict[str, Floats]

    def mask_logits(self, click: int, level: int, settings: PredictorSettings) -> tuple[Floats, Window]:
        """The mask logits that one level gives for one click, in the predictor's mask window."""
        at, k = self.clicks[click], level - LEVELS[0]
        window = box_window(self.at["boxes"][click, k], at, self.canvas, settings)
        logits = half_logits(self.model, self.features, self.at["theta"][click, k][None], at[None], level)[0]
        return logits[window.y0 : window.y1, window.x0 : window.x1], window


@dataclass
class _Candidates:
    """The candidates of one click, by number; each mask is computed once."""

    seen: list[_Seen]
    click: int
    settings: PredictorSettings
    made: dict[int, tuple[Floats, Window]] = field(default_factory=dict)

    def where(self, candidate: int) -> tuple[_Seen, int]:
        """The scale and the level of a candidate."""
        first, last = self.settings.levels
        scale, step = divmod(candidate, last - first + 1)
        return self.seen[scale], first + step

    def logits(self, candidate: int) -> tuple[Floats, Window]:
        if candidate not in self.made:
            seen, level = self.where(candidate)
            self.made[candidate] = seen.mask_logits(self.click, level, self.settings)
        return self.made[candidate]

    def plane(self, candidate: int) -> tuple[Floats, Canvas]:
        canvas = self.where(candidate)[0].canvas
        return half_plane(*self.logits(candidate), canvas), canvas


def segment_clicks(
    model: TraceNet, settings: PredictorSettings, photo: Image.Image, points: Floats, zoom: Any = None
) -> Iterator[tuple[NDArray[np.bool_], int, float]]:
    """Best mask ``[H, W]``, its level (3..7) and its score for every click ``[N, 2]`` (x, y) on one photo.

    Masks come one at a time; hundreds of them would not fit beside each other. ``zoom`` is that of
    :meth:`tracenet.Predictor.predict`, by default the settings'.
    """
    zoom = settings.zoom if zoom is None else zoom
    scales = photo_scales(photo.width, photo.height, zoom, settings)
    zoomed, settings = zoom_settings(zoom, settings)
    seen = []
    for scale in scales:
        clicks = to_working(points, scale.canvas).astype(np.float32)
        outputs = planes_of(model, prepare_scale(photo, scale, settings, model.config))
        at = predictions_at(outputs, clicks, model.config.anchor_offset)
        seen.append(_Seen(model, scale.canvas, clicks, outputs["maskfeat"], at))
    order, ratings = rank_candidates([one.at for one in seen], [scale.factor for scale in scales], settings, zoomed)
    for i in range(len(points)):
        candidates = _Candidates(seen, i, settings)
        chosen = settle(order[i], ratings[i], candidates.plane, settings)[0]
        one, level = candidates.where(chosen)
        mask = photo_mask(*candidates.logits(chosen), one.canvas)
        yield mask, level, float(click_scores(one.at, settings.score)[i, level - LEVELS[0]])
