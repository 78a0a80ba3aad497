"""Places of planes: none overlap while both are needed, and memory is used again."""

from __future__ import annotations

from itertools import combinations

import pytest

from tests.engine.networks import tracenet_inputs, tracenet_model
from tests.engine.schedules import every_op
from tracenet.engine.gpu.units import Unit, units
from tracenet.engine.gpu.workspace import ALIGNMENT, arrange
from tracenet.engine.lower import lower
from tracenet.engine.schedule import Schedule
from tracenet.traced import trace


@pytest.fixture(scope="module")
def network() -> Schedule:
    model = tracenet_model()
    return lower(trace(model, tracenet_inputs(model)).graph)


def lives(schedule: Schedule, order: list[Unit], pinned: set[int]) -> dict[int, tuple[int, int]]:
    """First and last unit of every plane's life, from producer to last reader."""
    unit_of = {step: position for position, unit in enumerate(order) for step in unit.steps}
    found = {}
    for plane in range(len(schedule.planes)):
        makers = [unit_of[i] for i, step in enumerate(schedule.steps) if step.output == plane]
        readers = [unit_of[i] for i, step in enumerate(schedule.steps) if plane in step.inputs]
        found[plane] = (min(makers, default=0), max([*readers, *makers], default=0))
        if plane in pinned:
            found[plane] = (0, len(order) - 1)
    return found


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_planes_that_live_together_do_not_overlap(network: Schedule, keep: bool, fuse: bool, small: bool) -> None:
    schedule = every_op() if small else network
    order = units(schedule, (lambda *_: True) if fuse else None)
    pinned = set(schedule.outputs.values()) | {i for i, plane in enumerate(schedule.planes) if keep and plane.keep}
    workspace = arrange(schedule, [2] * len(schedule.planes), [unit.steps for unit in order], pinned)
    life = lives(schedule, order, pinned)
    for a, b in combinations(workspace.places, 2):
        (a0, a1), (b0, b1) = life[a], life[b]
        if a0 <= b1 and b0 <= a1:
            p, q = workspace.places[a], workspace.places[b]
            assert p.offset + p.bytes <= q.offset or q.offset + q.bytes <= p.offset, (a, b)
    for number, place in workspace.places.items():
        plane = schedule.planes[number]
        assert place.offset % ALIGNMENT == 0
        assert place.pixel_stride >= plane.channels
        assert place.bytes >= 2 * place.pixel_stride * plane.height * plane.width
        assert place.offset + place.bytes <= workspace.bytes
        assert plane.channels < 8 or 2 * place.pixel_stride % 16 == 0


def test_memory_is_used_again(network: Schedule) -> None:
    order = [unit.steps for unit in units(network)]
    outputs = set(network.outputs.values())
    sizes = [2] * len(network.planes)
    workspace = arrange(network, sizes, order, outputs)
    assert workspace.bytes < 0.6 * workspace.separate_bytes
    kept = outputs | {i for i, plane in enumerate(network.planes) if plane.keep}
    assert workspace.bytes < arrange(network, sizes, order, kept).bytes <= workspace.separate_bytes


def test_units_respect_what_they_read(network: Schedule) -> None:
    for fits in (None, lambda *_: True, lambda mid, expand, following: following is None):
        order = units(network, fits)
        numbers = [step for unit in order for step in unit.steps]
        assert sorted(numbers) == list(range(len(network.steps)))
        computed = set(network.inputs)
        for unit in order:
            steps = [network.steps[i] for i in unit.steps]
            inside = {step.output for step in steps} if unit.kind == "tail" else set()
            assert all(set(step.inputs) <= computed | inside for step in steps)
            computed |= {step.output for step in steps}


def test_what_is_fused(network: Schedule) -> None:
    kinds = [unit.kind for unit in units(network, lambda *_: True)]
    assert kinds.count("tail") == 16  # a ResNet-50's blocks
    levels = [unit for unit in units(network) if unit.kind == "levels"]
    assert {len(unit.steps) for unit in levels} == {5}
    tails = [unit for unit in units(network, lambda *_: True) if unit.kind == "tail"]
    assert (
        sum(len(unit.steps) == 3 for unit in tails) == 15
    )  # all but the last, where strides are in the 3x3 convolution
    for unit in tails:
        mid, expand, *_ = (network.steps[i] for i in unit.steps)
        assert mid.ints["kernel_y"] == 3
        assert expand.inputs[0] == mid.output
        assert len(expand.inputs) == 2
