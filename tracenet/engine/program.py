"""Programs: a schedule and its weights, packed for this processor and ready to run.

A program is immutable; any number of sessions and threads use it at once. A saved one is mapped into memory when it is
loaded and its weights are read as they are needed, so loading takes milliseconds and no PyTorch.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from tracenet.engine.schedule import Schedule
from tracenet.engine.serialise import schedule_from_bytes, schedule_to_bytes, tensor_values
from tracenet_kernels import native
from tracenet_kernels.errors import InputError


class Program:
    """A schedule with packed weights.

    Args:
        schedule: what to run; its weights are packed into a copy.

    Raises:
        ScheduleError: the schedule is not consistent.
        BackendError: the C++ extension is not built.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.native: Any = native.require().Program(schedule_to_bytes(schedule), tensor_values(schedule))

    @classmethod
    def _of(cls, handle: Any) -> Program:
        program = cls.__new__(cls)
        program.native = handle
        return program

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """A program that :meth:`save` wrote.

        Raises:
            InputError: the file cannot be read.
            ScheduleError: it is truncated, foreign, of another version, or packed for another instruction set.
        """
        if "\0" in str(path):
            raise InputError(f"{str(path)!r} is not a path")
        return cls._of(native.require().Program.load(str(path)))

    def save(self, path: str | Path) -> Path:
        """Write the program whole or not at all: schedule, then packed weights at a multiple of 64 bytes.

        The file belongs to the instruction set it was packed for (:attr:`isa`).

        Raises:
            InputError: the file cannot be written.
        """
        from tracenet.files import write_whole  # imports Pillow, which loading does without

        def write(file: BinaryIO) -> None:
            file.write(self.native.file_head)
            file.write(memoryview(self.native.packed))

        return write_whole(path, write)

    def at_size(self, height: int, width: int) -> Program:
        """The same network for inputs of ``height x width``, sharing the packed weights.

        Raises:
            RequestError: the size of some step does not follow from the input's: external steps, resizes to a fixed
                size, padding that is not symmetric.
        """
        if not all(isinstance(side, int) and not isinstance(side, bool) for side in (height, width)):
            raise InputError(f"the size is {height!r} x {width!r}; pass integers")
        return Program._of(self.native.at_size(height, width))

    @cached_property
    def schedule(self) -> Schedule:
        """Planes, steps, inputs and outputs; tensors have their shapes but hold zeros."""
        return schedule_from_bytes(self.native.schedule)

    @cached_property
    def plane_numbers(self) -> dict[str, int]:
        """Plane number by name."""
        return {plane.name: i for i, plane in enumerate(self.schedule.planes)}

    @property
    def isa(self) -> str:
        """The instruction set the weights are packed for."""
        return str(self.native.isa)

    @property
    def full_macs(self) -> int:
        """Multiply-adds of the whole network, external steps left out."""
        return int(self.native.full_macs)

    def __repr__(self) -> str:
        sizes = [self.schedule.planes[plane] for plane in self.schedule.inputs]
        shown = ", ".join(f"{p.name} {p.channels} x {p.height} x {p.width}" for p in sizes)
        return f"<Program: {len(self.schedule.steps)} steps on {shown}, {self.full_macs / 1e9:.2f} GMACs, {self.isa}>"
