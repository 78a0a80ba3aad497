"""The real predictor from a uint8 photo to a mask, first and second click, on several backends in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.end_to_end.timing import PAUSE
from tracenet.demo import CLICK, PHOTO, photo_path
from tracenet.image_io import load_image
from tracenet.predictor import Predictor
from tracenet_kernels.errors import BackendError

MIN_IOU = 0.999
"""Masks of two backends agree where their intersection over union is at least this: a logit may round across 0."""
PARTS = ("set_image", "first", "second")


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union; 1 for two empty masks."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def click_twice(predictor: Predictor, photo: Any, clicks: Sequence[Any]) -> tuple[dict[str, float], list[Any]]:
    """Milliseconds of :data:`PARTS` without capturing, and the masks of the two clicks."""
    times: dict[str, float] = {}
    masks: list[Any] = []
    for name in PARTS:
        time.sleep(PAUSE)
        start = time.perf_counter()
        if name == "set_image":
            predictor.set_image(photo)
        else:
            masks.append(predictor.predict([list(clicks[len(masks)])], [1])[0][0])
        times[name] = (time.perf_counter() - start) * 1e3
        if name != "set_image":
            times[name] -= predictor.timings_ms.get("capture", 0.0)
    return times, masks


def measure_photo(backends: Sequence[str], repeats: int, advance: Callable[[], None]) -> dict[str, Any]:
    """Each backend ``repeats`` times after a warm-up; the masks must be those of the ``torch`` backend.

    Returns:
        per backend: ``status``, medians of ``set_image``, of the ``first`` click with it and of the ``second``,
        multiply-adds of both clicks, kept bytes, and the smallest overlap with the ``torch`` backend's masks.
    """
    photo = np.asarray(load_image(photo_path(PHOTO)))
    clicks = (CLICK, (CLICK[0] + 40, CLICK[1]))
    predictors: dict[str, Predictor] = {}
    report: dict[str, Any] = {"photo": photo_path(PHOTO).name, "clicks": [list(click) for click in clicks]}
    rows: dict[str, Any] = report.setdefault("backends", {})
    for name in backends:
        found = _load(name)
        if isinstance(found, str):
            rows[name] = {"status": f"not available: {found}"}
        else:
            predictors[name] = found
    times: dict[str, dict[str, list[float]]] = {name: {part: [] for part in PARTS} for name in predictors}
    expected: list[Any] | None = None
    overlap = dict.fromkeys(predictors, 1.0)
    for number in range(repeats + 1):
        for name in sorted(predictors, key=lambda one: one != "torch"):
            ms_of, masks = click_twice(predictors[name], photo, clicks)
            expected = masks if expected is None else expected
            overlap[name] = min(overlap[name], *map(mask_iou, masks, expected))
            if number:
                for part, ms in ms_of.items():
                    times[name][part].append(ms)
            advance()
    for name, predictor in predictors.items():
        exact = overlap[name] >= MIN_IOU
        of = {part: median(values) if exact else None for part, values in times[name].items()}
        both = None if of["set_image"] is None or of["first"] is None else of["set_image"] + of["first"]
        rows[name] = {
            "status": "ok" if exact else "wrong",
            "set_image_ms": of["set_image"],
            "first_click_ms": both,
            "second_click_ms": of["second"],
            "min_iou": overlap[name],
            **_counted(predictor, photo, clicks),
        }
    return report


def _load(backend: str) -> Predictor | str:
    try:
        return Predictor.from_pretrained(backend=backend)
    except BackendError as error:
        return str(error)


def _counted(predictor: Predictor, photo: Any, clicks: Sequence[Any]) -> dict[str, Any]:
    predictor.set_image(photo)
    macs = []
    for click in clicks:
        predictor.predict([list(click)], [1])
        macs.append(predictor.last_plan.macs if predictor.last_plan is not None else None)
    return {"macs": macs, "kept_bytes": predictor.kept_bytes}
