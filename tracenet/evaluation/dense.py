"""Dense clicks on one object, and how well the masks they give overlap it. NumPy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracenet_kernels.errors import InputError


def dense_points(mask: NDArray[np.bool_], most: int) -> tuple[NDArray[np.int64], int]:
    """At most ``most`` evenly spaced pixels ``[N, 2]`` (x, y) of ``mask`` [H, W], and their spacing.

    The spacing is the smallest at which they fit; of its grids the one that hits the mask most often is taken.
    """
    ys, xs = np.nonzero(mask)
    step = 1
    while True:
        grids = ys % step * step + xs % step
        counts = np.bincount(grids, minlength=step * step)
        if counts.max() <= most:
            on = grids == counts.argmax()
            return np.stack([xs[on], ys[on]], 1), step
        step += 1


class Overlap:
    """Pixels of intersection and union of masks ``[H, W]`` with one true mask; only its bounding box is compared."""

    def __init__(self, truth: NDArray[np.bool_]) -> None:
        rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
        self._box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        self._truth = truth[self._box].copy()
        self._shape = truth.shape
        self.pixels = int(np.count_nonzero(truth))

    def __call__(self, mask: NDArray[np.bool_]) -> tuple[int, int]:
        if mask.shape != self._shape or mask.dtype != np.bool_:
            raise InputError(
                f"the model gave a mask of shape {mask.shape} and {mask.dtype}; the photo asks for booleans of shape "
                f"{self._shape}"
            )
        intersection = int(np.count_nonzero(mask[self._box] & self._truth))
        return intersection, self.pixels + int(np.count_nonzero(mask)) - intersection
