"""Poolings on windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tracenet_kernels import reference
from tracenet_kernels.errors import InputError
from tracenet_kernels.ops.checks import Pair, WindowLike, check_plane, listed, pair, refuse_gradients, sliding_size
from tracenet_kernels.ops.registration import Family, Results, Size
from tracenet_kernels.triton.planes import DevicePlane, Windows

if TYPE_CHECKING:
    from tracenet_kernels.triton.launch import Launch


def max_pool2d(
    x: Tensor,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair = 0,
    dilation: Pair = 1,
    size: tuple[int, int] | None = None,
    window: WindowLike = None,
) -> Tensor:
    """``y[i, j, c] = max over k_y, k_x of x[i * s - p + d * k_y, j * s - p + d * k_x, c]`` on the plane; NaN wins.

    Args:
        x: [H, W, C] of fp32, fp16 or bf16; on a CPU also fp64.
        kernel, stride, padding, dilation: a number, or (y, x); padding before the first row and column.
        size: rows and columns of the whole result, for ``ceil_mode``; None:
            ``(n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1``.
        window: ``(y0, y1, x0, x1)`` on the whole result; None: all of it.

    Returns:
        [y1 - y0, x1 - x0, C], contiguous, of the dtype of ``x``. A cell without a tap on the plane is -inf.

    Raises:
        InputError: shapes, dtypes or attributes that do not fit, or an input that requires a gradient.
        WindowError: a window that is not on the result's plane.
        BackendError: CUDA tensors where no Triton kernel can run.
    """
    refuse_gradients("max_pool2d", x)
    return torch.ops.tracenet.max_pool2d(
        x, pair(kernel), pair(stride), pair(padding), pair(dilation), size, listed(window)
    )


def max_pool2d_out(
    out: Tensor,
    x: Tensor,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair = 0,
    dilation: Pair = 1,
    window: WindowLike = None,
    table: Tensor | None = None,
    bound: tuple[int, int] | None = None,
) -> None:
    """:func:`max_pool2d` in place: writes windows of ``out`` [H_out, W_out, C] and nothing else of it.

    ``out`` has the dtype of ``x``; ``window``, ``table`` and ``bound``: see :func:`tracenet_kernels.ops.conv2d_out`.
    """
    refuse_gradients("max_pool2d_out", out, x)
    torch.ops.tracenet.max_pool2d_out(
        out, x, pair(kernel), pair(stride), pair(padding), pair(dilation), listed(window), table, bound
    )


def avg_pool2d(
    x: Tensor,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair = 0,
    count_include_pad: bool = True,
    divisor: int = 0,
    size: tuple[int, int] | None = None,
    window: WindowLike = None,
) -> Tensor:
    """The mean of ``x[i * s - p + k_y, j * s - p + k_x, c]`` over the taps on the plane, summed in fp32.

    Args:
        x: [H, W, C] of fp32, fp16 or bf16; on a CPU also fp64.
        kernel, stride, padding: a number, or (y, x); padding before the first row and column.
        count_include_pad: divide by the taps on the plane and its padding, not only by those on the plane. Taps past
            the padding, which a larger ``size`` allows (``ceil_mode``), never count.
        divisor: divide by this instead, where it is not 0.
        size: rows and columns of the whole result; None: ``(n + 2 * padding - kernel) // stride + 1``.
        window: ``(y0, y1, x0, x1)`` on the whole result; None: all of it.

    Returns:
        [y1 - y0, x1 - x0, C], contiguous, of the dtype of ``x``.

    Raises:
        InputError: shapes, dtypes or attributes that do not fit, or an input that requires a gradient.
        WindowError: a window that is not on the result's plane.
        BackendError: CUDA tensors where no Triton kernel can run.
    """
    refuse_gradients("avg_pool2d", x)
    return torch.ops.tracenet.avg_pool2d(
        x, pair(kernel), pair(stride), pair(padding), count_include_pad, divisor, size, listed(window)
    )


def avg_pool2d_out(
    out: Tensor,
    x: Tensor,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair = 0,
    count_include_pad: bool = True,
    divisor: int = 0,
    window: WindowLike = None,
    table: Tensor | None = None,
    bound: tuple[int, int] | None = None,
) -> None:
    """:func:`avg_pool2d` in place: writes windows of ``out`` [H_out, W_out, C] and nothing else of it.

    ``window``, ``table`` and ``bound``: see :func:`tracenet_kernels.ops.conv2d_out`.
    """
    refuse_gradients("avg_pool2d_out", out, x)
    torch.ops.tracenet.avg_pool2d_out(
        out, x, pair(kernel), pair(stride), pair(padding), count_include_pad, divisor, listed(window), table, bound
    )


class _Maximum(NamedTuple):
    x: Tensor
    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]

    @property
    def geometry(self) -> dict[str, Any]:
        names = ("kernel", "stride", "padding", "dilation")
        return {name: (getattr(self, name)[0], getattr(self, name)[1]) for name in names}


def _maximum_results(a: _Maximum, size: Sequence[int] | None) -> Results:
    check_plane(a.x, "x")
    cells = sliding_size("max_pool2d", a.x.shape[:2], a.kernel, a.stride, a.padding, a.dilation, size)
    return Results(cells, (a.x.shape[2],), a.x.dtype)


def _maximum_twin(a: _Maximum, size: Size) -> list[Tensor]:
    return [reference.max_pool2d(a.x, size, **a.geometry)]


def _maximum_launches(a: _Maximum, outs: Sequence[DevicePlane], windows: Windows) -> list[Launch]:
    from tracenet_kernels.triton.pools import max_pool2d_launches

    return max_pool2d_launches(a.x, outs[0], windows, **a.geometry)


class _Mean(NamedTuple):
    x: Tensor
    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    count_include_pad: bool
    divisor: int

    @property
    def geometry(self) -> dict[str, Any]:
        names = ("kernel", "stride", "padding")
        return {name: (getattr(self, name)[0], getattr(self, name)[1]) for name in names}


def _mean_results(a: _Mean, size: Sequence[int] | None) -> Results:
    check_plane(a.x, "x")
    if a.divisor < 0:
        raise InputError(f"avg_pool2d with divisor {a.divisor}; pass a positive one, or 0 for the number of cells")
    cells = sliding_size("avg_pool2d", a.x.shape[:2], a.kernel, a.stride, a.padding, (1, 1), size)
    return Results(cells, (a.x.shape[2],), a.x.dtype)


def _mean_twin(a: _Mean, size: Size) -> list[Tensor]:
    return [reference.avg_pool2d(a.x, size, **a.geometry, count_include_pad=a.count_include_pad, divisor=a.divisor)]


def _mean_launches(a: _Mean, outs: Sequence[DevicePlane], windows: Windows) -> list[Launch]:
    from tracenet_kernels.triton.pools import avg_pool2d_launches

    return avg_pool2d_launches(
        a.x, outs[0], windows, **a.geometry, count_include_pad=a.count_include_pad, divisor=a.divisor
    )


Family(
    "max_pool2d",
    _Maximum,
    "Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation",
    _maximum_results,
    _maximum_twin,
    _maximum_launches,
).register()
Family(
    "avg_pool2d",
    _Mean,
    "Tensor x, int[] kernel, int[] stride, int[] padding, bool count_include_pad, int divisor",
    _mean_results,
    _mean_twin,
    _mean_launches,
).register()
