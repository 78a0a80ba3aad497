"""What ``tracenet teach`` does: a teacher's proposals on a dataset's photos as a file, as numbers and as pictures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tracenet import pictures
from tracenet.data import CocoDataset, ImageRecord
from tracenet.data.segmentation import decode, encode, parse_segmentation
from tracenet.files import check_target, save_pictures
from tracenet.sam_onnx import SamOnnxPredictor, SamOptions
from tracenet.training.teacher import TeacherSettings, annotated_masks, propose
from tracenet_kernels.errors import InputError

__all__ = ["TeacherSettings", "draw", "summary", "teach_files"]

COLOURS = ((255, 99, 71), (50, 205, 50), (255, 165, 0), (186, 85, 211), (0, 206, 209), (255, 105, 180), (154, 205, 50))


def teach_files(
    images: Path,
    annotations: Path,
    encoder: Path,
    decoder: Path,
    out: Path,
    settings: TeacherSettings,
    *,
    without: Path | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    threads: int = 2,
    figures: int = 0,
) -> dict[str, Any]:
    """:func:`tracenet.training.teacher.propose` from files to a file.

    Args:
        without: annotation json of photos that are left out, such as those held back for selection.
        limit: at most so many photos, evenly spread over ids.
        figures: also write pictures of so many photos, evenly spread, to the folder ``OUT_figures`` beside ``out``.

    Returns:
        ``out``, what was left out as ``skipped``, and the numbers of :func:`summary`.

    Raises:
        InputError, ImageError, CheckpointError, BackendError: a file is absent, damaged or not what it should be.
    """
    check_target(out)
    if (limit is not None and limit < 1) or figures < 0:
        raise InputError(f"a limit of {limit} photos and {figures} figures; give at least 1 photo, 0 figures")
    left_out = {record.id for record in CocoDataset(None, without)} if without is not None else set()
    dataset = CocoDataset(images, annotations, without=left_out, on_error="skip" if skip_bad else "raise")
    if limit is not None:
        dataset.records = _spread(dataset.records, limit)
    propose(dataset, SamOnnxPredictor(encoder, decoder, SamOptions(threads=threads)), settings, out)
    rows = json.loads(out.read_bytes())["annotations"]
    if figures:
        folder = out.with_name(f"{out.stem}_figures")
        folder.mkdir(exist_ok=True)
        for record in _spread(dataset.records, figures):
            own = [row for row in rows if row["image_id"] == record.id]
            save_pictures({folder / f"{record.path.stem}.jpg": draw(dataset, record, own)})
    return {"out": str(out), "skipped": [str(one) for one in dataset.problems], **summary(dataset, rows)}


def _spread(records: list[ImageRecord], count: int) -> list[ImageRecord]:
    count = min(count, len(records))
    return [records[i * len(records) // count] for i in range(count)]


def draw(dataset: CocoDataset, record: ImageRecord, proposals: list[dict[str, Any]]) -> Image.Image:
    """A photo with what is annotated in blue and the proposals, as the file has them, in other colours."""
    picture = dataset.image(record)
    for truth in annotated_masks(dataset, record):
        picture = pictures.overlay(picture, truth)
    for number, row in enumerate(proposals):
        mask, _ = parse_segmentation(row["segmentation"], record.height, record.width)
        colour = COLOURS[number % len(COLOURS)]
        picture = pictures.overlay(
            picture, decode(encode(mask, record.height, record.width)), [row["click"]], colour=colour
        )
    return picture


def summary(dataset: CocoDataset, proposals: list[dict[str, Any]]) -> dict[str, Any]:
    """How many proposals there are on how many photos, beside how many annotated objects, and how they spread."""
    per_image = Counter(row["image_id"] for row in proposals)
    return {
        "images": len(dataset),
        "annotated": sum(len(record.instances) for record in dataset),
        "proposals": len(proposals),
        "images_without_proposals": len(dataset) - len(per_image),
        "median_pixels": float(np.median([row["area"] for row in proposals])) if proposals else None,
        "mean_score": float(np.mean([row["score"] for row in proposals])) if proposals else None,
    }
