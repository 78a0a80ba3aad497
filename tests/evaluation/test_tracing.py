"""The evaluation beside the traced predictor: the same masks, and a sample that is compared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracenet.data import CocoDataset, deepest_interior_point
from tracenet.evaluation.protocol import ClickProtocol, evaluate_images
from tracenet.evaluation.run import full_network_segment
from tracenet.evaluation.tracing import CLICKS_PER_IMAGE, check_tracing, spread
from tracenet.inference import PredictorSettings
from tracenet.models import TraceNet
from tracenet.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(model: TraceNet) -> Predictor:
    return Predictor(model, PredictorSettings(working_size=96, mask_margin=0.3))


def test_what_is_scored_is_what_predict_returns(predictor: Predictor, dataset: CocoDataset) -> None:
    protocol = ClickProtocol(clicks=5, seed=3)
    segment = full_network_segment(predictor.model, predictor.settings)
    images = list(evaluate_images(segment, dataset, dataset.records, protocol))
    assert [[one.instance for one in image.objects] for image in images] == [[1], [3]]  # no crowd, no speck
    for record, image in zip(dataset.records, images, strict=True):
        ((instance, truth),) = dataset.masks(record)
        (result,) = image.objects
        predictor.set_image(dataset.image(record))
        drawn = protocol.simulate(instance, truth)
        points = [deepest_interior_point(truth), *drawn.points.tolist()]
        masks = [predictor.predict([list(point)])[0][0] for point in points]
        unions = [int((mask | truth).sum()) for mask in masks]
        assert np.allclose([result.union, *result.clicks.unions], unions, rtol=0, atol=2)
        np.testing.assert_array_equal(result.clicks.areas, drawn.areas)
        assert result.level in range(3, 8)


def test_traced_equals_full(predictor: Predictor, dataset: CocoDataset) -> None:
    sample = spread(dataset.records, 3)
    assert [(record.id, count) for record, count in sample] == [(1, 3)]
    checked, error = check_tracing(predictor, dataset, sample, ClickProtocol(clicks=5))
    assert checked == 3
    assert 0 <= error <= 1e-4
    assert check_tracing(predictor, dataset, [], ClickProtocol()) == (0, 0.0)


@given(st.integers(0, 40), st.integers(0, 40))
def test_sample_is_spread_and_of_the_size_asked_for(images: int, clicks: int) -> None:
    sample = spread(list(range(images)), clicks)  # type: ignore[arg-type]
    counts = [count for _, count in sample]
    assert sum(counts) == min(clicks, images * CLICKS_PER_IMAGE)
    assert all(1 <= count <= CLICKS_PER_IMAGE for count in counts)
    assert len({record for record, _ in sample}) == len(sample)
