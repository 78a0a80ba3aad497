"""One-click evaluation: what is scored is what the predictor returns, and the numbers add up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tracenet.data import CocoDataset
from tracenet.evaluation.one_click import ClickResult, evaluate, main, segment_clicks, summarise
from tracenet.inference import PredictorSettings, rank_levels
from tracenet.models import TraceNet
from tracenet.models.weights import save_checkpoint
from tracenet.predictor import Predictor
from tracenet_kernels.errors import InputError

SETTINGS = PredictorSettings(working_size=96, mask_margin=0.3)


def test_what_is_scored_is_what_predict_returns(model: TraceNet) -> None:
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 75, 3), dtype=np.uint8))
    points = torch.tensor([[3.0, 2.0], [40.0, 30.0], [74.0, 49.0]])
    predictor = Predictor(model, SETTINGS)
    predictor.set_image(photo)
    for point, (mask, level, score) in zip(points, segment_clicks(model, SETTINGS, photo, points), strict=True):
        masks, scores, _ = predictor.predict(point[None].numpy())
        # A pixel whose logit is 0 up to rounding may fall on either side.
        assert np.mean(masks[0] != mask) < 1e-3
        assert float(scores[0]) == pytest.approx(score, abs=1e-4)
        assert predictor.last_levels is not None
        assert int(predictor.last_levels[0]) == level


def test_every_usable_instance_is_clicked_once(model: TraceNet, dataset: CocoDataset) -> None:
    results = evaluate(model, SETTINGS, dataset)
    assert [(r.instance, r.image) for r in results] == [(1, 1), (3, 2)]  # no crowd, nothing below 16 pixels
    for r in results:
        assert 0 <= r.intersection <= r.union
        assert r.level in range(3, 8)


def test_summary() -> None:
    results = [
        ClickResult(1, 1, 100.0, 50, 100, 3, 0.5),
        ClickResult(2, 1, 1024.0, 80, 100, 4, 0.6),
        ClickResult(3, 2, 9216.0, 0, 800, 4, 0.0),
    ]
    out = summarise(results)
    assert out["one_click_miou"] == pytest.approx((0.5 + 0.8) / 3)
    assert out["one_click_pooled"] == pytest.approx(130 / 1000)
    assert out["hit_rate_70"] == pytest.approx(1 / 3)
    assert [out["by_size"][size]["instances"] for size in ("small", "medium", "large")] == [1, 1, 1]
    assert out["levels"] == {"P3": 1, "P4": 2, "P5": 0, "P6": 0, "P7": 0}
    assert (out["images"], out["instances"]) == (2, 3)
    assert summarise([])["one_click_miou"] is None


def test_command_writes_json(
    model: TraceNet, dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(model, tmp_path / "m.safetensors", predictor=SETTINGS, quantize=True)
    files = ["--images", str(dataset.annotations.parent), "--annotations", str(dataset.annotations)]
    main([*files, "--checkpoint", str(tmp_path / "m.safetensors"), "--json", str(tmp_path / "out.json")])
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["instances"] == 2
    assert data["quantisation"] == "int8_per_channel"
    assert [row["annotation"] for row in data["rows"]] == [1, 3]
    assert "one_click_miou" in capsys.readouterr().out


def test_level_smoothing_prefers_the_level_between_two_likely_ones() -> None:
    chance = torch.tensor([[0.35, 0.25, 0.30, 0.05, 0.05], [0.9, 0.05, 0.03, 0.01, 0.01]])
    predictions = {"level": chance.log()}
    assert rank_levels(predictions, PredictorSettings()).tolist() == [[3, 5, 4, 6, 7], [3, 4, 5, 6, 7]]
    smooth = PredictorSettings(level_smoothing=0.5)
    assert rank_levels(predictions, smooth)[:, 0].tolist() == [4, 3]
    assert rank_levels(predictions, PredictorSettings(levels=(5, 7), level_smoothing=0.5))[:, 0].tolist() == [5, 5]
    with pytest.raises(InputError, match="level_smoothing"):
        PredictorSettings(level_smoothing=1.5)
