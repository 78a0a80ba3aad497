"""Augmented views on disk with what the frozen backbone makes of them.

A view is fixed by (seed, image, number, scales), so a cache can be thrown away and rebuilt bit for bit.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tracenet.data import CocoDataset, ImageRecord
from tracenet.data.augment import Augmentation
from tracenet.data.samples import TrainingSample, make_samples
from tracenet_kernels.errors import InputError

_TENSORS = ("masks", "depth", "boxes", "categories", "proposal", "weight")


@dataclass(frozen=True)
class CachedView:
    """One view: its sample without the pixels, and backbone planes by name, ``[1, c, h, w]`` fp16."""

    sample: TrainingSample
    planes: dict[str, Tensor]


class FeatureCache:
    """Views with their planes; what is missing is computed and kept.

    Args:
        folder: one safetensors file per view is written here, atomically.
        backbone: uint8 RGB ``[H, W, 3]`` -> planes by name, stored as fp16.
        seed: views are drawn from (seed, image id, number).
        augmentation: what may happen to a photo.
    """

    def __init__(
        self,
        folder: str | Path,
        backbone: Callable[[Tensor], dict[str, Tensor]],
        seed: int,
        augmentation: Augmentation,
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.backbone, self.seed, self.augmentation = backbone, seed, augmentation

    def get(
        self, name: str, dataset: CocoDataset, record: ImageRecord, number: int, scales: Sequence[float] = (1.0,)
    ) -> list[CachedView]:
        """View ``number`` of ``record`` at each of ``scales``; ``name`` tells datasets apart in the cache."""
        tag = "".join(f"_x{scale:g}" for scale in scales if scale != 1)
        paths = [self.folder / f"{name}_{record.id}_{number}{tag}_{i}.safetensors" for i in range(len(scales))]
        if all(path.exists() for path in paths):
            return [self._read(path, record.id, name) for path in paths]
        rng = np.random.default_rng([self.seed, record.id, number])
        partner = None
        if self.augmentation.copy_paste > 0:
            partner = (dataset, dataset.records[rng.integers(len(dataset))])
        samples = make_samples(dataset, record, rng, self.augmentation, scales, partner, source=name)
        views = []
        for sample, path in zip(samples, paths, strict=True):
            planes = {k: v.half() for k, v in self.backbone(sample.image).items()}
            view = CachedView(sample, planes)
            self._write(view, path)
            views.append(view)
        return views

    def _write(self, view: CachedView, path: Path) -> None:
        tensors = {f"plane.{k}": v.contiguous() for k, v in view.planes.items()}
        tensors.update({k: getattr(view.sample, k).contiguous() for k in _TENSORS})
        tensors["scale"] = torch.tensor(view.sample.scale, dtype=torch.float64)
        # Several threads may make the same view; whole-file writing by rename lets the last one win.
        partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            save_file(tensors, partial)
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise InputError(
                f"{path} cannot be written ({error}); make room, or lower [[data]] views of {view.sample.source}"
            ) from error

    def _read(self, path: Path, image_id: int, source: str) -> CachedView:
        with safe_open(path, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        planes = {k.removeprefix("plane."): v for k, v in tensors.items() if k.startswith("plane.")}
        nothing = torch.zeros(0, dtype=torch.uint8)
        sample = TrainingSample(
            image=nothing,
            **{k: tensors[k] for k in _TENSORS},
            crowd=nothing,
            scale=float(tensors["scale"]),
            image_id=image_id,
            source=source,
        )
        return CachedView(sample, planes)
