"""Where a person would click: points of an object's mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from tracenet_kernels.errors import InputError


def interior_depth(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Euclidean distance of every pixel of ``mask`` [H, W] to the nearest pixel outside it; 0 outside.

    The mask is padded with zeros first, so the image border counts as outside.
    """
    if mask.ndim != 2:
        raise InputError(f"mask has shape {mask.shape}; pass [H, W]")
    return distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1].astype(np.float32)


def deepest_interior_point(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Pixel ``(x, y)`` deepest inside ``mask`` [H, W]: the first maximum of :func:`interior_depth` in row order.

    Raises:
        InputError: the mask is empty or not two-dimensional.
    """
    if not mask.any():
        raise InputError(f"mask of shape {mask.shape} is empty; a click needs at least one pixel")
    y, x = divmod(int(interior_depth(mask).argmax()), mask.shape[1])
    return x, y
