"""What the executors of schedules share in the predictor: programs by image size, and one photo's session."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracenet import inference
from tracenet.inference import Canvas
from tracenet.sessions.base import Parameters
from tracenet.sessions.schedule_plan import SchedulePlan
from tracenet_kernels.window import Window

MAX_SIZES = 2 * inference.MAX_FACTORS
"""Programs kept, one per padded image size, least recently used dropped first; they share their weights."""
INPUTS = ("theta", "origin", "size_of_interest")
"""The network's inputs after the image, in order."""

Program = TypeVar("Program")


class ProgramsBySize(Generic[Program]):
    """Programs at the padded sizes of canvases, made when first asked for.

    Args:
        make: a program for rows and columns.
        dropped: told of every program that is no longer kept.
    """

    def __init__(
        self, make: Callable[[int, int], Program], dropped: Callable[[Program], None] = lambda program: None
    ) -> None:
        self._make, self._dropped = make, dropped
        self._sizes: OrderedDict[tuple[int, int], Program] = OrderedDict()
        self._lock = threading.RLock()

    def at(self, canvas: Canvas) -> Program:
        """The program at a canvas' padded size."""
        size = (canvas.padded_height, canvas.padded_width)
        with self._lock:
            if size not in self._sizes:
                self._sizes[size] = self._make(*size)
                while len(self._sizes) > MAX_SIZES:
                    self._dropped(self._sizes.popitem(last=False)[1])
            self._sizes.move_to_end(size)
            return self._sizes[size]

    def __contains__(self, program: object) -> bool:
        return any(kept is program for kept in self._sizes.values())


class PhotoSession(ABC):
    """One photo at one scale; see :class:`tracenet.sessions.base.Session`. Its executor is opened by the first run."""

    @property
    def kept_bytes(self) -> int:
        return int(self._session.kept_bytes) if "_session" in self.__dict__ else 0

    def run(
        self, request: Mapping[str, Window], parameters: Parameters | None = None
    ) -> tuple[SchedulePlan, dict[str, NDArray[np.float32]]]:
        given = {i: parameters[name] for i, name in enumerate(INPUTS, 1)} if parameters is not None else None
        session = self._session
        result = self._compute(session, dict(request.items()), given)
        plan = SchedulePlan(session.program.schedule, request, result)
        return plan, {str(name): value for name, value in result.outputs.items()}

    def forget(self) -> None:
        if "_session" in self.__dict__:
            self._session.forget()

    @cached_property
    def _session(self) -> Any:
        return self._open()

    @abstractmethod
    def _open(self) -> Any:
        """The executor's session, with the photo set."""

    def _compute(self, session: Any, request: dict[int | str, Window], parameters: Mapping[int, Any] | None) -> Any:
        """Run a request."""
        return session.run(request, parameters)
