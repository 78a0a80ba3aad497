"""Pictures: what is tinted, what is greyed, sizes, and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tracenet
from tracenet.pictures import MASK_COLOUR, join, overlay, pieces_of, windows_picture
from tracenet_kernels.errors import InputError
from tracenet_kernels.window import EMPTY, Window

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS)
GAP, TITLE = 8, 26


def a_mask() -> np.ndarray:
    mask = np.zeros((60, 80), bool)
    mask[20:40, 10:50] = True
    return mask


def test_overlay_tints_inside_and_leaves_the_outside() -> None:
    mask = a_mask()
    found = np.asarray(overlay(PHOTO, mask)).astype(float)
    assert found.shape == PIXELS.shape
    share = 110 / 255
    expected = PIXELS * (1 - share) + np.array(MASK_COLOUR) * share
    assert np.abs(found[mask] - expected[mask]).max() <= 1
    near = np.zeros_like(mask)
    near[19:41, 9:51] = True  # a line of 3 pixels reaches one pixel out
    np.testing.assert_array_equal(found[near & ~mask], np.broadcast_to(MASK_COLOUR, ((near & ~mask).sum(), 3)))
    np.testing.assert_array_equal(found[~near], PIXELS[~near])


def test_overlay_of_nothing_and_of_everything() -> None:
    np.testing.assert_array_equal(np.asarray(overlay(PHOTO, np.zeros((60, 80), bool))), PIXELS)
    assert (np.asarray(overlay(PHOTO, np.ones((60, 80), bool))) != PIXELS).mean() > 0.9


def test_overlay_marks_clicks_and_box() -> None:
    nothing = np.zeros((60, 80), bool)
    found = np.asarray(overlay(PHOTO, nothing, clicks=[(40, 30)]))
    changed = (found != PIXELS).any(2)
    assert changed[30, 40]
    assert not changed[:25].any()
    assert not changed[:, :30].any()
    framed = (np.asarray(overlay(PHOTO, nothing, box=(5, 6, 70, 50))) == 255).all(2)
    assert framed[6, 5:71].all()
    assert framed[6:51, 70].all()
    assert not framed[10:46, 10:66].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (700, 2)])
def test_overlay_of_tiny_and_thin_photos(size: tuple[int, int]) -> None:
    photo = Image.new("RGB", size)
    mask = np.ones((size[1], size[0]), bool)
    assert overlay(photo, mask, clicks=[(0, 0)], box=(0, 0, 1, 1)).size == size


def test_overlay_takes_photos_of_other_modes() -> None:
    assert overlay(PHOTO.convert("L"), a_mask()).mode == "RGB"


def test_overlay_errors() -> None:
    with pytest.raises(InputError, match=r"\(80, 60\).*same size"):
        overlay(PHOTO, a_mask().T)
    with pytest.raises(InputError, match=r"the mask is \(1, 60, 80\)"):
        overlay(PHOTO, a_mask()[None])
    for dtype in (np.uint8, np.float32):
        with pytest.raises(InputError, match=f"the mask is {np.dtype(dtype)}; pass booleans"):
            overlay(PHOTO, a_mask().astype(dtype))


def panel(sheet: Image.Image, index: int, width: int, height: int, columns: int) -> np.ndarray:
    left = GAP + index % columns * (width + GAP)
    top = GAP + index // columns * (height + TITLE + GAP) + TITLE
    return np.asarray(sheet.crop((left, top, left + width, top + height)))


def test_windows_picture_lights_the_window_and_greys_the_rest() -> None:
    image = Image.new("RGB", (160, 96), (200, 30, 60))
    windows = {"image": Window(10, 90, 20, 100), "C5": Window(1, 3, 2, 4), "P6": EMPTY}
    planes = {"image": (96, 160), "C5": (3, 5), "P6": (2, 3)}
    sheet = windows_picture(image, windows, planes, ["image", "C5", "P6"], columns=2, panel_width=160)
    assert sheet.size == (2 * (160 + GAP) + GAP, 2 * (96 + TITLE + GAP) + GAP)
    first = panel(sheet, 0, 160, 96, 2)
    np.testing.assert_array_equal(first[12:88, 22:98].reshape(-1, 3), [(200, 30, 60)] * 76 * 76)
    outside = np.ones((96, 160), bool)
    outside[10:90, 20:100] = False
    grey = first[outside]
    assert (grey == grey[0]).all()
    assert np.ptp(grey[0]) == 0
    second = panel(sheet, 1, 160, 96, 2)
    assert tuple(second[48, 80]) == (200, 30, 60)  # the middle of cell (1, 2): rows 32..63, columns 64..95
    assert tuple(second[40, 10]) == tuple(grey[0])
    third = panel(sheet, 2, 160, 96, 2)
    assert (third == grey[0]).all()


def test_windows_apart_are_lit_one_by_one() -> None:
    image = Image.new("RGB", (160, 160), (255, 0, 0))
    pieces = [Window(0, 4, 0, 4), Window(12, 16, 12, 16)]
    sheet = np.asarray(windows_picture(image, {"P3": pieces}, {"P3": (16, 16)}, ["P3"], panel_width=160))
    panel = sheet[8 + 26 : 8 + 26 + 160, 8 : 8 + 160]
    for y, x, lit in ((20, 20, True), (140, 140, True), (80, 80, False), (20, 140, False)):
        assert (panel[y - 4 : y + 4, x - 4 : x + 4, 0].max() > 250) == lit
    with pytest.raises(InputError, match="lies outside its plane"):
        windows_picture(image, {"P3": [*pieces, Window(0, 1, 0, 17)]}, {"P3": (16, 16)}, ["P3"])


def test_the_picture_of_a_plan_shows_windows_apart() -> None:
    traced = tracenet.trace(nn.Conv2d(3, 2, 3, padding=1).eval(), torch.zeros(1, 3, 32, 32))
    windows = [Window(0, 2, 0, 2), Window(30, 32, 30, 32)]
    plan = traced.plan({0: windows})
    assert pieces_of(plan)["output"] == plan.pieces["conv2d"] == windows
    assert len(pieces_of(plan)) == len(plan.windows)


def test_windows_picture_marks_the_click() -> None:
    image = Image.new("RGB", (160, 96), (200, 30, 60))
    options = {"windows": {"image": Window(0, 96, 0, 160)}, "planes": {"image": (96, 160)}, "layers": ["image"]}
    plain, marked = (
        np.asarray(windows_picture(image, **options, click=click, panel_width=320)) for click in (None, (40, 24))
    )
    changed = (plain != marked).any(2)
    assert changed[GAP + TITLE + 48, GAP + 80]
    assert changed.sum() < 200


@pytest.mark.parametrize("size", [(32, 3000), (3000, 1)])
def test_windows_picture_of_thin_images(size: tuple[int, int]) -> None:
    planes = {"image": (size[1], size[0])}
    sheet = windows_picture(Image.new("RGB", size), {"image": Window(0, 1, 0, 1)}, planes, ["image"], panel_width=50)
    assert sheet.width == 50 + 2 * GAP


def test_windows_picture_errors() -> None:
    image, window = Image.new("RGB", (64, 32)), Window(0, 1, 0, 1)
    with pytest.raises(InputError, match=r"layers \['C9'\] are not in the plan"):
        windows_picture(image, {"image": window}, {"image": (32, 64)}, ["image", "C9"])
    with pytest.raises(InputError, match="0 layers"):
        windows_picture(image, {}, {}, [])
    with pytest.raises(InputError, match="0 columns"):
        windows_picture(image, {"image": window}, {"image": (32, 64)}, ["image"], columns=0)
    with pytest.raises(InputError, match="lies outside its plane of 32x64 cells"):
        windows_picture(image, {"image": Window(0, 33, 0, 5)}, {"image": (32, 64)}, ["image"])


def test_join() -> None:
    left, right = Image.new("RGB", (30, 20), (9, 9, 9)), Image.new("RGB", (50, 40), (1, 2, 3))
    sheet = join([left, right], gap=4)
    assert sheet.size == (30 + 4 + 25, 20)
    assert sheet.getpixel((0, 0)) == (9, 9, 9)
    assert sheet.getpixel((32, 10)) == (255, 255, 255)
    assert sheet.getpixel((45, 10)) == (1, 2, 3)
    assert join([Image.new("RGB", (10, 1)), Image.new("RGB", (1, 900))]).height == 1
    with pytest.raises(InputError, match="no pictures"):
        join([])
