"""The paper's protocol: the right clicks, the right sums, and the same numbers as the predictor."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tracenet.cli import main
from tracenet.data import CocoDataset, deepest_interior_point, simulate_clicks
from tracenet.evaluation.protocol import check_tracing, evaluate_dataset, summarise
from tracenet.inference import PredictorSettings
from tracenet.models import TraceNet
from tracenet.models.weights import save_checkpoint
from tracenet.predictor import Predictor
from tracenet_kernels.errors import InputError

SETTINGS = PredictorSettings(working_size=96, mask_margin=0.3)


def test_what_is_scored_is_what_predict_returns(model: TraceNet, dataset: CocoDataset) -> None:
    results = evaluate_dataset(model, SETTINGS, dataset, clicks=5, seed=3)
    assert [r.instance for r in results] == [1, 3]
    predictor = Predictor(model, SETTINGS)
    for record, result in zip(dataset.records, results, strict=True):
        ((instance, truth),) = dataset.masks(record)
        predictor.set_image(dataset.image(record))
        drawn = simulate_clicks(truth, np.random.default_rng([3, instance.id]), 1)
        points = [deepest_interior_point(truth), *drawn.points.tolist()]
        masks = [predictor.predict([list(point)])[0][0] for point in points]
        unions = [int((mask | truth).sum()) for mask in masks]
        assert np.allclose([result.union, *result.clicks.unions], unions, rtol=0, atol=2)
        np.testing.assert_array_equal(result.clicks.areas, drawn.areas)


def test_deterministic_and_independent_of_the_other_objects(model: TraceNet, dataset: CocoDataset) -> None:
    first = evaluate_dataset(model, SETTINGS, dataset, clicks=5)
    dataset.records = dataset.records[1:]
    (alone,) = evaluate_dataset(model, SETTINGS, dataset, clicks=5)
    np.testing.assert_array_equal(alone.clicks.unions, first[1].clicks.unions)
    assert replace(alone, clicks=first[1].clicks) == first[1]


def test_report_adds_up(model: TraceNet, dataset: CocoDataset) -> None:
    results = evaluate_dataset(model, SETTINGS, dataset, clicks=5)
    report = summarise(results, dataset.categories)
    assert report["instances"] == 2
    assert report["clicks"] == sum(len(r.clicks.bands) for r in results)
    assert [row["band"] for row in report["by_band"]] == [1, 2, 3, 4, 5]
    assert report["by_category"]["box"]["miou_t"] == report["miou_t"]
    assert report["by_size"]["small"]["instances"] + report["by_size"]["medium"]["instances"] == 2
    assert report["by_size"]["large"]["miou_t"] is None


def test_traced_equals_full(model: TraceNet, dataset: CocoDataset) -> None:
    checked, error = check_tracing(model, SETTINGS, dataset, sample=5)
    assert checked == 2
    assert 0 <= error <= 1e-4


def test_clicks_come_in_fives(model: TraceNet, dataset: CocoDataset) -> None:
    with pytest.raises(InputError, match="multiple of 5"):
        evaluate_dataset(model, SETTINGS, dataset, clicks=7)


def test_command(
    model: TraceNet,
    dataset: CocoDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_checkpoint(model, tmp_path / "m.safetensors", predictor=SETTINGS)
    out = tmp_path / "out.json"
    words = ["evaluate", "--images", dataset.annotations.parent, "--annotations", dataset.annotations, "--clicks", 5]
    words += ["--checkpoint", tmp_path / "m.safetensors", "--json", out, "--rft", 1]
    monkeypatch.setattr(sys, "argv", ["tracenet", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    data = json.loads(out.read_text())
    assert {"one_click_miou", "one_click_pooled", "miou_t", "mta", "by_band", "by_size", "by_category"} <= set(data)
    assert data["rft_checked"] == 1
    assert data["rft_max_error"] <= 1e-4
    assert '"mta"' in capsys.readouterr().out
