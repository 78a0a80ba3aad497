"""Resizes on windows against their twin, torch, and the tracer's own taps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.triton.cells import DEVICE, FLOATS, check_kernel, drawn_window, exact, random_plane
from tracenet.rft.rules import resize as rules
from tracenet_kernels import reference
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.triton.resize import RESIZE_MODES, resize, resize_launches
from tracenet_kernels.window import Window


def taps_of(mode: str, length: int, out: int, factor: int) -> rules.Taps:
    """The tracer's taps: what a window may read."""
    if mode == "nearest":
        return rules.nearest_taps(length, out, None)
    if mode == "aligned_bilinear":
        return rules.aligned_taps(length, factor)
    return rules.linear_taps(length, out, None, align_corners=mode.endswith("corners"))


def ratio_of(mode: str, length: int, out: int) -> float:
    if mode == "bilinear_align_corners":
        return float(np.float32(length - 1) / np.float32(out - 1)) if out > 1 else 0.0
    return float(np.float32(length) / np.float32(out))


def check(mode: str, x: torch.Tensor, size: tuple[int, int], factor: int = 1, windows=None) -> None:
    height, width, _ = x.shape
    rows, columns = taps_of(mode, height, size[0], factor), taps_of(mode, width, size[1], factor)
    how = {"mode": mode, "ratio": (ratio_of(mode, height, size[0]), ratio_of(mode, width, size[1])), "factor": factor}

    def demand(window: Window) -> Window:
        return Window(*rows.demand(window.y0, window.y1), *columns.demand(window.x0, window.x1))

    wanted = reference.resize(exact(x), size, **how)
    check_kernel(lambda s, o, w: resize(s, o, w, **how), x, wanted, demand, windows=windows)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", RESIZE_MODES[:3])
def test_dtypes(mode: str, dtype: torch.dtype) -> None:
    check(mode, random_plane(5, 6, 6, dtype), (10, 11))


@pytest.mark.parametrize("size", [(7, 11), (9, 30), (3, 4), (1, 1)])
@pytest.mark.parametrize("mode", RESIZE_MODES[:3])
def test_any_size(mode: str, size: tuple[int, int]) -> None:
    check(mode, random_plane(7, 11, 3), size)


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_aligned_bilinear(factor: int) -> None:
    check("aligned_bilinear", random_plane(4, 3, 5), (4 * factor, 3 * factor), factor)
    check("aligned_bilinear", random_plane(1, 1, 3), (factor, factor), factor)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_the_twin_is_torch(mode: str) -> None:
    x, size = torch.randn(5, 7, 2, dtype=torch.float64), (15, 21)
    batch = x.movedim(-1, 0)[None]
    if mode == "aligned_bilinear":
        wanted = reference.aligned_bilinear(batch, 3)
    elif mode == "nearest":
        wanted = F.interpolate(batch, size, mode="nearest")
    else:
        wanted = F.interpolate(batch, size, mode="bilinear", align_corners=mode.endswith("corners"))
    ratio = (ratio_of(mode, 5, 15), ratio_of(mode, 7, 21))
    found = reference.resize(x, size, mode=mode, ratio=ratio, factor=3)
    assert_close(found, wanted[0].movedim(0, -1), dtype=torch.float32)


@pytest.mark.parametrize("mode", RESIZE_MODES[:3])
def test_coordinates_are_those_of_the_twin_bit_for_bit(mode: str) -> None:
    # Values are the indices, so a result says which cells were read; ratios that meet cells and halves almost exactly.
    length, out = 4099, 12289
    x = torch.arange(length, dtype=torch.float32, device=DEVICE).view(1, length, 1)
    for ratio in (1 / 3, length / out, 0.1, (length - 1) / (out - 1)):
        y = poisoned(1, out, 1, device=DEVICE)
        resize(x, y, Window.full(1, out), mode=mode, ratio=(1.0, ratio))
        low, _, weight = reference.resize_taps(mode, length, out, ratio)
        found = y.flatten().double().cpu()
        if mode == "nearest":
            assert torch.equal(found, low.double())
        else:
            assert_close(found, (low + weight).clamp(max=length - 1), dtype=torch.float32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", ["nearest", "aligned_bilinear"])
def test_addend_in_place(mode: str, dtype: torch.dtype) -> None:
    x, out = random_plane(4, 5, 6, dtype), random_plane(8, 10, 6, dtype, seed=1)
    before, window = out.clone(), Window(1, 7, 2, 10)
    resize(x, out, window, mode=mode, ratio=(0.5, 0.5), factor=2, addend=out)
    wanted = reference.resize(exact(x), (8, 10), mode=mode, ratio=(0.5, 0.5), factor=2) + exact(before)
    assert_close(out[window.slices].cpu(), wanted[window.slices])
    out[window.slices] = before[window.slices]
    assert torch.equal(out, before)


def test_addend_of_its_own() -> None:
    x, plus = random_plane(4, 5, 3), random_plane(8, 10, 3, seed=1)
    out = poisoned(8, 10, 3, device=DEVICE)
    windows = [Window(0, 3, 0, 10), Window(5, 8, 4, 6)]
    resize(x, out, windows, mode="nearest", ratio=(0.5, 0.5), addend=plus)
    assert_only_written(out, windows, axes=(0, 1))
    wanted = reference.resize(x.cpu(), (8, 10), mode="nearest", ratio=(0.5, 0.5)) + plus.cpu()
    for window in windows:
        assert torch.equal(out[window.slices].cpu(), wanted[window.slices])


def test_an_axis_that_keeps_its_length_is_copied_whatever_the_ratio() -> None:
    x = random_plane(3, 6, 2)
    out = poisoned(3, 6, 2, device=DEVICE)
    resize(x, out, Window.full(3, 6), mode="bilinear", ratio=(1 / 1.05, 1 / 1.05))
    assert torch.equal(out, x)


@settings(max_examples=20)
@given(st.data())
def test_random_sizes_and_windows(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(RESIZE_MODES))
    side = st.integers(1, 7)
    x = random_plane(data.draw(side), data.draw(side), data.draw(st.integers(1, 5)))
    factor = data.draw(st.integers(1, 5))
    size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    if mode == "aligned_bilinear":
        size = (factor * x.shape[0], factor * x.shape[1])
    check(mode, x, size, factor, windows=[data.draw(drawn_window(*size))])


def test_errors_say_what_fits() -> None:
    x, out, whole = random_plane(4, 4, 3), torch.zeros(8, 8, 3, device=DEVICE), Window.full(8, 8)
    with pytest.raises(InputError, match="choose one of nearest"):
        resize_launches(x, out, whole, mode="cubic")
    with pytest.raises(InputError, match="that many times as large"):
        resize_launches(x, out, whole, mode="aligned_bilinear", factor=3)
    with pytest.raises(InputError, match="that are finite"):
        resize_launches(x, out, whole, mode="nearest", ratio=(0.5, float("nan")))
    with pytest.raises(InputError, match="planes of one size"):
        resize_launches(x, out, whole, mode="nearest", ratio=(0.5, 0.5), addend=x)
    with pytest.raises(WindowError, match="not within"):
        resize_launches(x, out, Window(0, 9, 0, 1), mode="nearest", ratio=(0.5, 0.5))
