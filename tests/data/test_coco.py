"""Reading COCO json: every way to write a mask, and every way to get a file wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from tracenet.data import CocoDataset
from tracenet_kernels.errors import ImageError, InputError


def square() -> np.ndarray:
    mask = np.zeros((20, 30), bool)
    mask[5:15, 4:16] = True
    return mask


def content() -> dict[str, Any]:
    compressed = rle.encode(np.asfortranarray(square().astype(np.uint8)))
    compressed["counts"] = compressed["counts"].decode()
    flat = square().flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    polygon = [[4, 5, 16, 5, 16, 15, 4, 15]]
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 30, "height": 20},
            {"id": 3, "file_name": "empty.png", "width": 30, "height": 20},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 120, "segmentation": compressed},
            {"id": 2, "image_id": 7, "category_id": 1, "segmentation": {"size": [20, 30], "counts": counts}},
            {"id": 4, "image_id": 7, "category_id": 2, "iscrowd": 0, "area": 120, "segmentation": polygon},
            {"id": 5, "image_id": 7, "category_id": 2, "iscrowd": 1, "area": 120, "segmentation": compressed},
            {"id": 6, "image_id": 7, "category_id": 2, "area": 9, "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]},
        ],
    }


def write(folder: Path, data: dict[str, Any]) -> CocoDataset:
    (folder / "a.json").write_text(json.dumps(data))
    return CocoDataset(folder, folder / "a.json")


def test_polygon_and_both_rle_decode_alike(tmp_path: Path) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    dataset = write(tmp_path, content())
    assert [r.id for r in dataset] == [7]  # images without instances are left out
    (record,) = dataset.records
    masks = dataset.masks(record)
    assert [instance.id for instance, _ in masks] == [1, 2, 4]  # no crowd, nothing below 16 pixels
    for _, mask in masks:
        assert np.array_equal(mask, square())
    assert record.instances[1].area == -1
    assert dataset.image(record).mode == "RGB"


def test_images_can_be_chosen_or_left_out(tmp_path: Path) -> None:
    write(tmp_path, content())
    assert len(CocoDataset(tmp_path, tmp_path / "a.json", only=[3])) == 0
    assert len(CocoDataset(tmp_path, tmp_path / "a.json", without=[7])) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("images"), "has no images"),
        (lambda d: d["images"].append(dict(d["images"][0])), "image id 7 occurs twice"),
        (lambda d: d["annotations"].append(dict(d["annotations"][0])), "annotation id 1 occurs twice"),
        (lambda d: d["annotations"][0].update(image_id=99), "annotation 1 is on image 99"),
        (lambda d: d["annotations"][0].pop("segmentation"), "annotation 1 has no segmentation"),
        (lambda d: d["images"][0].pop("width"), "image 7 has no width"),
        (lambda d: d["images"][0].update(width=0), "image 7 is stated as 0x20"),
    ],
)
def test_broken_json_names_file_and_id(tmp_path: Path, change: Any, message: str) -> None:
    data = copy.deepcopy(content())
    change(data)
    with pytest.raises(InputError, match=message) as caught:
        write(tmp_path, data)
    assert "a.json" in str(caught.value)


def test_unreadable_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="cannot read annotations"):
        CocoDataset(tmp_path, tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot read annotations"):
        CocoDataset(tmp_path, tmp_path / "absent.json")


@pytest.mark.parametrize("segmentation", [[], [[1, 2]], {"size": [20, 30]}, "x", {"size": [5, 5], "counts": [25]}])
def test_masks_that_cannot_be_decoded(tmp_path: Path, segmentation: Any) -> None:
    data = content()
    data["annotations"] = [{**data["annotations"][0], "segmentation": segmentation}]
    dataset = write(tmp_path, data)
    with pytest.raises(InputError, match="annotation 1"):
        dataset.masks(dataset.records[0])


def test_images_absent_truncated_or_of_another_size(tmp_path: Path) -> None:
    dataset = write(tmp_path, content())
    (record,) = dataset.records
    with pytest.raises(ImageError, match="image 7"):
        dataset.image(record)
    record.path.write_bytes(b"not an image")
    with pytest.raises(ImageError, match="cannot read"):
        dataset.image(record)
    Image.new("RGB", (31, 20)).save(record.path)
    with pytest.raises(ImageError, match="31x20"):
        dataset.image(record)
