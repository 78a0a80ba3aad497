"""Photos and planar images to NHWC, and the cell-by-cell kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.planes import check_kernel, drawn_window, part_of, random_plane, windows_of
from tracenet_kernels import native, window_ops
from tracenet_kernels.arrays import Plane, as_plane
from tracenet_kernels.errors import InputError
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.window import Window, intersect

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())

MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [(5, 7), (8, 8), (1, 1)])
def test_normalised_pixels(size: tuple[int, int], reverse: bool) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    pixels = photo[:, :, ::-1] if reverse else photo
    wanted = np.zeros((8, 8, 3))
    wanted[: size[0], : size[1]] = (pixels - np.array(MEAN)) / np.array(STD)
    full = poisoned(8, 8, 3)
    window_ops.normalise_pixels(photo, full, mean=MEAN, std=STD, reverse=reverse)
    assert_close(full, torch.from_numpy(wanted))
    assert (full[size[0] :] == 0).all() and (full[:, size[1] :] == 0).all()
    for window in windows_of(8, 8):
        out = poisoned(8, 8, 3)
        source = part_of(photo, intersect(window, Window.full(*size)))
        window_ops.normalise_pixels(source, out, window, mean=MEAN, std=STD, reverse=reverse)
        assert_only_written(out, [window], axes=(0, 1))
        assert torch.equal(out[window.slices], full[window.slices])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 17])
def test_from_planar(channels: int) -> None:
    image = torch.randn(channels, 9, 70)
    for window in windows_of(9, 70):
        out = poisoned(9, 70, channels)
        window_ops.from_planar(image, out, window)
        assert_only_written(out, [window], axes=(0, 1))
        assert torch.equal(out[window.slices], image.movedim(0, -1)[window.slices])


def test_from_planar_with_gaps_between_rows_and_planes() -> None:
    image = torch.randn(4, 9, 12)[1:, 2:7, 3:10]
    out = poisoned(5, 7, 3)
    window_ops.from_planar(image, out)
    assert torch.equal(out, image.movedim(0, -1))


@pytest.mark.parametrize("channels", [1, 3, 16, 50])
def test_sigmoid(channels: int) -> None:
    x = random_plane(7, 9, channels) * 20
    x[0, 0, 0], x[0, 1, 0], x[0, 2, 0], x[0, 3, 0] = 200.0, -200.0, float("inf"), -float("inf")
    check_kernel(
        lambda source, out, window: window_ops.sigmoid(source, out, window), x, x.double().sigmoid(), lambda w: w
    )
    small = torch.linspace(-30, 30, 4001).view(1, -1, 1)
    out = poisoned(1, 4001, 1)
    window_ops.sigmoid(small, out)
    exact = small.double().sigmoid()
    assert ((out - exact).abs() / exact).max() < 1e-6  # relative, also where the value is tiny


def test_sigmoid_keeps_nan() -> None:
    x = torch.full((1, 19, 1), float("nan"))
    window_ops.sigmoid(x, x)
    assert x.isnan().all()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("channels", [1, 6, 32])
def test_add(channels: int, relu: bool) -> None:
    a, b = random_plane(6, 7, channels), random_plane(6, 7, channels, seed=1)
    for second in (b, None):
        total = a.double() + b.double() if second is not None else a.double()

        def call(source: Plane, out: Plane, window: Window, second=second) -> None:
            window_ops.add(source, second, out, window, relu=relu)

        check_kernel(call, a, total.relu() if relu else total, lambda w: w)


@given(st.data())
def test_add_in_place(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    window = data.draw(drawn_window(height, width))
    a, b = random_plane(height, width, 5), random_plane(height, width, 5, seed=1)
    wanted = a.clone()
    wanted[window.slices] += b[window.slices]
    first, second = a.clone(), b.clone()
    window_ops.add(first, b, first, window)
    assert torch.equal(first, wanted)
    window_ops.add(a, second, second, window)
    assert torch.equal(second[window.slices], wanted[window.slices])


def test_add_keeps_nan_through_relu() -> None:
    out = np.zeros((1, 5, 4), np.float32)
    window_ops.add(np.full((1, 5, 4), np.nan, np.float32), None, out, relu=True)
    assert np.isnan(out).all()


@pytest.mark.parametrize("first", [0, 3, 7])
def test_copied_channels(first: int) -> None:
    x = random_plane(6, 7, 5)
    out = poisoned(6, 7, 12)
    window = Window(1, 5, 2, 7)
    window_ops.copy_channels(x, out, window, first=first)
    assert torch.equal(out[1:5, 2:7, first : first + 5], x[1:5, 2:7])
    assert int((~out.isnan()).sum()) == 4 * 5 * 5


def test_channels_move_within_one_buffer_where_they_do_not_overlap() -> None:
    buffer = random_plane(4, 5, 6)
    before = buffer.clone()
    window_ops.copy_channels(buffer[:, :, :3], buffer, first=3)
    assert torch.equal(buffer[:, :, 3:], before[:, :, :3])
    with pytest.raises(InputError, match="shares memory"):
        window_ops.copy_channels(buffer[:, :, :3], buffer, first=2)


def test_partly_shifted_input_is_refused() -> None:
    buffer = np.zeros((6, 8, 4), np.float32)
    left = as_plane(buffer[:, :7], "left", plane=(6, 7))
    right = as_plane(buffer[:, 1:], "right", plane=(6, 7))
    with pytest.raises(InputError, match="shares memory"):
        window_ops.add(left, None, right)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, o: window_ops.normalise_pixels(p, o, mean=MEAN, std=(1, 0, 1)), "std not 0"),
        (lambda p, o: window_ops.normalise_pixels(p, o, mean=(np.nan, 0, 0), std=STD), "finite"),
        (lambda p, o: window_ops.normalise_pixels(p[:, :, :2], o, mean=MEAN, std=STD), "2 channels"),
        (lambda p, o: window_ops.normalise_pixels(p, o[:2], mean=MEAN, std=STD), "holds the photo"),
        (lambda p, o: window_ops.normalise_pixels(o, o, mean=MEAN, std=STD), "uint8"),
        (lambda p, o: window_ops.from_planar(np.zeros((3, 4, 6), np.float32), o), "height and width"),
        (lambda p, o: window_ops.from_planar(np.zeros((3, 5, 4), np.float32).transpose(0, 2, 1), o), "contiguous"),
        (lambda p, o: window_ops.from_planar(np.broadcast_to(np.float32(0), (3, 4, 5)), o), "contiguous"),
        (lambda p, o: window_ops.add(o[:, :4], None, o), "planes of one size"),
        (lambda p, o: window_ops.add(o, o[:, :, :2], o), "2 channels"),
        (lambda p, o: window_ops.copy_channels(o, o, first=1), "among the output's"),
        (lambda p, o: window_ops.copy_channels(o, o, first=-1), "among the output's"),
        (lambda p, o: window_ops.sigmoid(o[:, :, :1], o), "1 channels"),
    ],
)
def test_bad_calls_write_nothing(call, message: str) -> None:
    out = np.full((4, 5, 3), np.nan, np.float32)
    with pytest.raises(InputError, match=message):
        call(np.zeros((4, 5, 3), np.uint8), out)
    assert np.isnan(out).all()
