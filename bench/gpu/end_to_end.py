"""The standard request from an image on the device to logits on the device, beside the full network in PyTorch."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.end_to_end.network import Click, Levels
from bench.end_to_end.second_click import DISTANCE, pairs_of
from bench.gpu.children import run_child
from bench.gpu.entrants import (
    Entrant,
    attempt,
    captured,
    compete,
    crop_pad,
    full_eager,
    ours,
    ours_planned_on_device,
    session_of,
    traced_on,
)
from bench.gpu.journal import Case, Journal, OutOfTime, Row
from bench.gpu.machine import Machine
from bench.gpu.network import DeviceNetwork, Errors, Precision
from bench.gpu.options import Options
from tracenet.engine.gpu.session import GpuSession
from tracenet.standard import Size

FULL = ("full_graph", "full_eager")
"""Peers that compute everything, the usually faster one first."""
PLANNING_HEAD_START = 6_000_000
"""Clocks for which the device waits until the host has planned a click and enqueued it."""


class Networks:
    """The network of the size that was asked for last: capturing takes seconds, all sizes together gigabytes."""

    def __init__(self, options: Options, device: torch.device) -> None:
        self._model = options.model()
        self._device = device
        self._last: DeviceNetwork | None = None

    def at(self, size: Size) -> DeviceNetwork:
        if self._last is None or self._last.size != size:
            self._last = None
            gc.collect()
            self._last = DeviceNetwork(self._model, size, self._device)
        return self._last


def cases(options: Options, machine: Machine, journal: Journal) -> dict[str, Case]:
    """All of the stage by name."""
    networks = Networks(options, machine.device)
    found: dict[str, Case] = {}
    for size in options.sizes:
        for precision in options.precisions:
            prefix = f"{size[0]}x{size[1]}/{precision.name}"
            for levels in options.levels:
                name = f"{prefix}/P{levels[0]}-P{levels[1]}"
                found[name] = _bound(request_case, networks, size, levels, precision, machine, options)
                found[f"{name}/clicks"] = _bound(clicks_case, networks, size, levels, precision, machine, options)
            found[f"{prefix}/second_click"] = _bound(
                second_click_case, networks, size, options.levels[-1], precision, machine, options
            )
            found[f"{prefix}/compiled"] = _bound(compiled_case, size, precision, options, journal)
    return found


def _bound(function: Callable[..., Row], *arguments: Any) -> Case:
    return lambda: function(*arguments)


def request_case(
    networks: Networks, size: Size, levels: Levels, precision: Precision, machine: Machine, options: Options
) -> Row:
    """One click in the centre, everybody in turns."""
    network = networks.at(size)
    click = network.centre
    precision.set_peers()
    plan = network.sized.traced.plan(network.request(click, levels))
    session = session_of(network, precision)
    entrants: dict[str, Entrant] = {"ours": ours(network, session, click, levels)}
    for name, choice in _variants(machine).items():
        entrants[name] = attempt(lambda c=choice: ours(network, session_of(network, precision, **c), click, levels))
    entrants["ours_planned_on_device"] = attempt(
        lambda: ours_planned_on_device(network, session_of(network, precision), click, levels)
    )
    entrants["full_eager"] = attempt(lambda: full_eager(network, click, precision))
    entrants["crop_pad_eager"] = attempt(
        lambda: crop_pad(network, traced_on(network, precision), click, levels, precision)
    )
    for name in ("full", "crop_pad"):
        eager = entrants[f"{name}_eager"]
        entrants[f"{name}_graph"] = eager if eager.missing else attempt(lambda e=eager: captured(e, machine))
    compete(entrants, precision, machine, options.rounds)
    mine = entrants["ours"]
    rate = machine.ceilings(precision.dtype)["macs_per_second"]
    rows = {name: entrant.row() for name, entrant in entrants.items()}
    full_ms = [rows[name]["ms_median"] for name in FULL if rows[name]["ms_median"]]
    full_cold = [rows[name]["cold_ms_median"] for name in FULL if rows[name]["cold_ms_median"]]
    row = rows.pop("ours")
    for name, one in rows.items():
        one["rate_share"] = _rate_share(
            plan.full_macs if name.startswith("full") else plan.macs, one["ms_median"], rate
        )
    speed_up = _ratio(min(full_ms, default=None), row["ms_median"])
    return {
        **row,
        "size": list(size),
        "click": list(click),
        "kind": "centre",
        "levels": list(levels),
        "precision": precision.name,
        "dtype": precision.dtype_name,
        "backend": "triton",
        "macs": plan.macs,
        "full_macs": plan.full_macs,
        "peak_activation_bytes": session.bytes,
        "planning_us": plan_us(network, session, click, levels),
        "device_ms_median": _device_ms(mine, machine, options),
        "to_host_ms_median": _to_host_ms(network, session, click, levels, machine, options) if mine.exact else None,
        "macs_per_second": rate,
        "rate_share": _rate_share(plan.macs, row["ms_median"], rate),
        "speed_up": speed_up,
        "cold_speed_up": _ratio(min(full_cold, default=None), row["cold_ms_median"]),
        "realised_saving": None if speed_up is None else speed_up / (plan.full_macs / plan.macs),
        "peers": rows,
    }


def _variants(machine: Machine) -> dict[str, dict[str, Any]]:
    """Our executor with and without its parts, to see what each is worth."""
    if machine.dry:
        return {}
    found: dict[str, dict[str, Any]] = {"ours_tails_apart": {"fuse_tails": False}}
    if machine.modern:
        found["ours_tma"] = {"tma": True}
        found["ours_pdl"] = {"pdl": True}
        found["ours_tma_pdl"] = {"tma": True, "pdl": True}
    return found


def plan_us(network: DeviceNetwork, session: GpuSession, click: Click, levels: Levels) -> float:
    """Median microseconds of the host's planning alone."""
    request = network.request(click, levels)
    return median(session.plan(request).planning_us for _ in range(20))


