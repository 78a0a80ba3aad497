"""Reports against answers known by hand."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from tests.evaluation.objects import clicked, square
from tracenet.evaluation.metrics import ObjectClicks
from tracenet.evaluation.report import summarise, tables
from tracenet.evaluation.results import DenseClicks, ImageResult, ObjectResult

FULL = square(10, 10, 20)
"""400 pixels."""
HALF = FULL & (np.arange(50) < 20)


def two_hits_in_band_one() -> ObjectClicks:
    unions = np.full(4, 100)
    return ObjectClicks(np.array([90, 70, 10, 80]), unions, np.array([0, 0, 4, 4]), np.array([300, 0, 0, 0, 100]))


@pytest.fixture
def results() -> list[ObjectResult]:
    return [
        clicked(1, FULL, FULL, image=1, category=1, area=1023.9, level=3, score=1.0),
        clicked(2, FULL, HALF, image=1, category=3, area=1024.0, level=4, score=0.2),
        clicked(3, FULL, ~FULL, image=2, category=3, area=9216.0, level=4, score=0.3, clicks=two_hits_in_band_one()),
    ]


def test_headline_numbers(results: list[ObjectResult]) -> None:
    report = summarise(results, {1: "cat", 3: "dog"})
    assert report["one_click_miou"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert report["one_click_pooled"] == pytest.approx(600 / (400 + 400 + 2000))
    assert report["hit_rate_70"] == pytest.approx(1 / 3)
    assert report["miou_t"] == pytest.approx((5 * 400 + 5 * 200 + 250) / (5 * 400 + 5 * 400 + 400))
    assert report["mta"] == pytest.approx((400 + 0 + 300 + 0.5 * 100) / 1200)
    assert (report["clicks"], report["instances"], report["images"]) == (14, 3, 2)
    assert report["score_error"] == pytest.approx((0 + 0.3 + 0.3) / 3)
    assert report["levels"] == {"P3": 1, "P4": 2}
    for key, (low, high) in report["confidence_95"].items():
        assert low <= report[key] <= high
    json.dumps(report, allow_nan=False)


def test_groups(results: list[ObjectResult]) -> None:
    report = summarise(results, {1: "cat"})
    assert [report["by_size"][name]["instances"] for name in ("small", "medium", "large")] == [1, 1, 1]
    assert report["by_size"]["medium"]["one_click_miou"] == 0.5
    assert set(report["by_category"]) == {"cat", "3"}  # a category without a name is called by its id
    assert report["by_category"]["3"]["mta"] == pytest.approx(350 / 800)
    first, *_, last = report["by_band"]
    assert (first["band"], first["mta"]) == (1, pytest.approx((80 + 300) / (80 + 80 + 300)))
    assert (last["band"], last["miou_t"]) == (5, pytest.approx((400 + 200 + 90) / (400 + 400 + 200)))


def test_full_mta_beside_its_estimate(results: list[ObjectResult]) -> None:
    assert summarise(results, {})["full_mta"] is None
    results += [
        clicked(4, FULL, FULL, dense=DenseClicks(300, 400, 1)),
        clicked(5, square(0, 0, 10), square(0, 0, 10), dense=DenseClicks(10, 25, 2)),
    ]
    full = summarise(results, {})["full_mta"]
    assert full["mta"] == pytest.approx((300 + 0.4 * 100) / 500)
    assert full["mta_from_bands"] == 1
    assert full["mean_difference"] == pytest.approx((0.25 + 0.6) / 2)
    assert (full["objects"], full["every_pixel"], full["clicks"]) == (2, 1, 425)


def test_nothing_evaluated() -> None:
    report = summarise([], {})
    assert report["miou_t"] is None
    assert report["ap"]["ap"] is None
    assert report["confidence_95"]["mta"] is None
    json.dumps(report, allow_nan=False)


def test_tables_show_the_numbers(results: list[ObjectResult]) -> None:
    console = Console(width=140, file=io.StringIO())
    report = {**summarise(results, {1: "cat"}), "skipped": ["a.json: annotation 7 has an empty mask"]}
    console.print(tables({**report, "rft_checked": 3, "rft_max_error": 2e-6}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for shown in ("0.500", "cat", "band 5", "ap50", "3 clicks", "2.0e-06", "annotation 7"):
        assert shown in text


def test_rows_restore_results(results: list[ObjectResult]) -> None:
    image = ImageResult(1, [*results, clicked(9, FULL, HALF, dense=DenseClicks(1, 2, 3))], ["why"], 1.5, 0.1, 0.7, 30)
    again = ImageResult.from_row(json.loads(json.dumps(image.to_row())))
    assert again.to_row() == image.to_row()
    assert summarise(again.objects, {}) == summarise(image.objects, {})
