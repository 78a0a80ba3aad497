"""Times of a first and a second click on one photo, ours and a peer's in turns on the same photos and clicks.

The first click is timed from the photo's pixels in memory to its mask, the second on the same photo with what each
model keeps: our features, their embedding. Capturing our graph, once per image size, is reported apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from bench.peers.segment import SamSegment
from tracenet.data import CocoDataset, ImageRecord, deepest_interior_point
from tracenet.evaluation.protocol import ClickProtocol
from tracenet.predictor import Predictor


@dataclass(frozen=True)
class TimedClick:
    """One click on one photo.

    Attributes:
        ms: from pixels to mask for a first click, from click to mask for a second one.
        phases: milliseconds by name; they make up most of ``ms``.
        capture_ms: beside ``ms``.
        macs: of our traced run; None for a peer.
    """

    ms: float
    phases: dict[str, float]
    capture_ms: float = 0.0
    macs: int | None = None

    def to_row(self) -> dict[str, Any]:
        return {**vars(self), "phases": {name: round(ms, 3) for name, ms in self.phases.items()}}


class OurClicks:
    """First and second clicks of our predictor."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def click(self, photo: NDArray[np.uint8] | None, point: NDArray[np.int64]) -> TimedClick:
        """A click on ``photo``, or on the photo of the click before."""
        start = time.perf_counter()
        if photo is not None:
            self.predictor.set_image(photo)
        self.predictor.predict(point[None])
        total = (time.perf_counter() - start) * 1e3
        phases = dict(self.predictor.timings_ms)
        capture = phases.pop("capture")
        if photo is None:
            phases.pop("set_image")
        assert self.predictor.last_plan is not None
        return TimedClick(total - capture, phases, capture, self.predictor.last_plan.macs)


class PeerClicks:
    """First and second clicks of a SAM-style pair."""

    def __init__(self, segment: SamSegment) -> None:
        self.segment = segment

    def click(self, photo: NDArray[np.uint8] | None, point: NDArray[np.int64]) -> TimedClick:
        """As :meth:`OurClicks.click`."""
        start = time.perf_counter()
        if photo is not None:
            self.segment.predictor.set_image(photo)
        self.segment.click(point.astype(np.float32))
        total = (time.perf_counter() - start) * 1e3
        phases = dict(self.segment.predictor.timings_ms)
        if photo is None:
            phases = {name: phases[name] for name in ("decode", "resize")}
        return TimedClick(total, phases)


def two_clicks(
    dataset: CocoDataset, record: ImageRecord, protocol: ClickProtocol
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A photo and two clicks ``[2, 2]`` (x, y): deepest interior points of its first and last object.

    Where there is one object only, the second is its last simulated click.
    """
    truths = dataset.masks(record)
    first = deepest_interior_point(truths[0][1])
    last = deepest_interior_point(truths[-1][1]) if len(truths) > 1 else protocol.simulate(*truths[0]).points[-1]
    return np.asarray(dataset.image(record)), np.array([first, last])


def interleave(
    ours: OurClicks,
    peer: PeerClicks,
    dataset: CocoDataset,
    records: Sequence[ImageRecord],
    count: int,
    protocol: ClickProtocol,
) -> list[dict[str, Any]]:
    """Time both models in turns on ``count`` evenly spread photos of ``records``, after one photo of warm-up.

    Returns:
        One row per photo: ``size``, ``clicks``, and of each model a :class:`TimedClick` for each of the two clicks.
    """
    count = min(count, len(records))
    usable = [two_clicks(dataset, records[i * len(records) // count], protocol) for i in range(count)]
    models: dict[str, OurClicks | PeerClicks] = {"ours": ours, "peer": peer}
    for model in models.values():
        for photo, points in usable[:1]:
            list(_click_twice(model, photo, points))
    rows = []
    for number, (photo, points) in enumerate(track(usable, "times", console=Console(stderr=True))):
        row: dict[str, Any] = {"size": [photo.shape[1], photo.shape[0]], "clicks": points.tolist()}
        for name in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
            row[name] = [click.to_row() for click in _click_twice(models[name], photo, points)]
        rows.append(row)
    return rows


def _click_twice(
    model: OurClicks | PeerClicks, photo: NDArray[np.uint8], points: NDArray[np.int64]
) -> Iterator[TimedClick]:
    yield model.click(photo, points[0])
    yield model.click(None, points[1])


def medians(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Model -> ``first`` and ``second`` click -> medians over photos of ``ms``, of each phase and of ``macs``."""
    report: dict[str, Any] = {}
    for name in ("ours", "peer"):
        report[name] = {}
        for number, key in enumerate(("first", "second")):
            clicks = [row[name][number] for row in rows]
            macs = [click["macs"] for click in clicks if click["macs"] is not None]
            report[name][key] = {
                "ms": median(click["ms"] for click in clicks),
                "phases": {phase: median(click["phases"][phase] for click in clicks) for phase in clicks[0]["phases"]},
                "macs": median(macs) if macs else None,
            }
    captures = [click["capture_ms"] for row in rows for click in row["ours"] if click["capture_ms"] > 1.0]
    report["ours"]["capture_ms"] = median(captures) if captures else 0.0
    return report


def sgemm_rate(repeats: int = 9, side: int = 1024) -> float:
    """Multiply-adds per second of a float32 matrix product with PyTorch's threads: what this machine can do."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return side**3 / best


def photo_of(rows: Sequence[dict[str, Any]]) -> Image.Image:
    """A grey photo of the first row's size, to count a peer's multiply-adds on."""
    width, height = rows[0]["size"]
    return Image.new("RGB", (width, height), (128, 128, 128))
