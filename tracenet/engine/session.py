"""Sessions: run a program on windows of one image at a time, in C++ and without PyTorch.

>>> session = Session(program, keep=True)
>>> session.set_planar(0, image)  # [1, 3, H, W] float32
>>> result = session.run({"P3": Window(40, 72, 40, 72)})
>>> result.outputs["P3"].shape
(1, 256, 32, 32)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tracenet.engine.program import Program
from tracenet.engine.requests import (
    Floats,
    Request,
    as_array,
    check_pixels,
    check_planar,
    flat_parameters,
    input_plane,
    resolve_request,
)
from tracenet_kernels import native
from tracenet_kernels.errors import InputError, RequestError
from tracenet_kernels.window import Window


class ThreadPool:
    """Threads that several sessions share.

    Args:
        threads: how many, the calling one counted; 0: one per processor this process may run on.
    """

    def __init__(self, threads: int = 0) -> None:
        self.native: Any = native.require().ThreadPool(_threads(threads))

    @property
    def threads(self) -> int:
        """How many threads work, the calling one counted."""
        return int(self.native.threads)


@dataclass(frozen=True)
class ProfileRow:
    """One launch: a step, or neighbouring steps that share a weight.

    Attributes:
        name: of the step; ``+n``: n more of its group.
        windows: what was computed.
        kernel: the instruction set.
        macs, bytes: multiply-adds; bytes of windows read and written and of weights.
    """

    name: str
    op: str
    windows: tuple[Window, ...]
    kernel: str
    microseconds: float
    macs: int
    bytes: int

    @property
    def gflops(self) -> float:
        """Floating-point operations per nanosecond, two per multiply-add."""
        return 2e-3 * self.macs / max(self.microseconds, 1e-3)


class SessionPlan:
    """What a request computes.

    Attributes:
        macs, full_macs: multiply-adds of the request and of the whole network, external steps left out.
        planning_us: time that windows and memory took to plan.
        workspace_bytes: memory planned for planes that are not kept.
    """

    def __init__(self, program: Program, handle: Any) -> None:
        self._program = program
        self._native = handle
        self.macs: int = handle.macs
        self.full_macs: int = program.full_macs
        self.planning_us: float = handle.planning_us
        self.workspace_bytes: int = handle.workspace_bytes

    @cached_property
    def windows(self) -> dict[str, Window]:
        """Plane name -> hull of what is demanded of it, for planes of which something is."""
        found = (Window(*window) for window in self._native.windows)
        planes = self._program.schedule.planes
        return {plane.name: window for plane, window in zip(planes, found, strict=True) if not window.is_empty}

    @cached_property
    def pieces(self) -> dict[str, list[Window]]:
        """Plane name -> windows that are computed: one, or at most four apart where others are kept; may overlap."""
        planes = self._program.schedule.planes
        return {
            plane.name: [Window(*window) for window in windows]
            for plane, windows in zip(planes, self._native.pieces, strict=True)
            if windows
        }

    @cached_property
    def step_macs(self) -> dict[str, int]:
        """Step name -> multiply-adds."""
        steps = self._program.schedule.steps
        return {step.name: macs for step, macs in zip(steps, self._native.step_macs, strict=True)}


class SessionResult(SessionPlan):
    """What a run computed, besides its plan.

    Attributes:
        outputs: keyed like the request, fp32 ``[1, channels, rows, columns]`` of the windows asked for.
        peak_bytes: memory of activations at the peak: the workspace and all kept cells.
        kept_bytes: bytes of cells kept after the run.
        profile: one row per launch, if asked for.
    """

    def __init__(self, program: Program, report: dict[str, Any], outputs: dict[int | str, Floats]) -> None:
        super().__init__(program, report["plan"])
        self.outputs = outputs
        self.peak_bytes: int = report["peak_bytes"]
        self.kept_bytes: int = report["kept_bytes"]
        self.profile = [
            ProfileRow(**{**row, "windows": tuple(Window(*window) for window in row["windows"])})
            for row in report["profile"]
        ]


class Session:
    """Runs a program; one image at a time.

    Calls from several threads wait for each other; sessions of one program run side by side. With ``TRACENET_DEBUG=2``
    in the environment every launch prints one line on stderr.

    Args:
        program: what to run.
        threads: a number (0: the process's own pool, one per processor) or a :class:`ThreadPool`.
        keep: keep planes that the schedule marks for later runs on the same image, unless they depend on flat inputs.
        max_kept_bytes: where more is kept after a run, everything is dropped.
        poison: for tests: memory holds NaN before it is written, so that a read of what was not computed shows.
    """

    def __init__(
        self,
        program: Program,
        threads: int | ThreadPool = 0,
        keep: bool = False,
        max_kept_bytes: int = 1 << 30,
        *,
        poison: bool = False,
    ) -> None:
        if not isinstance(program, Program):
            raise InputError(f"the program is {type(program).__name__}; pass a Program")
        if not isinstance(max_kept_bytes, int) or not 0 <= max_kept_bytes < 1 << 63:
            raise InputError(f"max_kept_bytes is {max_kept_bytes!r}; pass an integer >= 0")
        module = native.require()
        if isinstance(threads, ThreadPool):
            pool = threads.native
        else:
            pool = module.ThreadPool(_threads(threads)) if _threads(threads) else module.ThreadPool.shared()
        self.program = program
        self._native: Any = module.Session(program.native, pool, bool(keep), max_kept_bytes, poison)

    def set_planar(self, index: int, array: Any, window: Window | None = None) -> None:
        """Set an input from planar floats and forget what was kept.

        The array is read where it lies while runs need it: do not change it before another is set.

        Args:
            index: position among the network's inputs.
            array: fp32 ``[1, channels, rows, columns]``, anything NumPy can share.
            window: the part of the plane it holds; all of it by default. Runs that read more raise InputError.

        Raises:
            InputError: another dtype or shape; a batch that is not 1.
            WindowError: the window is not on the plane.
        """
        value = as_array(array, f"input {index}")
        part = check_planar(self.program.schedule, index, value.shape, value.dtype, window)
        self._native.set_planar(index, np.ascontiguousarray(value[0]), part)

    def set_pixels(
        self,
        index: int,
        photo: Any,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        reverse: bool = False,
    ) -> None:
        """Set an input from a photo's pixels and forget what was kept.

        Runs normalise what they read, ``(pixel - mean) / std``; right of and below the photo the plane is 0. The photo
        is read where it lies: do not change it before another is set.

        Args:
            index: position among the network's inputs.
            photo: uint8 ``[rows, columns, 3]``, at most as large as the plane.
            mean, std: in the order of the network's channels, in units of pixels (0..255).
            reverse: the network's channels are the photo's in reverse (BGR).

        Raises:
            InputError: another dtype or shape, a photo that is too large, a mean or std that cannot be used.
        """
        input_plane(self.program.schedule, index)
        value = as_array(photo, "the photo")
        check_pixels(value.shape, value.dtype, mean, std)
        self._native.set_pixels(index, np.ascontiguousarray(value), list(mean), list(std), bool(reverse))

    def plan(self, request: Request) -> SessionPlan:
        """What a run would compute now, without running it."""
        asked = [(plane, window) for _, plane, window in self._resolve(request)]
        return SessionPlan(self.program, self._native.plan(asked))

    def run(
        self, request: Request, parameters: Mapping[int, Any] | None = None, *, profile: bool = False
    ) -> SessionResult:
        """Compute windows of outputs.

        Args:
            request: see :data:`Request`.
            parameters: position among the inputs -> fp32 values of that flat input, for this run.
            profile: time every launch.

        Raises:
            RequestError, WindowError: the request names what is not there, or reaches an external step.
            InputError: an input that is needed is not set, or a parameter has another size or dtype.
            ExecutionError: a step failed or memory ran out; the session stays usable.
        """
        outputs: dict[int | str, Floats] = {}
        asked: list[tuple[int, Window, Floats]] = []
        for key, plane, window in self._resolve(request):
            shape = (1, self.program.schedule.planes[plane].channels, window.height, window.width)
            outputs[key] = np.empty(shape, np.float32)
            asked.append((plane, window, outputs[key]))
        report = self._native.run(asked, self._flat(parameters), profile)
        return SessionResult(self.program, report, outputs)

    def begin(
        self,
        windows_or_request: Request | Mapping[int, Sequence[Window]],
        parameters: Mapping[int, Any] | None = None,
        *,
        profile: bool = False,
    ) -> SessionPlan:
        """Start a run that goes on in parts: :meth:`run_steps`, :meth:`read`, :meth:`write`, then :meth:`finish`.

        Args:
            windows_or_request: a request, or plane number -> list of windows it computes, which schedules with
                external steps need. Windows of inputs are added as the steps read them; a step that would read what
                is neither computed nor kept is an error.
            parameters: see :meth:`run`.
        """
        values = list(windows_or_request.values()) if isinstance(windows_or_request, Mapping) else []
        flat = self._flat(parameters)
        if values and all(isinstance(v, Sequence) and all(isinstance(w, tuple) for w in v) for v in values):
            handle = self._native.begin_windows(dict(windows_or_request), flat, profile)
        else:
            asked = [(plane, window) for _, plane, window in self._resolve(windows_or_request)]  # type: ignore[arg-type]
            handle = self._native.begin(asked, flat, profile)
        return SessionPlan(self.program, handle)

    def run_steps(self, first: int, last: int) -> None:
        """Run the steps ``[first, last)`` of the schedule; external ones among them must be written already."""
        self._native.run_steps(first, last)

    def read(self, plane: int | str, window: Window | Sequence[int]) -> Floats:
        """A copy of a computed window, ``[rows, columns, channels]``.

        Planes can be read until the last step that reads them has run, outputs until :meth:`finish`.
        """
        return self._native.read(self._plane(plane), Window(*window))

    def write(self, plane: int | str, window: Window | Sequence[int], array: Any) -> None:
        """Store what an external step computed, fp32 ``[rows, columns, channels]``."""
        value = as_array(array, "the values")
        if value.dtype != np.float32:
            raise InputError(f"the values are {value.dtype}; pass float32")
        self._native.write(self._plane(plane), Window(*window), np.ascontiguousarray(value))

    def finish(self) -> SessionResult:
        """End a run: keep what is to be kept. ``outputs`` of the result is empty."""
        return SessionResult(self.program, self._native.finish(), {})

    def forget(self) -> None:
        """Forget all kept values, as setting an input does."""
        self._native.forget()

    @property
    def kept_bytes(self) -> int:
        """Bytes of the cells that are kept."""
        return int(self._native.kept_bytes())

    def kept_windows(self) -> dict[str, list[Window]]:
        """Plane name -> disjoint windows that are kept."""
        lists = self._native.kept_windows()
        return {
            plane.name: [Window(*window) for window in windows]
            for plane, windows in zip(self.program.schedule.planes, lists, strict=True)
            if windows
        }

    def _plane(self, key: int | str) -> int:
        if isinstance(key, str) and key in self.program.plane_numbers:
            return self.program.plane_numbers[key]
        if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(self.program.schedule.planes):
            return key
        raise RequestError(f"{key!r} is no plane; pass a number below {len(self.program.schedule.planes)} or a name")

    def _resolve(self, request: Request) -> list[tuple[int | str, int, Window]]:
        return resolve_request(self.program.schedule, self.program.plane_numbers, request)

    def _flat(self, parameters: Mapping[int, Any] | None) -> list[tuple[int, Floats]]:
        return flat_parameters(self.program.schedule, parameters)


def _threads(threads: int) -> int:
    if not isinstance(threads, int) or isinstance(threads, bool) or not 0 <= threads <= 1024:
        raise InputError(f"threads is {threads!r}; pass 0 for all processors, a number up to 1024, or a ThreadPool")
    return threads
