"""One object's segmentation as a COCO json writes it: polygons or run lengths, checked before they are decoded.

pycocotools decodes run lengths that do not fill the mask into whatever memory holds, and asks for gigabytes where a
polygon leaves the image far behind; what it is given here was checked.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from tracenet_kernels.errors import InputError

Segmentation = tuple[NDArray[np.float64], ...] | dict[str, Any]
"""Polygons, each ``x0, y0, x1, y1, ...`` in pixels, or ``{"size": [H, W], "counts": bytes}``."""
Box = tuple[float, float, float, float]
"""``(x0, y0, x1, y1)`` in pixels of the photo, half-open."""


def parse_segmentation(raw: Any, height: int, width: int) -> tuple[Segmentation, Box]:
    """Check the ``segmentation`` of an annotation on an image of ``height x width`` pixels.

    Returns:
        The segmentation as :func:`encode` takes it, and the box around it.

    Raises:
        InputError: it cannot be decoded, is empty, or belongs to an image of another size. The message starts with
            "has", so that the caller can put the annotation's name in front of it.
    """
    if isinstance(raw, list):
        return _parse_polygons(raw, height, width)
    if isinstance(raw, dict):
        return _parse_rle(raw, height, width)
    raise InputError(f"has a segmentation of type {type(raw).__name__}; expected a list of polygons or an RLE")


def _parse_polygons(raw: list[Any], height: int, width: int) -> tuple[Segmentation, Box]:
    if not raw:
        raise InputError("has an empty segmentation; expected at least one polygon")
    polygons = []
    for number, polygon in enumerate(raw):
        if not isinstance(polygon, list):
            raise InputError(f"has a {type(polygon).__name__} as polygon {number}; expected a list of numbers")
        if len(polygon) < 6 or len(polygon) % 2:
            raise InputError(f"has {len(polygon)} numbers in polygon {number}; expected pairs, at least three of them")
        try:
            finite = math.isfinite(sum(polygon))
        except TypeError:
            raise InputError(f"has something else than numbers in polygon {number}") from None
        if not finite:
            raise InputError(f"has NaN or infinite coordinates in polygon {number}")
        polygons.append(np.array(polygon, np.float64))
    # Built-in min and max are several times faster than NumPy's on the raw lists, which have a few dozen numbers.
    x0, x1 = min(min(p[0::2]) for p in raw), max(max(p[0::2]) for p in raw)
    y0, y1 = min(min(p[1::2]) for p in raw), max(max(p[1::2]) for p in raw)
    if x0 < -width or y0 < -height or x1 > 2 * width or y1 > 2 * height:
        raise InputError(
            f"has polygons over x {x0:g} to {x1:g}, y {y0:g} to {y1:g}, far outside its image of {width}x{height}"
        )
    return tuple(polygons), (float(x0), float(y0), float(x1), float(y1))


def _parse_rle(raw: dict[str, Any], height: int, width: int) -> tuple[Segmentation, Box]:
    missing = [name for name in ("size", "counts") if name not in raw]
    if missing:
        raise InputError(f"has a segmentation without {' and '.join(missing)}; expected size and counts")
    size, counts = raw["size"], raw["counts"]
    if size != [height, width]:
        raise InputError(f"has a mask of size {size} (height, width) on an image of width {width} and height {height}")
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    if isinstance(counts, bytes):
        runs = _run_lengths(counts)
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = np.array(counts, np.int64)
    else:
        raise InputError("has counts that are neither a string nor a list of integers")
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise InputError(f"has runs that cover {int(runs.sum())} pixels of a mask of {height * width}")
    if isinstance(counts, list):
        encoded = rle.frPyObjects({"size": size, "counts": counts}, height, width)
    else:
        encoded = {"size": size, "counts": counts}
    x, y, w, h = (float(v) for v in rle.toBbox(encoded))
    return encoded, (x, y, x + w, y + h)


def _run_lengths(counts: bytes) -> NDArray[np.int64]:
    """Runs of a compressed RLE: 5 bits a character, lowest first, sign in the last; from the fourth run on, each is
    the difference to the run before the previous one."""
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not len(ends) or ends[-1] != len(codes) - 1:
        raise InputError("has a compressed RLE that is empty, cut short or damaged")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise InputError("has a compressed RLE with runs beyond any image")
    place = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << place, starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << 5 * lengths, 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def encode(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of a parsed segmentation: the union of its polygons."""
    if isinstance(segmentation, dict):
        return segmentation
    return rle.merge(rle.frPyObjects(list(segmentation), height, width))


def decode(encoded: dict[str, Any]) -> NDArray[np.bool_]:
    """Mask ``[H, W]`` of a compressed RLE."""
    with warnings.catch_warnings():
        # pycocotools' arrays do not know the copy keyword that NumPy 2 asks for.
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword", DeprecationWarning)
        return rle.decode(encoded).astype(bool)
