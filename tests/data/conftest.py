"""Small annotated photos, generated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tracenet.data import CocoDataset

MakeDataset = Callable[..., CocoDataset]


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    """A polygon whose mask is columns x0..x1 and rows y0..y1, half-open."""
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Datasets of noisy photos in which objects are bright rectangles; each in a folder of its own."""

    def make(
        name: str = "a", photos: int = 3, categories: tuple[str, ...] = ("cat", "dog"), **options: Any
    ) -> CocoDataset:
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(len(name))
        images, annotations = [], []
        for number in range(1, photos + 1):
            width, height = 120 + 10 * number, 90 + 6 * number
            pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
            for k, (x0, y0, x1, y1) in enumerate([(12, 10, 44, 50), (60, 30, 100, 80), (50, 8, 58, 16)]):
                pixels[y0:y1, x0:x1] = 120 + 60 * k // 2
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 3 + 4 * (k % len(categories)),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "segmentation": rectangle(x0, y0, x1, y1),
                    }
                )
            Image.fromarray(pixels).save(folder / f"{number}.png")
            images.append(
                {
                    "id": number,
                    "file_name": f"{number}.png",
                    "width": width,
                    "height": height,
                    "dataset": "odd" if number % 2 else "even",
                }
            )
        listed = [{"id": 3 + 4 * k, "name": category} for k, category in enumerate(categories)]
        data = {"images": images, "annotations": annotations, "categories": listed}
        (folder / "a.json").write_text(json.dumps(data))
        return CocoDataset(folder, folder / "a.json", **options)

    return make
