"""Every launch of the standard request: right or not, how long, how near to what the part can do, beside cuDNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.end_to_end.network import Levels
from bench.gpu.end_to_end import Networks
from bench.gpu.journal import Case, Row
from bench.gpu.layer_peers import peer_errors, peers_of
from bench.gpu.layers import POINTERS, TAILS, Layer, Layers, Variant, variants
from bench.gpu.machine import Machine
from bench.gpu.network import Precision
from bench.gpu.options import Options
from bench.gpu.timing import in_turns, spread
from tracenet.engine.gpu.units import Unit
from tracenet_kernels.triton.devices import Part, nearest_part
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.roofline import predict

REPEATS = 20
"""Launches of one captured graph when warm: one is shorter than what a graph takes to begin."""
DRY_LAYERS = 6
"""Layers of a dry run."""


class Bench:
    """Holds the layers of the variant that was asked for last: each has a workspace of its own."""

    def __init__(self, options: Options, machine: Machine) -> None:
        self.options, self.machine = options, machine
        self.networks = Networks(options, machine.device)
        self.part: Part = nearest_part("" if machine.dry else machine.name, machine.arch)
        self._last: tuple[object, Layers] | None = None

    def layers(self, levels: Levels, precision: Precision, variant: Variant) -> Layers:
        key = (levels, precision, variant)
        if self._last is None or self._last[0] != key:
            self._last = None
            network = self.networks.at(self.options.kernel_size)
            self._last = key, Layers(network, levels, precision, variant)
        return self._last[1]


def cases(options: Options, machine: Machine) -> dict[str, Case]:
    """One per unit of the schedule, variant, precision and range of levels, and each variant's launches together."""
    bench = Bench(options, machine)
    found: dict[str, Case] = {}
    for precision in options.precisions:
        for levels in options.levels:
            for variant in variants(machine):
                prefix = f"{precision.name}/P{levels[0]}-P{levels[1]}/{variant.name}"
                layers = bench.layers(levels, precision, variant)
                names = [name for name, unit in layers.units.items() if _worth(layers, unit, variant)]
                for name in names[:DRY_LAYERS] if machine.dry else names:
                    found[f"{prefix}/{name}"] = _bound(layer_case, bench, levels, precision, variant, name)
                found[f"{prefix}/all"] = _bound(whole_case, bench, levels, precision, variant)
    return found


def _bound(function: Callable[..., Row], *arguments: Any) -> Case:
    return lambda: function(*arguments)


def _worth(layers: Layers, unit: Unit, variant: Variant) -> bool:
    """Whether a variant launches a unit otherwise than the first one does."""
    if variant is POINTERS:
        return True
    if variant is TAILS:
        return unit.kind == "tail"
    return any("tma" in _kernel(launch) for launch in layers.bind([unit]))


def _kernel(launch: Launch) -> str:
    kernel = launch.kernel
    return str(getattr(kernel, "__name__", None) or getattr(getattr(kernel, "fn", None), "__name__", kernel))


def layer_case(bench: Bench, levels: Levels, precision: Precision, variant: Variant, name: str) -> Row:
    """Check a unit's launches, then time them and cuDNN in turns."""
    layers = bench.layers(levels, precision, variant)
    layer = layers.layer(layers.units[name])
    precision.set_peers()
    errors = layer.errors()
    exact = errors.within(precision.tolerance)
    row: Row = {
        "status": "ok" if exact else "wrong",
        "layer": name,
        "levels": list(levels),
        "precision": precision.name,
        "variant": variant.name,
        "kernels": [_kernel(launch) for launch in layer.launches],
        "grids": [list(launch.grid) for launch in layer.launches],
        "meta": [_plain(launch.meta) for launch in layer.launches],
        "options": [_plain(launch.options) for launch in layer.launches],
        "windows": [list(layer.window(step)) for step in layer.steps],
        "macs": layer.macs,
        "bytes": layer.bytes,
        "max_rel_error": errors.max_relative,
        "frobenius_error": errors.frobenius,
        "predicted_warm_us": _predicted(layer, bench.part, warm=True),
        "predicted_cold_us": _predicted(layer, bench.part, warm=False),
    }
    if not exact:
        return row
    times = _times(layer, precision, bench)
    row.update(times.pop("ours"))
    row["peers"] = times
    row.update(rates(layer.macs, layer.bytes, row["warm_us"], row["cold_us"], precision, bench.part))
    return row


