"""Run lengths and polygons hold exactly the mask's pixels, by COCO's own reading of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from tracenet.viewer.outlines import decode_rle, encode_rle, polygons
from tracenet_kernels.errors import InputError

# pycocotools predates NumPy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def shoelace(polygon: list[float]) -> float:
    x, y = np.array(polygon).reshape(-1, 2).T
    return float(0.5 * (x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    share, seed = draw(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 1.0])), draw(st.integers(0, 1 << 30))
    mask = np.random.default_rng(seed).random((height, width)) < share
    return np.kron(mask, np.ones((draw(st.integers(1, 3)), draw(st.integers(1, 3))), np.bool_)).astype(np.bool_)


@given(masks())
def test_polygons_cover_the_mask_and_nothing_else(mask: NDArray[np.bool_]) -> None:
    found = polygons(mask)
    assert all(shoelace(polygon) > 0 for polygon in found)
    assert sum(map(shoelace, found)) == mask.sum()
    if mask.any():
        np.testing.assert_array_equal(coco.decode(coco.merge(coco.frPyObjects(found, *mask.shape))), mask)
    else:
        assert found == []


@given(masks())
def test_run_lengths_are_those_of_coco_and_come_back(mask: NDArray[np.bool_]) -> None:
    rle = encode_rle(mask)
    np.testing.assert_array_equal(coco.decode(coco.frPyObjects(rle, *mask.shape)), mask)
    np.testing.assert_array_equal(decode_rle(rle["size"], rle["counts"]), mask)


def test_a_square_is_its_four_corners() -> None:
    mask = np.zeros((6, 7), np.bool_)
    mask[1:4, 2:6] = True
    assert polygons(mask) == [[2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]]
    assert encode_rle(mask) == {"size": [6, 7], "counts": [13, 3, 3, 3, 3, 3, 3, 3, 8]}
    assert encode_rle(np.ones((2, 2), np.bool_))["counts"] == [0, 4]


def test_pixels_that_touch_at_a_corner_are_apart_and_a_ring_is_one_polygon() -> None:
    diagonal = np.eye(3, dtype=np.bool_)
    assert len(polygons(diagonal)) == 3
    ring = np.ones((5, 5), np.bool_)
    ring[2, 2] = False
    assert len(polygons(ring)) == 1
    nested = np.ones((7, 7), np.bool_)
    nested[1:6, 1:6] = False
    nested[3, 3] = True
    assert [shoelace(polygon) for polygon in polygons(nested)] == [24.0, 1.0]


@pytest.mark.parametrize("counts", [[], [5], [3, -1, 4], [1 << 62, 1 << 62, 1 << 62, 1 << 62, 6], [7]])
def test_run_lengths_that_do_not_fill_the_mask_are_refused(counts: list[int]) -> None:
    with pytest.raises(InputError, match="do not fill 2 x 3"):
        decode_rle([2, 3], counts)
