"""Sessions on a GPU: windows of one image at a time, replayed from a captured graph.

>>> session = GpuSession(program)
>>> session.set_planar(0, image)  # [1, 3, H, W] float32
>>> session.run({"P3": Window(40, 72, 40, 72)}).outputs["P3"].shape
(1, 256, 32, 32)

A run plans its windows on the host, writes them into the device's table and replays the graph of a class whose bounds
they fit. Classes are captured when the first run needs them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracenet.engine.click_class import Anywhere, AtClick, ClickClass, RequestForm, rounded_side
from tracenet.engine.gpu import debug
from tracenet.engine.gpu.bind import Binding, Pixels
from tracenet.engine.gpu.capture import Capture, GraphCapture, Replay, eager, refuse_capturing
from tracenet.engine.gpu.clicks import ClickGraph
from tracenet.engine.gpu.memory import Bound, Memory
from tracenet.engine.gpu.out_of_memory import named_out_of_memory
from tracenet.engine.gpu.program import GpuProgram
from tracenet.engine.planner import PIECES, HostPlan, HostPlanner, step_macs
from tracenet.engine.requests import (
    Floats,
    Request,
    check_pixels,
    check_planar,
    flat_parameters,
    input_plane,
    resolve_request,
)
from tracenet_kernels.errors import InputError, RequestError
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.split_k import Scratch
from tracenet_kernels.window import EMPTY, Window

MODES = ("graph", "eager")
_INTERPRETER = threading.RLock()
"""Triton's interpreter changes its language's functions while it runs a kernel: one kernel at a time."""
FormKey = tuple[tuple[int, AtClick | Anywhere], ...]
MAX_CLASSES = 16
"""Captured classes kept, least recently used dropped first."""


class GpuResult:
    """What a run computed.

    Attributes:
        outputs: keyed like the request, fp32 ``[1, channels, rows, columns]``.
        macs, full_macs: multiply-adds of the run and of the whole network.
        planning_us: time that windows took to plan on the host.
        captured: whether this run had to capture its class first.
        peak_bytes: of the session's device memory, weights apart.
    """

    def __init__(
        self,
        program: GpuProgram,
        plan: HostPlan,
        outputs: dict[int | str, Floats],
        captured: bool,
        peak_bytes: int,
    ) -> None:
        self.outputs = outputs
        self.macs = plan.macs
        self.full_macs = program.full_macs
        self.planning_us = plan.planning_us
        self.captured = captured
        self.peak_bytes = peak_bytes
        self._program = program
        self._plan = plan

    @cached_property
    def windows(self) -> dict[str, Window]:
        """Plane name -> hull of what was computed."""
        planes = self._program.schedule.planes
        return {p.name: w for p, w in zip(planes, self._plan.windows, strict=True) if not w.is_empty}

    @cached_property
    def pieces(self) -> dict[str, list[Window]]:
        """Plane name -> windows that its step computed."""
        schedule = self._program.schedule
        found: dict[str, list[Window]] = {}
        for step, rows in zip(schedule.steps, self._plan.pieces, strict=True):
            windows = [window for window in (Window(*map(int, row)) for row in rows) if not window.is_empty]
            if windows:
                found[schedule.planes[step.output].name] = windows
        return found

    @cached_property
    def step_macs(self) -> dict[str, int]:
        """Step name -> multiply-adds."""
        schedule = self._program.schedule
        names = [schedule.planes[step.output].name for step in schedule.steps]
        return {
            step.name: sum(step_macs(schedule, step, window) for window in self.pieces.get(name, ()))
            for step, name in zip(schedule.steps, names, strict=True)
        }


class GpuSession:
    """Runs a program on one image at a time.

    With ``TRACENET_DEBUG=2`` in the environment every launch runs alone and prints one line on stderr.

    Calls from several threads wait for each other. Work is enqueued on the caller's current stream; a run on another
    stream than the one before waits for it.

    Args:
        program: what to run.
        keep: keep planes that the schedule marks for later runs on the same image.
        mode: ``"graph"`` replays captured CUDA graphs; ``"eager"`` launches kernel by kernel, for debugging. By default
            graphs on CUDA devices.
        capture: in place of the mode's own, for tests.
        tma: convolve with tensor-memory copies where they fit (sm_90 and newer).
        pdl: programmatic dependent launch (sm_90 and newer): a kernel starts while the one before it ends.
        poison: for tests: planes hold NaN before they are written.
    """

    def __init__(
        self,
        program: GpuProgram,
        *,
        keep: bool = False,
        mode: str | None = None,
        capture: Capture | None = None,
        tma: bool = False,
        pdl: bool = False,
        poison: bool = False,
    ) -> None:
        on_cuda = program.device.type == "cuda"
        mode = mode or ("graph" if on_cuda else "eager")
        if mode not in MODES:
            raise InputError(f"mode {mode!r} is not known; choose one of {', '.join(MODES)}")
        if mode == "graph" and not on_cuda and capture is None:
            raise InputError(f"mode 'graph' captures CUDA graphs; there are none on {program.device}, use 'eager'")
        if (tma or pdl) and not (on_cuda and torch.cuda.get_device_capability(program.device) >= (9, 0)):
            raise InputError(f"tma={tma}, pdl={pdl}: {program.device} is older than sm_90 and has neither")
        self.program = program
        self.keep = keep
        self._tma, self._pdl = tma, pdl
        self._capture: Capture = capture or (GraphCapture(program.device) if mode == "graph" else eager)
        if debug.asked():
            self._capture = debug.Printed(program.device)
        self._planner = HostPlanner(program.schedule, keep)
        self._order = program.units(keep)
        with self._on_device():
            self._memory = Memory(program, self._order, keep=keep, pieces=PIECES if keep else 1, poison=poison)
            self._scratch = Scratch(program.device)
            self._host_table = torch.zeros_like(self._memory.table, device="cpu", pin_memory=on_cuda)
        self._pixels: dict[int, Pixels] = {}
        self._held: dict[int, Window] = {}
        self._classes: OrderedDict[tuple[Any, ...], tuple[Binding, Replay]] = OrderedDict()
        self._bounds: dict[FormKey, tuple[Bound, ...]] = {}
        self._lock = threading.RLock() if on_cuda else _INTERPRETER
        self._last: Any = None

    def set_planar(self, index: int, array: Any, window: Window | None = None) -> None:
        """Set an input from planar floats, copied to the device, and forget what was kept.

        Args:
            index: position among the network's inputs.
            array: fp32 ``[1, channels, rows, columns]``: a tensor on any device, or anything NumPy can share.
            window: the part of the plane it holds; all of it by default. Runs that read more raise InputError.

        Raises:
            InputError: another dtype or shape; a batch that is not 1.
            WindowError: the window is not on the plane.
        """
        value = _as_tensor(array)
        part = check_planar(self.program.schedule, index, value.shape, value.dtype, window)
        number = self.program.schedule.inputs[index]
        with self._lock, self._on_device():
            self._wait()
            if number in self._memory.images:
                self._memory.images[number][:, part.y0 : part.y1, part.x0 : part.x1].copy_(value[0])
            else:
                self._memory.flat[number].copy_(value.reshape(-1))
            if self._pixels.pop(number, None) is not None:
                self._classes.clear()
            self._held[number] = part
            self._planner.forget()
            self._done()

    def set_pixels(
        self,
        index: int,
        photo: Any,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        reverse: bool = False,
    ) -> None:
        """Set an input from a photo's pixels, copied to the device, and forget what was kept.

        Kernels normalise what they read, ``(pixel - mean) / std``; right of and below the photo the plane is 0. Photos
        of one size and normalisation share their captured graphs.

        Args:
            index: position among the network's inputs.
            photo: uint8 ``[rows, columns, 3]``, at most as large as the plane: a tensor or an array.
            mean, std: in the order of the network's channels, in units of pixels (0..255).
            reverse: the network's channels are the photo's in reverse (BGR).

        Raises:
            InputError: another dtype or shape, a photo that is too large, a mean or std that cannot be used.
        """
        plane = input_plane(self.program.schedule, index)
        value = _as_tensor(photo)
        check_pixels(value.shape, value.dtype, mean, std)
        rows, columns, _ = value.shape
        if rows > plane.height or columns > plane.width or plane.channels != 3 or not rows or not columns:
            raise InputError(
                f"the photo is {rows} x {columns}; input {index} takes 3 channels and at most "
                f"{plane.height} x {plane.width} (rows x columns)"
            )
        number = self.program.schedule.inputs[index]
        with self._lock, self._on_device():
            self._wait()
            held = self._pixels.get(number)
            statistics = tuple(map(float, mean)), tuple(map(float, std)), bool(reverse)
            if held is None or held.photo.shape != value.shape or (held.mean, held.std, held.reverse) != statistics:
                fresh = torch.empty(rows, columns, 3, dtype=torch.uint8, device=self.program.device)
                self._pixels[number] = Pixels(fresh, *statistics)  # type: ignore[arg-type]
                self._classes.clear()
            self._pixels[number].photo.copy_(value)
            self._held[number] = Window.full(plane.height, plane.width)
            self._planner.forget()
            self._done()

    def plan(self, request: Request) -> HostPlan:
        """What a run would compute now, without running it."""
        with self._lock:
            return self._planner.plan(request)

    def run(
        self, request: Request, parameters: Mapping[int, Any] | None = None, *, form: RequestForm | None = None
    ) -> GpuResult:
        """Compute windows of outputs and copy them to the host.

        Args:
            request: see :data:`tracenet.engine.requests.Request`.
            parameters: position among the inputs -> fp32 values of that flat input, for this run.
            form: the family that the request belongs to: its class is captured, so that all of the family share one
                graph. By default the class has the request's own sizes, rounded up.

        Raises:
            RequestError, WindowError: the request names what is not there.
            InputError: an input that is needed is not set, or a parameter has another size or dtype.
            ExecutionError: a launch or capture failed, or memory ran out; the session stays usable.
        """
        with self._lock:
            plan, captured, views = self._enqueue(request, parameters, form)
            with self._on_device():
                # One copy for all outputs: each would wait for the device anew.
                together = torch.cat([view.reshape(-1) for view in views.values()]).float().cpu().numpy()
        ends = np.cumsum([view.numel() for view in views.values()])
        parts = np.split(together, ends[:-1])
        outputs = {key: part.reshape(view.shape) for (key, view), part in zip(views.items(), parts, strict=True)}
        return GpuResult(self.program, plan, outputs, captured, self._memory.bytes)

    def run_on_device(
        self, request: Request, parameters: Mapping[int, Any] | None = None, *, form: RequestForm | None = None
    ) -> dict[int | str, Tensor]:
        """As :meth:`run`, without waiting for the device.

        Returns:
            Views ``[1, channels, rows, columns]`` of the session's memory in the program's dtype: they change with the
            next run.
        """
        with self._lock:
            return self._enqueue(request, parameters, form)[2]

    def forget(self) -> None:
        """Forget all kept values, as setting an input does."""
        with self._lock:
            self._planner.forget()

    @property
    def kept_bytes(self) -> int:
        """Bytes of the cells that are kept."""
        kept = enumerate(self._planner.kept_windows())
        return sum(window.area * self._memory.cell_bytes(number) for number, windows in kept for window in windows)

    @property
    def bytes(self) -> int:
        """Of the session's device memory, weights apart."""
        return self._memory.bytes

    def click_graph(self, form: RequestForm) -> ClickGraph:
        """One captured graph for every click of a form, with the planner on the device.

        Raises:
            RequestError: the form asks for windows that a click does not decide, or the session keeps planes: what is
                missing is only known on the host.
        """
        if self.keep:
            raise RequestError("the session keeps planes, so what a click computes depends on those before; use run()")
        return ClickGraph(self, form)

    def launches(self, request: Request, form: RequestForm | None = None) -> list[Launch]:
        """What the class of a request launches, for benchmarks and ahead-of-time compilation; nothing is run."""
        with self._lock, self._on_device():
            plan = self._planner.plan(request)
            return self._bind(self._class_bounds(plan, form)).launches

    @property
    def memory(self) -> Memory:
        """Where planes and the table of windows lie."""
        return self._memory

    def launches_of(self, form: RequestForm) -> list[Launch]:
        """What the class of a form launches; nothing is run."""
        with self._lock, self._on_device():
            return self._bind(self._form_bounds(form)).launches

    def capture(self, work: Sequence[Launch]) -> Replay:
        """Capture launches that read the session's table of windows."""
        with self._lock, self._on_device():
            self._wait()
            return self._captured(work)

    @contextmanager
    def enqueued(self, read: Mapping[int, Window], parameters: Mapping[int, Any] | None) -> Iterator[None]:
        """A stretch in which work is enqueued after all before, with parameters set.

        Args:
            read: plane number -> window, of inputs that the work reads.
            parameters: as in :meth:`run`.

        Raises:
            InputError: an input is not set.
        """
        flat = flat_parameters(self.program.schedule, parameters)
        with self._lock, self._on_device():
            refuse_capturing(self.program.device)
            self._check_inputs(read, flat)
            self._wait(on_host=True)
            self._set_flat(flat)
            yield
            self._done()

    def holds(self, read: Mapping[int, Window]) -> bool:
        """Whether these windows of inputs are set."""
        return all(self._held.get(number, EMPTY).contains(window) for number, window in read.items())

    def view(self, number: int, window: Window) -> Tensor:
        """A window of a plane where it lies, ``[1, channels, rows, columns]``."""
        cells = self._memory.output(number)[window.y0 : window.y1, window.x0 : window.x1]
        return cells.permute(2, 0, 1)[None]

    def _enqueue(
        self, request: Request, parameters: Mapping[int, Any] | None, form: RequestForm | None
    ) -> tuple[HostPlan, bool, dict[int | str, Tensor]]:
        refuse_capturing(self.program.device)
        resolved = resolve_request(self.program.schedule, self._plane_numbers, request)
        flat = flat_parameters(self.program.schedule, parameters)
        plan = self._planner.plan(request)
        self._check_inputs({number: plan.windows[number] for number in self.program.schedule.inputs}, flat)
        with self._on_device():
            self._wait()
            with named_out_of_memory(self.program.device, "the launches of a new class of requests"):
                replay, captured = self._replay_of(plan, form)
            self._set_flat(flat)
            self._write_table(plan)
            replay.replay()
            self._planner.commit()
            views = {key: self.view(number, window) for key, number, window in resolved}
            self._done()
        return plan, captured, views

    def _check_inputs(self, read: Mapping[int, Window], flat: Sequence[tuple[int, Floats]]) -> None:
        """Raises InputError where a window of an input is read that was not set."""
        given = {index for index, _ in flat}
        for index, number in enumerate(self.program.schedule.inputs):
            window, held = read.get(number, EMPTY), self._held.get(number)
            name = self.program.schedule.planes[number].name
            if window.is_empty or index in given:
                continue
            if held is None:
                raise InputError(f"input {index} ({name!r}) is read but not set; call set_planar or pass parameters")
            if not held.contains(window):
                raise InputError(f"input {index} ({name!r}) holds {held}, but {window} is read; set at least that")

    def _set_flat(self, flat: Sequence[tuple[int, Floats]]) -> None:
        for index, values in flat:
            self._memory.flat[self.program.schedule.inputs[index]].copy_(_as_tensor(values))

    def _replay_of(self, plan: HostPlan, form: RequestForm | None) -> tuple[Replay, bool]:
        """The graph of the plan's class, captured now where there is none."""
        bounds = self._class_bounds(plan, form)
        if bounds in self._classes:
            self._classes.move_to_end(bounds)
            return self._classes[bounds][1], False
        binding = self._bind(bounds)
        replay = self._captured(binding.launches)
        self._classes[bounds] = binding, replay
        while len(self._classes) > MAX_CLASSES:
            self._classes.popitem(last=False)
        return replay, True

    def _captured(self, work: Sequence[Launch]) -> Replay:
        # A warm-up before capture must not touch what is kept: with an empty table no program has a cell to write.
        self._memory.table.zero_()
        return self._capture(work)

    def _class_bounds(self, plan: HostPlan, form: RequestForm | None) -> tuple[Bound, ...]:
        planes = self.program.schedule.planes
        needed = _sizes(plan)
        if form is None:
            sides = [
                (rounded_side(b.rows, p.height), rounded_side(b.columns, p.width)) if b.cells else (0, 0)
                for b, p in zip(needed, planes, strict=True)
            ]
            return tuple(Bound(rows, columns, rows * columns) for rows, columns in sides)
        bounds = self._form_bounds(form)
        for plane, need, most in zip(planes, needed, bounds, strict=True):
            if need.rows > most.rows or need.columns > most.columns:
                raise RequestError(
                    f"the request does not belong to the form given: {plane.name!r} needs {need.rows} x {need.columns} "
                    f"cells, the form's class has {most.rows} x {most.columns}"
                )
        return bounds

    def _form_bounds(self, form: RequestForm) -> tuple[Bound, ...]:
        key = tuple(sorted(form.rules.items()))
        if key not in self._bounds:
            found = ClickClass.of(self.program.schedule, form).bounds
            self._bounds[key] = tuple(Bound(rows, columns, rows * columns) for rows, columns in found)
        return self._bounds[key]

    def _bind(self, bounds: Sequence[Bound]) -> Binding:
        return Binding(
            self.program,
            self._order,
            self._memory,
            bounds,
            self._pixels,
            self._scratch,
            tma=self._tma,
            pdl=self._pdl,
        )

    def _write_table(self, plan: HostPlan) -> None:
        steps, pieces = len(self.program.schedule.steps), self._memory.pieces
        self._wait(on_host=True)  # the copy of an earlier run may still read the host's table
        rows = self._host_table.view(-1, pieces, 4)
        rows[:steps] = torch.from_numpy(plan.pieces[:, :pieces])
        for i, number in enumerate(self.program.schedule.inputs, steps):
            rows[i, 0] = torch.tensor(plan.windows[number], dtype=torch.int32)
        self._memory.table.copy_(self._host_table, non_blocking=True)

    @cached_property
    def _plane_numbers(self) -> dict[str, int]:
        return {plane.name: i for i, plane in enumerate(self.program.schedule.planes)}

    def _on_device(self) -> AbstractContextManager[Any]:
        device = self.program.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _wait(self, on_host: bool = False) -> None:
        """Order this call after the one before, whichever stream that was on; also what the host does, if asked."""
        if self._last is not None and on_host:
            self._last.synchronize()
        elif self._last is not None:
            torch.cuda.current_stream(self.program.device).wait_event(self._last)

    def _done(self) -> None:
        if self.program.device.type == "cuda":
            self._last = torch.cuda.Event()
            self._last.record(torch.cuda.current_stream(self.program.device))


def _sizes(plan: HostPlan) -> tuple[Bound, ...]:
    """Of every plane's window, pieces joined."""
    return tuple(Bound(w.height, w.width, w.area) if not w.is_empty else Bound() for w in plan.windows)


def _as_tensor(value: Any) -> Tensor:
    """A tensor as it is; anything else as a tensor on the CPU, a copy where its memory may not be written."""
    return value if isinstance(value, Tensor) else torch.from_numpy(np.require(value, requirements=("C", "W")))
