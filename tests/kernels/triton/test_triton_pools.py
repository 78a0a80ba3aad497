"""Poolings on windows against their twins and against torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.triton.cells import DEVICE, FLOATS, check_kernel, drawn_window, exact, random_plane
from tracenet.rft.rules.convolution import sliding_demand
from tracenet_kernels import reference
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.testing import poisoned
from tracenet_kernels.triton.planes import DevicePlane
from tracenet_kernels.triton.pools import avg_pool2d, avg_pool2d_launches, max_pool2d, max_pool2d_launches
from tracenet_kernels.window import Window, clip


def demand_of(size, kernel, stride, padding, dilation=(1, 1)):
    def demand(window: Window) -> Window:
        y = sliding_demand(window.y0, window.y1, kernel[0], stride[0], padding[0], dilation[0])
        x = sliding_demand(window.x0, window.x1, kernel[1], stride[1], padding[1], dilation[1])
        return clip(Window(*y, *x), *size)

    return demand


def check_max(x, size, **attributes) -> None:
    wanted = reference.max_pool2d(exact(x), size, **attributes)
    check_kernel(lambda s, o, w: max_pool2d(s, o, w, **attributes), x, wanted, demand_of(x.shape[:2], **attributes))


def check_avg(x, size, kernel, stride, padding, **how) -> None:
    attributes = {"kernel": kernel, "stride": stride, "padding": padding}
    wanted = reference.avg_pool2d(exact(x), size, **attributes, **how)
    check_kernel(
        lambda s, o, w: avg_pool2d(s, o, w, **attributes, **how), x, wanted, demand_of(x.shape[:2], **attributes)
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [1, 5, 16])
def test_max_pool(channels: int, dtype: torch.dtype) -> None:
    x = random_plane(9, 12, channels, dtype)
    check_max(x, (5, 6), kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"),
    [
        ((5, 7), (3, 3), (2, 2), (1, 1), (1, 1)),  # ceil_mode on 9 x 13
        ((7, 7), (2, 3), (1, 2), (0, 1), (2, 1)),
        ((9, 13), (7, 7), (1, 1), (3, 3), (1, 1)),  # a loop over rows of taps
    ],
)
def test_max_pool_of_any_geometry(size, kernel, stride, padding, dilation) -> None:
    check_max(random_plane(9, 13, 6), size, kernel=kernel, stride=stride, padding=padding, dilation=dilation)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("how", [{"count_include_pad": True}, {"count_include_pad": False}, {"divisor": 7}])
def test_avg_pool(how: dict, dtype: torch.dtype) -> None:
    # The last row and column reach past the padding, as with ceil_mode.
    check_avg(random_plane(8, 9, 5, dtype), (5, 5), (3, 3), (2, 2), (1, 1), **how)


def test_avg_pool_that_meets_nothing_but_padding() -> None:
    check_avg(random_plane(2, 2, 3), (4, 4), (1, 1), (1, 1), (1, 1), count_include_pad=False)


@pytest.mark.parametrize("count_include_pad", [True, False])
def test_twins_are_torch(count_include_pad: bool) -> None:
    x = random_plane(9, 12, 3).double().cpu()
    batch = x.movedim(-1, 0)[None]
    wanted = F.avg_pool2d(batch, 3, 2, 1, True, count_include_pad)[0].movedim(0, -1)
    size = tuple(wanted.shape[:2])
    attributes = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    torch.testing.assert_close(reference.avg_pool2d(x, size, count_include_pad=count_include_pad, **attributes), wanted)
    wanted = F.max_pool2d(batch, 3, 2, 1, ceil_mode=True)[0].movedim(0, -1)
    torch.testing.assert_close(reference.max_pool2d(x, tuple(wanted.shape[:2]), **attributes), wanted)


def test_nan_wins_and_padding_does_not() -> None:
    x = torch.full((3, 3, 2), -math.inf, device=DEVICE)
    x[0, 0, 1] = math.nan
    out = torch.zeros(2, 2, 2, device=DEVICE)
    max_pool2d(x, out, Window.full(2, 2), kernel=2, stride=2, padding=1)
    assert out[0, 0, 1].isnan()
    assert out[0, 0, 0] == -math.inf
    assert (out[1] == -math.inf).all()


def test_int8_max_pool() -> None:
    q = torch.randint(-128, 128, (7, 9, 20), dtype=torch.int8, device=DEVICE)
    attributes = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    wanted = reference.max_pool2d(q.cpu(), (4, 5), **attributes)
    x = DevicePlane(q, (7, 9), (0, 0), 0.5, 3)
    out = DevicePlane(poisoned(4, 5, 20, dtype=torch.int8, device=DEVICE), (4, 5), (0, 0), 0.5, 3)
    max_pool2d(x, out, Window(0, 4, 1, 5), **attributes)
    assert torch.equal(out.tensor[:, 1:].cpu(), wanted[:, 1:])
    assert (out.tensor[:, 0] == -128).all()


@settings(max_examples=15)
@given(st.data())
def test_any_window_of_any_pooling(data: st.DataObject) -> None:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = data.draw(pair), data.draw(pair), data.draw(pair)
    padding = (data.draw(st.integers(0, kernel[0] - 1)), data.draw(st.integers(0, kernel[1] - 1)))
    size = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    x = random_plane(data.draw(st.integers(5, 9)), data.draw(st.integers(5, 9)), data.draw(st.integers(1, 9)))
    window = data.draw(drawn_window(*size))
    attributes = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    demand = demand_of(x.shape[:2], **attributes)
    check_kernel(
        lambda s, o, w: max_pool2d(s, o, w, **attributes),
        x,
        reference.max_pool2d(exact(x), size, **attributes),
        demand,
        windows=[window] if not demand(window).is_empty else [],
    )


def test_errors_say_what_fits() -> None:
    x, out = random_plane(6, 6, 4), torch.zeros(3, 3, 4, device=DEVICE)
    whole = Window.full(3, 3)
    with pytest.raises(InputError, match="stride and dilation >= 1"):
        max_pool2d_launches(x, out, whole, kernel=2, stride=0)
    with pytest.raises(InputError, match="as many"):
        max_pool2d_launches(x, out[:, :, :3], whole, kernel=2, stride=2)
    with pytest.raises(InputError, match="one dtype, scale and zero point"):
        max_pool2d_launches(x, out.half(), whole, kernel=2, stride=2)
    with pytest.raises(InputError, match="pass a positive one"):
        avg_pool2d_launches(x, out, whole, kernel=2, stride=2, divisor=-1)
    with pytest.raises(WindowError, match="not within"):
        avg_pool2d_launches(x, out, Window(0, 4, 0, 3), kernel=2, stride=2)
