"""What the operations check of their arguments, before any kernel and while they are traced.

Sizes may be symbolic: each is compared on its own and never turned into a Python integer, so that one graph serves
all sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tracenet_kernels.errors import InputError, WindowError

HALVES = (torch.float16, torch.bfloat16)
ACTIVATIONS = ("none", "relu")

Pair = int | tuple[int, int]
WindowLike = Sequence[int] | None
"""``(y0, y1, x0, x1)``, such as a :class:`tracenet_kernels.Window`; None: the whole plane."""


def pair(value: Pair) -> list[int]:
    """``[y, x]``; one number stands for both."""
    return [value, value] if isinstance(value, int) else list(value)


def listed(window: WindowLike) -> list[int] | None:
    """The window as a plain list: what captures calls knows no classes of ours."""
    return None if window is None else list(window)


def refuse_gradients(name: str, *tensors: Tensor | None) -> None:
    """Raises InputError where a gradient of an operation without one would be recorded."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                raise InputError(
                    f"{name} has no gradient, and an input requires one; call it under torch.no_grad(), or detach "
                    "the inputs"
                )


def check_plane(value: Tensor, name: str, like: Tensor | None = None) -> None:
    """Raises InputError where ``value`` is no plane of real numbers, or not of the dtype and device of ``like``."""
    if value.ndim != 3 or 0 in value.shape:
        raise InputError(f"{name} has shape {tuple(value.shape)}; pass [rows, columns, channels], none of them 0")
    check_real(value, name)
    if value.stride(2) != 1 or any(stride < 1 for stride in value.stride()):
        raise InputError(
            f"{name} has strides {value.stride()}; channels must be contiguous: pass x.contiguous() of [H, W, C], "
            "or images.movedim(1, -1)[0] of a channels_last batch"
        )
    if like is not None:
        check_like(value, name, like)


def check_real(value: Tensor, name: str) -> None:
    """Raises InputError where ``value`` has a dtype without a kernel."""
    doubles = value.dtype == torch.float64 and value.device.type == "cpu"
    if value.dtype not in (torch.float32, *HALVES) and not doubles:
        raise InputError(f"{name} holds {value.dtype}; pass float32, float16 or bfloat16 (on a CPU also float64)")


def check_like(value: Tensor, name: str, like: Tensor) -> None:
    """Raises InputError where ``value`` has another dtype or device than ``like``, the first input."""
    if value.dtype != like.dtype or value.device != like.device:
        raise InputError(
            f"{name} holds {value.dtype} on {value.device}; pass {like.dtype} on {like.device}, as the first input has"
        )


def check_out(value: Tensor, name: str, like: Tensor, channels: int) -> None:
    """Raises InputError where ``value`` cannot take ``channels`` channels that are computed from ``like``."""
    check_plane(value, name)
    if value.device != like.device:
        raise InputError(f"{name} is on {value.device}, the first input on {like.device}; move them to one device")
    if value.shape[2] != channels:
        raise InputError(f"{name} has {value.shape[2]} channels; pass {channels}")


def check_weight(value: Tensor, name: str, like: Tensor, channels: int, groups: int = 1) -> None:
    """Raises InputError where ``value`` is no weight of a convolution of ``channels`` input channels."""
    if value.ndim != 4 or 0 in value.shape:
        raise InputError(f"{name} has shape {tuple(value.shape)}; pass [out, in / groups, kernel_y, kernel_x]")
    check_like(value, name, like)
    if groups < 1 or value.shape[0] % groups:
        raise InputError(f"{name}: {value.shape[0]} output channels do not divide into {groups} groups")
    if value.shape[1] * groups != channels:
        raise InputError(f"{name} takes {value.shape[1] * groups} channels; it is given {channels}")


def check_vector(value: Tensor | None, name: str, like: Tensor, length: int) -> None:
    """Raises InputError where ``value`` is not fp32 [length] (or fp64 beside fp64 planes) on the device of ``like``."""
    if value is None:
        return
    dtypes = (torch.float32, torch.float64) if like.dtype == torch.float64 else (torch.float32,)
    fits = value.dtype in dtypes and value.ndim == 1 and value.shape[0] == length and value.is_contiguous()
    if not fits or value.device != like.device:
        raise InputError(
            f"{name} is {value.dtype} {tuple(value.shape)} on {value.device}; pass contiguous float32 [{length}] on "
            f"{like.device}"
        )


def check_activation(value: str) -> None:
    """Raises InputError where there is no such activation."""
    if value not in ACTIVATIONS:
        raise InputError(f"activation {value!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")


def sliding_size(
    name: str,
    cells: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int] | None,
) -> tuple[int, int]:
    """``size``, or what both axes of ``cells`` give: ``(n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1``.

    Raises:
        InputError: attributes that no sliding window has, or a result without a cell.
    """
    attributes = (kernel, stride, padding, dilation)
    if any(len(value) != 2 for value in attributes):
        raise InputError(
            f"{name} with kernel, stride, padding, dilation {attributes}; pass a number or (y, x) for each"
        )
    if min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
        raise InputError(
            f"{name} with kernel {list(kernel)}, stride {list(stride)}, padding {list(padding)}, dilation "
            f"{list(dilation)}; pass kernel, stride and dilation >= 1 and padding >= 0"
        )
    if size is not None:
        return checked_size(name, size)
    sides = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(cells, kernel, stride, padding, dilation, strict=True)
    ]
    if any(side < 1 for side in sides):
        raise InputError(
            f"{name} with kernel {list(kernel)}, padding {list(padding)}, dilation {list(dilation)} has no cell on a "
            f"plane of {cells[0]} x {cells[1]}; pass a larger plane or more padding"
        )
    return sides[0], sides[1]


def checked_size(name: str, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a result.

    Raises:
        InputError: not two positive numbers.
    """
    if len(size) != 2 or any(side < 1 for side in size):
        raise InputError(f"{name} with a result of size {list(size)}; pass (rows, columns), both >= 1")
    return size[0], size[1]


def checked_window(window: Sequence[int] | None, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """``window``, or the whole plane of ``size``.

    Raises:
        WindowError: not four numbers, an end before its start, or cells that are not on the plane.
    """
    rows, columns = size
    if window is None:
        return 0, rows, 0, columns
    if len(window) != 4:
        raise WindowError(f"window {tuple(window)}; pass (y0, y1, x0, x1)")
    y0, y1, x0, x1 = window
    if not (0 <= y0 <= y1 <= rows and 0 <= x0 <= x1 <= columns):
        raise WindowError(
            f"window [{y0}, {y1}) x [{x0}, {x1}) is not on the result's plane of {rows} x {columns} cells; pass "
            "(y0, y1, x0, x1) with 0 <= y0 <= y1 <= rows and 0 <= x0 <= x1 <= columns"
        )
    return y0, y1, x0, x1


def check_table(table: Tensor, bound: Sequence[int] | None, device: torch.device) -> None:
    """Raises InputError where ``table`` is no table of windows on ``device``, or ``bound`` not two positive numbers."""
    if table.dtype != torch.int32 or table.ndim != 2 or table.shape[1] != 4 or not table.is_contiguous():
        raise InputError(f"the window table is {table.dtype} {tuple(table.shape)}; pass contiguous int32 [n, 4]")
    if table.shape[0] < 1 or table.device != device:
        raise InputError(
            f"the window table is {tuple(table.shape)} on {table.device}; pass at least one row on {device}"
        )
    if bound is not None and (len(bound) != 2 or any(side < 1 for side in bound)):
        raise InputError(f"bound {list(bound)}; pass the rows and columns that no window of the table exceeds")