def _predicted(layer: Layer, part: Part, *, warm: bool) -> float:
    return 1e6 * sum(predict(launch, part, warm=warm).seconds for launch in layer.launches)


def rates(macs: int, moved: int, warm_us: float, cold_us: float, precision: Precision, part: Part) -> dict[str, Any]:
    """TFLOP/s warm, GB/s cold, and both as shares of the part's."""
    flops, bandwidth = 2 * macs / (warm_us * 1e-6), moved / (cold_us * 1e-6)
    return {
        "tflops": flops / 1e12,
        "gbs": bandwidth / 1e9,
        "rate_share": flops / 2 / part.rate(precision.dtype_name),
        "bandwidth_share": bandwidth / part.bandwidth,
    }


def _times(layer: Layer, precision: Precision, bench: Bench) -> dict[str, dict[str, Any]]:
    """Of ours and every peer that is right."""
    timer, rounds = bench.machine.timer, bench.options.rounds
    runs: dict[str, Callable[[], None]] = {"ours": layer.run}
    rows: dict[str, dict[str, Any]] = {}
    peers = peers_of(layer)
    for way, errors in peer_errors(layer).items() if peers else ():
        if errors.within(precision.tolerance):
            runs[way] = peers[way]
        else:
            rows[way] = {"status": "wrong", "frobenius_error": errors.frobenius, "warm_us": None, "cold_us": None}
    repeats = 1 if bench.machine.dry else REPEATS
    warm_graphs = {name: timer.captured(run, repeats) for name, run in runs.items()}
    cold_graphs = {name: timer.captured(run) for name, run in runs.items()}
    warm = in_turns({n: lambda g=g: timer.device(g, cold=False) / repeats for n, g in warm_graphs.items()}, rounds)
    cold = in_turns({n: lambda g=g: timer.device(g, cold=True) for n, g in cold_graphs.items()}, rounds)
    for name in runs:
        w, c = spread(warm[name]), spread(cold[name])
        rows[name] = {
            "status": "ok",
            "warm_us": 1e3 * w["median"],
            "warm_us_min": 1e3 * w["min"],
            "warm_spread": w["spread"],
            "cold_us": 1e3 * c["median"],
        }
    return rows


def whole_case(bench: Bench, levels: Levels, precision: Precision, variant: Variant) -> Row:
    """All launches of a variant as one graph: what is between them shows beside the sum of them alone."""
    layers = bench.layers(levels, precision, variant)
    units = list(layers.units.values())[: DRY_LAYERS if bench.machine.dry else None]
    launches = layers.bind(units)

    def run() -> None:
        for launch in launches:
            launch()

    graph = bench.machine.timer.captured(run)
    timer, rounds = bench.machine.timer, bench.options.rounds
    warm, cold = (spread([timer.device(graph, cold=c) for _ in range(rounds)]) for c in (False, True))
    predicted = 1e6 * sum(predict(launch, bench.part, warm=True).seconds for launch in launches)
    return {
        "status": "ok",
        "checked": "layer by layer here, as a whole by the stage end_to_end",
        "levels": list(levels),
        "precision": precision.name,
        "variant": variant.name,
        "launches": len(launches),
        "warm_us": 1e3 * warm["median"],
        "warm_us_min": 1e3 * warm["min"],
        "cold_us": 1e3 * cold["median"],
        "predicted_warm_us": predicted,
    }


def timer_floor(machine: Machine) -> float:
    """Microseconds that nothing takes: part of every cold time."""
    return 1e3 * spread([machine.timer.device(lambda: None, cold=False) for _ in range(20)])["median"]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, (bool, int, float, str, type(None))) else str(v) for k, v in values.items()}
