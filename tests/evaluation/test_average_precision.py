"""Mask AP of hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.objects import clicked, square
from tracenet.evaluation.average_precision import average_precision

A, B = square(0, 0, 10), square(20, 20, 10)
NOTHING = square(40, 0, 5)
"""A prediction that covers neither."""


def shifted(columns: int) -> np.ndarray:
    """A square of 10 pixels moved by so many: IoU (10 - columns) / (10 + columns)."""
    return square(columns, 0, 10)


def test_perfect_masks(capsys: pytest.CaptureFixture[str]) -> None:
    found = average_precision([clicked(1, A, A, score=0.1), clicked(2, B, B, category=2, score=0.9)])
    assert (found.pop("ap_medium"), found.pop("ap_large")) == (None, None)
    assert found == pytest.approx({"ap": 1, "ap50": 1, "ap75": 1, "ap_small": 1})
    assert capsys.readouterr().out == ""


def test_iou_thresholds() -> None:
    """IoU 8/12 = 0.667 passes 0.50, 0.55, 0.60 and 0.65, four thresholds of ten."""
    found = average_precision([clicked(1, A, shifted(2))])
    assert (found["ap"], found["ap50"], found["ap75"]) == pytest.approx((0.4, 1, 0))


def test_scores_order_hits_and_misses() -> None:
    """A hit above a miss: precision 1 up to recall 1/2 (51 of 101 recall points). Below it: precision 1/2 there."""
    hit, miss = clicked(1, A, A, score=0.9), clicked(2, B, NOTHING, score=0.1)
    assert average_precision([hit, miss])["ap"] == pytest.approx(51 / 101)
    hit, miss = clicked(1, A, A, score=0.1), clicked(2, B, NOTHING, score=0.9)
    assert average_precision([hit, miss])["ap"] == pytest.approx(51 / 101 / 2)


def test_masks_are_matched_within_their_image_whatever_was_clicked() -> None:
    swapped = [clicked(1, A, B, category=1), clicked(2, B, A, category=2)]
    assert average_precision(swapped)["ap"] == pytest.approx(1)
    apart = [clicked(1, A, B, image=1), clicked(2, B, A, image=2)]
    assert average_precision(apart)["ap"] == 0


def test_sizes_are_those_of_the_annotations() -> None:
    found = average_precision([clicked(1, A, A, area=1024.0), clicked(2, B, NOTHING, area=1023.0)])
    assert (found["ap_small"], found["ap_medium"], found["ap_large"]) == (0, pytest.approx(1), None)


def test_more_objects_than_a_detector_may_find() -> None:
    """COCO's limit of 100 detections per image does not apply."""
    rows = [square(10 * (i % 12), 10 * (i // 12), 8, 120, 120) for i in range(144)]
    assert average_precision([clicked(i + 1, mask, mask) for i, mask in enumerate(rows)])["ap"] == pytest.approx(1)


def test_no_objects() -> None:
    assert set(average_precision([]).values()) == {None}
