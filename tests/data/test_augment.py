"""Views and what is pasted onto them: geometry against analytic masks, and ingredients that can be turned off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tracenet.data.augment import (
    MAX_AREA,
    Augmentation,
    Paste,
    View,
    divisible,
    draw_pastes,
    draw_view,
    render_image,
    render_mask,
    render_paste,
    view_box,
)
from tracenet.inference import HALF
from tracenet.plain_data import from_plain
from tracenet_kernels.errors import InputError


def rectangle() -> np.ndarray:
    mask = np.zeros((64, 96), bool)
    mask[16:48, 24:56] = True
    return mask


@pytest.mark.parametrize("flip", [False, True])
def test_image_mask_and_box_agree(flip: bool) -> None:
    view = View(crop=(8, 8, 72, 56), width=128, height=96, flip=flip)  # enlarged twice
    photo = Image.fromarray(np.repeat(rectangle()[:, :, None], 3, 2).astype(np.uint8) * 200)
    box, left = view_box(rectangle(), view)
    assert left == 1
    expected = [32, 16, 96, 80]  # x from (24 - 8) * 2 to (56 - 8) * 2, which mirrors onto itself
    assert box.tolist() == expected
    bright = np.asarray(render_image(photo, view))[:, :, 0] > 100
    coverage = render_mask(rectangle(), view)
    assert coverage.shape == (48, 64)
    ys, xs = np.nonzero(coverage >= 128)
    assert [2 * xs.min(), 2 * ys.min(), 2 * xs.max() + 2, 2 * ys.max() + 2] == expected
    ys, xs = np.nonzero(bright)
    assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == expected


def test_flip_mirrors_the_box() -> None:
    view = View(crop=(0, 0, 96, 64), width=96, height=64, flip=True)
    assert view_box(rectangle(), view)[0].tolist() == [40, 16, 72, 48]


def test_share_left_inside_a_crop() -> None:
    box, left = view_box(rectangle(), View(crop=(40, 0, 96, 64), width=56, height=64, flip=False))
    assert left == pytest.approx(0.5)
    assert box.tolist() == [0, 16, 16, 48]


@pytest.mark.parametrize("size", [(640, 480), (96, 64), (333, 1000), (4000, 10)])
def test_views_stay_on_the_photo_and_within_bounds(size: tuple[int, int]) -> None:
    width, height = size
    for seed in range(60):
        view = draw_view(width, height, np.random.default_rng(seed))
        x0, y0, x1, y1 = view.crop
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert view.width >= 1
        assert view.height >= 1
        assert view.width * view.height <= 1.02 * MAX_AREA * 640**2
        assert view == draw_view(width, height, np.random.default_rng(seed))


PLAIN = Augmentation(crop=0, flip=0, colour=0, whole_scale=(1, 1), working_sizes=(128,))
STRONG = Augmentation(
    working_sizes=(96, 128, 200),
    crop=0.8,
    scale=(0.1, 2),
    crop_instance=0.5,
    hue=0.1,
    gamma=0.3,
    grey=0.3,
    blur=1.5,
    noise=8,
    copy_paste=1,
)


def test_the_default_distribution_stays_what_it_was() -> None:
    """Views of cached features depend on it; the numbers are those of the first release."""
    view = draw_view(640, 480, np.random.default_rng(7))
    assert (view.width, view.height, view.flip) == (706, 510, False)
    assert view.crop == pytest.approx((0.0811207100653665, 5.3841602221681955, 639.7209159134568, 467.4469017996889))
    assert (view.brightness, view.contrast) == pytest.approx((1.1927370510296598, 1.1782416572512278))
    assert view.colour == pytest.approx(0.9807609717062324)
    assert (view.hue, view.gamma, view.grey, view.blur, view.noise) == (0, 1, False, 0, 0)


@given(st.integers(0, 10**6), st.integers(5, 900), st.integers(5, 900))
def test_with_everything_off_a_view_is_the_photo(seed: int, width: int, height: int) -> None:
    view = draw_view(width, height, np.random.default_rng(seed), PLAIN)
    limit = min(128 / max(width, height), math.sqrt(MAX_AREA * 128**2 / (width * height)))
    assert view.crop == pytest.approx((0, 0, width, height), abs=0.51 / limit)  # sizes are rounded to pixels
    assert (view.width, view.height) == (max(1, round(width * limit)), max(1, round(height * limit)))
    assert (view.flip, view.brightness, view.contrast, view.colour) == (False, 1, 1, 1)


@given(st.integers(0, 10**6), st.integers(5, 900), st.integers(5, 900))
def test_strong_views_stay_on_the_photo_and_repeat(seed: int, width: int, height: int) -> None:
    box = (0.2 * width, 0.3 * height, 0.5 * width, 0.4 * height)
    view = draw_view(width, height, np.random.default_rng(seed), STRONG, [box])
    x0, y0, x1, y1 = view.crop
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert view.width * view.height <= 1.1 * MAX_AREA * 200**2
    assert view == draw_view(width, height, np.random.default_rng(seed), STRONG, [box])


def test_each_ingredient_shows_in_the_views() -> None:
    views = [draw_view(640, 480, np.random.default_rng(s), STRONG) for s in range(200)]
    scales = [view.scale[0] * 640 for view in views]
    assert min(scales) < 20 and max(scales) > 350  # 0.1 x 96 to 2 x 200
    for name in ("flip", "grey"):
        assert {getattr(view, name) for view in views} == {True, False}
    for name, off in (
        ("brightness", 1),
        ("contrast", 1),
        ("colour", 1),
        ("hue", 0),
        ("gamma", 1),
        ("blur", 0),
        ("noise", 0),
    ):
        changed = np.mean([getattr(view, name) != off for view in views])
        assert 0.15 < changed < 0.75, name


@given(st.integers(0, 10**6), st.floats(0, 0.9), st.floats(0, 0.9))
def test_crops_around_an_object_hold_it_where_it_fits(seed: int, left: float, top: float) -> None:
    box = (left * 640, top * 480, (left + 0.1) * 640, (top + 0.1) * 480)
    around = Augmentation(working_sizes=(128,), crop=1, scale=(2, 4), crop_instance=1)
    x0, y0, x1, y1 = draw_view(640, 480, np.random.default_rng(seed), around, [box]).crop
    assert x0 <= box[0] + 1e-6 and y0 <= box[1] + 1e-6
    assert x1 >= box[2] - 1e-6 and y1 >= box[3] - 1e-6


def test_crops_inside_an_object_that_does_not_fit() -> None:
    around = Augmentation(working_sizes=(128,), crop=1, scale=(4, 4), crop_instance=1)
    for seed in range(20):
        x0, y0, x1, y1 = draw_view(640, 480, np.random.default_rng(seed), around, [(100, 100, 600, 400)]).crop
        assert x0 >= 100 - 1e-6 and y0 >= 100 - 1e-6 and x1 <= 600 + 1e-6 and y1 <= 400 + 1e-6


@given(st.integers(0, 10**6), st.integers(20, 400), st.integers(20, 400))
def test_a_click_inside_a_mask_lies_inside_the_mask_of_the_view(seed: int, width: int, height: int) -> None:
    rng = np.random.default_rng(seed)
    view = draw_view(width, height, rng, STRONG)
    x0, y0 = rng.integers(0, width // 2), rng.integers(0, height // 2)
    x1, y1 = rng.integers(x0 + 1, width + 1), rng.integers(y0 + 1, height + 1)
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    coverage = render_mask(mask, view)
    # Resampling blurs the edge over one sample of the coarser grid; clicks keep off it by that much.
    margin = 1.0 + HALF / min(view.scale)
    click = np.array([rng.uniform(x0, x1), rng.uniform(y0, y1)])
    placed = view.from_photo(click)
    np.testing.assert_allclose(view.to_photo(placed), click, atol=1e-9)
    column, row = (placed // HALF).astype(int)
    deep = np.minimum(click - (x0, y0), (x1, y1) - click).min() > margin
    if deep and 0 <= column < coverage.shape[1] and 0 <= row < coverage.shape[0]:
        assert coverage[row, column] >= 128


@pytest.mark.parametrize("flip", [False, True])
def test_points_follow_the_pixels(flip: bool) -> None:
    view = View(crop=(8, 8, 72, 56), width=128, height=96, flip=flip)
    assert view.scale == (2, 2)
    x = 128 - 32 if flip else 32
    assert view.from_photo(np.array([24.0, 16.0])).tolist() == [x, 16]
    assert view.to_photo(np.array([[x, 16.0]])).tolist() == [[24, 16]]


@given(st.integers(0, 10**6), st.sampled_from([2, 4, 6, 16]))
def test_sizes_that_stay_whole_at_other_scales(seed: int, step: int) -> None:
    view = draw_view(321, 203, np.random.default_rng(seed), STRONG)
    cut = divisible(view, step)
    assert cut.width % step == cut.height % step == 0
    assert cut.crop[:2] == view.crop[:2]
    assert cut.crop[2] <= view.crop[2] and cut.crop[3] <= view.crop[3]
    if min(view.width, view.height) >= step:
        assert cut.scale == pytest.approx(view.scale)
    assert cut.resized(0.5).resized(2) == cut


def test_colours() -> None:
    photo = Image.new("RGB", (8, 8), (200, 100, 50))
    view = View((0, 0, 8, 8), 8, 8, False)

    def pixel(**changes: Any) -> list[int]:
        changed = View(view.crop, 8, 8, False, **changes)
        return np.asarray(render_image(photo, changed))[4, 4].tolist()

    assert pixel() == [200, 100, 50]
    assert pixel(brightness=0.5) == [100, 50, 25]
    assert pixel(gamma=2.0) == [157, 39, 10]
    assert len(set(pixel(grey=True))) == 1
    assert pixel(hue=1 / 3) == pytest.approx([50, 200, 100], abs=4)
    assert pixel(blur=2.0) == [200, 100, 50]
    noisy = np.asarray(
        render_image(Image.new("RGB", (64, 64), (128,) * 3), View((0, 0, 64, 64), 64, 64, False, noise=5))
    )
    assert 4 < noisy.std() < 6 and abs(noisy.mean() - 128) < 0.5


@pytest.mark.parametrize("flip", [False, True])
def test_a_pasted_object_covers_what_lies_under_it(flip: bool) -> None:
    mask = np.zeros((20, 20), bool)
    mask[4:16, 4:10] = True
    other = Image.new("RGB", (20, 20), (0, 200, 0))
    view = Image.new("RGB", (60, 41), (90, 0, 0))
    coverage = render_paste(view, other, mask, Paste(0, (4, 4, 16, 16), 20, 10, 24, 24, flip))  # enlarged twice
    assert coverage.shape == (21, 30)
    left = 16 if flip else 10  # the object fills one half of the patch, which starts at sample 10
    expected = np.zeros((21, 30), bool)
    expected[5:17, left : left + 6] = True
    np.testing.assert_array_equal(coverage >= 128, expected)
    green = np.asarray(view)[:, :, 1] > 100
    np.testing.assert_array_equal(green, expected.repeat(2, 0).repeat(2, 1)[:41, :60])


@given(st.integers(0, 10**6), st.sampled_from([2, 4, 8]), st.integers(8, 300), st.integers(8, 300))
def test_pastes_lie_on_the_view(seed: int, step: int, width: int, height: int) -> None:
    boxes = [(3.0, 4.0, 90.0, 30.0), (0.0, 0.0, 200.0, 100.0), (10.5, 10.5, 11.5, 11.5)]
    view = View((0, 0, width, height), width, height, False)
    pastes = draw_pastes(view, 200, 100, boxes, np.random.default_rng(seed), STRONG, step)
    assert len({paste.instance for paste in pastes}) == len(pastes) <= STRONG.pasted
    for paste in pastes:
        assert paste.x >= 0 and paste.x + paste.width <= width
        assert paste.y >= 0 and paste.y + paste.height <= height
        assert all(v % step == 0 for v in (paste.x, paste.y, paste.width, paste.height))
        assert paste.resized(2).resized(0.5) == paste
    assert pastes == draw_pastes(view, 200, 100, boxes, np.random.default_rng(seed), STRONG, step)


def test_from_plain_data() -> None:
    table = {"working_sizes": [480, 640], "scale": [0.1, 2], "crop": 1, "copy_paste": 0.3}
    augmentation = from_plain(Augmentation, table, "[augmentation] has")
    assert augmentation == Augmentation(working_sizes=(480, 640), scale=(0.1, 2), crop=1, copy_paste=0.3)
    with pytest.raises(InputError, match=r"\[augmentation\] has unknown fields \['zoom'\]"):
        from_plain(Augmentation, {"zoom": 1}, "[augmentation] has")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("working_sizes", ()),
        ("working_sizes", (32,)),
        ("working_sizes", (640.0,)),
        ("scale", (0, 1)),
        ("scale", (2, 1)),
        ("whole_scale", (1,)),
        ("paste_scale", (1, math.inf)),
        ("flip", 1.5),
        ("flip", True),
        ("crop", -0.1),
        ("colour", math.nan),
        ("hue", 0.7),
        ("blur", "2"),
        ("pasted", 0),
    ],
)
def test_values_outside_their_range(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"augmentation: {field}"):
        Augmentation(**{field: value})