def _device_ms(entrant: Entrant, machine: Machine, options: Options) -> float | None:
    if not entrant.exact:
        return None
    runs = [
        machine.timer.device(entrant.run, cold=False, head_start=PLANNING_HEAD_START) for _ in range(options.rounds)
    ]
    return median(runs)


def _to_host_ms(
    network: DeviceNetwork, session: GpuSession, click: Click, levels: Levels, machine: Machine, options: Options
) -> float:
    """The same with the logits in the host's memory."""
    request, parameters, form = network.request(click, levels), network.parameters(click), network.form(levels)

    def run() -> Any:
        session.set_planar(0, network.image)
        return session.run(request, parameters, form=form)

    return median(machine.timer.wall(run, cold=False)[0] for _ in range(options.rounds))


def _rate_share(macs: int, ms: float | None, rate: float) -> float | None:
    return None if not ms else macs / (ms * 1e-3) / rate


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def clicks_case(
    networks: Networks, size: Size, levels: Levels, precision: Precision, machine: Machine, options: Options
) -> Row:
    """Random clicks, all served by the graph that the first one captured, all compared with the full network."""
    network = networks.at(size)
    session = session_of(network, precision)
    session.set_planar(0, network.image)
    form = network.form(levels)
    generator = torch.Generator().manual_seed(11)
    worst, captures, wrong, times = Errors(), 0, [], []
    for number in range(options.clicks):
        u, v = torch.rand(2, generator=generator).tolist()
        click = (u * size[0], v * size[1])
        request, parameters = network.request(click, levels), network.parameters(click)

        def run(request: Any = request, parameters: Any = parameters) -> Any:
            return session.run(request, parameters, form=form)

        ms, result = machine.timer.wall(run, cold=False)
        captures += result.captured
        if number:
            times.append(ms)
        outputs = {name: torch.from_numpy(value) for name, value in result.outputs.items()}
        found = network.errors(click, outputs, request)
        worst |= found
        if not found.within(precision.tolerance):
            wrong.append(list(click))
    exact = not wrong and captures == 1
    return {
        "status": "ok" if exact else "wrong",
        "clicks": options.clicks,
        "captures": captures,
        "wrong_clicks": wrong,
        "max_rel_error": worst.max_relative,
        "frobenius_error": worst.frobenius,
        "to_host_ms_median": median(times) if exact and times else None,
        "to_host_ms_max": max(times) if exact and times else None,
    }


