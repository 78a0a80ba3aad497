"""Deepest interior points against answers known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tracenet.data import deepest_interior_point, interior_depth
from tracenet_kernels.errors import InputError


def test_centre_of_a_square() -> None:
    mask = np.zeros((9, 11), bool)
    mask[2:7, 3:8] = True
    assert deepest_interior_point(mask) == (5, 4)
    assert interior_depth(mask)[4, 5] == 3
    assert interior_depth(mask)[0, 0] == 0


def test_image_border_counts_as_outside() -> None:
    assert deepest_interior_point(np.ones((5, 7), bool)) == (2, 2)  # first of the row's equally deep pixels


def test_ring_is_clicked_on_its_band() -> None:
    y, x = np.mgrid[:41, :41]
    r = np.hypot(y - 20, x - 20)
    mask = (r < 18) & (r > 8)
    px, py = deepest_interior_point(mask)
    assert mask[py, px]
    assert 12 <= np.hypot(px - 20, py - 20) <= 14


def test_single_pixel() -> None:
    mask = np.zeros((4, 4), bool)
    mask[3, 1] = True
    assert deepest_interior_point(mask) == (1, 3)


def test_refuses_empty_and_misshapen_masks() -> None:
    with pytest.raises(InputError, match="empty"):
        deepest_interior_point(np.zeros((3, 3), bool))
    with pytest.raises(InputError, match=r"pass \[H, W\]"):
        interior_depth(np.zeros((1, 3, 3), bool))
