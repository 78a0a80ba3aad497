"""What the tests of the C++ kernels share: random planes, windows, and one check of a kernel on many windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from tracenet_kernels.arrays import Plane
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.window import Window

Kernel = Callable[[Plane, Plane, Window], None]
"""Computes a window of the second plane from the first."""


def random_plane(height: int, width: int, channels: int, seed: int = 0) -> Tensor:
    """[height, width, channels] normal floats."""
    return torch.randn(height, width, channels, generator=torch.Generator().manual_seed(seed))


def images(plane: Tensor) -> Tensor:
    """[H, W, C] -> [1, C, H, W], as torch's own operations take it."""
    return plane.movedim(-1, 0)[None]


def planes(batch: Tensor) -> Tensor:
    """[1, C, H, W] -> [H, W, C]."""
    return batch[0].movedim(0, -1)


def windows_of(height: int, width: int) -> list[Window]:
    """The whole plane, single cells in all corners and inside, single rows and columns, an inner part, nothing."""
    y, x = height // 2, width // 2
    corners = [Window(r, r + 1, c, c + 1) for r in {0, y, height - 1} for c in {0, x, width - 1}]
    return [
        Window.full(height, width),
        *corners,
        Window(y, y + 1, 0, width),
        Window(0, height, x, x + 1),
        Window(height // 3, max(height // 3 + 1, height - 1), width // 4, max(width // 4 + 1, width - 2)),
        Window(y, y, x, x),
    ]


def part_of(array: np.ndarray, window: Window) -> Plane:
    """A plane of which only ``window`` is in memory, as a copy without slack around it."""
    return Plane(array[window.slices].copy(), window, array.shape[:2])


def check_kernel(
    kernel: Kernel,
    x: Tensor,
    reference: Tensor,
    demand: Callable[[Window], Window],
    windows: Iterable[Window] | None = None,
) -> None:
    """A kernel gives the reference on the whole plane, and the same bits on any window.

    Args:
        kernel: the call under test.
        x: [H, W, C], the input's whole plane.
        reference: [H', W', C'] in float64.
        demand: which window of the input a window of the output needs: all the kernel gets.
        windows: of the output; :func:`windows_of` by default.
    """
    height, width, _ = reference.shape
    array = x.numpy()
    full = poisoned(*reference.shape)
    kernel(Plane(array, Window.full(*array.shape[:2]), array.shape[:2]), _whole(full), Window.full(height, width))
    assert_close(full, reference, what="the whole plane")
    for window in windows_of(height, width) if windows is None else windows:
        out = poisoned(*reference.shape)
        kernel(part_of(array, demand(window)), _whole(out), window)
        if not full.isnan().any():
            assert_only_written(out, [window], axes=(0, 1))
        torch.testing.assert_close(
            out[window.slices], full[window.slices], rtol=0, atol=0, equal_nan=True, msg=f"{window} differs in bits"
        )


def _whole(out: Tensor) -> Plane:
    height, width, _ = out.shape
    return Plane(out.numpy(), Window.full(height, width), (height, width))


@st.composite
def drawn_window(draw: st.DrawFn, height: int, width: int) -> Window:
    """A window on a plane, empty ones and single cells included."""
    y = sorted(draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    x = sorted(draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    return Window(y[0], y[1], x[0], x[1])
