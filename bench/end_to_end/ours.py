"""Our side: a click from a float image to logits, planning included, on one of the package's backends."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from torch import Tensor

from bench.end_to_end.memory import peak_live_bytes
from bench.end_to_end.network import Case, Click, Levels, SizedNetwork
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

    def __init__(self, network: SizedNetwork) -> None:
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
    """Clicks on the native engine."""

    name = "native"

    def __init__(self, network: SizedNetwork) -> None:
        case = Case((network.size[0] / 2, network.size[1] / 2), (3, 3), "centre")
        network.traced.run(network.inputs(case.click), network.plan(case), backend="native")


BACKENDS: dict[str, Any] = {"native": NativeClicks, "torch": TorchClicks}