def second_click_case(
    networks: Networks, size: Size, levels: Levels, precision: Precision, machine: Machine, options: Options
) -> Row:
    """A second click near the first on one image, features kept."""
    network = networks.at(size)
    session = session_of(network, precision, keep=True)
    form = network.form(levels)
    session.set_planar(0, network.image)
    worst, rows, kept = Errors(), [], []
    warm_up = pairs_of(size, 1)
    for number, clicks in enumerate([*warm_up, *pairs_of(size, options.pairs)]):
        session.forget()
        times = []
        for click in clicks:
            request, parameters = network.request(click, levels), network.parameters(click)

            def run(request: Any = request, parameters: Any = parameters) -> Any:
                return session.run_on_device(request, parameters, form=form)

            ms, outputs = machine.timer.wall(run, cold=False)
            times.append(ms)
            worst |= network.errors(click, outputs, request)
            kept.append(session.kept_bytes)
        if number or not options.pairs:  # the first pair compiles and captures
            rows.append({"clicks": [list(click) for click in clicks], "first_ms": times[0], "second_ms": times[1]})
    exact = worst.within(precision.tolerance)
    shares = [row["second_ms"] / row["first_ms"] for row in rows]
    if not any(kept):
        return {"status": "skipped: nothing is kept without the C++ planner; build the extension"}
    return {
        "status": "ok" if exact else "wrong",
        "size": list(size),
        "levels": list(levels),
        "distance": DISTANCE,
        "max_rel_error": worst.max_relative,
        "frobenius_error": worst.frobenius,
        "first_ms_median": median(row["first_ms"] for row in rows) if exact else None,
        "second_ms_median": median(row["second_ms"] for row in rows) if exact else None,
        "share_median": median(shares) if exact else None,
        "share_worst": max(shares) if exact else None,
        "kept_bytes_median": median(kept[::2]),
        "pairs": rows if exact else [],
    }


def compiled_case(size: Size, precision: Precision, options: Options, journal: Journal) -> Row:
    """``torch.compile`` of the full network, in a process of its own: it takes minutes and may take forever."""
    name = f"compiled_{size[0]}x{size[1]}_{precision.name}"
    folder = journal.path.parent / "logs"
    target = folder / f"{name}.json"
    target.unlink(missing_ok=True)
    seconds = min(options.compile_seconds, max(journal.seconds_left, 60.0))
    command = [sys.executable, "-m", "bench.gpu", "compiled", "--json", str(target), "--precision", precision.name]
    command += ["--size", f"{size[0]}x{size[1]}", *(["--dry-run"] if options.dry else [])]
    # What is compiled stays for the next call, so a compilation that ran out of time goes on there.
    caches = {"TORCHINDUCTOR_CACHE_DIR": str((folder / "inductor").resolve())}
    ended = run_child(command, seconds, folder / f"{name}.log", caches)
    if ended.code is None and seconds < options.compile_seconds:
        raise OutOfTime
    if ended.code is None:
        return {"status": f"skipped: not compiled within {seconds:.0f} seconds"}
    if ended.code or not target.is_file():
        last = ended.output.splitlines()[-1:] or ["nothing was printed"]
        return {"status": f"skipped: the process ended with {ended.code}: {last[0][:300]}"}
    return dict(json.loads(target.read_text(encoding="utf-8")))


def compiled(size: Size, precision: Precision, options: Options, machine: Machine) -> Row:
    """What the process of :func:`compiled_case` does: the compiled full network beside the captured one, in turns."""
    network = DeviceNetwork(options.model(), size, machine.device)
    precision.set_peers()
    click = network.centre
    eager = full_eager(network, click, precision)
    model, inputs = network.full(precision), network.inputs(click, precision)
    mode: dict[str, Any] = {"backend": "eager"} if machine.dry else {"mode": "max-autotune"}
    fast = torch.compile(model, fullgraph=True, dynamic=False, **mode)
    held = inputs[0].clone(memory_format=torch.preserve_format)

    def run() -> Any:
        with torch.no_grad():
            held.copy_(inputs[0])
            return fast(held, *inputs[1:])

    def warmed() -> Entrant:
        first, _ = machine.timer.wall(run, cold=False)
        compile_ms.append(first)
        for _ in range(1 if machine.dry else 5):  # its graphs are recorded by the second and third run
            run()
        return Entrant(run, eager.check)

    compile_ms: list[float] = []
    entrants = {"full_compiled": attempt(warmed), "full_graph": attempt(lambda: captured(eager, machine))}
    compete(entrants, precision, machine, options.rounds)
    rows = {name: entrant.row() for name, entrant in entrants.items()}
    return {
        "status": rows["full_compiled"]["status"],
        "size": list(size),
        "precision": precision.name,
        "compile_seconds": compile_ms[0] / 1e3 if compile_ms else None,
        "full_macs": network.sized.traced.plan(network.request(click, options.levels[0])).full_macs,
        "peers": rows,
    }


def kernel_summary(folder: Path) -> dict[str, Any] | None:
    """Layers of the stage ``kernels`` in the same folder, for the end-to-end report; None where it has not run."""
    path = folder / "kernels.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return {"commit": found.get("commit"), "layers": [row for row in found.get("cases", ()) if "kernels" in row]}
