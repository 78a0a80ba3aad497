"""The real predictor from a uint8 photo to a mask: first and second click, and how often and long the host waits."""

from __future__ import annotations

import warnings
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.end_to_end.photo import PARTS, click_twice, mask_iou
from bench.gpu.journal import Case, Row
from bench.gpu.machine import Machine
from bench.gpu.options import Options
from tracenet.demo import CLICK, PHOTO, photo_path
from tracenet.image_io import load_image
from tracenet.predictor import Predictor
from tracenet_kernels import native

MIN_IOU = {"float32": 0.999, "float16": 0.99, "bfloat16": 0.98}
"""Smallest overlap with the mask of the PyTorch path at which a time is printed: logits near 0 may round across it."""
PEER = "torch"
"""It runs on the processor: its sessions take and give NumPy arrays."""
WAITS = ("Synchronize", "cudaMemcpy")
"""Driver calls in which the host waits, or may."""


class Photo:
    """The bundled photo, two clicks on it, and the masks that the PyTorch path gives."""

    def __init__(self, options: Options, machine: Machine) -> None:
        self.options, self.machine = options, machine
        image = load_image(photo_path(PHOTO))
        if options.dry:
            image = image.resize((64, 32))
        self.pixels = np.asarray(image)
        scale = self.pixels.shape[1] / load_image(photo_path(PHOTO)).width
        first = (CLICK[0] * scale, CLICK[1] * scale)
        self.clicks = (first, (first[0] + 40 * scale, first[1]))
        self._expected: list[Any] | None = None

    def predictor(self, backend: str, **options: Any) -> Predictor:
        if self.options.dry:
            from bench.gpu.network import tiny_model
            from tracenet.inference import PredictorSettings

            settings = PredictorSettings(working_size=64, levels=(3, 3), level_choice="score")
            return Predictor(tiny_model(), settings, backend=backend, **options)
        return Predictor.from_pretrained(backend=backend, **options)

    @property
    def expected(self) -> list[Any]:
        if self._expected is None:
            self._expected = click_twice(self.predictor(PEER), self.pixels, self.clicks)[1]
        return self._expected


def cases(options: Options, machine: Machine) -> dict[str, Case]:
    """Ours in every precision that has a backend, then the peers on the processor."""
    photo = Photo(options, machine)
    names = [p.name for p in options.precisions if p.name in MIN_IOU]
    found: dict[str, Case] = {
        f"triton/{name}": lambda n=name: backend_case(photo, "triton", n, device=str(machine.device), dtype=n)
        for name in names
    }
    found["torch"] = lambda: backend_case(photo, PEER, "float32")
    if native.available() and not machine.dry:
        found["native"] = lambda: backend_case(photo, "native", "float32")
    return found


def backend_case(photo: Photo, backend: str, precision: str, **options: Any) -> Row:
    """Times of one backend after a warm-up that captures and compiles."""
    predictor = photo.predictor(backend, **options)
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    overlap = 1.0
    rounds = 0 if photo.options.dry else photo.options.rounds // 3 if backend == "triton" else 3
    for number in range(rounds + 1):
        found, masks = click_twice(predictor, photo.pixels, photo.clicks)
        overlap = min(overlap, *map(mask_iou, masks, photo.expected))
        if number or not rounds:
            for part, ms in found.items():
                times[part].append(ms)
    exact = overlap >= MIN_IOU[precision]
    medians = {part: median(values) if exact else None for part, values in times.items()}
    first = None if medians["first"] is None else medians["set_image"] + medians["first"]  # type: ignore[operator]
    return {
        "status": "ok" if exact else "wrong",
        "backend": backend,
        "precision": precision,
        "on": photo.machine.name if backend == "triton" else "processor",
        "photo": [photo.pixels.shape[1], photo.pixels.shape[0]],
        "clicks": [list(click) for click in photo.clicks],
        "min_iou": overlap,
        "set_image_ms": medians["set_image"],
        "first_click_ms": first,
        "second_click_ms": medians["second"],
        "kept_bytes": predictor.kept_bytes,
        "macs": None if predictor.last_plan is None else predictor.last_plan.macs,
        "waits": waits(predictor, photo) if backend == "triton" and not photo.machine.dry else None,
    }


def waits(predictor: Predictor, photo: Photo) -> dict[str, Any]:
    """How often the host waits for the device in the two clicks, by PyTorch's own count and by the driver's calls."""
    found: dict[str, Any] = {}
    for name, run in _parts(predictor, photo):
        found[name] = {"counted_by_torch": _counted(run)}
    for name, run in _parts(predictor, photo):
        found[name]["driver_calls"] = _profiled(run)
    return found


def _parts(predictor: Predictor, photo: Photo) -> list[tuple[str, Any]]:
    first, second = photo.clicks
    return [
        ("set_image", lambda: predictor.set_image(photo.pixels)),
        ("first", lambda: predictor.predict([list(first)], [1])),
        ("second", lambda: predictor.predict([list(second)], [1])),
    ]


def _counted(run: Any) -> int:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing" in str(one.message) for one in caught)


def _profiled(run: Any) -> dict[str, Any] | str:
    """Calls and microseconds of driver calls by name, or why there is no profile."""
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            run()
    except RuntimeError as error:
        return f"no profile: {error}"
    return {
        event.key: {"calls": event.count, "us": event.cpu_time_total}
        for event in profiled.key_averages()
        if any(word in event.key for word in WAITS)
    }
