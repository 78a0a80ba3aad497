"""Where planes lie in the device's memory: whole planes at fixed places, which take turns where their lifetimes allow.

A captured graph holds addresses, so places cannot depend on the click. Only the cells of windows are ever touched: a
place that is larger than its window costs memory, not time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tracenet.engine.schedule import Schedule

ALIGNMENT = 256
"""Bytes; what CUDA allocations are aligned to, and more than tensor descriptors need."""
_WHOLE_ACCESS = 16
"""Bytes of the widest access: cells of wide planes begin at a multiple of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Of one plane.

    Attributes:
        offset: bytes from the start of the workspace.
        pixel_stride: elements from one cell to the next; channels, rounded up to whole 16-byte accesses where a cell
            has more bytes than that.
        bytes: of the whole plane.
    """

    offset: int
    pixel_stride: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Workspace:
    """Places by plane number, and the bytes of all together.

    Attributes:
        places: of every plane that a step computes or that is an input with rows and columns.
        bytes: of the workspace.
        separate_bytes: what it would be if no two planes took turns.
    """

    places: dict[int, Place]
    bytes: int
    separate_bytes: int


def arrange(
    schedule: Schedule, element_bytes: Sequence[int], units: Sequence[Sequence[int]], pinned: Collection[int]
) -> Workspace:
    """Give every plane a place.

    Planes that are needed at the same time do not overlap; the largest are placed first, each at the lowest offset
    that is free for its whole life.

    Args:
        element_bytes: of a plane's elements, by plane number.
        units: step numbers that may run at the same time, unit after unit; every step in one of them.
        pinned: planes that keep their place from the first unit to the last and after it: outputs, kept planes.
    """
    lives = _lives(schedule, units, pinned)
    sizes = {number: _size(schedule, number, element_bytes[number]) for number in lives}
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first unit, last unit
    places: dict[int, Place] = {}
    for number in sorted(lives, key=lambda n: (-sizes[n][1], n)):
        pixel_stride, size = sizes[number]
        begin, end = lives[number]
        offset = 0
        for other, other_end, first, last in sorted(placed):
            if first <= end and begin <= last and offset < other_end and other < offset + size:
                offset = other_end
        placed.append((offset, offset + size, begin, end))
        places[number] = Place(offset, pixel_stride, size)
    total = max((end for _, end, _, _ in placed), default=0)
    return Workspace(places, total, sum(size for _, size in sizes.values()))


def _size(schedule: Schedule, number: int, element: int) -> tuple[int, int]:
    plane = schedule.planes[number]
    whole = max(1, _WHOLE_ACCESS // element)
    pixel = plane.channels if plane.channels < whole else -(-plane.channels // whole) * whole
    size = plane.height * plane.width * pixel * element
    return pixel, -(-size // ALIGNMENT) * ALIGNMENT


def _lives(schedule: Schedule, units: Sequence[Sequence[int]], pinned: Collection[int]) -> dict[int, tuple[int, int]]:
    """First and last unit in which each plane must stay as it is."""
    first: dict[int, int] = dict.fromkeys(schedule.inputs, 0)
    last: dict[int, int] = dict(first)
    for unit, steps in enumerate(units):
        for step in (schedule.steps[i] for i in steps):
            first.setdefault(step.output, unit)
            for number in (*step.inputs, step.output):
                last[number] = max(last.get(number, unit), unit)
    end = max(len(units) - 1, 0)
    return {n: (0, end) if n in pinned else (begin, max(begin, last[n])) for n, begin in first.items()}
