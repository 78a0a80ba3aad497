"""Where a person would click: points of an object's mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from tracenet.inference import HALF
from tracenet_kernels.errors import InputError

WHERE = ("mixed", "inside", "centre")
"""Where training clicks fall, see :func:`training_clicks`."""


def interior_depth(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Euclidean distance of every pixel of ``mask`` [H, W] to the nearest pixel outside it; 0 outside.

    The mask is padded with zeros first, so the image border counts as outside.
    """
    if mask.ndim != 2:
        raise InputError(f"mask has shape {mask.shape}; pass [H, W]")
    depth = np.zeros(mask.shape, np.float32)
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(ys):
        # The nearest outside pixel of a pixel in the mask's box is never beyond the ring around that box.
        box = slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1)
        depth[box] = distance_transform_edt(np.pad(mask[box], 1))[1:-1, 1:-1]
    return depth


def deepest_interior_point(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Pixel ``(x, y)`` deepest inside ``mask`` [H, W]: the first maximum of :func:`interior_depth` in row order.

    Raises:
        InputError: the mask is empty or not two-dimensional.
    """
    if not mask.any():
        raise InputError(f"mask of shape {mask.shape} is empty; a click needs at least one pixel")
    y, x = divmod(int(interior_depth(mask).argmax()), mask.shape[1])
    return x, y


BANDS = 5
CLICKS_PER_BAND = 5


@dataclass(frozen=True)
class BandClicks:
    """Simulated clicks on one object.

    Attributes:
        points: ``[K, 2]`` int64 pixels (x, y), all inside the mask.
        bands: ``[K]`` int64, the band 0..4 of each click, innermost first.
        areas: ``[5]`` int64 pixels of each band; they add up to the mask's.
    """

    points: NDArray[np.int64]
    bands: NDArray[np.int64]
    areas: NDArray[np.int64]


def band_kernel(extent: int) -> int:
    """Side of the dilation kernel for a bounding box side: a fifth of it, made odd, at least 3."""
    return max(3, extent // BANDS | 1)


def click_bands(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Band 0..4 of every pixel of ``mask`` [H, W], -1 outside (paper, section IV-B).

    ``D_k`` is the centre-of-mass pixel dilated k times by a rectangle of ``band_kernel`` of the bounding box's sides,
    that is a rectangle too. Band k is the mask inside ``D_k`` but not ``D_{k-1}``; the last band is the rest of it.
    The centre of mass is rounded half up; it may lie outside the mask, and inner bands may be empty.

    Raises:
        InputError: the mask is empty or not two-dimensional.
    """
    if mask.ndim != 2 or not mask.any():
        raise InputError(f"mask of shape {mask.shape} has no pixels; pass [H, W] with at least one")
    ys, xs = np.nonzero(mask)
    rings = []
    for positions in (ys, xs):
        centre = int(np.floor(positions.mean() + 0.5))
        reach = band_kernel(int(positions.max() - positions.min()) + 1) // 2
        # Dilated k times, the pixel reaches k * reach cells to each side.
        rings.append(np.maximum(-(-np.abs(positions - centre) // reach), 1))
    bands = np.full(mask.shape, -1, np.int64)
    bands[ys, xs] = np.minimum(np.maximum(*rings), BANDS) - 1
    return bands


def simulate_clicks(mask: NDArray[np.bool_], rng: np.random.Generator, per_band: int = CLICKS_PER_BAND) -> BandClicks:
    """``per_band`` clicks in each band of ``mask`` [H, W], uniformly without replacement.

    A band of fewer than ``per_band`` pixels is drawn from with replacement; an empty band gives no clicks.

    Raises:
        InputError: the mask is empty or not two-dimensional, or ``per_band`` is below 1.
    """
    if per_band < 1:
        raise InputError(f"{per_band} clicks per band; at least one is needed")
    bands = click_bands(mask)
    points, numbers, areas = [], [], []
    for band in range(BANDS):
        ys, xs = np.nonzero(bands == band)
        areas.append(len(ys))
        if len(ys):
            chosen = rng.choice(len(ys), per_band, replace=len(ys) < per_band)
            points.append(np.stack([xs[chosen], ys[chosen]], 1))
            numbers.append(np.full(per_band, band))
    return BandClicks(np.concatenate(points), np.concatenate(numbers), np.array(areas))


def training_clicks(
    masks: Tensor,
    depth: Tensor,
    rng: np.random.Generator,
    count: int,
    extra: int = 0,
    per_instance: int = 3,
    where: str = "mixed",
) -> tuple[Tensor, Tensor, int]:
    """Clicks on the objects of one view; every object gets one before any gets another.

    Args:
        masks: ``[n, h, w]`` uint8 coverage at half the view's resolution, each with a sample of at least 128.
        depth: ``[n, h, w]`` uint8 distance to the mask's edge, see :class:`tracenet.data.samples.TrainingSample`.
        rng: drawn from.
        count: clicks that are asked for.
        extra: further clicks, for what is cheaper to learn from.
        per_instance: at most this many of the first kind on one object, and of the others in proportion.
        where: ``"inside"`` anywhere in the mask, ``"centre"`` where it is at least half as deep as at its deepest,
            ``"mixed"`` either, each as likely.

    Returns:
        instance ``[N]`` int64, clicks ``[N, 2]`` float32 (x, y) in view pixels, and how many of them, the first, are
        of the first kind.

    Raises:
        InputError: no object, or an option outside its range.
    """
    if where not in WHERE:
        raise InputError(f"clicks where={where!r}; use one of {WHERE}")
    if not len(masks) or count < 1 or extra < 0 or per_instance < 1:
        raise InputError(
            f"{count} and {extra} clicks, {per_instance} per object, on {len(masks)} objects; there must be an object, "
            "and at least one click on it"
        )
    rounds = math.ceil(per_instance * (count + extra) / count)
    order = np.concatenate([rng.permutation(len(masks)) for _ in range(rounds)])
    chosen = order[: count + extra].astype(np.int64)
    clicks = np.empty((len(chosen), 2), np.float32)
    for i, instance in enumerate(chosen):
        inside = masks[instance].numpy() >= 128
        if where == "centre" or (where == "mixed" and rng.random() < 0.5):
            deep = depth[instance].numpy()
            inside &= deep >= (deep.max() + 1) // 2
        ys, xs = np.nonzero(inside)
        k = rng.integers(len(ys))
        clicks[i] = HALF * (xs[k] + rng.random()), HALF * (ys[k] + rng.random())
    return torch.from_numpy(chosen), torch.from_numpy(clicks), min(count, per_instance * len(masks))
