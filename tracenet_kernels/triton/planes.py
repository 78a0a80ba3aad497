"""Planes and windows in the device's memory, as every kernel family takes them.

A :class:`DevicePlane` is a tensor that holds a plane or a part of one. Kernels address cells by their coordinates on
the whole plane: element ``(y, x, c)`` lies at ``pointer + offset + y * row_stride + x * pixel_stride + c``, where
``offset`` takes the part's origin into account. Reads off the logical plane are border; whether a part holds all
that is read is the caller's promise (the planner's), as windows may exist on the device only.

:class:`Windows` are rows of a small int32 table in the device's memory. Grids are sized by ``bound``; a program whose
tile lies past its window's cells exits. An empty window (``y0 >= y1`` or ``x0 >= x1``) costs nothing but its launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.window import Window

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.uint8)
"""What planes may hold. ``uint8`` is for photos only."""
MAX_ELEMENTS = 2**31 - 1
"""Elements that one plane may span: kernels compute addresses in 32 bits, the plane's offset apart."""


@dataclass(frozen=True, slots=True)
class DevicePlane:
    """A plane, or part of one, in memory.

    Attributes:
        tensor: [rows, columns, channels], channels contiguous.
        plane: rows and columns of the whole logical plane.
        origin: row and column of the plane that ``tensor[0, 0]`` is.
        scale, zero_point: of int8 and fp8 planes, whose values stand for ``(q - zero_point) * scale``.
    """

    tensor: Tensor
    plane: tuple[int, int]
    origin: tuple[int, int] = (0, 0)
    scale: float = 1.0
    zero_point: int = 0

    @property
    def channels(self) -> int:
        return self.tensor.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def row_stride(self) -> int:
        """Elements from one row to the next."""
        return self.tensor.stride(0)

    @property
    def pixel_stride(self) -> int:
        """Elements from one column to the next."""
        return self.tensor.stride(1)

    @property
    def offset(self) -> int:
        """Elements from the tensor's first one to cell (0, 0) of the whole plane; not positive."""
        return -(self.origin[0] * self.row_stride + self.origin[1] * self.pixel_stride)

    @property
    def extent(self) -> Window:
        """The part of the plane that is in memory."""
        (y, x), (rows, columns, _) = self.origin, self.tensor.shape
        return Window(y, y + rows, x, x + columns)


