"""What the tests of the cell-wise Triton kernels share: planes, windows, and one check of a kernel on many windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.triton.planes import DevicePlane, Windows, interpreted
from tracenet_kernels.window import Window

DEVICE = "cpu" if interpreted() else "cuda"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Kernel = Callable[[DevicePlane, DevicePlane, Windows], None]
"""Computes windows of the second plane from the first."""


def random_plane(height: int, width: int, channels: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """[height, width, channels] normal values on the device."""
    values = torch.randn(height, width, channels, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).to(DEVICE)


def exact(plane: Tensor) -> Tensor:
    """The values as float64 on the CPU, as the twins take them."""
    return plane.double().cpu()


def windows_of(height: int, width: int) -> list[Window]:
    """The whole plane, two corners, an inner part, a row, nothing."""
    y, x = height // 2, width // 2
    return [
        Window.full(height, width),
        Window(0, 1, 0, 1),
        Window(height - 1, height, width - 1, width),
        Window(height // 3, max(height // 3 + 1, height - 1), width // 4, max(width // 4 + 1, width - 2)),
        Window(y, y + 1, 0, width),
        Window(y, y, x, x),
    ]


def part_of(plane: Tensor, window: Window, gap: int = 1) -> DevicePlane:
    """A plane of which only ``window`` is in memory; what lies around it there is poison."""
    height, width, channels = plane.shape
    rows, columns = max(1, window.height), max(1, window.width)
    buffer = poisoned(rows + 2, columns + 2, channels + gap, dtype=plane.dtype, device=plane.device)
    held = buffer[1:-1, 1:-1, :channels]
    y, x = min(window.y0, height - rows), min(window.x0, width - columns)
    if not window.is_empty:
        held.copy_(plane[window.slices])
    return DevicePlane(held, (height, width), (y, x))


def check_kernel(
    kernel: Kernel,
    x: Tensor,
    reference: Tensor,
    demand: Callable[[Window], Window],
    *,
    dtype: torch.dtype | None = None,
    windows: Sequence[Window] | None = None,
) -> None:
    """``kernel`` gives ``reference`` [H, W, C] on any window from what it demands, and the same bits each time."""
    height, width, channels = reference.shape
    dtype = dtype or x.dtype
    whole = poisoned(height, width, channels, dtype=dtype, device=x.device)
    kernel(DevicePlane(x, (x.shape[0], x.shape[1])), DevicePlane(whole, (height, width)), windows_on(whole))
    assert_close(whole, reference.to(whole.device), what="the whole plane")
    for window in windows_of(height, width)[1:] if windows is None else windows:
        out = poisoned(height, width, channels, dtype=dtype, device=x.device)
        source = part_of(x, Window(0, 0, 0, 0) if window.is_empty else demand(window))
        kernel(source, DevicePlane(out, (height, width)), Windows.of([window], x.device))
        assert_only_written(out, [window], axes=(0, 1))
        assert torch.equal(out[window.slices], whole[window.slices]), f"other bits on {window}"


def windows_on(out: Tensor) -> Windows:
    """All cells of ``out``, as two windows with one between them that is empty."""
    height, width, _ = out.shape
    cut = height // 2
    windows = [Window(0, cut, 0, width), Window(1, 1, 0, 0), Window(cut, height, 0, width)]
    return Windows.of(windows, out.device)


@st.composite
def drawn_window(draw: st.DrawFn, height: int, width: int) -> Window:
    """Any window of a plane that is not empty."""
    y0, x0 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Window(y0, draw(st.integers(y0 + 1, height)), x0, draw(st.integers(x0 + 1, width)))
