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
from tracenet.inference import Canvas
from tracenet.resize import ResizedPhoto
from tracenet.sessions.base import Parameters
from tracenet.sessions.schedule_plan import SchedulePlan
from tracenet_kernels.window import Window

MAX_SIZES = 2 * inference.MAX_FACTORS
"""Programs kept, one per padded image size, least recently used dropped first; they share their weights."""
INPUTS = ("theta", "origin", "size_of_interest")
"""The network's inputs after the image, in order."""


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
    ) -> tuple[SchedulePlan, dict[str, NDArray[np.float32]]]:
        given = {i: parameters[name] for i, name in enumerate(INPUTS, 1)} if parameters is not None else None
        session = self._session
        result = session.run(dict(request.items()), given)
        plan = SchedulePlan(session.program.schedule, request, result)
        return plan, {str(n): value for n, value in result.outputs.items()}

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
