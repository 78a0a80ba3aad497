"""Windows against boolean masks on small planes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracenet_kernels.errors import WindowError
from tracenet_kernels.window import (
    EMPTY,
    Border,
    Window,
    border_of,
    clip,
    hull,
    intersect,
    shift,
    subtract,
    subtract_all,
)

REACH = 12  # coordinates are drawn from [-REACH, REACH]


def spans() -> st.SearchStrategy[tuple[int, int]]:
    coordinate = st.integers(-REACH, REACH)
    return st.tuples(coordinate, coordinate).map(lambda pair: (min(pair), max(pair)))


def windows() -> st.SearchStrategy[Window]:
    return st.tuples(spans(), spans()).map(lambda axes: Window(*axes[0], *axes[1]))


def mask(window: Window) -> np.ndarray:
    """The window as a boolean plane whose cell (0, 0) sits at index (REACH, REACH)."""
    plane = np.zeros((2 * REACH, 2 * REACH), dtype=bool)
    plane[window.y0 + REACH : window.y1 + REACH, window.x0 + REACH : window.x1 + REACH] = True
    return plane


@given(windows())
def test_sizes_count_cells(window: Window) -> None:
    assert window.area == mask(window).sum() == window.height * window.width
    assert window.is_empty == (window.area == 0)
    y0, y1, x0, x1 = window
    assert (y0, y1, x0, x1) == (window.y0, window.y1, window.x0, window.x1)


@given(windows(), windows())
def test_intersect_and_contains_agree_with_masks(a: Window, b: Window) -> None:
    common = intersect(a, b)
    assert np.array_equal(mask(common), mask(a) & mask(b))
    assert common == intersect(b, a)
    assert a.contains(b) == bool(np.all(mask(a) >= mask(b)))
    assert not common.is_empty or common == EMPTY


@given(st.lists(windows(), max_size=5))
def test_hull_is_the_smallest_that_contains_all(parts: list[Window]) -> None:
    whole = hull(parts)
    union = np.any([mask(part) for part in parts], axis=0) if parts else np.zeros((2 * REACH, 2 * REACH), bool)
    if not union.any():
        assert whole == EMPTY
        return
    rows, columns = np.flatnonzero(union.any(axis=1)) - REACH, np.flatnonzero(union.any(axis=0)) - REACH
    assert whole == (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
    assert all(whole.contains(part) for part in parts)


@given(windows(), st.integers(0, REACH), st.integers(0, REACH))
def test_clip_and_border_reconstruct_the_window(window: Window, height: int, width: int) -> None:
    clipped, border = clip(window, height, width), border_of(window, height, width)
    assert np.array_equal(mask(clipped), mask(window) & mask(Window.full(height, width)))
    assert 0 <= clipped.y0 <= clipped.y1 <= height
    assert 0 <= clipped.x0 <= clipped.x1 <= width
    assert clipped.height + border.top + border.bottom == window.height
    assert clipped.width + border.left + border.right == window.width
    if not clipped.is_empty:
        assert clipped.dilate(border) == window
    if Window.full(height, width).contains(window) and not window.is_empty:
        assert border.is_zero
        assert clipped == window


@given(windows(), st.integers(1, REACH), st.integers(1, REACH))
def test_padding_the_clipped_part_reads_the_padded_plane(window: Window, height: int, width: int) -> None:
    plane = np.arange(1, height * width + 1).reshape(height, width)
    padded = np.pad(plane, 2 * REACH)  # room for any window, zeros outside
    wanted = padded[window.shift(2 * REACH, 2 * REACH).slices]
    border = border_of(window, height, width)
    got = np.pad(plane[clip(window, height, width).slices], ((border.top, border.bottom), (border.left, border.right)))
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize(
    ("window", "clipped", "border"),
    [
        (Window(-5, -3, 0, 4), Window(0, 0, 0, 4), Border(2, 0, 0, 0)),
        (Window(9, 12, 2, 3), Window(8, 8, 2, 3), Border(0, 3, 0, 0)),
        (Window(-2, 10, -1, 7), Window(0, 8, 0, 6), Border(2, 2, 1, 1)),
        (Window(3, 4, 6, 8), Window(3, 4, 6, 6), Border(0, 0, 0, 2)),
    ],
)
def test_clip_off_the_plane(window: Window, clipped: Window, border: Border) -> None:
    assert clip(window, 8, 6) == clipped
    assert border_of(window, 8, 6) == border


@given(windows(), windows())
def test_subtract_is_a_disjoint_cover(a: Window, b: Window) -> None:
    pieces = subtract(a, b)
    assert len(pieces) <= 4
    assert all(not piece.is_empty for piece in pieces)
    counts = sum((mask(piece).astype(int) for piece in pieces), np.zeros((2 * REACH, 2 * REACH), int))
    assert np.array_equal(counts, (mask(a) & ~mask(b)).astype(int))


@given(windows(), st.lists(windows(), max_size=4))
def test_subtract_all_is_a_disjoint_cover(a: Window, others: list[Window]) -> None:
    left = mask(a)
    for other in others:
        left &= ~mask(other)
    pieces = subtract_all(a, others)
    assert all(not piece.is_empty for piece in pieces)
    counts = sum((mask(piece).astype(int) for piece in pieces), np.zeros((2 * REACH, 2 * REACH), int))
    assert np.array_equal(counts, left.astype(int))


@given(windows(), st.integers(-50, 50), st.integers(-50, 50))
def test_shift_moves_and_returns(window: Window, dy: int, dx: int) -> None:
    moved = shift(window, dy, dx)
    assert (moved.height, moved.width) == (window.height, window.width)
    assert (moved.y0 - window.y0, moved.x0 - window.x0) == (dy, dx)
    assert moved.shift(-dy, -dx) == window


def test_constructors() -> None:
    assert Window.full(3, 5) == Window(0, 3, 0, 5)
    assert Window.of_cell(-1, 4) == Window(-1, 0, 4, 5)
    assert Window.full(0, 5).is_empty
    assert str(Window(1, 2, 3, 4)) == "[1, 2) x [3, 4)"
    assert repr(Window(1, 2, 3, 4)) == "Window(y0=1, y1=2, x0=3, x1=4)"


def test_numpy_integers_become_python_integers() -> None:
    window = Window(np.int32(1), np.uint8(2), np.int64(3), np.intp(4))
    assert window == Window(1, 2, 3, 4)
    assert all(type(value) is int for value in window)
    assert all(type(value) is int for value in Border(np.int8(1), np.int8(2), np.int8(3), np.int8(4)))
    assert all(type(value) is int for value in window.shift(np.int64(2), np.int64(-2)))
    assert type(Window.full(np.int64(3), np.int64(5)).height) is int


@pytest.mark.parametrize(
    "value", [1.0, float("nan"), True, np.bool_(True), np.float32(1), "1", None, [1], np.arange(2)]
)
def test_only_integers_are_coordinates(value: Any) -> None:
    with pytest.raises(WindowError, match="pass an integer"):
        Window(0, value, 0, 1)
    with pytest.raises(WindowError, match="pass an integer"):
        Border(0, value, 0, 1)
    with pytest.raises(WindowError, match="pass an integer"):
        Window(0, 1, 0, 1).clip(value, 4)


@pytest.mark.parametrize("coordinates", [(3, 2, 0, 1), (0, 1, 5, -5)])
def test_reversed_windows_are_refused(coordinates: tuple[int, int, int, int]) -> None:
    with pytest.raises(WindowError, match="y0 <= y1 and x0 <= x1"):
        Window(*coordinates)
    with pytest.raises(WindowError, match="y0 <= y1 and x0 <= x1"):
        Window(0, 0, 0, 0)._replace(**dict(zip(("y0", "y1", "x0", "x1"), coordinates, strict=True)))


def test_negative_extents_are_refused() -> None:
    with pytest.raises(WindowError, match=">= 0"):
        Border(0, -1, 0, 0)
    with pytest.raises(WindowError, match=">= 0"):
        Window.full(-1, 4)
    with pytest.raises(WindowError, match=">= 0"):
        border_of(EMPTY, 4, -4)


def test_a_window_before_the_plane_cannot_be_sliced() -> None:
    with pytest.raises(WindowError, match="clip it"):
        _ = Window(-1, 2, 0, 2).slices


def test_windows_are_values() -> None:
    window = Window(1, 2, 3, 4)
    assert len({window, Window(1, 2, 3, 4), Window(1, 2, 3, 5)}) == 2
    assert pickle.loads(pickle.dumps(window)) == window
    assert type(copy.deepcopy(window)) is Window
    with pytest.raises(AttributeError):
        window.y0 = 5  # type: ignore[misc]
    assert not hasattr(window, "__dict__")
