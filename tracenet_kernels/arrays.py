"""Planes as the kernels take them: NumPy arrays or CPU tensors, [rows, columns, channels], and where they lie.

An array holds a plane or part of one; its *extent* says which part. Memory is shared, never copied.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.window import Window

Array = NDArray[Any] | Tensor
"""What the kernels accept. A tensor must be strided, on the CPU and must not require gradients."""


class Plane(NamedTuple):
    """Part of a plane in memory.

    Attributes:
        array: [rows, columns, channels] of the extent.
        extent: which cells of the plane the array holds.
        size: height and width of the whole plane: where padding begins.
    """

    array: NDArray[Any]
    extent: Window
    size: tuple[int, int]


def as_array(value: Any, name: str, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """``value`` as a NumPy array over the same memory.

    Raises:
        InputError: it is no array, holds another dtype, or its memory cannot be shared.
    """
    if isinstance(value, Tensor):
        if value.device.type != "cpu" or value.layout != torch.strided:
            raise InputError(f"{name} is a {value.layout} tensor on {value.device}; pass a strided one on the CPU")
        if value.requires_grad:
            raise InputError(f"{name} requires gradients, which these kernels do not compute; pass {name}.detach()")
        try:
            value = value.numpy()
        except (TypeError, RuntimeError) as error:  # bfloat16, conjugated or negated views
            raise InputError(f"{name} is a {value.dtype} tensor that NumPy cannot share ({error})") from error
    if not isinstance(value, np.ndarray):
        raise InputError(f"{name} is {type(value).__name__}; pass a NumPy array or a CPU tensor")
    if value.dtype != np.dtype(dtype):
        raise InputError(f"{name} holds {value.dtype}; pass {np.dtype(dtype)}")
    return value


def as_plane(
    value: Any,
    name: str,
    *,
    extent: Window | None = None,
    plane: tuple[int, int] | None = None,
    dtype: DTypeLike = np.float32,
) -> Plane:
    """``value`` as the kernels' :class:`Plane`.

    Args:
        value: [rows, columns, channels]; the channels of a pixel contiguous, pixels and rows any distance apart. Or a
            :class:`Plane`, which says itself what it holds.
        name: how to call it in messages.
        extent: the cells it holds; by default those from (0, 0).
        plane: height and width of the whole plane; by default the array ends where the plane does.
        dtype: what it must hold.

    Raises:
        InputError: not an array of that dtype with three axes.
        WindowError: the extent does not lie on the plane or is not of the array's size.
    """
    if isinstance(value, Plane):
        if extent is not None or plane is not None:
            raise InputError(f"{name} is a Plane and has an extent already; pass an array, or no extent and no plane")
        value, extent, plane = value
    array = as_array(value, name, dtype)
    if array.ndim != 3:
        raise InputError(f"{name} has shape {array.shape}; pass [rows, columns, channels], without a batch axis")
    rows, columns, _ = array.shape
    extent = Window.full(rows, columns) if extent is None else Window(*extent)
    height, width = (extent.y1, extent.x1) if plane is None else plane
    if (extent.height, extent.width) != (rows, columns):
        raise WindowError(f"{name} has {rows} rows and {columns} columns, but its extent {extent} has other sides")
    if not Window.full(height, width).contains(extent) and not extent.is_empty:
        raise WindowError(f"the extent {extent} of {name} does not lie on its plane of {height} x {width}")
    return Plane(array, extent, (height, width))
