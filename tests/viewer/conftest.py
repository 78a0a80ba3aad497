"""A small network with random weights, and servers in a thread of the tests' own process."""

from __future__ import annotations

import pytest

from tests.networks import randomised
from tracenet import Predictor, PredictorSettings
from tracenet_kernels import native

SETTINGS = PredictorSettings(working_size=128, mask_margin_pixels=2.0)


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    """Native where the extension is built; the tests hold for both."""
    return Predictor(randomised(level_head=True), SETTINGS, "native" if native.available() else "torch")
