"""The traced sample: how it is spread, and that it agrees with the full network."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tracenet.data import CocoDataset
from tracenet.evaluation.protocol import ClickProtocol
from tracenet.evaluation.tracing import CLICKS_PER_IMAGE, check_tracing, spread
from tracenet.inference import PredictorSettings
from tracenet.models import TraceNet
from tracenet.predictor import Predictor


def test_traced_equals_full(model: TraceNet, dataset: CocoDataset) -> None:
    predictor = Predictor(model, PredictorSettings(working_size=96, mask_margin=0.3))
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
