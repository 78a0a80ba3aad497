"""Masks of many clicks on one photo, as the predictor would return them, from one run of the full network.

Tracing is exact, so the full network runs once per photo and every click reads its outputs; level choice, mask window
and resizing are the predictor's own functions (:mod:`tracenet.inference`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tracenet.evaluation.window_mask import window_mask
from tracenet.inference import (
    PredictorSettings,
    box_window,
    click_scores,
    fit_canvas,
    half_logits,
    predictions_at,
    prepare_image,
    rank_levels,
    to_working,
)
from tracenet.models import TraceNet
from tracenet.models.fpn import LEVELS


@torch.inference_mode()
def segment_clicks(
    model: TraceNet, settings: PredictorSettings, photo: Image.Image, points: Tensor
) -> Iterator[tuple[NDArray[np.bool_], int, float]]:
    """Best mask ``[H, W]``, its level (3..7) and its score for every click ``[N, 2]`` (x, y) on one photo.

    Masks come one at a time; hundreds of them would not fit beside each other.
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
        mask = window_mask(logits[window.y0 : window.y1, window.x0 : window.x1], window, canvas)
        yield mask, level, float(scores[i, k])
