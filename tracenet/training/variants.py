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
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tracenet.data.augment import (
    MIN_SAMPLES,
    MIN_VISIBLE,
    Augmentation,
    View,
    draw_view,
    render_image,
    render_mask,
    view_box,
)
from tracenet.data.clicks import interior_depth
from tracenet.data.coco import CocoDataset, ImageRecord
from tracenet.inference import HALF


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


class FeatureCache:
    """Samples on disk; what is missing is computed with ``backbone`` and kept.

    Args:
        folder: one safetensors file per view is written here, atomically.
        backbone: RGB image -> planes by name, stored as fp16.
        seed: views are drawn from (seed, image id, number).
        working_size, crop_probability: ``working_sizes`` and ``crop`` of :class:`tracenet.data.augment.Augmentation`.
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
        self.augmentation = Augmentation(working_sizes=(working_size,), crop=crop_probability)

    def get(self, name: str, dataset: CocoDataset, record: ImageRecord, number: int) -> Sample:
        """View ``number`` of ``record``; ``name`` tells datasets apart in the cache."""
        path = self.folder / f"{name}_{record.id}_{number}.safetensors"
        if not path.exists():
            rng = np.random.default_rng([self.seed, record.id, number])
            view = draw_view(record.width, record.height, rng, self.augmentation)
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
