"""Adds, sigmoids, copies, conversions and images on windows against their twins."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.triton.cells import DEVICE, FLOATS, check_kernel, drawn_window, exact, part_of, random_plane
from tracenet_kernels import reference
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.triton import elementwise
from tracenet_kernels.triton.planes import DevicePlane, interpreted
from tracenet_kernels.window import Window

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def same(window: Window) -> Window:
    return window


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("channels", "activation"), [(1, "relu"), (5, "none"), (24, "relu")])
def test_add(channels: int, activation: str, dtype: torch.dtype) -> None:
    a, b = random_plane(6, 7, channels, dtype), random_plane(6, 7, channels, dtype, seed=1)
    wanted = reference.add(exact(a), exact(b), activation=activation)
    check_kernel(lambda s, o, w: elementwise.add(s, b, o, w, activation=activation), a, wanted, same)


def test_activation_alone_in_place_keeps_nan() -> None:
    x = random_plane(4, 5, 3)
    x[1, 1, 1] = math.nan
    wanted = reference.add(x.cpu(), activation="relu")
    before = x.clone()
    elementwise.add(x, None, x, Window(0, 4, 1, 5), activation="relu")
    assert torch.equal(x[:, :1], before[:, :1])
    torch.testing.assert_close(x[:, 1:].cpu(), wanted[:, 1:], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [1, 6])
def test_sigmoid(channels: int, dtype: torch.dtype) -> None:
    x = random_plane(5, 8, channels, dtype) * 8
    check_kernel(elementwise.sigmoid, x, reference.sigmoid(exact(x)), same)


def test_channels_are_copied_beside_others() -> None:
    a, b = random_plane(5, 6, 3), random_plane(5, 6, 8, seed=1)
    out = poisoned(5, 6, 12, device=DEVICE)
    window = Window(1, 4, 0, 5)
    elementwise.copy_channels(part_of(a, window), out, window)
    elementwise.copy_channels(b, out, window, first=3)
    assert_only_written(out[:, :, :11], [window], axes=(0, 1))
    assert out[:, :, 11].isnan().all()
    assert torch.equal(out[1:4, 0:5, :11], torch.cat([a, b], 2)[1:4, 0:5])


@pytest.mark.parametrize("to", FLOATS)
@pytest.mark.parametrize("of", FLOATS)
def test_conversions_of_real_values(of: torch.dtype, to: torch.dtype) -> None:
    # Values of both dtypes: the interpreter does not round to bf16 as GPUs do.
    x = random_plane(4, 5, 6, torch.bfloat16).to(of)
    out = poisoned(4, 5, 6, dtype=to, device=DEVICE)
    elementwise.convert(x, out, Window(0, 4, 0, 4))
    assert torch.equal(out[:, :4], x.to(to)[:, :4])
    assert_only_written(out, [Window(0, 4, 0, 4)], axes=(0, 1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_to_int8_and_back(dtype: torch.dtype) -> None:
    scale, zero_point = 0.5, -7
    x = random_plane(5, 6, 9, dtype) * 40
    # Halves, and values past both ends.
    x[0, 0, :6] = torch.tensor([0.25, 0.75, 1.25, -0.25, -0.75, 1000.0])
    x[0, 1, :2] = torch.tensor([-1000.0, 1e30])
    q = DevicePlane(torch.zeros(5, 6, 9, dtype=torch.int8, device=DEVICE), (5, 6), (0, 0), scale, zero_point)
    elementwise.convert(x, q, Window.full(5, 6))
    wanted = reference.quantise(exact(x), scale, zero_point)
    assert torch.equal(q.tensor.cpu(), wanted)
    assert q.tensor[0, 0, :6].tolist() == [-7, -5, -5, -7, -9, 127]
    back = poisoned(5, 6, 9, dtype=dtype, device=DEVICE)
    elementwise.convert(q, back, Window.full(5, 6))
    assert_close(back.cpu(), reference.dequantise(wanted, scale, zero_point).double())


def test_int8_planes_of_other_scales_are_requantised() -> None:
    q = torch.randint(-128, 128, (4, 5, 7), dtype=torch.int8, device=DEVICE)
    x = DevicePlane(q, (4, 5), (0, 0), 0.3, 4)
    for scale, zero_point in ((0.3, 4), (0.7, -3)):
        out = DevicePlane(torch.zeros(4, 5, 7, dtype=torch.int8, device=DEVICE), (4, 5), (0, 0), scale, zero_point)
        elementwise.convert(x, out, Window.full(4, 5))
        wanted = reference.quantise(reference.dequantise(q.cpu(), 0.3, 4), scale, zero_point)
        assert torch.equal(out.tensor.cpu(), wanted)


def test_to_fp8_and_back() -> None:
    # Values that fp8 has: the interpreter does not round to it as GPUs do.
    x = (random_plane(4, 5, 8) * 80).to(torch.float8_e4m3fn).float() * 0.25
    x[0, 0, 0] = 1e6
    q = DevicePlane(torch.zeros(4, 5, 8, dtype=torch.float8_e4m3fn, device=DEVICE), (4, 5), (0, 0), 0.25)
    elementwise.convert(x, q, Window.full(4, 5))
    wanted = reference.quantise(exact(x), 0.25, dtype=torch.float8_e4m3fn)
    assert torch.equal(q.tensor.cpu().view(torch.uint8), wanted.view(torch.uint8))
    back = poisoned(4, 5, 8, device=DEVICE)
    elementwise.convert(q, back, Window.full(4, 5))
    assert torch.equal(exact(back), reference.dequantise(wanted, 0.25))


@pytest.mark.parametrize(("of", "to"), [(torch.float32, torch.float16), (torch.float16, torch.float32)])
def test_planar_images_with_gaps(of: torch.dtype, to: torch.dtype) -> None:
    image = torch.randn(5, 7, 9, device=DEVICE).to(of)[1:4, :6, :8]
    out = poisoned(6, 8, 3, dtype=to, device=DEVICE)
    windows = [Window(0, 2, 0, 8), Window(3, 6, 2, 5)]
    elementwise.planar(image, out, windows)
    assert_only_written(out, windows, axes=(0, 1))
    for window in windows:
        assert torch.equal(out[window.slices], image.permute(1, 2, 0)[window.slices].to(to))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_pixels(dtype: torch.dtype, reverse: bool) -> None:
    photo = torch.randint(0, 256, (5, 6, 3), dtype=torch.uint8, device=DEVICE)
    wanted = reference.pixels(photo.cpu(), (8, 8), MEAN, STD, reverse=reverse).to(dtype)
    out = poisoned(8, 8, 3, dtype=dtype, device=DEVICE)
    windows = [Window(0, 3, 0, 8), Window(4, 8, 3, 7)]
    elementwise.pixels(photo, out, windows, mean=MEAN, std=STD, reverse=reverse)
    assert_only_written(out, windows, axes=(0, 1))
    for window in windows:
        if dtype == torch.bfloat16:  # the interpreter does not round to it as GPUs do
            assert_close(out[window.slices].cpu(), wanted[window.slices].double())
        else:
            assert torch.equal(out[window.slices].cpu(), wanted[window.slices])


@settings(max_examples=15)
@given(st.data())
def test_any_window(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    x = random_plane(*size, data.draw(st.integers(1, 9)))
    window = data.draw(drawn_window(*size))
    check_kernel(elementwise.sigmoid, x, reference.sigmoid(exact(x)), same, windows=[window])


def test_errors_say_what_fits() -> None:
    x, out, whole = random_plane(4, 4, 3), torch.zeros(4, 4, 3, device=DEVICE), Window.full(4, 4)
    with pytest.raises(InputError, match="choose one of none, relu"):
        elementwise.add_launches(x, None, out, whole, activation="gelu")
    with pytest.raises(InputError, match="planes of one size"):
        elementwise.sigmoid_launches(x[:3], out, whole)
    with pytest.raises(InputError, match="all channels of x fit"):
        elementwise.copy_channels_launches(x, out, whole, first=1)
    with pytest.raises(InputError, match="as many"):
        elementwise.convert_launches(x[:, :, :2], out, whole)
    with pytest.raises(InputError, match="must be contiguous"):
        elementwise.planar_launches(x.movedim(-1, 0), out, whole)
    with pytest.raises(InputError, match=r"\[channels, rows, columns\]"):
        elementwise.planar_launches(torch.zeros(3, 4, 5, device=DEVICE), out, whole)
    photo = torch.zeros(4, 4, 3, dtype=torch.uint8, device=DEVICE)
    with pytest.raises(InputError, match="none of std 0"):
        elementwise.pixels_launches(photo, out, whole, mean=MEAN, std=(1.0, 0.0, 1.0))
    with pytest.raises(InputError, match="holds the photo"):
        elementwise.pixels_launches(photo, out[:3].contiguous(), Window.full(3, 4), mean=MEAN, std=STD)
    with pytest.raises(WindowError, match="not within"):
        elementwise.sigmoid_launches(x, out, Window(0, 5, 0, 1))


@pytest.mark.parametrize(("channels", "blocks"), [(1, 1), (80, 1), (96, 3), (192, 3), (256, 2), (300, 3)])
def test_blocks_of_channels_are_even_where_that_is_possible(channels: int, blocks: int) -> None:
    x, out = random_plane(1, 1, channels), poisoned(1, 1, channels, device=DEVICE)
    (launch,) = elementwise.sigmoid_launches(x, out, Window.full(1, 1))
    assert launch.grid == (1, blocks, 1)
    launch()
    assert_close(out, reference.sigmoid(exact(x)).to(DEVICE))


@pytest.mark.skipif(not interpreted(), reason="asks what the interpreter refuses")
def test_the_interpreter_has_no_dependent_launch() -> None:
    x = random_plane(2, 2, 3)
    with pytest.raises(InputError, match="pass pdl=False"):
        elementwise.sigmoid_launches(x, x, Window.full(2, 2), pdl=True)


def test_a_half_precision_sum_is_rounded_once() -> None:
    a, b = random_plane(3, 3, 4, torch.float16), random_plane(3, 3, 4, torch.float32, seed=1)
    out = poisoned(3, 3, 4, dtype=torch.float16, device=DEVICE)
    elementwise.add(a, b, out, Window.full(3, 3))
    assert torch.equal(out, (a.float() + b).half())
    assert_close(out, reference.add(exact(a), exact(b)).to(DEVICE))
