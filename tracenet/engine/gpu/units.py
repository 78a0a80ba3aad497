"""Which steps run as one launch: levels that share a weight, and the tails of bottleneck blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from tracenet.engine.reference_windows import window_of
from tracenet.engine.schedule import ACTIVATIONS, Schedule, Step

MAX_LEVELS = 5
_SINGLE = ((1, 1), (1, 1), (0, 0), (1, 1))
_THREE = ((3, 3), (1, 1), (1, 1))
"""Kernel, padding and dilation of a block's 3x3 convolution; its stride may be any."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Steps that run together.

    Attributes:
        kind: ``step``; ``levels``: convolutions with one weight on planes of their own; ``tail``: a 3x3 convolution,
            the 1x1 convolution with residual that alone reads it, and possibly the next block's first 1x1.
        steps: numbers in the schedule, in the order in which they depend on each other.
    """

    kind: str
    steps: tuple[int, ...]


FitsTail = Callable[[Step, Step, Step | None], bool]
"""Whether a kernel runs the tail (3x3, 1x1 with residual, next 1x1 or None) of a schedule as one."""


def units(schedule: Schedule, fits_tail: FitsTail | None = None) -> list[Unit]:
    """All steps of a schedule in units, in an order that respects what they read.

    Args:
        fits_tail: asked for every tail that is found; None: tails are not fused.
    """
    tails = _tails(schedule, fits_tail) if fits_tail is not None else {}
    inside = {step for tail in tails.values() for step in tail}
    found: list[Unit] = []
    for number, step in enumerate(schedule.steps):
        if number in tails:
            found.append(Unit("tail", tails[number]))
        elif number in inside:
            continue
        elif found and _joins(schedule, found[-1], step):
            found[-1] = Unit("levels", (*found[-1].steps, number))
        else:
            found.append(Unit("step", (number,)))
    return found


def _joins(schedule: Schedule, unit: Unit, step: Step) -> bool:
    """Whether a step is one more level of the unit before it."""
    first = schedule.steps[unit.steps[0]]
    return (
        step.group > 0
        and step.group == first.group
        and unit.kind != "tail"
        and len(unit.steps) < MAX_LEVELS
        and len(step.inputs) == len(first.inputs) == 1
        and step.ints == first.ints
        and step.tensors.keys() == first.tensors.keys()
    )


def _tails(schedule: Schedule, fits: FitsTail) -> dict[int, tuple[int, ...]]:
    """Number of the 1x1 convolution with residual -> steps of its tail. A step is in one tail at most."""
    readers: dict[int, list[int]] = defaultdict(list)
    producer = {step.output: number for number, step in enumerate(schedule.steps)}
    for number, step in enumerate(schedule.steps):
        for plane in step.inputs:
            readers[plane].append(number)
    outputs = set(schedule.outputs.values())
    tails: dict[int, tuple[int, ...]] = {}
    taken: set[int] = set()
    for number, expand in enumerate(schedule.steps):
        if not _is_conv(expand, _SINGLE) or len(expand.inputs) != 2 or expand.ints.get("residual_factor", 1) != 1:
            continue
        before = producer.get(expand.inputs[0])
        if before is None or before in taken or expand.inputs[0] in outputs or readers[expand.inputs[0]] != [number]:
            continue
        mid = schedule.steps[before]
        window = window_of(mid)
        if not _is_conv(mid, None) or (window[0], *window[2:]) != _THREE or len(mid.inputs) != 1:
            continue
        if schedule.planes[mid.output].keep:
            continue
        for following in (_next(schedule, readers[expand.output]), None):
            if fits(mid, expand, None if following is None else schedule.steps[following]):
                tails[number] = (before, number) if following is None else (before, number, following)
                taken.update(tails[number])
                break
    return tails


def _next(schedule: Schedule, readers: list[int]) -> int | None:
    """The only 1x1 convolution among the readers that keeps the plane's size, if there is one."""
    found = [n for n in readers if _is_conv(schedule.steps[n], _SINGLE) and len(schedule.steps[n].inputs) == 1]
    return found[0] if len(found) == 1 else None


def _is_conv(step: Step, window: tuple[tuple[int, int], ...] | None) -> bool:
    """Whether a step is an ungrouped convolution with ReLU, of this window."""
    return (
        step.op == "conv2d"
        and step.ints.get("groups", 1) == 1
        and ACTIVATIONS[step.ints.get("activation", 0)] == "relu"
        and step.group == 0
        and (window is None or window_of(step) == window)
    )
