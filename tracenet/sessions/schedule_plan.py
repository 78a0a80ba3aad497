"""The plan of one request by an executor of schedules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Protocol

from tracenet.engine.schedule import Schedule
from tracenet_kernels.window import Window


class Planned(Protocol):
    """What executors say of a run.

    Attributes:
        windows: plane name -> hull of what was computed, of every plane that was visited.
        pieces: plane name -> windows that were computed, where there are any; they may overlap.
        step_macs: step name -> multiply-adds.
        macs, full_macs: of the request, and of the whole network.
        planning_us: time that windows took to plan.
    """

    @property
    def windows(self) -> dict[str, Window]: ...

    @property
    def pieces(self) -> dict[str, list[Window]]: ...

    @property
    def step_macs(self) -> dict[str, int]: ...

    @property
    def macs(self) -> int: ...

    @property
    def full_macs(self) -> int: ...

    @property
    def planning_us(self) -> float: ...


class SchedulePlan:
    """What one request computed; see :class:`tracenet.sessions.base.PhasePlan`."""

    barriers: tuple[str, ...] = ()

    @property
    def pieces(self) -> dict[str, list[Window]]:
        """Plane name -> windows that its step computed; they may overlap."""
        return self._planned.pieces

    @property
    def step_macs(self) -> dict[str, int]:
        """Step name -> multiply-adds."""
        return self._planned.step_macs

    def __init__(self, schedule: Schedule, request: Mapping[str, Window], planned: Planned) -> None:
        self.request = dict(request)
        self.macs = planned.macs
        self.full_macs = planned.full_macs
        self.planning_ms = planned.planning_us * 1e-3
        self._schedule = schedule
        self._planned = planned

    @cached_property
    def windows(self) -> dict[str, Window]:
        """Name -> window of every plane that was visited and, as aliases, of every output that is one of them."""
        planes = self._schedule.planes
        found = dict(self._planned.windows)
        for name, number in self._schedule.outputs.items():
            if planes[number].name in found:
                found.setdefault(name, found[planes[number].name])
        return found

    @property
    def planes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the plane of every name in ``windows``."""
        schedule = self._schedule
        numbers = {plane.name: number for number, plane in enumerate(schedule.planes)}
        planes = {name: schedule.planes[numbers.get(name, schedule.outputs.get(name, 0))] for name in self.windows}
        return {name: (plane.height, plane.width) for name, plane in planes.items()}

    def table(self, full: bool = False) -> str:
        """One aligned line per step with multiply-adds (``full=True``: every step that was run), then totals."""
        schedule, windows, macs = self._schedule, self._planned.windows, self._planned.step_macs
        rows: list[tuple[str, ...]] = [("step", "op", "plane", "window", "share", "MMACs")]
        for step in schedule.steps:
            plane = schedule.planes[step.output]
            window = windows.get(plane.name)
            if window is not None and (full or macs[step.name]):
                share = f"{window.area / (plane.height * plane.width):.0%}"
                size = f"{plane.height}x{plane.width}"
                rows.append((step.name, step.op, size, str(window), share, f"{macs[step.name] / 1e6:.1f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, tuple("-" * width for width in widths))
        lines = [
            "  ".join(c.rjust(w) if i > 3 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        lines.append(
            f"{self.macs / 1e9:.3f} of {self.full_macs / 1e9:.3f} GMACs ({self.macs / max(self.full_macs, 1):.1%}), "
            f"planned in {self.planning_ms:.2f} ms"
        )
        return "\n".join(line.rstrip() for line in lines)
