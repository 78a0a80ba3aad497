"""Registers a kernel family twice: as an operation that returns new tensors, and as one that writes planes in place."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from tracenet_kernels import gpu
from tracenet_kernels.errors import BackendError, InputError, WindowError
from tracenet_kernels.ops.checks import HALVES, check_out, check_table, checked_window
from tracenet_kernels.triton.planes import DevicePlane, Windows
from tracenet_kernels.window import Window

if TYPE_CHECKING:
    from tracenet_kernels.triton.launch import Launch

Size = tuple[int, int]
# CUDA graphs of others cannot hold these operations: a first call packs weights and copies windows from the host.
_TAGS = tuple(tag for tag in (getattr(torch.Tag, "cudagraph_unsafe", None),) if tag is not None)
_launching: ContextVar[bool] = ContextVar("launching", default=False)


@dataclass(frozen=True, slots=True)
class Results:
    """What an operation gives: planes of one size."""

    size: Size
    channels: tuple[int, ...]
    dtype: torch.dtype


A = TypeVar("A", bound=tuple[Any, ...])


@dataclass(frozen=True, slots=True)
class Family(Generic[A]):
    """One kernel family.

    Attributes:
        name: of the operation; ``<name>_out`` writes in place.
        arguments: a named tuple of its arguments; the first is a tensor, on the device that counts.
        schema: the arguments as ``torch.library`` writes them, without defaults.
        results: what is computed, of the size that is asked for, if any; raises the project's errors.
        twin: the whole planes of that size.
        launches: write windows of the outputs.
        several: whether it gives a list of planes, not one.
    """

    name: str
    arguments: Callable[..., A]
    schema: str
    results: Callable[[A, Sequence[int] | None], Results]
    twin: Callable[[A, Size], list[Tensor]]
    launches: Callable[[A, Sequence[DevicePlane], Windows], list[Launch]]
    several: bool = False

    def register(self) -> None:
        """Make ``torch.ops.tracenet.<name>`` and ``torch.ops.tracenet.<name>_out``."""
        given, taken = ("Tensor[]", "Tensor(a!)[]") if self.several else ("Tensor", "Tensor(a!)")
        define(
            self.name,
            f"({self.schema}, SymInt[]? size, SymInt[]? window) -> {given}",
            functools.partial(self._compute, self._on_cpu),
            functools.partial(self._compute, self._on_gpu),
            functools.partial(self._compute, None),
        )
        define(
            f"{self.name}_out",
            f"({taken} out, {self.schema}, SymInt[]? window, Tensor? table, SymInt[]? bound) -> ()",
            functools.partial(self._write, self._on_cpu),
            functools.partial(self._write, self._on_gpu),
            functools.partial(self._write, None),
        )

    def _compute(self, fill: Callable[..., None] | None, *args: Any) -> Tensor | list[Tensor]:
        *given, size, window = args
        arguments = self.arguments(*given)
        results = self.results(arguments, size)
        y0, y1, x0, x1 = checked_window(window, results.size)
        outs = [
            arguments[0].new_empty((y1 - y0, x1 - x0, channels), dtype=results.dtype) for channels in results.channels
        ]
        if fill is not None and y0 < y1 and x0 < x1:
            planes = [DevicePlane(out, results.size, (y0, x0)) for out in outs]
            fill(arguments, planes, _table((y0, y1, x0, x1), outs[0].device))
        return outs if self.several else outs[0]

    def _write(self, fill: Callable[..., None] | None, *args: Any) -> None:
        out, *given, window, table, bound = args
        arguments = self.arguments(*given)
        outs = out if self.several else [out]
        size = (outs[0].shape[0], outs[0].shape[1])
        results = self.results(arguments, size)
        if len(outs) != len(results.channels):
            raise InputError(f"{self.name}_out gives {len(results.channels)} planes; pass as many, not {len(outs)}")
        for index, (plane, channels) in enumerate(zip(outs, results.channels, strict=True)):
            check_out(plane, f"out[{index}]" if self.several else "out", arguments[0], channels)
            if tuple(plane.shape[:2]) != size:
                raise InputError(
                    f"the outputs have {[tuple(o.shape[:2]) for o in outs]} cells; pass planes of one size"
                )
        device = outs[0].device
        if table is not None:
            if window is not None:
                raise InputError("window and table are both given; pass one of them")
            check_table(table, bound, device)
        else:
            y0, y1, x0, x1 = checked_window(window, size)
        if fill is None:
            return
        if table is not None:
            windows = Windows(table, 0, table.shape[0], size if bound is None else (bound[0], bound[1]))
        elif y0 < y1 and x0 < x1:
            windows = _table((y0, y1, x0, x1), device)
        else:
            return
        fill(arguments, [DevicePlane(plane, size) for plane in outs], windows)

    def _on_cpu(self, arguments: A, outs: Sequence[DevicePlane], windows: Windows) -> None:
        if launching():
            self._launch(arguments, outs, windows)
            return
        wholes = self.twin(self.arguments(*map(_widened, arguments)), outs[0].plane)
        for y0, y1, x0, x1 in windows.table.tolist():
            if y0 >= y1 or x0 >= x1:
                continue
            window = Window(y0, y1, x0, x1)
            for out, whole in zip(outs, wholes, strict=True):
                if not out.extent.contains(window):
                    raise WindowError(f"window {window} of the table is not within {out.extent}, the output's cells")
                part = window.shift(-out.origin[0], -out.origin[1])
                out.tensor[part.slices].copy_(whole[window.slices])

    def _on_gpu(self, arguments: A, outs: Sequence[DevicePlane], windows: Windows) -> None:
        require_kernels(self.name)
        with torch.cuda.device(outs[0].tensor.device):
            self._launch(arguments, outs, windows)

    def _launch(self, arguments: A, outs: Sequence[DevicePlane], windows: Windows) -> None:
        for launch in self.launches(arguments, outs, windows):
            launch()


def define(name: str, schema: str, cpu: Callable[..., Any], cuda: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Make ``torch.ops.tracenet.<name>``: for CPU tensors, for CUDA tensors, and for tensors without data."""
    mutated = ("out",) if "!" in schema else ()
    options: dict[str, Any] = {"tags": _TAGS} if _TAGS else {}
    operation = torch.library.custom_op(
        f"tracenet::{name}", cpu, mutates_args=mutated, schema=schema, device_types="cpu", **options
    )
    operation.register_kernel("cuda")(cuda)
    operation.register_fake(fake)


@contextlib.contextmanager
def kernels_on_cpu() -> Iterator[None]:
    """CPU tensors take the Triton kernels, in Triton's interpreter (TRITON_INTERPRET=1); for tests."""
    token = _launching.set(True)
    try:
        yield
    finally:
        _launching.reset(token)


def launching() -> bool:
    """Whether CPU tensors take the Triton kernels; see :func:`kernels_on_cpu`."""
    return _launching.get()


@functools.cache
def _why_not() -> str:
    return gpu.why_not()


def require_kernels(name: str) -> None:
    """Raises BackendError where no Triton kernel can run here."""
    if reason := _why_not():
        raise BackendError(f"{name} on CUDA tensors needs Triton kernels, and {reason}; move the tensors to the CPU")


@functools.lru_cache(maxsize=4096)
def _table(window: tuple[int, int, int, int], device: torch.device) -> Windows:
    """The same window again needs no copy to the device."""
    return Windows.of([Window(*window)], device)


def _widened(value: Any) -> Any:
    """Half precision in fp32: twins round once, as the kernels do."""
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value
