"""Masks that another one-click model proposes on annotated photos: more objects to learn from than people drew.

The teacher is clicked on a grid where no annotation lies. Its masks are kept when it is sure of them (predicted IoU),
when they hardly change with the threshold (stability), when they are one piece under the click and of a sensible size,
and when they lie beside, not on, what is annotated; of masks that overlap one another the best is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from rich.console import Console
from rich.progress import track
from scipy.ndimage import label

from tracenet.data import CocoDataset, ImageRecord
from tracenet.files import check_target, save_json
from tracenet.partial import PartialRows
from tracenet.sam_onnx import STABILITY_OFFSET, stability_scores
from tracenet_kernels.errors import ImageError, InputError


class Teacher(Protocol):
    """A one-click model as :class:`tracenet.sam_onnx.SamOnnxPredictor` is one.

    ``decode`` takes ``(B, 1, 2)`` clicks and gives logits ``[B, C, h, w]`` and predicted IoU ``[B, C]``; ``resize``
    brings logits ``[..., h, w]`` to photo size. ``fingerprint`` changes with everything that changes the answers.
    """

    @property
    def fingerprint(self) -> str: ...
    @property
    def prompts_at_once(self) -> int: ...
    def set_image(self, image: Any) -> None: ...
    def decode(self, point_coords: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
    def resize(self, logits: NDArray[np.float32]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class TeacherSettings:
    """Where the teacher is clicked and which of its masks are kept.

    Attributes:
        grid: clicks along the photo's longer side, evenly spaced; the shorter side has as many as fit.
        skip_true: do not click on annotated objects and crowds.
        skip_covered: do not click on a mask that was already kept on this photo.
        predicted_iou: least IoU that the teacher predicts for its mask.
        stability: least IoU of the mask at logit thresholds ``+stability_offset`` and ``-stability_offset``.
        stability_offset: in logits.
        min_area, max_area: shares of the photo's pixels; a mask has at least ``min_pixels`` too.
        min_pixels: of a mask.
        max_sides: how many of the photo's four sides a mask may touch: walls, floors and skies touch several.
        one_piece: least share of the mask that hangs together with the clicked pixel.
        nms_iou: of two masks whose IoU is greater, the one of the lower score is dropped.
        true_iou: greatest IoU with any annotated object or crowd.
        true_inside: greatest share of the mask that lies inside annotated objects and crowds together.
    """

    grid: int = 6
    skip_true: bool = True
    skip_covered: bool = True
    predicted_iou: float = 0.95
    stability: float = 0.9
    stability_offset: float = STABILITY_OFFSET
    min_area: float = 0.001
    max_area: float = 0.25
    min_pixels: int = 100
    max_sides: int = 1
    one_piece: float = 0.9
    nms_iou: float = 0.5
    true_iou: float = 0.1
    true_inside: float = 0.2

    def __post_init__(self) -> None:
        if self.grid < 1 or self.min_pixels < 1 or self.max_sides < 0 or not self.stability_offset > 0:
            raise InputError(
                f"grid {self.grid}, min_pixels {self.min_pixels}, max_sides {self.max_sides}, stability_offset "
                f"{self.stability_offset}: each must be positive, max_sides at least 0"
            )
        shares = (
            "predicted_iou",
            "stability",
            "min_area",
            "max_area",
            "one_piece",
            "nms_iou",
            "true_iou",
            "true_inside",
        )
        wrong = [f"{name} {getattr(self, name)}" for name in shares if not 0 <= getattr(self, name) <= 1]
        if wrong or self.min_area > self.max_area:
            raise InputError(
                f"{', '.join(wrong) or f'min_area {self.min_area}, max_area {self.max_area}'}: shares are 0 to 1, "
                "and min_area at most max_area"
            )


@dataclass(frozen=True)
class Proposal:
    """One kept mask: compressed RLE (counts as bytes), the click that gave it (x, y), and how good it looks."""

    mask: dict[str, Any]
    click: tuple[int, int]
    predicted_iou: float
    stability: float

    @property
    def score(self) -> float:
        """Predicted IoU (at most 1) times stability."""
        return min(self.predicted_iou, 1.0) * self.stability


def grid_points(height: int, width: int, grid: int) -> NDArray[np.int64]:
    """Clicks ``[N, 2]`` (x, y), row by row: ``grid`` along the longer side, centred in cells of equal size."""
    columns, rows = (max(1, round(grid * n / max(height, width))) for n in (width, height))
    xs = ((np.arange(columns) + 0.5) * width / columns).astype(np.int64)
    ys = ((np.arange(rows) + 0.5) * height / rows).astype(np.int64)
    return np.stack([np.tile(xs, rows), np.repeat(ys, columns)], 1)


def propose_on(
    photo: Image.Image, truths: Sequence[NDArray[np.bool_]], teacher: Teacher, settings: TeacherSettings
) -> list[Proposal]:
    """The teacher's masks on one photo, best first.

    Args:
        truths: masks ``[H, W]`` of everything annotated, crowds included.
    """
    taken = np.zeros((photo.height, photo.width), bool)
    for truth in truths:
        taken |= truth
    encoded = [_encode(truth) for truth in truths]
    union = _encode(taken)
    closed = taken.copy() if settings.skip_true else np.zeros_like(taken)
    waiting = [(int(x), int(y)) for x, y in grid_points(photo.height, photo.width, settings.grid)]
    found: list[Proposal] = []
    ready = False
    while waiting:
        clicks: list[tuple[int, int]] = []
        while waiting and len(clicks) < teacher.prompts_at_once:
            x, y = waiting.pop(0)
            if not closed[y, x]:
                clicks.append((x, y))
        if not clicks:
            break
        if not ready:  # a photo that is annotated all over is not encoded at all
            teacher.set_image(photo)
            ready = True
        logits, scores = teacher.decode(np.array(clicks)[:, None])
        stability = stability_scores(logits, settings.stability_offset)
        sure = (scores >= settings.predicted_iou) & (stability >= settings.stability)
        for i, j in np.argwhere(sure):
            mask = teacher.resize(logits[i, j]) > 0
            if _sensible(mask, clicks[i], settings):
                one = Proposal(_encode(mask), clicks[i], float(scores[i, j]), float(stability[i, j]))
                if _beside(one.mask, encoded, union, settings):
                    found.append(one)
                    if settings.skip_covered:
                        closed |= mask
    return suppress(found, settings.nms_iou)


def suppress(proposals: Sequence[Proposal], limit: float) -> list[Proposal]:
    """Non-maximum suppression: best score first, those whose IoU with a better one exceeds ``limit`` dropped."""
    kept: list[Proposal] = []
    for one in sorted(proposals, key=lambda p: -p.score):
        if not kept or _ious(one.mask, [p.mask for p in kept]).max() <= limit:
            kept.append(one)
    return kept


def _sensible(mask: NDArray[np.bool_], click: tuple[int, int], settings: TeacherSettings) -> bool:
    """Of an allowed size, not all along the photo's edge, holding its click, and in one piece there."""
    x, y = click
    pixels = int(mask.sum())
    least = max(settings.min_area * mask.size, settings.min_pixels)
    if not (mask[y, x] and least <= pixels <= settings.max_area * mask.size):
        return False
    if sum(bool(side.any()) for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1])) > settings.max_sides:
        return False
    pieces, _ = label(mask)
    return int((pieces == pieces[y, x]).sum()) >= settings.one_piece * pixels


