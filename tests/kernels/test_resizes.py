"""Resizes on windows against torch and against the tracer's own taps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.planes import check_kernel, drawn_window, images, part_of, planes, random_plane
from tracenet.rft.rules import resize as rules
from tracenet_kernels import native, reference, window_ops
from tracenet_kernels.arrays import Plane
from tracenet_kernels.errors import InputError
from tracenet_kernels.testing import poisoned
from tracenet_kernels.window import Window

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())

MODES = window_ops.RESIZE_MODES


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


def torch_resize(x: torch.Tensor, mode: str, size: tuple[int, int], factor: int) -> torch.Tensor:
    """[H, W, C] -> [H', W', C] in float64."""
    batch = images(x).double()
    if mode == "aligned_bilinear":
        return planes(reference.aligned_bilinear(batch, factor))
    if mode == "nearest":
        return planes(F.interpolate(batch, size=size, mode="nearest"))
    return planes(F.interpolate(batch, size=size, mode="bilinear", align_corners=mode.endswith("corners")))


def check(mode: str, x: torch.Tensor, size: tuple[int, int], factor: int = 1, windows=None) -> None:
    height, width, _ = x.shape
    rows, columns = taps_of(mode, height, size[0], factor), taps_of(mode, width, size[1], factor)
    ratio = (ratio_of(mode, height, size[0]), ratio_of(mode, width, size[1]))

    def call(source: Plane, out: Plane, window: Window) -> None:
        window_ops.resize(source, out, window, mode=mode, ratio=ratio, factor=factor)

    def demand(window: Window) -> Window:
        return Window(*rows.demand(window.y0, window.y1), *columns.demand(window.x0, window.x1))

    check_kernel(call, x, torch_resize(x, mode, size, factor), demand, windows)


@pytest.mark.parametrize("channels", [1, 7, 16, 33])
@pytest.mark.parametrize("size", [(14, 22), (7, 11), (9, 30), (3, 4), (1, 1), (20, 11)])
@pytest.mark.parametrize("mode", MODES[:3])
def test_any_size(mode: str, size: tuple[int, int], channels: int) -> None:
    check(mode, random_plane(7, 11, channels), size)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("channels", [1, 6, 20])
def test_aligned_bilinear(factor: int, channels: int) -> None:
    check("aligned_bilinear", random_plane(5, 6, channels), (5 * factor, 6 * factor), factor)
    check("aligned_bilinear", random_plane(1, 1, channels), (factor, factor), factor)


@given(st.data())
def test_random_sizes_and_windows(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(MODES))
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    factor = data.draw(st.integers(1, 5))
    size = (factor * height, factor * width)
    if mode != "aligned_bilinear":
        size = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)))
    x = random_plane(height, width, data.draw(st.integers(1, 20)), seed=data.draw(st.integers(0, 1000)))
    check(mode, x, size, factor, [data.draw(drawn_window(*size))])


def test_nearest_takes_the_cells_torch_takes_in_float32() -> None:
    # 1 / 0.3 is no float32: the index depends on the arithmetic.
    x = torch.arange(100.0).view(1, 100, 1)
    want = F.interpolate(images(x), scale_factor=(1.0, 0.3), mode="nearest")
    out = poisoned(*planes(want).shape)
    window_ops.resize(x, out, mode="nearest", ratio=(1.0, float(np.float32(1.0 / 0.3))))
    assert torch.equal(out, planes(want))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [5, 32])
def test_addend(mode: str, channels: int) -> None:
    x, extra = random_plane(4, 5, channels), random_plane(8, 10, channels, seed=1)
    ratio = (ratio_of(mode, 4, 8), ratio_of(mode, 5, 10))
    plain, out = poisoned(8, 10, channels), poisoned(8, 10, channels)
    window_ops.resize(x, plain, mode=mode, ratio=ratio, factor=2)
    window_ops.resize(x, out, Window(1, 7, 0, 9), mode=mode, ratio=ratio, factor=2, addend=extra)
    assert torch.equal(out[1:7, :9], (plain + extra)[1:7, :9])
    assert out[0].isnan().all() and out[7].isnan().all() and out[:, 9].isnan().all()
    in_place = extra.clone()
    window_ops.resize(x, in_place, mode=mode, ratio=ratio, factor=2, addend=in_place)
    assert torch.equal(in_place, plain + extra)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "cubic"}, "choose one of"),
        ({"ratio": (float("nan"), 1.0)}, "ratio >= 0"),
        ({"ratio": (1.0, -1.0)}, "ratio >= 0"),
        ({"ratio": (1.0, float("inf"))}, "ratio >= 0"),
        ({"mode": "aligned_bilinear", "factor": 3}, "that many times as large"),
        ({"mode": "aligned_bilinear", "factor": 0}, "factor >= 1"),
        ({"mode": "aligned_bilinear", "factor": 2**62}, "factor >= 1"),
        ({"x": np.zeros((0, 3, 2), np.float32)}, "sides of 1"),
        ({"addend": np.zeros((8, 5, 2), np.float32)}, "planes of one size"),
        ({"addend": np.zeros((8, 6, 3), np.float32)}, "3 channels"),
        ({"x": part_of(np.zeros((4, 3, 2), np.float32), Window(0, 2, 0, 3))}, "compute more of it first"),
    ],
)
def test_bad_calls_write_nothing(change, message: str) -> None:
    out = np.full((8, 6, 2), np.nan, np.float32)
    call = {"x": np.zeros((4, 3, 2), np.float32), "out": out, "mode": "bilinear", "ratio": (0.5, 0.5), "factor": 2}
    call |= change
    with pytest.raises(InputError, match=message):
        window_ops.resize(**call)
    assert np.isnan(out).all()
