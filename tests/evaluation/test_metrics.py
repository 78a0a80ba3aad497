"""The paper's metrics against answers known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tracenet.evaluation.metrics import ObjectClicks, bootstrap_interval, miou_t, mta
from tracenet_kernels.errors import InputError


def clicks(pairs: list[tuple[int, int]], bands: list[int], areas: list[int]) -> ObjectClicks:
    inter, union = np.array(pairs, np.int64).reshape(-1, 2).T
    return ObjectClicks(inter, union, np.array(bands, np.int64), np.array(areas, np.int64))


SMALL = clicks([(8, 10), (5, 10), (0, 10), (9, 10)], [0, 0, 1, 1], [6, 2, 0])
LARGE = clicks([(700, 1000), (100, 1000)], [0, 2], [500, 0, 300])


def test_miou_t_pools_before_it_divides() -> None:
    assert miou_t([SMALL]) == 22 / 40
    assert miou_t([SMALL, LARGE]) == (22 + 800) / (40 + 2000)
    assert miou_t([SMALL, LARGE], band=0) == (13 + 700) / (20 + 1000)
    assert miou_t([SMALL], band=2) is None
    assert miou_t([]) is None


def test_mta_weights_hit_rates_by_band_pixels() -> None:
    assert mta([SMALL]) == (0.5 * 6 + 0.5 * 2) / 8
    assert mta([LARGE]) == 500 / 800  # an IoU of exactly the threshold is a hit
    assert mta([SMALL, LARGE]) == (4 + 500) / 808
    assert mta([SMALL, LARGE], band=2) == 0
    assert mta([SMALL], threshold=0.85) == (0 * 6 + 0.5 * 2) / 8
    assert mta([], band=1) is None


def test_mta_is_exact_when_every_pixel_is_clicked() -> None:
    hits = np.array([1, 1, 0, 1, 0, 0, 0], bool)
    every = clicks([(9 if hit else 1, 10) for hit in hits], [0, 0, 0, 1, 1, 1, 1], [3, 4])
    assert mta([every]) == pytest.approx(hits.mean())


def test_contradicting_counts_are_refused() -> None:
    with pytest.raises(InputError, match="one of each per click"):
        clicks([(1, 2)], [0, 1], [5])
    with pytest.raises(InputError, match="union must hold"):
        clicks([(3, 2)], [0], [5])


def test_bootstrap_interval() -> None:
    assert bootstrap_interval([(1, 2)] * 7) == (0.5, 0.5)
    assert bootstrap_interval([(0, 0)]) is None
    assert bootstrap_interval([]) is None
    rng = np.random.default_rng(0)
    parts = [(float(hit), 1.0) for hit in rng.random(400) < 0.3]
    low, high = bootstrap_interval(parts, samples=4000) or (0.0, 0.0)
    share = np.mean([hit for hit, _ in parts])
    half = 1.96 * np.sqrt(share * (1 - share) / 400)  # the normal interval of a share
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.006)
    assert bootstrap_interval(parts, seed=1) == bootstrap_interval(parts, seed=1) != bootstrap_interval(parts, seed=2)
