"""The whole benchmark: which sizes and clicks, in which order, and the report as plain data."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from rich.progress import Progress

from bench.end_to_end.cold_start import measure_cold_start
from bench.end_to_end.memory import peak_live_bytes
from bench.end_to_end.network import Case, FullNetwork, SizedNetwork, build_model, cases_of
from bench.end_to_end.ours import BACKENDS, TorchClicks, planned
from bench.end_to_end.photo import measure_photo
from bench.end_to_end.second_click import LEVELS, measure_pairs
from bench.end_to_end.standard import FullSettings, choose_settings, measure_size
from bench.report import environment
from tracenet.models import TraceNet
from tracenet.standard import Size
from tracenet_kernels import native
from tracenet_kernels.errors import BackendError
from tracenet_kernels.threads import set_threads

KERNEL_FIELDS = ("sgemm_gflops", "weighted_share", "worst_share", "layers")


@dataclass(frozen=True)
class SizeRun:
    """One image size: the centre click, ``grid x grid`` clicks of which every ``every``-th is taken, timed rounds."""

    size: Size
    grid: int
    repeats: int
    every: int = 1

    @property
    def cases(self) -> list[Case]:
        cases = cases_of(self.size, self.grid)
        centre = [case for case in cases if case.kind == "centre"]
        grid = [case for case in cases if case.kind == "grid"]
        clicks = list(dict.fromkeys(case.click for case in grid))[:: self.every]
        return [*centre, *(case for case in grid if case.click in clicks)]


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        backend: ours, a key of :data:`BACKENDS`.
        sizes: the settings of the full networks are chosen at the first, where second clicks and memory are measured
            as well.
        model: config fields of the network beside 80 classes.
        setting_rounds: timed runs per setting of the full networks.
        pairs, cold_starts, photo_repeats, kernel_rounds: 0 leaves that part out.
    """

    backend: str = "native"
    sizes: tuple[SizeRun, ...] = (
        SizeRun((1024, 768), 4, 5),
        SizeRun((640, 480), 2, 5),
        SizeRun((2048, 1536), 2, 3, every=2),
    )
    threads: int = 2
    model: Mapping[str, Any] = field(default_factory=dict)
    setting_rounds: int = 2
    pairs: int = 50
    cold_starts: int = 5
    photo_repeats: int = 5
    kernel_rounds: int = 5


def quick(backend: str, threads: int) -> Options:
    """One size, its centre, few repeats."""
    return Options(
        backend,
        (SizeRun((640, 480), 0, 3),),
        threads,
        setting_rounds=1,
        pairs=5,
        cold_starts=1,
        photo_repeats=1,
        kernel_rounds=1,
    )


def measure(options: Options, progress: Progress) -> dict[str, Any]:
    """Everything, in one process."""
    start = time.perf_counter()
    torch.set_num_threads(options.threads)
    if native.available():
        set_threads(options.threads)
    model = build_model(**options.model)
    steps = sum(1 + one.repeats for one in options.sizes) + options.pairs
    steps += (options.cold_starts + 1) * bool(options.cold_starts) + 2 * (options.photo_repeats + 1)
    task = progress.add_task("end to end", total=steps)
    report: dict[str, Any] = {
        **environment(),
        "onnxruntime": version("onnxruntime"),
        "load": os.getloadavg()[0],
        "backend": options.backend,
        "cases": [],
        "sizes": [],
    }
    settings: FullSettings | None = None
    for one in options.sizes:
        network = SizedNetwork(model, one.size)
        ours = make_ours(options.backend, network, options.threads)
        if settings is None:
            settings = choose_settings(model, network, options.threads, options.setting_rounds)
            report["settings"] = vars(settings)
        found = measure_size(
            model, network, one.cases, ours, settings, options.threads, one.repeats, lambda: progress.advance(task)
        )
        report["cases"] += found.pop("cases")
        report["sizes"].append(found)
        if one is options.sizes[0]:
            report["memory"] = measure_memory(model, network, ours)
            report["second_click"] = _second_click(network, ours, options, lambda: progress.advance(task))
            report["overhead"] = {"status": f"not available: {ours}"} if isinstance(ours, str) else ours.overhead()
        del network, ours
        gc.collect()
    report["photo"] = _photo(options, lambda: progress.advance(task))
    report["cold_start"] = _cold_start(options, lambda: progress.advance(task))
    report["kernels"] = measure_kernels(options.kernel_rounds, options.threads) if options.kernel_rounds else None
    report["seconds"] = time.perf_counter() - start
    return report


def make_ours(backend: str, network: SizedNetwork, threads: int) -> Any:
    """Our side for one network, or the reason why there is none."""
    try:
        return BACKENDS[backend](network, threads)
    except BackendError as error:
        return str(error)


def measure_memory(model: TraceNet, network: SizedNetwork, ours: Any) -> dict[str, Any]:
    """Peak activation bytes of a click on levels 3-5 in the centre, and of the full network in PyTorch."""
    width, height = network.size
    case = Case((width / 2, height / 2), LEVELS, "centre")
    foreign, full = network.stored_tensors(case.click), FullNetwork(model)
    inputs = network.inputs(case.click)
    return {
        "size": list(network.size),
        "levels": list(LEVELS),
        "torch_full_bytes": peak_live_bytes(lambda: full(*inputs), foreign),
        "crop_pad_bytes": peak_live_bytes(planned(network, case)[1], foreign),
        "ours_bytes": None if isinstance(ours, str) else ours.peak_bytes(case),
        "method": {
            "torch": TorchClicks.memory_method,
            "ours": None if isinstance(ours, str) else ours.memory_method,
        },
    }


def _second_click(
    network: SizedNetwork, ours: Any, options: Options, advance: Callable[[], None]
) -> dict[str, Any] | None:
    if not options.pairs:
        return None
    if isinstance(ours, str):
        return {"status": f"not available: {ours}"}
    return measure_pairs(network, ours, options.pairs, advance)


def _photo(options: Options, advance: Callable[[], None]) -> dict[str, Any] | None:
    if not options.photo_repeats:
        return None
    return measure_photo(tuple(dict.fromkeys(("torch", options.backend))), options.photo_repeats, advance)


def _cold_start(options: Options, advance: Callable[[], None]) -> dict[str, Any] | None:
    return measure_cold_start(options.backend, options.cold_starts, advance) if options.cold_starts else None


def measure_kernels(rounds: int, threads: int) -> dict[str, Any]:
    """Shares of the SGEMM rate that the convolution kernels reach, layer by layer; see :mod:`bench.kernels`."""
    if not native.available():
        return {"status": f"not available: {native.why_not()}"}
    from bench.kernels.__main__ import run as measure_layers

    found = measure_layers(rounds, threads)
    return {"status": "ok", **{name: found[name] for name in KERNEL_FIELDS}}
