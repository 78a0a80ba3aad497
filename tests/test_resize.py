"""Windows of a resized photo are the bytes of Pillow's resize of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tracenet.resize import ResizedPhoto, resize_whole, resize_window
from tracenet_kernels.errors import WindowError
from tracenet_kernels.window import Window


def a_photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise with hard edges at both ends of the range, where rounding and clipping show."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[rng.random((height, width)) < 0.3] = 255
    pixels[rng.random((height, width)) < 0.3] = 0
    return Image.fromarray(pixels)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Image.Image, int, int, Window]:
    size = st.integers(1, 90)
    photo = a_photo(draw(size), draw(size), draw(st.integers(0, 5)))
    width, height = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    y0, x0 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    window = Window(y0, draw(st.integers(y0, height)), x0, draw(st.integers(x0, width)))
    return photo, width, height, window


@given(cases())
def test_a_window_is_cut_from_the_whole(case: tuple[Image.Image, int, int, Window]) -> None:
    photo, width, height, window = case
    whole = np.asarray(resize_whole(photo, width, height))
    found = resize_window(photo, width, height, window)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, whole[window.slices])


@pytest.mark.parametrize(
    ("photo", "size"),
    [((403, 302), (128, 96)), ((403, 302), (806, 604)), ((403, 302), (403, 302)), ((97, 61), (640, 403))],
)
def test_every_pixel(photo: tuple[int, int], size: tuple[int, int]) -> None:
    source = a_photo(*photo)
    found = resize_window(source, *size, Window.full(size[1], size[0]))
    np.testing.assert_array_equal(found, np.asarray(resize_whole(source, *size)))


@pytest.mark.parametrize("size", [(128, 96), (500, 96), (128, 400), (500, 400), (403, 96)])
def test_the_whole_is_pillows_resize(size: tuple[int, int]) -> None:
    """But for the order of its two passes, which may round to the neighbouring value."""
    source = a_photo(403, 302)
    usual = np.asarray(source.resize(size, Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(np.asarray(resize_whole(source, *size)) - usual).max() <= 1


def test_pillows_box_is_not_exact() -> None:
    """What this module is for: the same window through ``resize(box=...)`` differs."""
    photo, (width, height), window = a_photo(4001, 30), (643, 30), Window(0, 30, 500, 640)
    whole = np.asarray(resize_whole(photo, width, height))[window.slices]
    scale = photo.width / width
    box = (window.x0 * scale, 0, window.x1 * scale, 30)
    boxed = np.asarray(photo.resize((window.width, 30), Image.Resampling.BILINEAR, box=box))
    assert (boxed != whole).any()
    np.testing.assert_array_equal(resize_window(photo, width, height, window), whole)


def test_large_windows_are_cut_from_the_whole_once(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = a_photo(50, 40)
    whole = np.asarray(resize_whole(photo, 100, 80))
    calls: list[tuple[int, int]] = []
    usual = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, *rest: calls.append(size) or usual(image, size, *rest)
    )
    resized = ResizedPhoto(photo, 100, 80)
    for window, made in ((Window(0, 40, 0, 50), 0), (Window(0, 41, 0, 50), 2), (Window(79, 80, 0, 100), 2)):
        np.testing.assert_array_equal(resized.window(window), whole[window.slices])
        assert len(calls) == made


@pytest.mark.parametrize("window", [Window(0, 81, 0, 5), Window(0, 5, -1, 5), Window(0, 5, 99, 101)])
def test_windows_past_the_photo(window: Window) -> None:
    with pytest.raises(WindowError, match="reaches past the resized photo"):
        ResizedPhoto(a_photo(50, 40), 100, 80).window(window)