def _beside(
    mask: dict[str, Any], truths: Sequence[dict[str, Any]], union: dict[str, Any], settings: TeacherSettings
) -> bool:
    inside = float(rle.area(rle.merge([mask, union], intersect=True))) / float(rle.area(mask))
    if inside > settings.true_inside:
        return False
    return not truths or float(_ious(mask, truths).max()) <= settings.true_iou


def _encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    return rle.encode(np.asfortranarray(mask, dtype=np.uint8))


def _ious(mask: dict[str, Any], others: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    return np.asarray(rle.iou([mask], list(others), [0] * len(others)))


def propose(
    dataset: CocoDataset, teacher: Teacher, settings: TeacherSettings, out: str | Path, progress: bool = True
) -> Path:
    """Write the teacher's proposals on every photo of ``dataset`` to ``out``, for ``CocoDataset(..., proposals=out)``.

    A COCO-style json of the same images: annotations with RLE ``segmentation``, ``bbox``, ``area``, ``click`` (x, y),
    ``predicted_iou``, ``stability`` and ``score``, their product. They have no ``category_id``: the teacher knows none.
    Photos that are done lie beside it in ``OUT.partial`` until the last one is; a run that was killed goes on from
    there. An ``out`` that is complete already is left as it is. Same photos, teacher and settings: same file.

    Raises:
        InputError: the partial file comes from other photos, settings or another teacher; ``out`` cannot be written.
        ImageError: a photo cannot be read, where the dataset does not skip such.
    """
    target = Path(out)
    check_target(target)
    fingerprint = _fingerprint(dataset, teacher, settings)
    if _finished(target, fingerprint):
        return target
    partial = PartialRows(target.with_name(f"{target.name}.partial"), {"teacher": fingerprint}, "proposals")
    rows = {row["image_id"]: row["proposals"] for row in partial.load()}
    left = [record for record in dataset.records if record.id not in rows]
    for record in track(
        left,
        "proposals",
        total=len(dataset),
        completed=len(rows),
        console=Console(stderr=True),
        disable=not progress,
    ):
        rows[record.id] = [_row(one) for one in _proposals(dataset, record, teacher, settings)]
        partial.append({"image_id": record.id, "proposals": rows[record.id]})
    images = [{"id": r.id, "file_name": r.path.name, "width": r.width, "height": r.height} for r in dataset.records]
    annotations = [
        {"id": number, "image_id": image, **row}
        for number, (image, row) in enumerate(((r.id, row) for r in dataset.records for row in rows[r.id]), 1)
    ]
    info = {"teacher": fingerprint, "settings": asdict(settings)}
    save_json({"info": info, "images": images, "annotations": annotations, "categories": []}, target)
    partial.remove()
    return target


def _proposals(
    dataset: CocoDataset, record: ImageRecord, teacher: Teacher, settings: TeacherSettings
) -> list[Proposal]:
    try:
        return propose_on(dataset.image(record), annotated_masks(dataset, record), teacher, settings)
    except ImageError as error:
        dataset.refuse("image", record.id, f"cannot be used: {error}", ImageError)
        return []


def annotated_masks(dataset: CocoDataset, record: ImageRecord) -> list[NDArray[np.bool_]]:
    """Masks of everything that is annotated on a photo, however small; crowds too."""
    return [dataset.mask(record, one) for one in (*record.instances, *record.crowds) if not one.proposal]


def _row(one: Proposal) -> dict[str, Any]:
    return {
        "segmentation": {"size": [int(n) for n in one.mask["size"]], "counts": one.mask["counts"].decode("ascii")},
        "bbox": [float(v) for v in rle.toBbox(one.mask)],
        "area": int(rle.area(one.mask)),
        "iscrowd": 0,
        "click": list(one.click),
        "predicted_iou": round(one.predicted_iou, 5),
        "stability": round(one.stability, 5),
        "score": round(one.score, 5),
    }


def _fingerprint(dataset: CocoDataset, teacher: Teacher, settings: TeacherSettings) -> str:
    """Of all that the proposals depend on but the pixels."""
    text = json.dumps([asdict(settings), teacher.fingerprint, [[r.id, r.path.name] for r in dataset.records]])
    return hashlib.sha256(text.encode() + dataset.annotations.read_bytes()).hexdigest()[:16]


def _finished(path: Path, fingerprint: str) -> bool:
    try:
        return bool(json.loads(path.read_bytes())["info"]["teacher"] == fingerprint)
    except (OSError, ValueError, KeyError, TypeError):
        return False
