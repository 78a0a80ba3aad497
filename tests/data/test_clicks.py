"""Deepest interior points against answers known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, distance_transform_edt

from tracenet.data import click_bands, deepest_interior_point, interior_depth, simulate_clicks
from tracenet.data.clicks import band_kernel, training_clicks
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


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Blobs and specks of any shape, holes and several parts included."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    mask = np.random.default_rng(draw(st.integers(0, 2**31))).random((height, width)) < draw(st.floats(0.02, 1))
    mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
    return mask


def bands_by_dilation(mask: np.ndarray) -> np.ndarray:
    """The definition word for word: repeated binary dilation of the centre-of-mass pixel."""
    ys, xs = np.nonzero(mask)
    box = np.ones((band_kernel(np.ptp(ys) + 1), band_kernel(np.ptp(xs) + 1)), bool)
    seen, grown = np.zeros_like(mask), np.zeros_like(mask)
    grown[int(ys.mean() + 0.5), int(xs.mean() + 0.5)] = True
    bands = np.full(mask.shape, -1)
    for band in range(5):
        grown = binary_dilation(grown, box) if band < 4 else np.ones_like(mask)
        bands[mask & grown & ~seen] = band
        seen |= grown
    return bands


@given(masks())
def test_bands_are_the_repeated_dilations_and_partition_the_mask(mask: np.ndarray) -> None:
    bands = click_bands(mask)
    np.testing.assert_array_equal(bands, bands_by_dilation(mask))
    np.testing.assert_array_equal(bands >= 0, mask)


@given(masks(), st.integers(0, 1000))
def test_five_clicks_in_every_band_that_has_pixels(mask: np.ndarray, seed: int) -> None:
    clicks = simulate_clicks(mask, np.random.default_rng(seed))
    bands = click_bands(mask)
    assert clicks.areas.sum() == mask.sum()
    np.testing.assert_array_equal(bands[clicks.points[:, 1], clicks.points[:, 0]], clicks.bands)
    for band, area in enumerate(clicks.areas):
        drawn = clicks.points[clicks.bands == band]
        assert len(drawn) == (5 if area else 0)
        assert area < 5 or len({tuple(point) for point in drawn}) == 5
    again = simulate_clicks(mask, np.random.default_rng(seed))
    np.testing.assert_array_equal(clicks.points, again.points)


def test_kernel_is_a_fifth_of_the_side_made_odd() -> None:
    assert [band_kernel(side) for side in (1, 14, 15, 20, 25, 100, 101)] == [3, 3, 3, 5, 5, 21, 21]


def test_bands_of_a_square_by_hand() -> None:
    bands = click_bands(np.ones((25, 25), bool))
    assert bands[12, 12] == 0
    assert [int((bands == band).sum()) for band in range(5)] == [25, 56, 88, 120, 336]


@given(masks())
def test_depth_is_the_distance_transform_of_the_padded_mask(mask: np.ndarray) -> None:
    expected = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1].astype(np.float32)
    np.testing.assert_array_equal(interior_depth(mask), expected)


def test_depth_of_an_empty_mask_is_zero() -> None:
    assert not interior_depth(np.zeros((3, 4), bool)).any()


def test_few_pixels_are_clicked_again_and_empty_bands_not_at_all() -> None:
    mask = np.zeros((9, 9), bool)
    mask[4, 3:6] = True  # one band of three pixels
    clicks = simulate_clicks(mask, np.random.default_rng(0))
    assert clicks.areas.tolist() == [3, 0, 0, 0, 0]
    assert clicks.points.shape == (5, 2) and clicks.bands.tolist() == [0] * 5
    with pytest.raises(InputError, match="0 clicks per band"):
        simulate_clicks(mask, np.random.default_rng(0), per_band=0)


def objects() -> tuple[torch.Tensor, torch.Tensor]:
    coverage = np.zeros((3, 20, 30), np.uint8)
    coverage[0, 2:18, 2:14] = 255
    coverage[1, 5:8, 20:29] = 255
    coverage[2, 19, 29] = 130
    coverage[0, 1, 2:14] = 100  # less than half covered: not clicked
    depth = np.stack([np.ceil(interior_depth(c >= 128)) for c in coverage]).astype(np.uint8)
    return torch.from_numpy(coverage), torch.from_numpy(depth)


@pytest.mark.parametrize("where", ["inside", "centre", "mixed"])
def test_training_clicks_lie_where_they_should(where: str) -> None:
    coverage, depth = objects()
    deep, shallow = 0, 0
    for seed in range(40):
        instance, points, full = training_clicks(coverage, depth, np.random.default_rng(seed), 5, 4, 3, where)
        assert instance.shape == (9,) and points.shape == (9, 2) and full == 5
        assert (
            sorted(instance[:3].tolist()) == sorted(instance[3:6].tolist()) == [0, 1, 2]
        )  # nobody twice before all once
        for k, (x, y) in zip(instance.tolist(), (points // 2).long().tolist(), strict=True):
            assert coverage[k, y, x] >= 128
            half = 2 * int(depth[k, y, x]) >= int(depth[k].max())
            deep, shallow = deep + half, shallow + (not half)
    assert deep
    assert (shallow > 0) == (where != "centre")


def test_number_of_training_clicks() -> None:
    coverage, depth = objects()
    instance, _, full = training_clicks(coverage, depth, np.random.default_rng(0), 100, 50, 2)
    assert (len(instance), full) == (9, 6)  # two for each object, and half as many besides
    for arguments in (
        (coverage[:0], depth[:0], np.random.default_rng(0), 4),
        (coverage, depth, np.random.default_rng(0), 0),
    ):
        with pytest.raises(InputError, match="there must be an object"):
            training_clicks(*arguments)
    with pytest.raises(InputError, match="where='edge'"):
        training_clicks(coverage, depth, np.random.default_rng(0), 4, where="edge")
