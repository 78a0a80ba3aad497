"""The click tolerance of one object (the paper's figure 1b): where a click on it gives its mask, and how good a one.

python -m tracenet.evaluation.tolerance photo.jpg mask.png -o tolerance.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from scipy.ndimage import distance_transform_edt

from tracenet.data import deepest_interior_point
from tracenet.evaluation.charts import DPI, picture
from tracenet.evaluation.dense import Overlap, dense_points
from tracenet.evaluation.metrics import HIT
from tracenet.evaluation.protocol import Segment
from tracenet.evaluation.run import full_network_segment
from tracenet.files import check_picture_target, save_picture
from tracenet.image_io import load_image
from tracenet.models.weights import bundled_checkpoint, load_checkpoint
from tracenet_kernels.errors import InputError, TraceNetError

CLICKS = 1500
"""An object of more pixels is clicked on a grid of at most so many."""


@dataclass(frozen=True)
class ClickTolerance:
    """IoU of the mask that a click gives, over one object.

    Attributes:
        ious: float32 ``[H, W]`` at photo size; NaN outside the object, and between clicks that of the nearest.
        clicks: how many were made.
        step: pixels between them.
        share: of the clicks that give an IoU of at least 0.7: the object's own mTA.
    """

    ious: NDArray[np.float32]
    clicks: int
    step: int
    share: float


def click_tolerance(
    segment: Segment, photo: Image.Image, mask: NDArray[np.bool_], most: int = CLICKS
) -> ClickTolerance:
    """Click every pixel of ``mask`` [H, W], or a grid of at most ``most``.

    Raises:
        InputError: the mask is empty or of another size than the photo.
    """
    if mask.shape != (photo.height, photo.width):
        raise InputError(
            f"the mask is {mask.shape[::-1]} pixels, the photo {photo.size} (width, height); they must be the same"
        )
    if not mask.any():
        raise InputError("the mask is empty; it must hold the object's pixels")
    points, step = dense_points(mask, most)
    overlap = Overlap(mask)
    found = segment(photo, points.astype(np.float32))
    pairs = [overlap(one) for one, _, _ in track(found, "clicks", total=len(points), console=Console(stderr=True))]
    ious = np.array([intersection / union for intersection, union in pairs], np.float32)
    at = np.full(mask.shape, np.nan, np.float32)
    at[points[:, 1], points[:, 0]] = ious
    nearest = distance_transform_edt(np.isnan(at), return_distances=False, return_indices=True)
    return ClickTolerance(np.where(mask, at[tuple(nearest)], np.nan), len(points), step, float((ious >= HIT).mean()))


def tolerance_picture(photo: Image.Image, tolerance: ClickTolerance) -> Image.Image:
    """Where a click hits, over the photo; and beside it the IoU of every click. The cross is the deepest point."""
    mask = ~np.isnan(tolerance.ious)
    box = around(mask, photo.size)
    part = np.asarray(photo.convert("RGB").crop(box))
    ious = tolerance.ious[box[1] : box[3], box[0] : box[2]]
    inside = ~np.isnan(ious)
    width = 4.6
    height = min(max(width * part.shape[0] / part.shape[1], 2.0), 9.0)
    figure = Figure(figsize=(2 * width + 1.0, height + 0.5), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    hits = np.zeros((*inside.shape, 4))
    hits[inside & (ious >= HIT)] = (0.1, 0.8, 0.3, 0.55)
    hits[inside & (ious < HIT)] = (0.9, 0.15, 0.1, 0.45)
    for axes in (left, right):
        axes.imshow(part.mean(2), cmap="gray", vmin=-100, vmax=255)
    left.imshow(hits, interpolation="nearest")
    left.set_title(f"IoU ≥ {HIT} in green: {tolerance.share:.0%} of {_clicks(tolerance)}", fontsize=10)
    shown = right.imshow(ious, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    right.set_title(f"IoU of the mask, mean {np.nanmean(ious):.2f}", fontsize=10)
    figure.colorbar(shown, ax=right, fraction=0.04, pad=0.02)
    x, y = deepest_interior_point(mask)
    for axes in (left, right):
        axes.contour(inside, [0.5], colors="white", linewidths=1.0)
        axes.plot(x - box[0], y - box[1], "+", color="white", markersize=13, markeredgewidth=2.0)
        axes.set_axis_off()
    return picture(figure)


def _clicks(tolerance: ClickTolerance) -> str:
    return (
        f"{tolerance.clicks} pixels" if tolerance.step == 1 else f"{tolerance.clicks} clicks {tolerance.step} px apart"
    )


def around(mask: NDArray[np.bool_], size: tuple[int, int], margin: float = 0.25) -> tuple[int, int, int, int]:
    """Crop box (x0, y0, x1, y1) that shows the mask with a margin, within a photo of ``size`` (width, height)."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    reach = 8 + margin * max(xs[-1] - xs[0], ys[-1] - ys[0])
    low = (int(max(xs[0] - reach, 0)), int(max(ys[0] - reach, 0)))
    return (*low, int(min(xs[-1] + reach + 1, size[0])), int(min(ys[-1] + reach + 1, size[1])))


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A mask from a picture: bright pixels (above 127 of 255) are the object."""
    return np.asarray(load_image(path).convert("L")) > 127


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, help="photo")
    parser.add_argument("mask", type=Path, help="picture of the photo's size, white on the object")
    parser.add_argument("-o", "--output", type=Path, default=Path("tolerance.png"), help="picture to write")
    parser.add_argument("--checkpoint", type=Path, help="the bundled one by default")
    parser.add_argument("--clicks", type=int, default=CLICKS, help="at most so many, on a grid if need be")
    options = parser.parse_args(arguments)
    try:
        if options.clicks < 1:
            raise InputError(f"--clicks is {options.clicks}; give at least 1")
        check_picture_target(options.output)
        photo, mask = load_image(options.image), read_mask(options.mask)
        model, info = load_checkpoint(options.checkpoint or bundled_checkpoint())
        found = click_tolerance(full_network_segment(model, info.predictor), photo, mask, options.clicks)
        save_picture(tolerance_picture(photo, found), options.output)
    except TraceNetError as error:
        print(f"tolerance: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: IoU >= {HIT} for {found.share:.1%} of {_clicks(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
