"""Instances of a COCO-style json: polygons, RLE, crowd flags; masks decoded on demand."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from tracenet.image_io import load_image
from tracenet_kernels.errors import ImageError, InputError

MIN_PIXELS = 16
"""Instances with fewer mask pixels are left out."""


@dataclass(frozen=True)
class Instance:
    """One object: its annotation id, category, COCO ``area`` in pixels and encoded segmentation."""

    id: int
    category_id: int
    area: float
    segmentation: Any


@dataclass(frozen=True)
class ImageRecord:
    """One image file with the instances annotated on it."""

    id: int
    path: Path
    width: int
    height: int
    instances: list[Instance] = field(default_factory=list)


class CocoDataset:
    """Images with at least one usable instance, in order of image id.

    Args:
        images: folder that holds the files named by ``file_name``.
        annotations: COCO json. ``iscrowd`` may be absent (taken as 0), ``area`` too (taken from the mask).
        only: image ids to keep; all by default.
        without: image ids to leave out.

    ``categories`` maps category ids to names (empty if the json lists none).

    Crowd regions are skipped. Instances of fewer than :data:`MIN_PIXELS` pixels are dropped when decoded.

    Raises:
        InputError: the json is unreadable or contradicts itself; the message names the file and the id.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        only: Collection[int] | None = None,
        without: Collection[int] = (),
    ) -> None:
        self.annotations = Path(annotations)
        data = _read_json(self.annotations)
        self.categories = {int(c["id"]): str(c.get("name", c["id"])) for c in data.get("categories", [])}
        records: dict[int, ImageRecord] = {}
        for entry in data["images"]:
            image_id, name, width, height = self._fields(entry, "image", ("id", "file_name", "width", "height"))
            if image_id in records:
                raise InputError(f"{self.annotations}: image id {image_id} occurs twice; ids must be unique")
            if int(width) < 1 or int(height) < 1:
                raise InputError(f"{self.annotations}: image {image_id} is stated as {width}x{height}")
            records[image_id] = ImageRecord(image_id, Path(images) / name, int(width), int(height))
        seen: set[int] = set()
        for entry in data["annotations"]:
            if entry.get("iscrowd"):
                continue
            number, image_id, category, shape = self._fields(
                entry, "annotation", ("id", "image_id", "category_id", "segmentation")
            )
            if number in seen:
                raise InputError(f"{self.annotations}: annotation id {number} occurs twice; ids must be unique")
            seen.add(number)
            if image_id not in records:
                raise InputError(f"{self.annotations}: annotation {number} is on image {image_id}, which is not listed")
            records[image_id].instances.append(Instance(number, category, float(entry.get("area", -1.0)), shape))
        self.records = [
            r
            for _, r in sorted(records.items())
            if r.instances and r.id not in without and (only is None or r.id in only)
        ]

    def _fields(self, entry: dict[str, Any], kind: str, names: tuple[str, ...]) -> tuple[Any, ...]:
        missing = [name for name in names if name not in entry]
        if missing:
            raise InputError(f"{self.annotations}: {kind} {entry.get('id', '(no id)')} has no {', '.join(missing)}")
        return tuple(entry[name] for name in names)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[ImageRecord]:
        return iter(self.records)

    def image(self, record: ImageRecord) -> Image.Image:
        """The photo as RGB, EXIF orientation applied.

        Raises:
            ImageError: the file is absent, unreadable, or of another size than the json states.
        """
        try:
            image = load_image(record.path)
        except ImageError as error:
            raise ImageError(f"image {record.id} of {self.annotations}: cannot read {record.path}: {error}") from error
        if image.size != (record.width, record.height):
            raise ImageError(
                f"{record.path} is {image.width}x{image.height} pixels, "
                f"but {self.annotations} states {record.width}x{record.height} for image {record.id}"
            )
        return image

    def mask(self, record: ImageRecord, instance: Instance) -> NDArray[np.bool_]:
        """Mask ``[height, width]`` of one instance: union of its polygons, or its (un)compressed RLE.

        Raises:
            InputError: the segmentation cannot be decoded or has another size than the image.
        """
        where = f"{self.annotations}: annotation {instance.id}"
        shape = instance.segmentation
        try:
            if isinstance(shape, list):
                encoded = rle.merge(rle.frPyObjects(shape, record.height, record.width))
            elif isinstance(shape["counts"], list):
                encoded = rle.frPyObjects(shape, record.height, record.width)
            else:
                encoded = shape
            mask = _decode(encoded)
        except Exception as error:  # pycocotools raises bare Exception
            raise InputError(f"{where} has a segmentation that cannot be decoded: {error}") from error
        if mask.shape != (record.height, record.width):
            raise InputError(
                f"{where} has a mask of {mask.shape[1]}x{mask.shape[0]} on an image of {record.width}x{record.height}"
            )
        return mask

    def masks(self, record: ImageRecord) -> list[tuple[Instance, NDArray[np.bool_]]]:
        """Every instance of at least :data:`MIN_PIXELS` pixels with its mask ``[height, width]``."""
        decoded = ((instance, self.mask(record, instance)) for instance in record.instances)
        return [(instance, mask) for instance, mask in decoded if int(mask.sum()) >= MIN_PIXELS]


def _decode(encoded: Any) -> NDArray[np.bool_]:
    with warnings.catch_warnings():
        # pycocotools' arrays do not know the copy keyword that NumPy 2 asks for.
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword", DeprecationWarning)
        return rle.decode(encoded).astype(bool)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read annotations {path}: {error}") from error
    missing = [key for key in ("images", "annotations") if not isinstance(data, dict) or key not in data]
    if missing:
        raise InputError(f"{path} has no {' and no '.join(missing)}; expected a COCO json")
    return data
