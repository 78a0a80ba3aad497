"""Masks from windows against the resampling of the whole plane."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracenet.inference import fit_canvas, photo_logits, photo_mask
from tracenet_kernels.window import Window


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 120), st.integers(0, 2**32))
def test_equals_the_whole_plane(width: int, height: int, working_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    canvas = fit_canvas(width, height, working_size)
    h, w = math.ceil(canvas.height / 2), math.ceil(canvas.width / 2)
    y0, x0 = rng.integers(h), rng.integers(w)
    window = Window(int(y0), int(rng.integers(y0, h)) + 1, int(x0), int(rng.integers(x0, w)) + 1)
    logits = rng.normal(2.0, 8.0, (window.height, window.width)).astype(np.float32)
    np.testing.assert_array_equal(photo_mask(logits, window, canvas), photo_logits(logits, window, canvas) > 0)
