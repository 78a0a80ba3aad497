"""Our side: a click from a float image to logits, planning included, on one of the package's backends."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.end_to_end.memory import peak_live_bytes
from bench.end_to_end.network import Case, Click, Levels, SizedNetwork
from tracenet.engine.lower import lower
from tracenet.engine.program import Program
from tracenet.engine.requests import Floats
from tracenet.engine.schedule import Plane, Schedule, Step
from tracenet.engine.session import Session, ThreadPool
from tracenet.kept import FeatureStore, kept_names
from tracenet.rft.trace import Plan

ClickRun = Callable[[], "dict[int | str, Tensor]"]
"""One click; gives the requested windows by output name."""


class TorchClicks:
    """Clicks on the crop-and-pad path.

    Attributes:
        kept_bytes: bytes of features kept for the clicks so far.
        last_plan: of the last click.
    """

    name = "torch"
    dtype = "float32"
    memory_method = "live tensors that operators returned, scratch memory inside operators not seen"

    def __init__(self, network: SizedNetwork, threads: int) -> None:
        del threads  # PyTorch's own setting
        self.network = network
        self.last_plan: Plan | None = None
        self._store = FeatureStore()
        self._keep = kept_names(network.traced.graph)

    def first(self, case: Case) -> ClickRun:
        """A click on an image of which nothing is kept, and that keeps nothing."""
        traced, inputs = self.network.traced, self.network.inputs(case.click)
        request = self.network.request(case.click, case.levels)
        return lambda: traced.run(inputs, traced.plan(request), backend="torch")

    def forget(self) -> None:
        """Drop what is kept."""
        self._store.clear()

    def keeping(self, click: Click, levels: Levels) -> ClickRun:
        """A click that uses what is kept and keeps what it computes."""
        traced, inputs = self.network.traced, self.network.inputs(click)
        request = self.network.request(click, levels)

        def run() -> dict[int | str, Tensor]:
            self.last_plan = traced.plan(request, self._store.windows())
            outputs, patches = traced.run_keeping(inputs, self.last_plan, self._store.patches, self._keep, "torch")
            self._store.add(patches)
            return outputs

        return run

    @property
    def kept_bytes(self) -> int:
        return self._store.bytes

    def overhead(self, repeats: int = 20) -> dict[str, Any]:
        """Median microseconds of planning the centre click on levels 3-5; what dispatch costs is not told apart."""
        width, height = self.network.size
        request = self.network.request((width / 2, height / 2), (3, 5))
        planning = median(self.network.traced.plan(request).planning_ms * 1e3 for _ in range(repeats))
        return {"status": "ok", "backend": self.name, "planning_us": planning, "dispatch_us": None}

    def peak_bytes(self, case: Case) -> int:
        """Peak of live tensors in a click that keeps nothing; see :mod:`bench.end_to_end.memory`."""
        return peak_live_bytes(self.first(case), self.network.stored_tensors(case.click))


def planned(network: SizedNetwork, case: Case) -> tuple[Plan, ClickRun]:
    """The crop-and-pad path as a peer: its plan is made beforehand and costs it nothing."""
    traced, plan, inputs = network.traced, network.plan(case), network.inputs(case.click)
    return plan, lambda: traced.run(inputs, plan, backend="torch")


class NativeClicks:
    """Clicks on the native runtime, as a program and a session of its own.

    Attributes:
        kept_bytes: bytes of features kept for the clicks so far.
    """

    name = "native"
    dtype = "float32"
    memory_method = "planned workspace and kept cells, all memory that activations use; scratch of threads not counted"

    def __init__(self, network: SizedNetwork, threads: int) -> None:
        self.network = network
        program = Program(lower(network.traced.graph))
        pool = ThreadPool(threads)
        self._pool = pool
        self._session, self._keeping = Session(program, pool), Session(program, pool, keep=True)
        self._keeping.set_planar(0, network.image)

    def first(self, case: Case) -> ClickRun:
        """As :meth:`TorchClicks.first`; the image is handed over anew each time."""
        request = self.network.request(case.click, case.levels)
        parameters = self._parameters(case.click)

        def run() -> dict[int | str, Tensor]:
            self._session.set_planar(0, self.network.image)
            return _tensors(self._session.run(request, parameters).outputs)

        return run

    def forget(self) -> None:
        """Drop what is kept."""
        self._keeping.forget()

    def keeping(self, click: Click, levels: Levels) -> ClickRun:
        """As :meth:`TorchClicks.keeping`."""
        request, parameters = self.network.request(click, levels), self._parameters(click)
        return lambda: _tensors(self._keeping.run(request, parameters).outputs)

    @property
    def kept_bytes(self) -> int:
        return self._keeping.kept_bytes

    def overhead(self, repeats: int = 20) -> dict[str, Any]:
        """Median microseconds per click, in the centre on levels 3-5, that are not spent in kernels.

        ``planning_us``: windows of all planes and memory. ``image_us``: the image's window into the kernels' layout,
        before the first launch. ``dispatch_us``: what as many launches cost that compute next to nothing, their call
        from Python included; beside half a second of kernels it cannot be told from noise.
        """
        width, height = self.network.size
        click = (width / 2, height / 2)
        request, parameters = self.network.request(click, (3, 5)), self._parameters(click)
        session = self._session
        session.set_planar(0, self.network.image)
        rows: list[tuple[float, float]] = []
        for _ in range(repeats):
            plan = session.begin(request, parameters, profile=True)
            first, _ = _timed_us(lambda: session.run_steps(0, 1))
            launch = session.finish().profile[0]
            rows.append((plan.planning_us, first - launch.microseconds))
        launches = len(session.run(request, parameters, profile=True).profile)
        planning, image = (median(column) for column in zip(*rows, strict=True))
        return {
            "status": "ok",
            "backend": self.name,
            "launches": launches,
            "planning_us": planning,
            "image_us": image,
            "dispatch_us": _dispatch_us(launches, self._pool),
        }

    def peak_bytes(self, case: Case) -> int:
        """Of a click that keeps nothing."""
        request = self.network.request(case.click, case.levels)
        return self._session.run(request, self._parameters(case.click)).peak_bytes

    def _parameters(self, click: Click) -> dict[int, Any]:
        return {position: value.numpy() for position, value in enumerate(self.network.inputs(click)) if position}


def _dispatch_us(launches: int, pool: ThreadPool, repeats: int = 200) -> float:
    """Median time of a run of so many 1x1 convolutions of one cell, without its planning."""
    planes = tuple(Plane(f"plane{i}", 16, 1, 1) for i in range(launches + 1))
    steps = tuple(
        Step("conv2d", planes[i + 1].name, (i,), i + 1, tensors={"weight": "weight"}) for i in range(launches)
    )
    tensors = {"weight": np.eye(16, dtype=np.float32).reshape(16, 16, 1, 1)}
    session = Session(Program(Schedule(planes, steps, (0,), {"out": launches}, tensors)), pool)
    parameters = {0: np.zeros(16, dtype=np.float32)}
    rows = []
    for _ in range(repeats):
        spent, result = _timed_us(lambda: session.run({"out": None}, parameters))
        rows.append(spent - result.planning_us)
    return median(rows)


def _timed_us(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return (time.perf_counter() - start) * 1e6, result


def _tensors(outputs: dict[int | str, Floats]) -> dict[int | str, Tensor]:
    return {key: torch.from_numpy(array) for key, array in outputs.items()}


BACKENDS: dict[str, Any] = {"native": NativeClicks, "torch": TorchClicks}
