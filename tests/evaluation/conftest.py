"""A tiny network and a tiny dataset to evaluate it on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tracenet.data import CocoDataset
from tracenet.models import TraceNet, create_model


@pytest.fixture(scope="module")
def model() -> TraceNet:
    torch.manual_seed(0)
    model = create_model("tracenet_r50_fpn", channels=16, level_head=True)
    with torch.no_grad():
        assert model.heads.theta is not None
        model.heads.theta.bias.normal_()
        model.heads.reg.bias.fill_(3.0)
    return model


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    """Two photos: one usable object on each, a crowd and a speck."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, (h, w) in (("a.png", (70, 90)), ("b.png", (60, 40))):
        Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).save(folder / name)
    box = [[10, 10, 30, 10, 30, 40, 10, 40]]
    data = {
        "categories": [{"id": 1, "name": "box"}],
        "images": [
            {"id": 1, "file_name": "a.png", "width": 90, "height": 70},
            {"id": 2, "file_name": "b.png", "width": 40, "height": 60},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 600, "segmentation": box},
            {"id": 2, "image_id": 1, "category_id": 1, "iscrowd": 1, "area": 600, "segmentation": box},
            {"id": 3, "image_id": 2, "category_id": 1, "area": 1024, "segmentation": box},
            {"id": 4, "image_id": 2, "category_id": 1, "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]},
        ],
    }
    (folder / "a.json").write_text(json.dumps(data))
    return CocoDataset(folder, folder / "a.json")
