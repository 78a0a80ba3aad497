"""Numbers that the network, the tracer and the predictor agree on."""

from __future__ import annotations

LEVELS = (3, 4, 5, 6, 7)
STRIDES = {3: 8, 4: 16, 5: 32, 6: 64, 7: 128}
"""Input pixels per cell of each pyramid level."""
SIZES_OF_INTEREST = {3: 64.0, 4: 128.0, 5: 256.0, 6: 512.0, 7: 1024.0}
"""What relative coordinates are divided by, per level that predicts the mask."""
MASK_STRIDE = 8
MASK_CHANNELS = 8
THETA_SIZES = (80, 64, 8, 8, 8, 1)
"""Weights of the three dynamic 1x1 layers (10->8, 8->8, 8->1; each row-major out, in), then their biases."""
THETA = sum(THETA_SIZES)


def cell_of(x: float, y: float, level: int) -> tuple[int, int]:
    """Cell ``(row, column)`` of pyramid level ``level`` that holds the click: ``floor(click / stride)``."""
    s = STRIDES[level]
    return int(y // s), int(x // s)
