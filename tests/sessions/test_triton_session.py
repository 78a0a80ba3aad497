"""The predictor on the Triton backend gives what it gives on PyTorch; photos share memory and captured graphs."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from tests.networks import randomised
from tracenet import Predictor, PredictorSettings, create_model
from tracenet.sessions.triton_session import TritonNetwork
from tracenet_kernels.errors import BackendError, InputError
from tracenet_kernels.testing import assert_close

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SETTINGS = PredictorSettings(working_size=64, mask_margin_pixels=2.0, levels=(3, 4))
OPTIONS = {"level_head": True}


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)


def test_clicks_equal_those_on_torch(photo: np.ndarray) -> None:
    model = randomised(**OPTIONS)
    ours = Predictor(model, SETTINGS, "triton", device=DEVICE, dtype="float32")
    reference = Predictor(model, SETTINGS, "torch")
    assert ours.backend == "triton"
    for predictor in (ours, reference):
        predictor.set_image(photo)
    for click in ([20.0, 15.0], [50.0, 30.0]):
        masks, scores, logits = ours.predict([click])
        expected_masks, expected_scores, expected_logits = reference.predict([click])
        assert masks.shape == expected_masks.shape
        np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
        assert_close(torch.from_numpy(logits), torch.from_numpy(expected_logits))
        assert ours.last_plan is not None
        assert reference.last_plan is not None
        assert ours.last_plan.macs == reference.last_plan.macs
    assert ours.last_plan.full_macs == reference.last_plan.full_macs
    assert "GMACs" in ours.last_plan.table()

    network = ours.network
    assert isinstance(network, TritonNetwork)
    program = network.program(ours.canvas)
    ours.set_image(photo[:, ::-1].copy())
    gc.collect()
    assert len(network._idle[program]) == 1
    session = network.lend(program)
    assert session.kept_bytes == 0
    assert not network._idle[program]


def test_what_does_not_fit_is_refused() -> None:
    normed = create_model("tracenet_r50_fpn", channels=32, tower_norm="gn", level_head=True).eval()
    with pytest.raises(BackendError, match="GroupNorm reads whole planes"):
        Predictor(normed, SETTINGS, "triton", device=DEVICE)
    with pytest.raises(InputError, match="dtype 'int4' is not known"):
        Predictor(randomised(level_head=True), SETTINGS, "triton", device=DEVICE, dtype="int4")
    with pytest.raises(BackendError, match="it computes in float32, not in float16"):
        Predictor(randomised(level_head=True), SETTINGS, "torch", dtype="float16")
