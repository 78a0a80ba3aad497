"""The native backend: one program for every size, one C++ session per photo and scale. Imports no PyTorch."""

from __future__ import annotations

from tracenet.config import TraceNetConfig
from tracenet.engine.program import Program
from tracenet.engine.session import Session as EngineSession
from tracenet.inference import Canvas
from tracenet.resize import ResizedPhoto
from tracenet.sessions.photo_session import PhotoSession, ProgramsBySize


class NativeNetwork:
    """A program at every padded image size."""

    backend = "native"

    def __init__(self, program: Program, config: TraceNetConfig) -> None:
        self.config = config
        self._programs = ProgramsBySize(program.at_size)

    def prepare(self, canvas: Canvas) -> None:
        self.program(canvas)

    def session(self, photo: ResizedPhoto, canvas: Canvas, max_kept_bytes: int) -> NativeSession:
        return NativeSession(self, photo, canvas, max_kept_bytes)

    def full_macs(self, canvas: Canvas) -> int:
        return self.program(canvas).full_macs

    def program(self, canvas: Canvas) -> Program:
        """The program at a canvas' padded size."""
        return self._programs.at(canvas)


class NativeSession(PhotoSession):
    """One photo at one scale, in C++."""

    def __init__(self, network: NativeNetwork, photo: ResizedPhoto, canvas: Canvas, max_kept_bytes: int) -> None:
        self._network, self._photo, self._canvas = network, photo, canvas
        self._max_kept_bytes = max_kept_bytes

    def _open(self) -> EngineSession:
        program = self._network.program(self._canvas)
        session = EngineSession(program, keep=True, max_kept_bytes=self._max_kept_bytes)
        config = self._network.config
        session.set_pixels(0, self._photo.whole(), config.mean, config.std, config.channel_order == "bgr")
        return session
