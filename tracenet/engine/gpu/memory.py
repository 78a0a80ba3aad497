"""The device memory of one session: a workspace with all planes, the inputs, and the table of windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracenet.engine.gpu.out_of_memory import named_out_of_memory
from tracenet.engine.gpu.program import GpuProgram
from tracenet.engine.gpu.units import Unit
from tracenet.engine.gpu.workspace import Workspace, arrange
from tracenet_kernels.triton.planes import DevicePlane, Windows


@dataclass(frozen=True, slots=True)
class Bound:
    """What a window of one plane does not exceed: rows, columns and cells; all 0 where none is ever computed."""

    rows: int = 0
    columns: int = 0
    cells: int = 0


class Memory:
    """Buffers at fixed addresses.

    Args:
        program: whose planes they hold.
        order: units in the order in which they run.
        keep: planes that the schedule marks keep their place.
        pieces: rows of the window table per step.
        poison: for tests: floats are NaN before they are written.

    Raises:
        ExecutionError: the device has not enough memory.
    """

    def __init__(
        self, program: GpuProgram, order: Sequence[Unit], *, keep: bool, pieces: int, poison: bool = False
    ) -> None:
        schedule = program.schedule
        self._program = program
        self.pieces = pieces
        self._dtypes = [program.plane_dtype(plane) for plane in schedule.planes]
        pinned = set(schedule.outputs.values())
        if keep:
            pinned |= {number for number, plane in enumerate(schedule.planes) if plane.keep}
        sizes = [dtype.itemsize for dtype in self._dtypes]
        self.workspace: Workspace = arrange(schedule, sizes, [unit.steps for unit in order], pinned)
        with named_out_of_memory(program.device, f"a workspace of {self.workspace.bytes / 2**20:.0f} MiB"):
            self._bytes = torch.zeros(self.workspace.bytes, dtype=torch.uint8, device=program.device)
            self.images = {
                number: torch.zeros(plane.channels, plane.height, plane.width, device=program.device)
                for number, plane in ((n, schedule.planes[n]) for n in schedule.inputs)
                if (plane.height, plane.width) != (1, 1)
            }
            self.flat = {
                number: torch.zeros(schedule.planes[number].channels, device=program.device)
                for number in schedule.inputs
                if number not in self.images
            }
            rows = (len(schedule.steps) + len(schedule.inputs)) * pieces
            self.table = torch.zeros(rows, 4, dtype=torch.int32, device=program.device)
        self._row = {step.output: i * pieces for i, step in enumerate(schedule.steps)}
        self._row |= {number: (len(schedule.steps) + i) * pieces for i, number in enumerate(schedule.inputs)}
        if poison:
            self.poison()

    @property
    def bytes(self) -> int:
        """Of the workspace, the inputs and the table."""
        others = [*self.images.values(), *self.flat.values(), self.table]
        return self.workspace.bytes + sum(t.numel() * t.element_size() for t in others)

    def poison(self) -> None:
        """Fill the workspace so that a read of what was not computed shows: every float becomes NaN."""
        self._bytes.fill_(0xFF)

    def plane(self, number: int) -> DevicePlane:
        """A plane of the workspace."""
        plane, place, dtype = self._program.schedule.planes[number], self.workspace.places[number], self._dtypes[number]
        elements = plane.height * plane.width * place.pixel_stride
        flat = self._bytes[place.offset : place.offset + elements * dtype.itemsize].view(dtype)
        cells = flat.view(plane.height, plane.width, place.pixel_stride)[..., : plane.channels]
        # Schedules count 8-bit integers from 0 to 255, tensor cores multiply signed ones.
        zero_point = plane.zero_point - 128 if dtype == torch.int8 else 0
        return DevicePlane(cells, (plane.height, plane.width), (0, 0), plane.scale, zero_point)

    def cell_bytes(self, number: int) -> int:
        """Bytes of one cell of a plane."""
        return self.workspace.places[number].pixel_stride * self._dtypes[number].itemsize

    def row(self, number: int) -> int:
        """The first row of a plane's windows in the table."""
        return self._row[number]

    def windows(self, planes: Sequence[int], bounds: Sequence[Bound]) -> Windows:
        """Rows of planes that follow each other in the table."""
        rows, columns, cells = (max(getattr(bounds[n], side) for n in planes) for side in ("rows", "columns", "cells"))
        return Windows(self.table, self.row(planes[0]), len(planes) * self.pieces, (rows, columns), cells)

    def output(self, number: int) -> Tensor:
        """[rows, columns, channels] of a plane, where it lies."""
        return self.plane(number).tensor
