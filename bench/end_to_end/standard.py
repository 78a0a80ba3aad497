"""Times of the standard request against the full network at one image size, everybody in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from bench.end_to_end.full import ORT_SETTINGS, TORCH_SETTINGS, OnnxFull, Run, TorchFull, fastest
from bench.end_to_end.network import Case, SizedNetwork
from bench.end_to_end.ours import planned
from bench.end_to_end.sgemm import Sgemm
from bench.end_to_end.timing import Contestant
from tracenet.models import TraceNet

BLOCK = 17
"""Cases between two runs of the full networks, so that these see the same machine as the cases do."""
CROP_PAD_ROUNDS = {"centre": 3, "grid": 1}
"""Most timed rounds of the crop-and-pad path, by kind of click: it is slow, and no claim rests on it."""
CROP_PAD_GRID_LEVELS = (3, 5)
"""What it is timed on away from the centre."""
FLAG_BELOW = 0.9
"""Share of the SGEMM rate under which ONNX Runtime counts as slow, and ratios against it as flattering."""


@dataclass(frozen=True)
class FullSettings:
    """The fastest settings of the full networks, and the milliseconds of all that were tried."""

    onnxruntime: str
    torch: str
    tried: dict[str, dict[str, float]]


def choose_settings(model: TraceNet, network: SizedNetwork, threads: int, rounds: int = 3) -> FullSettings:
    """Try every setting of both full networks at one size."""
    centre = (network.size[0] / 2, network.size[1] / 2)
    onnx: dict[str, Run] = {name: OnnxFull(network, threads, name).runner(network, centre) for name in ORT_SETTINGS}
    best_onnx, onnx_ms = fastest(onnx, rounds)
    del onnx
    torch: dict[str, Run] = {name: TorchFull(model, name).runner(network, centre) for name in TORCH_SETTINGS}
    best_torch, torch_ms = fastest(torch, rounds)
    return FullSettings(best_onnx, best_torch, {"onnxruntime": onnx_ms, "torch": torch_ms})


def full_contestants(
    model: TraceNet, network: SizedNetwork, threads: int, settings: FullSettings
) -> dict[str, Contestant]:
    """Both full networks; their time does not depend on the click."""
    centre = (network.size[0] / 2, network.size[1] / 2)
    runners = {
        "onnxruntime": OnnxFull(network, threads, settings.onnxruntime).runner(network, centre),
        "torch": TorchFull(model, settings.torch).runner(network, centre),
    }
    return {name: Contestant(run, lambda out: network.error(centre, out)) for name, run in runners.items()}


def measure_size(
    model: TraceNet,
    network: SizedNetwork,
    cases: list[Case],
    ours: Any,
    settings: FullSettings,
    threads: int,
    repeats: int,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Check everybody once, then time ``repeats`` rounds.

    Args:
        ours: one of :mod:`bench.end_to_end.ours`, made for ``network``, or the reason why there is none.
        advance: called after each round, the check among them.

    Returns:
        ``cases``, one row each, and ``peers``: of each full network its times and its share of the SGEMM rate.
    """
    full = full_contestants(model, network, threads, settings)
    plans, clicks, crop_pads = [], [], []
    for case in cases:
        plan, run = planned(network, case)

        def error(out: Any, case: Case = case, windows: Any = plan.request) -> float:
            return network.error(case.click, out, windows)

        plans.append(plan)
        seldom = case.kind == "grid" and case.levels != CROP_PAD_GRID_LEVELS
        crop_pads.append(Contestant.absent("timed in the centre only") if seldom else Contestant(run, error))
        clicks.append(Contestant.absent(ours) if isinstance(ours, str) else Contestant(ours.first(case), error))
    for contestant in [*full.values(), *crop_pads, *clicks]:
        contestant.check()
    advance()
    sgemm = Sgemm(threads)
    for number in range(repeats):
        for at in range(len(cases)):
            if at % BLOCK == 0:
                sgemm.sample()
                for contestant in full.values():
                    contestant.measure()
            clicks[at].measure()
            if number < CROP_PAD_ROUNDS[cases[at].kind]:
                crop_pads[at].measure()
        advance()
    rate = sgemm.rate
    rows = [
        _row(network, case, plan, ours, click, crop_pad, full, rate)
        for case, plan, click, crop_pad in zip(cases, plans, clicks, crop_pads, strict=True)
    ]
    peers = {name: _peer(contestant, plans[0].full_macs, rate) for name, contestant in full.items()}
    share = peers["onnxruntime"]["sgemm_share"]
    return {
        "size": list(network.size),
        "repeats": repeats,
        "sgemm_macs_per_second": rate,
        "sgemm_quartiles": np.percentile(sgemm.rates, (25, 75)).tolist(),
        "cpu_share": median(sgemm.cpu_shares),
        "idle": sgemm.idle,
        "full_macs": plans[0].full_macs,
        "peers": peers,
        "slow_peer": share is not None and share < FLAG_BELOW,
        "cases": rows,
    }


def _share(macs: int, ms: float | None, rate: float) -> float | None:
    return None if ms is None else macs / (ms * 1e-3) / rate


def _peer(contestant: Contestant, macs: int, rate: float) -> dict[str, Any]:
    return {
        "ms_median": contestant.median_ms,
        "ms_min": contestant.min_ms,
        "runs": len(contestant.times),
        "max_rel_error": contestant.worst,
        "sgemm_share": _share(macs, contestant.median_ms, rate),
    }


def _row(
    network: SizedNetwork,
    case: Case,
    plan: Any,
    ours: Any,
    click: Contestant,
    crop_pad: Contestant,
    full: dict[str, Contestant],
    rate: float,
) -> dict[str, Any]:
    ms, onnx_ms = click.median_ms, full["onnxruntime"].median_ms
    speed_up = None if ms is None or onnx_ms is None else onnx_ms / ms
    available = not isinstance(ours, str)
    return {
        "size": list(network.size),
        "click": list(case.click),
        "kind": case.kind,
        "levels": list(case.levels),
        "dtype": ours.dtype if available else None,
        "backend": ours.name if available else None,
        "status": click.status,
        "ms_median": ms,
        "ms_min": click.min_ms,
        "macs": plan.macs,
        "full_macs": plan.full_macs,
        "max_rel_error": None if click.missing else click.worst,
        "peers": {
            "onnxruntime_full_ms": onnx_ms,
            "torch_full_ms": full["torch"].median_ms,
            "crop_pad_ms": crop_pad.median_ms,
        },
        "speed_up": speed_up,
        "realised_saving": None if speed_up is None else speed_up / (plan.full_macs / plan.macs),
        "sgemm_share": _share(plan.macs, ms, rate),
        "crop_pad_sgemm_share": _share(plan.macs, crop_pad.median_ms, rate),
        "crop_pad_status": crop_pad.status,
        "crop_pad_max_rel_error": None if crop_pad.missing else crop_pad.worst,
        "peak_activation_bytes": ours.peak_bytes(case) if available and click.exact else None,
    }
