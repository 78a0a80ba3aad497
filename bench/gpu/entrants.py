"""Who takes part in the standard request: our sessions and PyTorch, each with its check and its times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import tracenet
from bench.end_to_end.network import Click, Levels
from bench.gpu.machine import Machine
from bench.gpu.network import DeviceNetwork, Errors, Precision
from bench.gpu.timing import in_turns, spread
from tracenet.engine.gpu.program import GpuProgram
from tracenet.engine.gpu.session import GpuSession
from tracenet.traced import TracedModel

Outputs = Mapping[Any, Tensor]


@dataclass
class Entrant:
    """Something that is timed once its result is right.

    Attributes:
        run: from an image on the device to logits on the device; the image is handed over anew each time.
        check: of a result.
        missing: why it cannot run, or an empty string.
        warm, cold: milliseconds.
        peak_bytes: of the device's memory that a run takes beside weights and inputs.
    """

    run: Callable[[], Outputs]
    check: Callable[[Outputs], Errors]
    errors: Errors = field(default_factory=Errors)
    exact: bool = False
    missing: str = ""
    warm: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def status(self) -> str:
        if self.missing:
            return f"skipped: {self.missing}"
        return "ok" if self.exact else "wrong"

    def row(self) -> dict[str, Any]:
        """What is written of it; no times where it is wrong."""
        warm, cold = (spread(times) if self.exact and times else None for times in (self.warm, self.cold))
        return {
            "status": self.status,
            "ms_median": warm and warm["median"],
            "ms_min": warm and warm["min"],
            "spread": warm and warm["spread"],
            "cold_ms_median": cold and cold["median"],
            "max_rel_error": None if self.missing else self.errors.max_relative,
            "frobenius_error": None if self.missing else self.errors.frobenius,
            "peak_bytes": self.peak_bytes,
        }


def absent(reason: str) -> Entrant:
    """Takes no part."""
    return Entrant(dict, lambda _: Errors(), missing=reason)


def attempt(make: Callable[[], Entrant]) -> Entrant:
    """An entrant, or the reason why there is none: a peer that cannot run must not end the case."""
    try:
        return make()
    except Exception as error:
        return absent(f"{type(error).__name__}: {str(error).strip()[:300]}")


def compete(entrants: Mapping[str, Entrant], precision: Precision, machine: Machine, rounds: int) -> None:
    """Check everybody, then time those who are right, warm and cold, in turns."""
    timer = machine.timer
    for entrant in entrants.values():
        if entrant.missing:
            continue
        before = _allocated(machine)
        try:
            entrant.errors = entrant.check(timer.wall(entrant.run, cold=False)[1])
        except Exception as error:
            if machine.broken():
                raise
            entrant.missing = f"{type(error).__name__}: {str(error).strip()[:300]}"
            continue
        entrant.exact = entrant.errors.within(precision.tolerance)
        entrant.peak_bytes = entrant.peak_bytes or _peak(entrant, machine, before)
    racing = {name: entrant for name, entrant in entrants.items() if entrant.exact and not entrant.missing}
    for cold in (False, True):
        runs = {name: lambda e=entrant, c=cold: timer.wall(e.run, cold=c)[0] for name, entrant in racing.items()}
        for name, times in in_turns(runs, rounds).items():
            setattr(racing[name], "cold" if cold else "warm", times)
    # Once more after all that memory traffic: who is right only at first gets no time.
    for entrant in racing.values():
        entrant.errors |= entrant.check(timer.wall(entrant.run, cold=False)[1])
        entrant.exact = entrant.errors.within(precision.tolerance)


def _allocated(machine: Machine) -> int:
    if machine.dry:
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(entrant: Entrant, machine: Machine, before: int) -> int | None:
    if machine.dry:
        return None
    torch.cuda.reset_peak_memory_stats()
    entrant.run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def session_of(network: DeviceNetwork, precision: Precision, *, fuse_tails: bool = True, **options: Any) -> GpuSession:
    """A session of our executor."""
    program = GpuProgram(
        network.schedule, network.device, precision.dtype_name, precision=precision.products, fuse_tails=fuse_tails
    )
    return GpuSession(program, **options)


def ours(network: DeviceNetwork, session: GpuSession, click: Click, levels: Levels) -> Entrant:
    """Planning on the host, the table's copy and a replay, of the class that serves every click."""
    request, parameters, form = network.request(click, levels), network.parameters(click), network.form(levels)

    def run() -> Outputs:
        session.set_planar(0, network.image)
        return session.run_on_device(request, parameters, form=form)

    return Entrant(run, lambda out: network.errors(click, out, request), peak_bytes=session.bytes)


def ours_planned_on_device(network: DeviceNetwork, session: GpuSession, click: Click, levels: Levels) -> Entrant:
    """The click goes in as two integers; the graph's first launch gathers the windows."""
    request, parameters = network.request(click, levels), network.parameters(click)
    graph = session.click_graph(network.form(levels))

    def run() -> Outputs:
        session.set_planar(0, network.image)
        return graph.run(click, parameters)

    return Entrant(run, lambda out: network.errors(click, out, request), peak_bytes=session.bytes)


def full_eager(network: DeviceNetwork, click: Click, precision: Precision) -> Entrant:
    """The full network, kernel by kernel: channels_last, BatchNorm folded."""
    model, inputs = network.full(precision), network.inputs(click, precision)
    held = inputs[0].clone(memory_format=torch.preserve_format)

    def run() -> Outputs:
        with torch.inference_mode():
            held.copy_(inputs[0])
            return model(held, *inputs[1:])

    return Entrant(run, lambda out: network.errors(click, out))


def crop_pad(
    network: DeviceNetwork, traced: TracedModel, click: Click, levels: Levels, precision: Precision
) -> Entrant:
    """The crop-and-pad path on the same request; its plan is made beforehand and costs it nothing."""
    inputs, request = network.inputs(click, precision), network.request(click, levels)
    plan = traced.plan(request)
    held = inputs[0].clone(memory_format=torch.preserve_format)

    def run() -> Outputs:
        with torch.inference_mode():
            held.copy_(inputs[0])
            return traced.run((held, *inputs[1:]), plan, backend="torch")

    return Entrant(run, lambda out: network.errors(click, out, request))


def traced_on(network: DeviceNetwork, precision: Precision) -> TracedModel:
    """The network captured on the device in its precision, for the crop-and-pad path."""
    return tracenet.trace(network.converted(precision), network.inputs(network.centre, precision))


def captured(entrant: Entrant, machine: Machine) -> Entrant:
    """The same as one CUDA graph."""
    return Entrant(machine.timer.captured(entrant.run), entrant.check)
