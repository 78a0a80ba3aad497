"""Augmented views of annotated images, and a disk cache of what the frozen backbone makes of them.

A view is fixed by (seed, image, number), so a cache can be thrown away and rebuilt bit for bit.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from safetensors.torch import load_file, save_file
from torch import Tensor

from tracenet.data.clicks import interior_depth
from tracenet.data.coco import CocoDataset, ImageRecord
from tracenet.inference import HALF

MAX_AREA = 0.88
"""Largest view, in units of the squared working size: bounds the time and memory of a step."""
MIN_SAMPLES = 4
"""Objects with fewer half-resolution samples left inside the view are not trained on."""
MIN_VISIBLE = 0.3
"""Objects of which less than this share of the box is left inside the view are not trained on."""


@dataclass(frozen=True)
class View:
    """Crop ``(x0, y0, x1, y1)`` of the photo, enlarged to ``width x height``, mirrored if ``flip``."""

    crop: tuple[float, float, float, float]
    width: int
    height: int
    flip: bool
    brightness: float = 1.0
    contrast: float = 1.0
    colour: float = 1.0


@dataclass
class Sample:
    """One view as the trainer sees it.

    ``planes``: cached backbone outputs by name, ``[1, c, h, w]``; ``masks`` ``[n, H/2, W/2]`` uint8 coverage 0-255
    of the un-padded view; ``depth`` of the same shape, uint8: distance to the mask's edge in samples, at most 255,
    0 outside; ``boxes`` ``[n, 4]`` (x0, y0, x1, y1) in view pixels.
    """

    planes: dict[str, Tensor]
    masks: Tensor
    depth: Tensor
    boxes: Tensor


def draw_view(
    width: int, height: int, rng: np.random.Generator, working_size: int = 640, crop_probability: float = 0.6
) -> View:
    """Random view of a ``width x height`` photo: the whole photo at some size, or a crop of it enlarged.

    Whole photos get a longest side of 0.7 to 1.15 working sizes; crops are enlarged so that the whole photo would
    measure 0.8 to 2 working sizes.
    """
    longest = max(width, height)
    if rng.random() < crop_probability:
        scale = working_size / longest * math.exp(rng.uniform(math.log(0.8), math.log(2.0)))
    else:
        scale = working_size * rng.uniform(0.7, 1.15) / longest
    w, h = width * scale, height * scale
    shrink = min(1.0, math.sqrt(MAX_AREA * working_size**2 / (w * h)))
    # Cutting both sides alike keeps the photo's aspect; limits leave room for a different one.
    aspect = math.exp(rng.uniform(-0.25, 0.25)) if shrink < 1 else 1.0
    out_w = min(w, max(64.0, w * shrink * aspect))
    out_h = min(h, max(64.0, w * h * shrink**2 / out_w))
    out_w, out_h = float(round(out_w)), float(round(out_h))
    x0 = rng.uniform(0, max(0.0, w - out_w)) / scale
    y0 = rng.uniform(0, max(0.0, h - out_h)) / scale
    crop = (x0, y0, min(x0 + out_w / scale, width), min(y0 + out_h / scale, height))
    flip = bool(rng.random() < 0.5)
    jitter = (1.0, 1.0, 1.0)
    if rng.random() < 0.6:
        a, b, c = rng.uniform(0.7, 1.3, 3)
        jitter = (float(a), float(b), float(c))
    return View(crop, int(out_w), int(out_h), flip, *jitter)


def render_image(photo: Image.Image, view: View) -> Image.Image:
    """The view's pixels, RGB ``width x height``."""
    image = photo.resize((view.width, view.height), Image.Resampling.BILINEAR, box=view.crop)
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance, factor in (
        (ImageEnhance.Brightness, view.brightness),
        (ImageEnhance.Contrast, view.contrast),
        (ImageEnhance.Color, view.colour),
    ):
        if factor != 1.0:
            image = enhance(image).enhance(factor)
    return image


