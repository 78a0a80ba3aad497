"""Many clicks from one run of the full network: each mask is what the predictor returns."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tracenet.evaluation.full_network import segment_clicks
from tracenet.inference import PredictorSettings, rank_levels
from tracenet.models import TraceNet
from tracenet.predictor import Predictor
from tracenet_kernels.errors import InputError

SETTINGS = PredictorSettings(working_size=96, mask_margin=0.3)
CAPTURED: OrderedDict[tuple[int, int], Any] = OrderedDict()


def test_what_is_scored_is_what_predict_returns(model: TraceNet) -> None:
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 75, 3), dtype=np.uint8))
    points = np.array([[3.0, 2.0], [40.0, 30.0], [74.0, 49.0]], np.float32)
    predictor = Predictor(model, SETTINGS, backend="torch")
    predictor.set_image(photo)
    for point, (mask, level, score) in zip(points, segment_clicks(model, SETTINGS, photo, points), strict=True):
        masks, scores, _ = predictor.predict(point[None])
        # A pixel whose logit is 0 up to rounding may fall on either side.
        assert np.mean(masks[0] != mask) < 1e-3
        assert float(scores[0]) == pytest.approx(score, abs=1e-4)
        assert predictor.last_levels is not None
        assert int(predictor.last_levels[0]) == level


@pytest.fixture(scope="module")
def spread(model: TraceNet) -> TraceNet:
    """The same with scores and level logits far enough apart that rounding does not decide between them."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for head in (twin.heads.logits, twin.heads.level):
            assert head is not None
            head.weight *= 300
    return twin


@pytest.mark.parametrize(
    ("zoom", "change"),
    [
        ("auto", {"zoom_choice": "level", "level_smoothing": 0.5, "zoom_factors": (0.5, 1, 2)}),
        ((0.5, "native", 2), {"zoom_choice": "product", "agreement": 4}),
        ((0.5, 1), {"zoom_choice": "score", "zoom_levels": (3, 6)}),
        ("off", {"agreement": 3}),
        (None, {"zoom": "auto", "zoom_choice": "level_score"}),
    ],
)
def test_what_is_scored_at_several_scales_is_what_predict_returns(
    spread: TraceNet, zoom: Any, change: dict[str, Any]
) -> None:
    photo = Image.fromarray(np.random.default_rng(2).integers(0, 255, (80, 120, 3), dtype=np.uint8))
    points = np.array([[3.0, 2.0], [60.0, 30.0], [119.0, 79.0]], np.float32)
    settings = replace(SETTINGS, **change)
    predictor = Predictor(spread, settings, backend="torch")
    predictor.network.captured = CAPTURED  # the same weights
    predictor.set_image(photo)
    found = segment_clicks(spread, settings, photo, points, zoom)
    for point, (mask, level, score) in zip(points, found, strict=True):
        masks, scores, _ = predictor.predict(point[None], zoom=zoom)
        assert np.mean(masks[0] != mask) < 1e-3
        assert float(scores[0]) == pytest.approx(score, abs=1e-4)
        assert predictor.last_levels is not None
        assert int(predictor.last_levels[0]) == level


def test_level_smoothing_prefers_the_level_between_two_likely_ones() -> None:
    chance = np.array([[0.35, 0.25, 0.30, 0.05, 0.05], [0.9, 0.05, 0.03, 0.01, 0.01]])
    predictions = {"level": np.log(chance)}
    assert rank_levels(predictions, PredictorSettings()).tolist() == [[3, 5, 4, 6, 7], [3, 4, 5, 6, 7]]
    smooth = PredictorSettings(level_smoothing=0.5)
    assert rank_levels(predictions, smooth)[:, 0].tolist() == [4, 3]
    assert rank_levels(predictions, PredictorSettings(levels=(5, 7), level_smoothing=0.5))[:, 0].tolist() == [5, 5]
    with pytest.raises(InputError, match="level_smoothing"):
        PredictorSettings(level_smoothing=1.5)
