"""Windows of a resized photo, without resizing the rest of it: the same bytes as Pillow's bilinear resize of the whole.

Pillow's own ``box`` argument cannot give them: it is kept in single precision, and where scales are not whole numbers
the window would lie a little beside the whole photo's grid. Which axis Pillow resizes first depends on its version and
on the sizes, and rounding to 8 bits in between shows it; here it is always the width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tracenet_kernels.errors import WindowError
from tracenet_kernels.window import Window

_WEIGHT_BITS = 22
"""Fraction bits of Pillow's weights for 8-bit channels."""
WHOLE_SHARE = 4
"""A window of more than one part in so many of the resized photo is cut from the whole, which is then kept."""


class ResizedPhoto:
    """An RGB photo as it would be at ``width x height``, made where it is looked at.

    Small windows are resampled alone; the first large one has Pillow resize everything, in 8 bits, once. Both give the
    same bytes.

    Args:
        photo: RGB.
        width, height: of the resized photo.
        whole: all of it, where it was made already (by whatever rule).
    """

    def __init__(self, photo: Image.Image, width: int, height: int, whole: Image.Image | None = None) -> None:
        self.photo = photo
        self.width = width
        self.height = height
        self._whole = whole

    def window(self, window: Window) -> NDArray[np.uint8]:
        """Pixels ``[window.height, window.width, 3]``.

        Raises:
            WindowError: the window reaches past the resized photo.
        """
        if not Window.full(self.height, self.width).contains(window):
            raise WindowError(f"{window} reaches past the resized photo of {self.height} rows, {self.width} columns")
        if self._whole is None and WHOLE_SHARE * window.area > self.width * self.height:
            self._whole = resize_whole(self.photo, self.width, self.height)
        if self._whole is not None:
            return np.array(self._whole.crop((window.x0, window.y0, window.x1, window.y1)))
        return resize_window(self.photo, self.width, self.height, window)

    def whole(self) -> NDArray[np.uint8]:
        """All pixels ``[height, width, 3]``."""
        if self._whole is None:
            self._whole = resize_whole(self.photo, self.width, self.height)
        return np.asarray(self._whole)


def resize_whole(photo: Image.Image, width: int, height: int) -> Image.Image:
    """Pillow's bilinear resize, the width first and then the height."""
    return photo.resize((width, photo.height), Image.Resampling.BILINEAR).resize(
        (width, height), Image.Resampling.BILINEAR
    )


def resize_window(photo: Image.Image, width: int, height: int, window: Window) -> NDArray[np.uint8]:
    """``window`` of :func:`resize_whole`, byte for byte, from the pixels it reads only.

    Output ``i`` of an axis of ``n`` photo pixels resized to ``m`` is centred at ``(i + 0.5) * n/m``
    and weights the pixel centres within ``max(n/m, 1)`` by a triangle; weights are rounded to 22 bits of fraction and
    each pass to 8 bits.

    Args:
        photo: RGB.
        width, height: of the whole resized photo.
        window: rows and columns of it.

    Returns:
        ``[window.height, window.width, 3]``.
    """
    if window.is_empty:
        return np.zeros((window.height, window.width, 3), np.uint8)
    first_x, weights_x = _taps(photo.width, width, window.x0, window.x1)
    first_y, weights_y = _taps(photo.height, height, window.y0, window.y1)
    # Outputs move to the right monotonously, so the first and the last bound what is read.
    x0, x1 = int(first_x[0]), min(int(first_x[-1]) + weights_x.shape[1], photo.width)
    y0, y1 = int(first_y[0]), min(int(first_y[-1]) + weights_y.shape[1], photo.height)
    source = np.asarray(photo.crop((x0, y0, x1, y1)))  # [rows, columns, 3]
    rows = _weigh(source.transpose(1, 0, 2), first_x - x0, weights_x)  # [window.width, rows, 3]
    return _weigh(rows.transpose(1, 0, 2), first_y - y0, weights_y)


def _taps(size: int, resized: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """First pixel ``[n]`` and weights ``[n, taps]`` of the outputs ``start..stop``; spare taps weigh 0."""
    scale = size / resized
    reach = max(scale, 1.0)
    centre = (np.arange(start, stop) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), size)
    taps = int((last - first).max())
    at = first[:, None] + np.arange(taps)
    weights = np.maximum(1.0 - np.abs((at - centre[:, None] + 0.5) * (1.0 / reach)), 0.0)
    weights[at >= last[:, None]] = 0.0
    total = np.zeros(len(first))
    for tap in range(taps):  # in Pillow's order of adding; numpy's own sum pairs them up
        total += weights[:, tap]
    weights /= total[:, None]
    return first, (0.5 + weights * (1 << _WEIGHT_BITS)).astype(np.int32)


def _weigh(source: NDArray[np.uint8], first: NDArray[np.int64], weights: NDArray[np.int32]) -> NDArray[np.uint8]:
    """``out[i] = round(sum_t weights[i, t] * source[first[i] + t])`` along the first axis."""
    total = np.full((len(first), *source.shape[1:]), 1 << (_WEIGHT_BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        at = np.minimum(first + tap, len(source) - 1)
        total += source[at].astype(np.int32) * weights[:, tap, None, None]
    return np.clip(total >> _WEIGHT_BITS, 0, 255).astype(np.uint8)
