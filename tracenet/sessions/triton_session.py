"""The Triton backend: packed weights on a GPU, one program per image size, sessions that replay captured graphs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from tracenet.config import TraceNetConfig
from tracenet.conventions import STRIDES
from tracenet.engine.click_class import AtClick, RequestForm
from tracenet.engine.gpu.program import GpuProgram
from tracenet.engine.gpu.session import GpuResult, GpuSession
from tracenet.engine.program import Program
from tracenet.engine.schedule import Schedule
from tracenet.inference import Canvas
from tracenet.models import TraceNet
from tracenet.resize import ResizedPhoto
from tracenet.sessions.native_program import SIZE, lower_model
from tracenet.sessions.photo_session import PhotoSession, ProgramsBySize
from tracenet_kernels import native
from tracenet_kernels.window import Window

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
        self.config, self.device = config, device
        self._schedules = _Schedules(model)
        first = GpuProgram(self._schedules.at(*SIZE), device, dtype)
        self._programs = ProgramsBySize(
            lambda height, width: first.at_size(self._schedules.at(height, width)), self._drop_idle
        )
        self._idle: dict[GpuProgram, list[GpuSession]] = {}
        self._lock = threading.RLock()  # photos may be done with whenever the interpreter collects them

    def prepare(self, canvas: Canvas) -> None:
        self.program(canvas)

    def session(self, photo: ResizedPhoto, canvas: Canvas, max_kept_bytes: int) -> TritonSession:
        return TritonSession(self, photo, canvas, max_kept_bytes)

    def full_macs(self, canvas: Canvas) -> int:
        return self.program(canvas).full_macs

    def program(self, canvas: Canvas) -> GpuProgram:
        """The program at a canvas' padded size."""
        return self._programs.at(canvas)

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
            if session.program in self._programs:
                idle = self._idle.setdefault(session.program, [])
                if len(idle) < MAX_IDLE:
                    idle.append(session)

    def _drop_idle(self, program: GpuProgram) -> None:
        with self._lock:
            self._idle.pop(program, None)


class TritonSession(PhotoSession):
    """One photo at one scale, on a GPU. Device memory is taken by the first run."""

    def __init__(self, network: TritonNetwork, photo: ResizedPhoto, canvas: Canvas, max_kept_bytes: int) -> None:
        self._network, self._photo, self._canvas = network, photo, canvas
        self._max_kept_bytes = max_kept_bytes

    def _open(self) -> GpuSession:
        session = self._network.lend(self._network.program(self._canvas))
        config = self._network.config
        session.set_pixels(0, self._photo.whole(), config.mean, config.std, config.channel_order == "bgr")
        weakref.finalize(self, self._network.take_back, session)
        return session

    def _compute(
        self, session: GpuSession, request: dict[int | str, Window], parameters: Mapping[int, Any] | None
    ) -> GpuResult:
        named = {str(name): window for name, window in request.items()}
        result = session.run(request, parameters, form=_form(session.program.schedule, named))
        if session.kept_bytes > self._max_kept_bytes:
            session.forget()
        return result


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
