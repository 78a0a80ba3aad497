"""The native backend: one program for every size, one C++ session per photo and scale. Imports no PyTorch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tracenet import inference
from tracenet.config import TraceNetConfig
from tracenet.engine.program import Program
from tracenet.engine.session import Session as EngineSession
from tracenet.engine.session import SessionResult
from tracenet.inference import Canvas
from tracenet.resize import ResizedPhoto
from tracenet.sessions.base import Parameters
from tracenet_kernels.window import Window

MAX_SIZES = 2 * inference.MAX_FACTORS
"""Programs kept, one per padded image size, least recently used dropped first; they share their weights."""
INPUTS = ("theta", "origin", "size_of_interest")
"""The network's inputs after the image, in order."""


class NativePlan:
    """What one request computed; see :class:`tracenet.sessions.PhasePlan`."""

    barriers: tuple[str, ...] = ()

    def __init__(self, program: Program, request: Mapping[str, Window], result: SessionResult) -> None:
        self.request = dict(request)
        self.macs = result.macs
        self.full_macs = result.full_macs
        self.planning_ms = result.planning_us * 1e-3
        self._program = program
        self._result = result

    @cached_property
    def windows(self) -> dict[str, Window]:
        """Name -> window of every plane that was visited and, as aliases, of every output that is one of them."""
        planes = self._program.schedule.planes
        found = dict(self._result.windows)
        for name, number in self._program.schedule.outputs.items():
            if planes[number].name in found:
                found.setdefault(name, found[planes[number].name])
        return found

    @property
    def planes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the plane of every name in ``windows``."""
        schedule, numbers = self._program.schedule, self._program.plane_numbers
        planes = {name: schedule.planes[numbers.get(name, schedule.outputs.get(name, 0))] for name in self.windows}
        return {name: (plane.height, plane.width) for name, plane in planes.items()}

    def table(self, full: bool = False) -> str:
        """One aligned line per step with multiply-adds (``full=True``: every step that was run), then totals."""
        schedule, windows, macs = self._program.schedule, self._result.windows, self._result.step_macs
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


class NativeNetwork:
    """A program at every padded image size."""

    backend = "native"

    def __init__(self, program: Program, config: TraceNetConfig) -> None:
        self.config = config
        self._program = program
        self._sizes: OrderedDict[tuple[int, int], Program] = OrderedDict()

    def prepare(self, canvas: Canvas) -> None:
        self.program(canvas)

    def session(self, photo: ResizedPhoto, canvas: Canvas, max_kept_bytes: int) -> NativeSession:
        return NativeSession(self, photo, canvas, max_kept_bytes)

    def full_macs(self, canvas: Canvas) -> int:
        return self.program(canvas).full_macs

    def program(self, canvas: Canvas) -> Program:
        """The program at a canvas' padded size."""
        size = (canvas.padded_height, canvas.padded_width)
        if size not in self._sizes:
            self._sizes[size] = self._program.at_size(*size)
            while len(self._sizes) > MAX_SIZES:
                self._sizes.popitem(last=False)
        self._sizes.move_to_end(size)
        return self._sizes[size]


class NativeSession:
    """One photo at one scale; see :class:`tracenet.sessions.Session`. The C++ session is made by the first run."""

    def __init__(self, network: NativeNetwork, photo: ResizedPhoto, canvas: Canvas, max_kept_bytes: int) -> None:
        self._network, self._photo, self._canvas = network, photo, canvas
        self._max_kept_bytes = max_kept_bytes

    @property
    def kept_bytes(self) -> int:
        return self._session.kept_bytes if "_session" in self.__dict__ else 0

    def run(
        self, request: Mapping[str, Window], parameters: Parameters | None = None
    ) -> tuple[NativePlan, dict[str, NDArray[np.float32]]]:
        given = {i: parameters[name] for i, name in enumerate(INPUTS, 1)} if parameters is not None else None
        session = self._session
        result = session.run(dict(request.items()), given)
        return NativePlan(session.program, request, result), {str(n): value for n, value in result.outputs.items()}

    def forget(self) -> None:
        if "_session" in self.__dict__:
            self._session.forget()

    @cached_property
    def _session(self) -> EngineSession:
        program = self._network.program(self._canvas)
        session = EngineSession(program, keep=True, max_kept_bytes=self._max_kept_bytes)
        config = self._network.config
        session.set_pixels(0, self._photo.whole(), config.mean, config.std, config.channel_order == "bgr")
        return session
