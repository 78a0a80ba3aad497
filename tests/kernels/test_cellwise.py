"""Activations, products, means of planes and ranges of channels, against float64 and in the same bits in any window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.planes import check_kernel, images, planes, random_plane, windows_of
from tracenet_kernels import native, window_ops
from tracenet_kernels.activations import ACTIVATIONS
from tracenet_kernels.arrays import Plane, as_plane
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.threads import set_threads, threads
from tracenet_kernels.window import Window

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())

A, B = -0.25, 0.75
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "clip": lambda x: x.clamp(A, B),
    "leaky_relu": lambda x: F.leaky_relu(x, A),
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
}


def test_every_activation_has_a_reference() -> None:
    assert tuple(FUNCTIONS) == ACTIVATIONS


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("channels", [1, 3, 16, 50])
def test_activations(kind: str, channels: int) -> None:
    x = random_plane(5, 7, channels) * 4
    check_kernel(
        lambda source, out, window: window_ops.activate(source, out, window, kind=kind, a=A, b=B),
        x,
        FUNCTIONS[kind](x.double()),
        lambda window: window,
    )
    x_in_place = x.clone()
    window_ops.activate(x_in_place, x_in_place, kind=kind, a=A, b=B)
    assert_close(x_in_place, FUNCTIONS[kind](x.double()))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_are_accurate_where_they_are_small(kind: str) -> None:
    x = torch.cat([torch.linspace(-6, 6, 9001), torch.logspace(-20, 0, 500), -torch.logspace(-20, 0, 500)])
    x = x.view(1, -1, 1)
    out = poisoned(*x.shape)
    window_ops.activate(x, out, kind=kind, a=A, b=B)
    exact = FUNCTIONS[kind](x.double())
    # Near -3 a hard swish is a product with a difference that float32 has rounded.
    floor = 1e-6 if kind in ("hard_swish", "hard_sigmoid") else 1e-30
    assert ((out - exact).abs() / exact.abs().clamp(min=floor)).max() < 5e-6


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("columns", [1, 5, 19])
def test_activations_of_extremes(kind: str, columns: int) -> None:
    for value in (1e4, -1e4, 3e38, -3e38, 0.0, -0.0):
        x = torch.full((1, columns, 1), value)
        window_ops.activate(x, x, kind=kind, a=A, b=B)
        wanted = FUNCTIONS[kind](torch.tensor(value, dtype=torch.float64))
        torch.testing.assert_close(x.double(), wanted.expand(1, columns, 1), rtol=1e-5, atol=3e-33 * abs(value))
    x = torch.full((1, columns, 1), float("nan"))
    window_ops.activate(x, x, kind=kind, a=A, b=B)
    assert x.isnan().all()


@pytest.mark.parametrize("channels", [1, 6, 33])
def test_products(channels: int) -> None:
    a, b = random_plane(6, 7, channels), random_plane(6, 7, channels, seed=1)
    cell = random_plane(1, 1, channels, seed=2)
    for factor in (b, cell):

        def call(source: Plane, out: Plane, window: Window, factor: Tensor = factor) -> None:
            window_ops.multiply(source, factor, out, window)

        check_kernel(call, a, a.double() * factor.double(), lambda window: window)
        in_place = a.clone()
        window_ops.multiply(in_place, factor, in_place, Window(1, 3, 2, 7))
        wanted = a.clone()
        wanted[1:3, 2:7] *= factor if factor is cell else factor[1:3, 2:7]
        assert torch.equal(in_place, wanted)
    one = poisoned(1, 1, channels)
    window_ops.multiply(cell, cell, one)
    assert torch.equal(one, cell * cell)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (67, 1), (9, 13), (70, 33)])
@pytest.mark.parametrize("channels", [1, 3, 16, 37])
def test_means_of_planes(size: tuple[int, int], channels: int) -> None:
    x = random_plane(*size, channels) + 3
    results = []
    before = threads()
    try:
        for count in (1, 2, 3):
            set_threads(count)
            results.append(poisoned(1, 1, channels))
            window_ops.plane_mean(x, results[-1])
    finally:
        set_threads(before)
    assert_close(results[0], planes(images(x).double().mean((2, 3), keepdim=True)))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    wide = torch.full((*size, channels + 5), float("nan"))  # pixels with gaps between them
    wide[..., 2 : 2 + channels] = x
    gaps = poisoned(1, 1, channels)
    window_ops.plane_mean(wide[..., 2 : 2 + channels], gaps)
    assert torch.equal(gaps, results[0])


@pytest.mark.parametrize("size", [(1, 2), (9, 13), (70, 33)])
@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (6, 3), (16, 1), (16, 16), (51, 3)])
def test_group_norms(size: tuple[int, int], channels: int, groups: int) -> None:
    x = random_plane(*size, channels) * 2 + 100  # a mean far from 0: squares around it must not cancel
    scale, bias = random_plane(1, 1, channels, seed=1)[0, 0], random_plane(1, 1, channels, seed=2)[0, 0]
    whole = Window.full(*size)
    for weights in ({"scale": scale, "bias": bias}, {}):
        wanted = F.group_norm(images(x).double(), groups, *(w.double() for w in weights.values()), eps=1e-3)
        full = poisoned(*size, channels)
        window_ops.group_norm(x, full, groups=groups, epsilon=1e-3, **weights)
        assert ((full - planes(wanted)).abs().max() / planes(wanted).abs().max().clamp(min=1)) < 1e-5
        for window in [w for w in windows_of(*size) if w != whole]:
            out = poisoned(*size, channels)
            window_ops.group_norm(x, out, window, groups=groups, epsilon=1e-3, **weights)
            assert_only_written(out, [window], axes=(0, 1))
            assert torch.equal(out[window.slices], full[window.slices])


@pytest.mark.parametrize(("first", "channels"), [(0, 7), (0, 3), (2, 5), (6, 1)])
def test_ranges_of_channels(first: int, channels: int) -> None:
    x = random_plane(5, 6, 7)
    for window in windows_of(5, 6):
        out = poisoned(5, 6, channels)
        window_ops.take_channels(x, out, window, first=first)
        assert_only_written(out, [window], axes=(0, 1))
        assert torch.equal(out[window.slices], x[(*window.slices, slice(first, first + channels))])


def test_bad_input_is_refused() -> None:
    x = random_plane(4, 5, 6)
    out = np.zeros((4, 5, 6), np.float32)
    with pytest.raises(InputError, match="choose one of none, relu"):
        window_ops.activate(x, out, kind="softmax")
    with pytest.raises(InputError, match="activation 99 is not known"):
        native.require().activate(as_plane(x, "x"), as_plane(out, "out"), Window(0, 1, 0, 1), 99, 0.0, 0.0)
    with pytest.raises((InputError, WindowError)):
        window_ops.activate(x, out, Window(0, 5, 0, 1), kind="silu")
    with pytest.raises(InputError, match="the second factor"):
        window_ops.multiply(x, x[:1, :1, :3], out)
    with pytest.raises(InputError, match="the second factor"):
        window_ops.multiply(x, x[:2, :1], out)
    with pytest.raises(InputError, match="pass one cell"):
        window_ops.plane_mean(x, out)
    with pytest.raises(InputError, match="channels"):
        window_ops.plane_mean(x, np.zeros((1, 1, 5), np.float32))
    with pytest.raises(InputError, match="6 channels are not 4 equal groups"):
        window_ops.group_norm(x, out, groups=4)
    with pytest.raises(InputError):
        window_ops.group_norm(x, x, groups=3)
    with pytest.raises(InputError, match="scale"):
        window_ops.group_norm(x, out, groups=3, scale=np.zeros(5, np.float32))
    with pytest.raises(InputError, match="are not among the input's 6"):
        window_ops.take_channels(x, np.zeros((4, 5, 3), np.float32), first=4)
    with pytest.raises(InputError, match=r"shares? memory"):
        window_ops.take_channels(x, x[..., :3], first=1)
    assert not out.any()
