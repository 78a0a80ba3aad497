"""A mask at photo size from the logits of its window, resampling only the pixels that the window reaches.

Most windows are small beside the photo, and an evaluation makes hundreds of masks on each.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracenet.inference import HALF, OUTSIDE_LOGIT, Canvas
from tracenet_kernels.window import Window


def window_mask(logits: Tensor, window: Window, canvas: Canvas) -> NDArray[np.bool_]:
    """``photo_logits(logits, window, canvas) > 0`` of :mod:`tracenet.inference`: bool ``[photo_height, photo_width]``.

    Args:
        logits: ``[window.height, window.width]`` on the half-resolution plane.
    """
    mask = np.zeros((canvas.photo_height, canvas.photo_width), np.bool_)
    rows, low_y, high_y, weight_y = _reach(window.y0, window.y1, canvas.height, canvas.photo_height, canvas.scale_y)
    columns, low_x, high_x, weight_x = _reach(window.x0, window.x1, canvas.width, canvas.photo_width, canvas.scale_x)
    around = torch.nn.functional.pad(logits, (1, 1, 1, 1), value=OUTSIDE_LOGIT)
    part = torch.lerp(around[low_y], around[high_y], weight_y[:, None])  # [rows, window.width + 2]
    # index_select walks columns several times faster than indexing does.
    left, right = part.index_select(1, low_x), part.index_select(1, high_x)
    mask[rows, columns] = torch.lerp(left, right, weight_x[None]) > 0
    return mask


def _reach(start: int, stop: int, working: int, photo: int, scale: float) -> tuple[slice, Tensor, Tensor, Tensor]:
    """One axis: the photo's pixels between whose two samples one of ``start..stop`` is, and where they lie.

    Returns:
        The pixels; the sample before each and the one after it, counted from ``start - 1``; the second's weight.
    """
    last = math.ceil(working / HALF) - 1
    position = np.clip((np.arange(photo) + 0.5) * (scale / HALF) - 0.5, 0, last)
    low = np.floor(position).astype(np.int64)
    first, beyond = np.searchsorted(low, [start - 1, stop])  # positions never fall
    position, low = position[first:beyond], low[first:beyond]
    high = np.minimum(low + 1, last)
    before = start - 1
    weight = torch.from_numpy((position - low).astype(np.float32))
    return slice(first, beyond), torch.from_numpy(low - before), torch.from_numpy(high - before), weight
