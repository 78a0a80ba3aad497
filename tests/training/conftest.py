"""A tiny dataset, a tiny network and a configuration to train it with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tracenet.models import TraceNet, TraceNetConfig
from tracenet.training.config import TrainConfig, build

CHANNELS = 16


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of four photos, 64x64: a bright square on dark noise each, with ``a.json``."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(4):
        pixels = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        x, y = (int(v) for v in rng.integers(4, 28, 2))
        pixels[y : y + 32, x : x + 32] += 150
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        polygon = [[x, y, x + 32, y, x + 32, y + 32, x, y + 32]]
        box = {"bbox": [x, y, 32, 32], "area": 1024}
        annotations.append({"id": i, "image_id": i, "category_id": 1 + i % 2, **box, "segmentation": polygon})
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-50 with random weights, as a file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "b.safetensors"
    save_file(TraceNet(TraceNetConfig(channels=CHANNELS)).backbone.state_dict(), path)
    return path


@pytest.fixture
def configured(photos: Path, backbone: Path) -> Callable[..., TrainConfig]:
    """Function of tables (``run={"steps": 3}``) that gives a small configuration for both tasks."""

    def make(task: str, **tables: dict[str, Any]) -> TrainConfig:
        base: dict[str, Any] = {
            "run": {"task": task, "steps": 4, "images_per_step": 2, "workers": 0, "log_every": 1, "seed": 3},
            "model": {"channels": CHANNELS, "level_head": True, "tower_norm": "bn_per_level"},
            "init": {"backbone": str(backbone)},
            "augmentation": {"working_sizes": [128], "crop": 0.0, "whole_scale": [1.0, 1.0]},
            "clicks": {"per_image": 4, "level_only": 2},
            "optimizer": {"name": "adamw", "lr": 2e-3, "frozen_stages": 4, "backbone_factor": 0.1, "clip": 2.0},
            "schedule": {"shape": "cosine", "warmup": 2},
            "norm": {"kind": "renorm" if task == "cached" else "batch"},
            "predictor": {"working_size": 128},
        }
        if task == "cached":
            base["run"]["workers"] = 2
            base["optimizer"]["backbone_factor"] = 0.0
        data = [{"images": str(photos), "annotations": str(photos / "a.json"), "views": 2}]
        for name, table in tables.items():
            if name == "data":
                data = [{**data[0], **table}]
            else:
                base[name] = {**base.get(name, {}), **table}
        return build(TrainConfig, {**base, "data": data}, "")

    return make