def render_mask(mask: np.ndarray, view: View) -> np.ndarray:
    """Coverage 0-255 of ``mask`` [H, W] at half the view's resolution: uint8 ``[ceil(height/2), ceil(width/2)]``."""
    size = (math.ceil(view.width / HALF), math.ceil(view.height / HALF))
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    out = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=view.crop))
    return out[:, ::-1] if view.flip else out


def view_box(mask: np.ndarray, view: View) -> tuple[np.ndarray, float]:
    """Box of ``mask`` in view pixels, clipped to the view, and the share of its area that is left."""
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    x0, y0, x1, y1 = view.crop
    sx, sy = view.width / (x1 - x0), view.height / (y1 - y0)
    full = np.array([(xs[0] - x0) * sx, (ys[0] - y0) * sy, (xs[-1] + 1 - x0) * sx, (ys[-1] + 1 - y0) * sy])
    if view.flip:
        full[[0, 2]] = view.width - full[[2, 0]]
    box = full.clip(0, [view.width, view.height] * 2)
    left = (box[2] - box[0]) * (box[3] - box[1]) / ((full[2] - full[0]) * (full[3] - full[1]))
    return box.astype(np.float32), float(left)


class FeatureCache:
    """Samples on disk; what is missing is computed with ``backbone`` and kept.

    Args:
        folder: one safetensors file per view is written here, atomically.
        backbone: RGB image -> planes by name, stored as fp16.
        seed: views are drawn from (seed, image id, number).
        working_size, crop_probability: see :func:`draw_view`.
    """

    def __init__(
        self,
        folder: str | Path,
        backbone: Callable[[Image.Image], dict[str, Tensor]],
        seed: int,
        working_size: int = 640,
        crop_probability: float = 0.6,
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.backbone = backbone
        self.seed = seed
        self.working_size = working_size
        self.crop_probability = crop_probability

    def get(self, name: str, dataset: CocoDataset, record: ImageRecord, number: int) -> Sample:
        """View ``number`` of ``record``; ``name`` tells datasets apart in the cache."""
        path = self.folder / f"{name}_{record.id}_{number}.safetensors"
        if not path.exists():
            rng = np.random.default_rng([self.seed, record.id, number])
            view = draw_view(record.width, record.height, rng, self.working_size, self.crop_probability)
            sample = self._make(dataset, record, view)
            tensors = {f"plane.{k}": v for k, v in sample.planes.items()}
            tensors.update(masks=sample.masks, depth=sample.depth, boxes=sample.boxes)
            partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
            save_file({k: v.contiguous() for k, v in tensors.items()}, partial)
            os.replace(partial, path)
            return sample
        tensors = load_file(path)
        planes = {k.removeprefix("plane."): v for k, v in tensors.items() if k.startswith("plane.")}
        return Sample(planes, tensors["masks"], tensors["depth"], tensors["boxes"])

    def _make(self, dataset: CocoDataset, record: ImageRecord, view: View) -> Sample:
        planes = {k: v.half() for k, v in self.backbone(render_image(dataset.image(record), view)).items()}
        masks, depths, boxes = [], [], []
        for _, mask in dataset.masks(record):
            box, left = view_box(mask, view)
            if left < MIN_VISIBLE:
                continue
            coverage = render_mask(mask, view)
            if int((coverage >= 128).sum()) < MIN_SAMPLES:
                continue
            masks.append(torch.from_numpy(coverage.copy()))
            depths.append(torch.from_numpy(np.ceil(interior_depth(coverage >= 128)).clip(0, 255).astype(np.uint8)))
            boxes.append(torch.from_numpy(box))
        if not masks:
            empty = torch.zeros(0, math.ceil(view.height / HALF), math.ceil(view.width / HALF), dtype=torch.uint8)
            return Sample(planes, empty, empty.clone(), torch.zeros(0, 4))
        return Sample(planes, torch.stack(masks), torch.stack(depths), torch.stack(boxes))
