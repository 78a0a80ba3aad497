"""The cache of backbone planes: computed once, the same numbers on every run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tracenet.data import CocoDataset
from tracenet.training.variants import FeatureCache


def make_dataset(folder: Path) -> CocoDataset:
    """One 96x64 image with a bright rectangle x 24..56, y 16..48."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[16:48, 24:56] = 200
    Image.fromarray(pixels).save(folder / "a.png")
    polygon = [[24, 16, 56, 16, 56, 48, 24, 48]]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 96, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "area": 1024, "segmentation": polygon}],
    }
    (folder / "a.json").write_text(json.dumps(data))
    return CocoDataset(folder, folder / "a.json")


def test_cache_computes_once_and_returns_the_same(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    calls = []

    def backbone(image: Image.Image) -> dict[str, Tensor]:
        calls.append(image.size)
        return {"C3": torch.from_numpy(np.array(image)).float().permute(2, 0, 1)[None]}

    cache = FeatureCache(tmp_path / "cache", backbone, seed=3, working_size=128)
    first = cache.get("d", dataset, dataset.records[0], 0)
    again = cache.get("d", dataset, dataset.records[0], 0)
    assert len(calls) == 1
    assert len(first.masks) == 1
    assert int(first.depth.max()) > 1
    for name in ("masks", "depth", "boxes"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert torch.equal(first.planes["C3"], again.planes["C3"])
    assert first.planes["C3"].dtype == torch.float16
    rebuilt = FeatureCache(tmp_path / "other", backbone, seed=3, working_size=128).get(
        "d", dataset, dataset.records[0], 0
    )
    assert torch.equal(rebuilt.planes["C3"], first.planes["C3"])
    assert not list((tmp_path / "cache").glob("*.tmp"))
