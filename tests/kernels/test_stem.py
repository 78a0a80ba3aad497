"""The stem in one pass against its two kernels, bit for bit, and against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.planes import check_kernel, drawn_window, images, planes, random_plane
from tracenet.rft.rules.convolution import sliding_demand
from tracenet_kernels import native, window_ops
from tracenet_kernels.arrays import Plane
from tracenet_kernels.errors import InputError
from tracenet_kernels.testing import poisoned
from tracenet_kernels.window import Window, clip
from tracenet_kernels.windowed import PackedConv, conv2d

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())


def demand_of(window: Window, size: tuple[int, int], kernel: int, stride: int, padding: int) -> Window:
    y = sliding_demand(window.y0, window.y1, kernel, stride, padding, 1)
    x = sliding_demand(window.x0, window.x1, kernel, stride, padding, 1)
    return clip(Window(*y, *x), *size)


def check(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: tuple[int, int], pool: tuple[int, int, int], windows=None
):
    """conv: stride and padding; pool: kernel, stride and padding."""
    size = (x.shape[0], x.shape[1])
    middle = F.conv2d(images(x).double(), weight.double(), None if bias is None else bias.double(), *conv).relu()
    middle_size = (middle.shape[-2], middle.shape[-1])
    wanted = planes(F.max_pool2d(middle, *pool))
    packed = PackedConv(weight, stride=conv[0], padding=conv[1])

    def call(source: Plane, out: Plane, window: Window) -> None:
        window_ops.stem(
            source,
            packed,
            out,
            window,
            conv_size=middle_size,
            bias=bias,
            kernel=pool[0],
            stride=pool[1],
            padding=pool[2],
        )

    def demand(window: Window) -> Window:
        return demand_of(demand_of(window, middle_size, *pool), size, weight.shape[-1], *conv)

    check_kernel(call, x, wanted, demand, windows)

    between = conv2d(x, packed, Window.full(*middle_size), bias=bias, activation="relu")
    two = poisoned(*wanted.shape)
    window_ops.max_pool2d(between, two, kernel=pool[0], stride=pool[1], padding=pool[2])
    one = poisoned(*wanted.shape)
    call(
        Plane(x.numpy(), Window.full(*size), size),
        Plane(one.numpy(), Window.full(*wanted.shape[:2]), wanted.shape[:2]),
        Window.full(*wanted.shape[:2]),
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("channels", [8, 21, 64])
@pytest.mark.parametrize("size", [(47, 61), (64, 64), (7, 9), (1, 1)])
def test_resnet_stem(size: tuple[int, int], channels: int) -> None:
    x = random_plane(*size, 3)
    check(x, torch.randn(channels, 3, 7, 7) * 0.1, torch.randn(channels), (2, 3), (3, 2, 1))


def test_many_strips_and_bands() -> None:
    # A row of the convolution is 75 KB: a strip holds three, a band of eight rows takes many.
    x = random_plane(130, 600, 3)
    check(x, torch.randn(64, 3, 7, 7) * 0.1, torch.randn(64), (2, 3), (3, 2, 1), [Window(5, 30, 3, 149)])


@given(st.data())
def test_random_geometry(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    kernel = data.draw(st.integers(1, min(3, height, width)))
    conv = (data.draw(st.integers(1, 2)), data.draw(st.integers(0, 1)))
    conv_size = [(side + 2 * conv[1] - kernel) // conv[0] + 1 for side in (height, width)]
    pool_kernel = data.draw(st.integers(1, min(3, *conv_size)))
    pool = (pool_kernel, data.draw(st.integers(1, 3)), data.draw(st.integers(0, pool_kernel // 2)))
    out_size = [(side + 2 * pool[2] - pool[0]) // pool[1] + 1 for side in conv_size]
    x = random_plane(height, width, 3, seed=data.draw(st.integers(0, 1000)))
    weight = torch.randn(5, 3, kernel, kernel)
    check(x, weight, None, conv, pool, [data.draw(drawn_window(*out_size))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((16, 16, 4), np.float32)}, "4 channels"),
        ({"out": np.zeros((4, 4, 7), np.float32)}, "7"),
        ({"bias": np.zeros(7, np.float32)}, "bias"),
        ({"kernel": 0}, "kernel 0"),
        ({"conv_size": (-1, 8)}, "convolution's plane"),
        ({"window": Window(0, 5, 0, 4)}, "not inside the extent"),
        ({"x": Plane(np.zeros((9, 16, 3), np.float32), Window(0, 9, 0, 16), (16, 16))}, "compute more of it first"),
    ],
)
def test_bad_calls_write_nothing(change, message: str) -> None:
    out = np.full((4, 4, 8), np.nan, np.float32)
    call = {
        "x": np.zeros((16, 16, 3), np.float32),
        "packed": PackedConv(np.zeros((8, 3, 7, 7), np.float32), stride=2, padding=3),
        "out": out,
        "conv_size": (8, 8),
    }
    call |= change
    with pytest.raises(InputError, match=message):
        window_ops.stem(**call)
    assert np.isnan(out).all()
