"""Maximum and average pooling on windows against torch in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.kernels.planes import check_kernel, drawn_window, images, part_of, planes, random_plane
from tracenet.rft.rules.convolution import sliding_demand
from tracenet_kernels import native, window_ops
from tracenet_kernels.arrays import Plane
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.testing import poisoned
from tracenet_kernels.window import Window, clip

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())


def demand_of(window: Window, size: tuple[int, int], kernel, stride, padding, dilation=(1, 1)) -> Window:
    y = sliding_demand(window.y0, window.y1, kernel[0], stride[0], padding[0], dilation[0])
    x = sliding_demand(window.x0, window.x1, kernel[1], stride[1], padding[1], dilation[1])
    return clip(Window(*y, *x), *size)


@pytest.mark.parametrize("channels", [1, 3, 8, 19, 64])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "ceil_mode"),
    [
        ((3, 3), (2, 2), (1, 1), (1, 1), False),
        ((3, 3), (2, 2), (1, 1), (1, 1), True),
        ((2, 3), (1, 2), (0, 1), (2, 1), False),
        ((1, 1), (2, 2), (0, 0), (1, 1), True),
        ((4, 2), (3, 3), (2, 0), (1, 3), True),
    ],
)
def test_max_pool(channels, kernel, stride, padding, dilation, ceil_mode) -> None:
    x = random_plane(13, 18, channels)
    reference = F.max_pool2d(images(x).double(), kernel, stride, padding, dilation, ceil_mode)

    def call(source: Plane, out: Plane, window: Window) -> None:
        window_ops.max_pool2d(source, out, window, kernel=kernel, stride=stride, padding=padding, dilation=dilation)

    check_kernel(call, x, planes(reference), lambda w: demand_of(w, (13, 18), kernel, stride, padding, dilation))


@pytest.mark.parametrize("channels", [1, 5, 16, 35])
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil_mode", "divisor"),
    [
        ((3, 3), (2, 2), (1, 1), True, 0),
        ((2, 2), (2, 2), (0, 0), True, 0),
        ((3, 2), (2, 3), (1, 1), True, 7),
        ((5, 3), (1, 1), (2, 1), False, 0),
    ],
)
def test_avg_pool(channels, count_include_pad, kernel, stride, padding, ceil_mode, divisor) -> None:
    x = random_plane(12, 15, channels)
    reference = F.avg_pool2d(images(x).double(), kernel, stride, padding, ceil_mode, count_include_pad, divisor or None)

    def call(source: Plane, out: Plane, window: Window) -> None:
        window_ops.avg_pool2d(
            source,
            out,
            window,
            kernel=kernel,
            stride=stride,
            padding=padding,
            count_include_pad=count_include_pad,
            divisor=divisor,
        )

    check_kernel(call, x, planes(reference), lambda w: demand_of(w, (12, 15), kernel, stride, padding))


@given(st.data())
def test_random_geometry(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 11)), data.draw(st.integers(1, 11))
    channels = data.draw(st.integers(1, 21))
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    ceil_mode, maximum = data.draw(st.booleans()), data.draw(st.booleans())
    assume(all(size + 2 * p >= k for size, p, k in zip((height, width), padding, kernel, strict=True)))
    x = random_plane(height, width, channels, seed=data.draw(st.integers(0, 1000)))
    torch_pool = F.max_pool2d if maximum else F.avg_pool2d
    reference = planes(torch_pool(images(x).double(), kernel, stride, padding, ceil_mode=ceil_mode))
    pool = window_ops.max_pool2d if maximum else window_ops.avg_pool2d

    def call(source: Plane, out: Plane, window: Window) -> None:
        pool(source, out, window, kernel=kernel, stride=stride, padding=padding)

    window = data.draw(drawn_window(*reference.shape[:2]))
    check_kernel(call, x, reference, lambda w: demand_of(w, (height, width), kernel, stride, padding), [window])


def test_nan_wins_and_stays_where_it_is() -> None:
    x = random_plane(9, 9, 37)
    x[4, 4, ::2] = math.nan
    x[0, 0, 1] = math.inf
    x[2, :, 5] = -math.inf
    reference = F.max_pool2d(images(x).double(), 3, 2, 1)

    def call(source: Plane, out: Plane, window: Window) -> None:
        window_ops.max_pool2d(source, out, window, kernel=3, stride=2, padding=1)

    check_kernel(call, x, planes(reference), lambda w: demand_of(w, (9, 9), (3, 3), (2, 2), (1, 1)))


def test_a_window_of_padding_alone_is_minus_infinity_or_zero() -> None:
    x = np.ones((1, 1, 5), np.float32)
    out = poisoned(1, 2, 5).numpy()
    window_ops.max_pool2d(x, out, kernel=(1, 1), stride=1, padding=(0, 1))
    assert (out[0, 0] == -math.inf).all()
    assert (out[0, 1] == 1).all()
    window_ops.avg_pool2d(x, out, kernel=(1, 1), stride=1, padding=(0, 1))
    assert (out[0, 0] == 0).all()


def test_a_kernel_larger_than_the_plane() -> None:
    x = random_plane(3, 4, 6)
    out = poisoned(1, 1, 6)
    window_ops.max_pool2d(x, out, kernel=10**6, stride=1, padding=5)
    assert torch.equal(out[0, 0], x.amax(dim=(0, 1)))


def test_slices_of_a_wider_buffer() -> None:
    buffer = random_plane(8, 9, 30)
    x = buffer[:, :, 3:20]
    out_buffer = poisoned(8, 9, 40)
    window_ops.max_pool2d(x, out_buffer[:, :, 5:22], Window(1, 7, 2, 8), kernel=3, stride=1, padding=1)
    reference = planes(F.max_pool2d(images(x), 3, 1, 1))
    assert torch.equal(out_buffer[1:7, 2:8, 5:22], reference[1:7, 2:8])
    assert int((~out_buffer.isnan()).sum()) == 6 * 6 * 17


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel": 0}, InputError, "kernel 0"),
        ({"stride": 0}, InputError, "stride 0"),
        ({"padding": -1}, InputError, "padding -1"),
        ({"dilation": 2**62, "kernel": 9}, WindowError, "64 bits"),
        ({"x": np.zeros((8, 9, 4), np.float64)}, InputError, "float64"),
        ({"x": np.zeros((8, 9, 5), np.float32)}, InputError, "5 channels"),
        ({"out": np.zeros((4, 5, 4), np.float32), "window": Window(0, 5, 0, 5)}, InputError, "not inside the extent"),
        ({"window": Window(-1, 2, 0, 2)}, InputError, "not inside the extent"),
        ({"x": part_of(np.zeros((8, 9, 4), np.float32), Window(0, 4, 0, 9))}, InputError, "compute more of it first"),
    ],
)
def test_bad_calls_write_nothing(change, error, message) -> None:
    out = np.full((4, 5, 4), np.nan, np.float32)
    call = {"x": np.zeros((8, 9, 4), np.float32), "out": out, "window": None, "kernel": 3, "stride": 2, "padding": 1}
    call |= change
    with pytest.raises(error, match=message):
        window_ops.max_pool2d(**call)
    assert np.isnan(out).all()


def test_average_pooling_has_no_dilation_and_no_negative_divisor() -> None:
    x, out = np.zeros((4, 4, 1), np.float32), np.zeros((2, 2, 1), np.float32)
    with pytest.raises(InputError, match="divisor -1"):
        window_ops.avg_pool2d(x, out, kernel=2, stride=2, divisor=-1)


def test_input_and_output_must_not_overlap() -> None:
    buffer = np.zeros((8, 8, 4), np.float32)
    with pytest.raises(InputError, match="shares memory"):
        window_ops.max_pool2d(buffer, buffer, kernel=3, stride=1, padding=1)