def as_plane(value: Tensor | DevicePlane, name: str, dtypes: Sequence[torch.dtype] = DTYPES) -> DevicePlane:
    """A checked plane; a tensor [rows, columns, channels] is a whole one.

    Raises:
        InputError: not such a tensor, a dtype that is not among ``dtypes``, channels that are not contiguous, a part
            that is not on its plane, more than :data:`MAX_ELEMENTS` elements.
    """
    if isinstance(value, Tensor):
        if value.ndim != 3:
            raise InputError(f"{name} has shape {tuple(value.shape)}; pass [rows, columns, channels]")
        value = DevicePlane(value, (value.shape[0], value.shape[1]))
    if not isinstance(value, DevicePlane):
        raise InputError(f"{name} is {type(value).__name__}; pass a tensor [rows, columns, channels] or a DevicePlane")
    tensor = value.tensor
    if tensor.ndim != 3 or 0 in tensor.shape:
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; pass [rows, columns, channels], none of them 0")
    if tensor.dtype not in dtypes:
        raise InputError(f"{name} holds {tensor.dtype}; pass one of {', '.join(map(str, dtypes))}")
    if tensor.stride(2) != 1 or min(tensor.stride()) < 1:
        raise InputError(
            f"{name} has strides {tensor.stride()}; channels must be contiguous: pass x.contiguous() of [H, W, C], "
            "or image.movedim(1, -1)[0] of a channels_last batch"
        )
    if not Window.full(*value.plane).contains(value.extent):
        raise InputError(f"{name} holds {value.extent} of a plane of {value.plane[0]} x {value.plane[1]} cells")
    if value.plane[0] * value.row_stride > MAX_ELEMENTS:
        raise InputError(f"{name} spans {value.plane[0] * value.row_stride} elements; {MAX_ELEMENTS} is the most")
    return value


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of one plane, or of several planes of one launch, in the device's memory.

    Attributes:
        table: int32 [rows, 4], contiguous: y0, y1, x0, x1.
        first: the first row that is used.
        count: how many are.
        bound: rows and columns that no window exceeds.
        max_cells: cells that no window exceeds; 0: those of ``bound``.
    """

    table: Tensor
    first: int = 0
    count: int = 1
    bound: tuple[int, int] = (1, 1)
    max_cells: int = 0

    @property
    def cells(self) -> int:
        """Cells that size the grid, per window."""
        return self.max_cells or self.bound[0] * self.bound[1]

    @classmethod
    def of(cls, windows: Sequence[Window], device: torch.device | str) -> Windows:
        """A table of its own for windows that the host knows.

        Raises:
            WindowError: no window, or one that is malformed.
        """
        if not windows:
            raise WindowError("no window is given; pass at least one, which may be empty")
        found = [Window(*window) for window in windows]
        table = torch.tensor([list(window) for window in found], dtype=torch.int32, device=device)
        sides = [(0, 0) if window.is_empty else (window.height, window.width) for window in found]
        bound = (max(1, max(s[0] for s in sides)), max(1, max(s[1] for s in sides)))
        return cls(table, 0, len(found), bound, max(1, max(s[0] * s[1] for s in sides)))


def as_windows(value: Windows | Window | Sequence[Window], plane: DevicePlane, name: str = "window") -> Windows:
    """Windows of ``plane``; those that the host knows are checked against what the plane holds.

    Raises:
        InputError: a table of another dtype, shape or device.
        WindowError: a window is malformed or not within the plane's extent.
    """
    if isinstance(value, Windows):
        table = value.table
        if table.dtype != torch.int32 or table.ndim != 2 or table.shape[1] != 4 or not table.is_contiguous():
            raise InputError(f"{name}: a table of {table.dtype} {tuple(table.shape)}; pass contiguous int32 [rows, 4]")
        if table.device != plane.tensor.device:
            raise InputError(f"{name}: the table is on {table.device}, the plane on {plane.tensor.device}")
        if value.first < 0 or value.count < 1 or value.first + value.count > table.shape[0] or min(value.bound) < 1:
            raise InputError(f"{name}: rows {value.first} + {value.count} of {table.shape[0]}, bound {value.bound}")
        return value
    windows = [Window(*value)] if isinstance(value, Window) else [Window(*window) for window in value]
    for window in windows:
        if not window.is_empty and not plane.extent.contains(window):
            raise WindowError(f"{name} {window} is not within {plane.extent}, the part of the plane in memory")
    return Windows.of(windows, plane.tensor.device)


_ahead: ContextVar[tuple[int, int] | None] = ContextVar("_ahead", default=None)


@contextmanager
def ahead_of_time(capability: tuple[int, int]) -> Iterator[None]:
    """Launches built inside are only compiled, for a GPU of that capability: their tensors may be on any device."""
    token = _ahead.set(capability)
    try:
        yield
    finally:
        _ahead.reset(token)


def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability that launches on a device are built for."""
    return _ahead.get() or torch.cuda.get_device_capability(device)


def same_device(*tensors: Tensor | None) -> torch.device:
    """The one device that all tensors are on.

    Raises:
        InputError: they are on several, or on the CPU although kernels are compiled for a GPU.
    """
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) != 1:
        raise InputError(f"the tensors are on {sorted(map(str, devices))}; move them to one device")
    (device,) = devices
    if device.type != "cuda" and not (interpreted() or _ahead.get()):
        raise InputError(f"the tensors are on {device}; move them to a CUDA device, or set TRITON_INTERPRET=1")
    return device


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any device: TRITON_INTERPRET=1 before the first import."""
    from tracenet_kernels.gpu import interpreted as asked

    return asked()
