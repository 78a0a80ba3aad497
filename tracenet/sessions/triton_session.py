"""The Triton backend: packed weights on a GPU, one program per image size, sessions that replay captured graphs."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tracenet import inference
from tracenet.config import TraceNetConfig
from tracenet.conventions import STRIDES
from tracenet.engine.click_class import AtClick, RequestForm
from tracenet.engine.gpu.program import GpuProgram
from tracenet.engine.gpu.session import GpuSession
from tracenet.engine.program import Program
from tracenet.engine.schedule import Schedule
from tracenet.inference import Canvas
from tracenet.models import TraceNet
from tracenet.resize import ResizedPhoto
from tracenet.sessions.base import Parameters
from tracenet.sessions.native_program import SIZE, lower_model
from tracenet.sessions.native_session import INPUTS
from tracenet.sessions.schedule_plan import SchedulePlan
from tracenet_kernels import native
from tracenet_kernels.window import Window

MAX_SIZES = 2 * inference.MAX_FACTORS
"""Programs kept, one per padded image size, least recently used dropped first; they share their weights."""
MAX_IDLE = 2
"""Sessions per size that wait for the next photo with their memory and captured graphs."""


class TritonNetwork:
    """A network on a GPU, at every padded image size.

    Args:
        model: in evaluation mode; its weights are copied.
        config: of the model.
        device: a CUDA device.
        dtype: of planes and weights: ``"float16"``, ``"bfloat16"`` or ``"float32"``.
    """

    backend = "triton"

    def __init__(self, model: TraceNet, config: TraceNetConfig, device: str = "cuda", dtype: str = "float16") -> None:
        self.config = config
        self._schedules = _Schedules(model)
        self._program = GpuProgram(self._schedules.at(*SIZE), device, dtype)
        self._sizes: OrderedDict[tuple[int, int], GpuProgram] = OrderedDict()
        self._idle: dict[GpuProgram, list[GpuSession]] = {}
        self._lock = threading.Lock()

    def prepare(self, canvas: Canvas) -> None:
        self.program(canvas)

    def session(self, photo: ResizedPhoto, canvas: Canvas, max_kept_bytes: int) -> TritonSession:
        return TritonSession(self, photo, canvas, max_kept_bytes)

    def full_macs(self, canvas: Canvas) -> int:
        return self.program(canvas).full_macs

    def program(self, canvas: Canvas) -> GpuProgram:
        """The program at a canvas' padded size."""
        size = (canvas.padded_height, canvas.padded_width)
        with self._lock:
            if size not in self._sizes:
                self._sizes[size] = self._program.at_size(self._schedules.at(*size))
                while len(self._sizes) > MAX_SIZES:
                    _, dropped = self._sizes.popitem(last=False)
                    self._idle.pop(dropped, None)
            self._sizes.move_to_end(size)
            return self._sizes[size]

    def lend(self, program: GpuProgram) -> GpuSession:
        """A session for one photo; memory and captured graphs of an idle one are used again."""
        with self._lock:
            idle = self._idle.get(program)
            if idle:
                return idle.pop()
        return GpuSession(program, keep=True)

    def take_back(self, session: GpuSession) -> None:
        """A photo is done with its session."""
        session.forget()
        with self._lock:
            idle = self._idle.setdefault(session.program, [])
            if session.program in self._sizes.values() and len(idle) < MAX_IDLE:
                idle.append(session)


class TritonSession:
    """One photo at one scale; see :class:`tracenet.sessions.base.Session`. Device memory is taken by the first run."""

    def __init__(self, network: TritonNetwork, photo: ResizedPhoto, canvas: Canvas, max_kept_bytes: int) -> None:
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
        schedule = session.program.schedule
        result = session.run(dict(request.items()), given, form=_form(schedule, request))
        if session.kept_bytes > self._max_kept_bytes:
            session.forget()
        return SchedulePlan(schedule, request, result), {str(n): value for n, value in result.outputs.items()}

    def forget(self) -> None:
        if "_session" in self.__dict__:
            self._session.forget()

    @cached_property
    def _session(self) -> GpuSession:
        session = self._network.lend(self._network.program(self._canvas))
        config = self._network.config
        session.set_pixels(0, self._photo.whole(), config.mean, config.std, config.channel_order == "bgr")
        weakref.finalize(self, self._network.take_back, session)
        return session


class _Schedules:
    """Schedules of a model by size: from the first one where the C++ extension is built, else captured anew."""

    def __init__(self, model: TraceNet) -> None:
        self._model = model

    def at(self, height: int, width: int) -> Schedule:
        if (height, width) == SIZE:
            return self._first
        if native.available():
            return replace(self._native.at_size(height, width).schedule, tensors=self._first.tensors)
        return lower_model(self._model, (height, width))

    @cached_property
    def _first(self) -> Schedule:
        return lower_model(self._model, SIZE)

    @cached_property
    def _native(self) -> Program:
        return Program(self._first)


def _form(schedule: Schedule, request: Mapping[str, Window]) -> RequestForm | None:
    """The family of a predictor's request, or None: one window of one output, or the heads' cells at one click."""
    if len(request) == 1:
        ((name, window),) = request.items()
        return RequestForm.segment(schedule, window.height, window.width, name)
    rules: dict[int, AtClick] = {}
    cells: dict[int, Window] = {}
    for name, window in request.items():
        stride = STRIDES.get(int(name[-1])) if name[-1].isdigit() else None
        if stride is None or window.area != 1:
            return None
        rules[schedule.outputs[name]] = AtClick(stride)
        cells[stride] = window
    finest = min(cells)
    for stride, cell in cells.items():
        ratio = stride // finest
        if (cell.y0, cell.x0) != (cells[finest].y0 // ratio, cells[finest].x0 // ratio):
            return None
    return RequestForm(dict(rules))
