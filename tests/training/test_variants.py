"""Views and their cache: geometry against analytic masks, and the same numbers on every run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tracenet.data import CocoDataset
from tracenet.training.variants import MAX_AREA, FeatureCache, View, draw_view, render_image, render_mask, view_box


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


def rectangle() -> np.ndarray:
    mask = np.zeros((64, 96), bool)
    mask[16:48, 24:56] = True
    return mask


@pytest.mark.parametrize("flip", [False, True])
def test_image_mask_and_box_agree(flip: bool) -> None:
    view = View(crop=(8, 8, 72, 56), width=128, height=96, flip=flip)  # enlarged twice
    photo = Image.fromarray(np.repeat(rectangle()[:, :, None], 3, 2).astype(np.uint8) * 200)
    box, left = view_box(rectangle(), view)
    assert left == 1
    expected = [32, 16, 96, 80]  # x from (24 - 8) * 2 to (56 - 8) * 2, which mirrors onto itself
    assert box.tolist() == expected
    bright = np.asarray(render_image(photo, view))[:, :, 0] > 100
    coverage = render_mask(rectangle(), view)
    assert coverage.shape == (48, 64)
    ys, xs = np.nonzero(coverage >= 128)
    assert [2 * xs.min(), 2 * ys.min(), 2 * xs.max() + 2, 2 * ys.max() + 2] == expected
    ys, xs = np.nonzero(bright)
    assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == expected


def test_flip_mirrors_the_box() -> None:
    view = View(crop=(0, 0, 96, 64), width=96, height=64, flip=True)
    assert view_box(rectangle(), view)[0].tolist() == [40, 16, 72, 48]


def test_share_left_inside_a_crop() -> None:
    box, left = view_box(rectangle(), View(crop=(40, 0, 96, 64), width=56, height=64, flip=False))
    assert left == pytest.approx(0.5)
    assert box.tolist() == [0, 16, 16, 48]


@pytest.mark.parametrize("size", [(640, 480), (96, 64), (333, 1000), (4000, 10)])
def test_views_stay_on_the_photo_and_within_bounds(size: tuple[int, int]) -> None:
    width, height = size
    for seed in range(60):
        view = draw_view(width, height, np.random.default_rng(seed))
        x0, y0, x1, y1 = view.crop
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert view.width >= 1
        assert view.height >= 1
        assert view.width * view.height <= 1.02 * MAX_AREA * 640**2
        assert view == draw_view(width, height, np.random.default_rng(seed))


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
