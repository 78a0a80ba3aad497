"""The host's planner for executors with static memory, such as captured graphs on a GPU.

>>> planner = HostPlanner(schedule, keep=True)
>>> plan = planner.plan({"P3": Window(40, 72, 40, 72)})
>>> plan.pieces[step]  # int32 [4, 4]: windows that the step computes, filled up with empty ones
>>> planner.commit()  # it ran: what was planned is kept, and the next plan computes what is missing
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracenet.conventions import THETA_SIZES
from tracenet.engine.requests import Request, resolve_request
from tracenet.engine.schedule import Schedule, Step
from tracenet.engine.serialise import schedule_to_bytes
from tracenet.engine.windows import inner_span, plan_windows
from tracenet_kernels import native
from tracenet_kernels.errors import RequestError, WindowError
from tracenet_kernels.window import Window, hull

PIECES = 4
"""Windows that a step computes at most."""


@dataclass(frozen=True)
class HostPlan:
    """What a request computes.

    Attributes:
        windows: of every plane, the hull of what is demanded; of inputs, what has to be there.
        pieces: int32 [steps, PIECES, 4], what every step computes, filled up with empty windows; they may overlap.
        macs: multiply-adds, external steps left out.
        planning_us: time it took.
    """

    windows: list[Window]
    pieces: NDArray[np.int32]
    macs: int
    planning_us: float


class HostPlanner:
    """Plans requests on one network; remembers what is computed.

    Where the C++ extension is not built, and for schedules with external steps, which it cannot plan, nothing is kept:
    every plan computes its whole windows. Calls from several threads need a lock around them.

    Args:
        schedule: of the network; its weights are not needed.
        keep: planes whose memory is not used for anything else, so that computed cells stay: their numbers, or True for
            those that the schedule marks. Inputs and planes that depend on flat inputs are never kept.
    """

    def __init__(self, schedule: Schedule, keep: bool | Iterable[int] = False) -> None:
        planes = len(schedule.planes)
        chosen = {i for i, p in enumerate(schedule.planes) if p.keep and keep} if isinstance(keep, bool) else {*keep}
        if not chosen <= {*range(planes)}:
            raise RequestError(f"planes {sorted(chosen - {*range(planes)})} are to be kept; there are {planes}")
        self.schedule = schedule
        self._numbers = {plane.name: i for i, plane in enumerate(schedule.planes)}
        self._native: Any = None
        if native.available() and all(step.op != "external" for step in schedule.steps):
            kept = [i in chosen for i in range(planes)]
            self._native = native.require().Planner(schedule_to_bytes(schedule), kept)

    @property
    def keeps(self) -> bool:
        """Whether anything can be kept at all."""
        return self._native is not None

    def plan(self, request: Request) -> HostPlan:
        """What a run would compute now.

        Raises:
            RequestError, WindowError: the request names what is not there.
        """
        asked = [(plane, window) for _, plane, window in resolve_request(self.schedule, self._numbers, request)]
        if self._native is not None:
            plan, pieces = self._native.plan(asked)
            return HostPlan([Window(*window) for window in plan.windows], pieces, plan.macs, plan.planning_us)
        start = time.perf_counter()
        demands: dict[int, Window] = {}
        for plane, window in asked:
            demands[plane] = hull((demands.get(plane, window), window))
        windows = plan_windows(self.schedule, demands)
        pieces = np.zeros((len(self.schedule.steps), PIECES, 4), np.int32)
        for i, step in enumerate(self.schedule.steps):
            pieces[i, 0] = windows[step.output]
        macs = sum(step_macs(self.schedule, step, windows[step.output]) for step in self.schedule.steps)
        return HostPlan(windows, pieces, macs, 1e6 * (time.perf_counter() - start))

    def commit(self) -> None:
        """What was planned last is computed, and kept from now on.

        Raises:
            RequestError: nothing is planned.
        """
        if self._native is not None:
            self._native.commit()

    def record(self, windows: Mapping[int, Window] | Sequence[Window]) -> None:
        """Windows by plane number that were computed without a plan of this planner; empty ones say nothing.

        Raises:
            RequestError, WindowError: no such plane, or a window that is not on it.
        """
        items = windows.items() if isinstance(windows, Mapping) else enumerate(windows)
        for plane, window in items:
            if not 0 <= plane < len(self.schedule.planes):
                raise RequestError(f"plane {plane} was computed; there are {len(self.schedule.planes)}")
            p = self.schedule.planes[plane]
            if not window.is_empty and not Window.full(p.height, p.width).contains(window):
                raise WindowError(f"{window} of {p.name!r} was computed, which is {p.height} x {p.width}")
            if self._native is not None and not window.is_empty:
                self._native.record(plane, window)

    def forget(self) -> None:
        """Forget all that was kept: another image is set."""
        if self._native is not None:
            self._native.forget()

    def kept_windows(self) -> list[list[Window]]:
        """Disjoint windows per plane that are kept."""
        if self._native is None:
            return [[] for _ in self.schedule.planes]
        return [[Window(*window) for window in windows] for windows in self._native.kept_windows()]


def step_macs(schedule: Schedule, step: Step, window: Window) -> int:
    """Multiply-adds of a step that computes a window of its output; 0 for external steps."""
    if window.is_empty or step.op == "external":
        return 0
    y0, y1 = inner_span(schedule, step, 0, (window.y0, window.y1))
    x0, x1 = inner_span(schedule, step, 1, (window.x0, window.x1))
    return int(y1 - y0) * int(x1 - x0) * macs_per_cell(schedule, step)


def macs_per_cell(schedule: Schedule, step: Step) -> int:
    """Multiply-adds per cell of what a step convolves: a stem before pooling, a mask head before upsampling."""
    if step.op == "mask_head":
        return sum(THETA_SIZES[:3])
    return int(np.prod(schedule.tensors[step.tensors["weight"]].shape)) if "weight" in step.tensors else 0
