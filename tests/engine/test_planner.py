"""The host's planner against sessions, with and without the C++ extension: the same plans, the same kept windows."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.schedules import Builder, every_op
from tracenet.engine.planner import PIECES, HostPlan, HostPlanner
from tracenet.engine.program import Program
from tracenet.engine.schedule import Schedule
from tracenet.engine.session import Session
from tracenet_kernels import native
from tracenet_kernels.errors import RequestError, WindowError
from tracenet_kernels.window import EMPTY, Window, subtract_all

needs_native = pytest.mark.skipif(not native.available(), reason=native.why_not())


def random_schedule(seed: int) -> Schedule:
    rng = random.Random(seed)
    builder = Builder(seed)
    planes = [builder.image(rng.randint(1, 3), rng.randint(3, 23), rng.randint(3, 23))]
    for _ in range(rng.randint(2, 9)):
        planes.append(builder.random_step(planes, lambda *options: rng.choice(options)))
    schedule = builder.schedule({f"out{plane}": plane for plane in planes[1:]})
    return replace(schedule, planes=tuple(replace(p, keep=rng.random() < 0.6) for p in schedule.planes))


def random_request(schedule: Schedule, rng: random.Random) -> dict[str, Window]:
    request = {}
    for name in rng.sample(list(schedule.outputs), rng.randint(1, min(3, len(schedule.outputs)))):
        plane = schedule.planes[schedule.outputs[name]]
        (y0, y1), (x0, x1) = (sorted(rng.sample(range(side + 1), 2)) for side in (plane.height, plane.width))
        request[name] = Window(y0, y1, x0, x1)
    return request


def computed(plan: HostPlan, step: int) -> list[Window]:
    return [Window(*row) for row in plan.pieces[step].tolist() if any(row)]


@needs_native
@settings(max_examples=25)
@given(st.integers(0, 2**31))
def test_plans_are_those_of_a_session_that_keeps(seed: int) -> None:
    schedule, rng = random_schedule(seed), random.Random(seed)
    planner, session = HostPlanner(schedule, keep=True), Session(Program(schedule), keep=True)
    plane = schedule.planes[schedule.inputs[0]]
    session.set_planar(0, np.zeros((1, plane.channels, plane.height, plane.width), np.float32))
    for _ in range(5):
        request = random_request(schedule, rng)
        plan, expected = planner.plan(request), session.run(request)
        planner.commit()
        assert plan.macs == expected.macs
        assert {p.name: w for p, w in zip(schedule.planes, plan.windows, strict=True) if w != EMPTY} == expected.windows
        for i, step in enumerate(schedule.steps):
            assert computed(plan, i) == expected.pieces.get(schedule.planes[step.output].name, [])
        kept = {p.name: w for p, w in zip(schedule.planes, planner.kept_windows(), strict=True) if w}
        assert kept == session.kept_windows()
    planner.forget()
    assert not any(planner.kept_windows())


@needs_native
def test_without_the_extension_plans_are_the_same_but_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, rng = every_op(), random.Random(0)
    compiled = HostPlanner(schedule)
    monkeypatch.setattr(native, "available", lambda: False)
    plain = HostPlanner(schedule, keep=range(len(schedule.planes)))
    assert compiled.keeps and not plain.keeps
    for _ in range(20):
        request = random_request(schedule, rng)
        plan, expected = plain.plan(request), compiled.plan(request)
        assert plan.windows == expected.windows and plan.macs == expected.macs
        assert np.array_equal(plan.pieces, expected.pieces) and plan.pieces.dtype == expected.pieces.dtype == np.int32
        assert plan.pieces.shape == expected.pieces.shape == (len(schedule.steps), PIECES, 4)
        plain.commit()
    plain.record(plan.windows)
    plain.forget()
    assert not any(plain.kept_windows())


@needs_native
def test_all_planes_can_be_kept_but_those_of_flat_inputs() -> None:
    schedule = every_op()
    planner = HostPlanner(schedule, keep=range(len(schedule.planes)))
    request = {"mask": Window(2, 9, 3, 12), "corners": Window(0, 5, 2, 6)}
    first = planner.plan(request)
    planner.commit()
    second = planner.plan(request)
    ran = {step.op for i, step in enumerate(schedule.steps) if computed(second, i)}
    assert ran == {"mask_head"} and 0 < second.macs < first.macs
    larger = planner.plan({"corners": Window(0, 8, 2, 9)})
    step = next(i for i, s in enumerate(schedule.steps) if s.output == schedule.outputs["corners"])
    assert computed(larger, step) == subtract_all(Window(0, 8, 2, 9), [Window(0, 5, 2, 6)])


@needs_native
def test_what_a_device_computed_is_recorded() -> None:
    schedule = every_op()
    planned, told = (HostPlanner(schedule, keep=range(len(schedule.planes))) for _ in range(2))
    plan = planned.plan({"total": Window(1, 4, 2, 7)})
    planned.commit()
    told.record(plan.windows)
    assert told.kept_windows() == planned.kept_windows()
    for windows, error in (({999: Window(0, 1, 0, 1)}, RequestError), ({0: Window(0, 99, 0, 1)}, WindowError)):
        with pytest.raises(error):
            told.record(windows)


def external() -> Schedule:
    b = Builder(0)
    image = b.image(2, 9, 7)
    mixed = b.step("external", [image], 2, 9, 7)
    return b.schedule({"out": b.step("sigmoid", [mixed], 2, 9, 7)})


def test_external_steps_are_planned_whole() -> None:
    planner = HostPlanner(external(), keep=True)
    plan = planner.plan({"out": Window(2, 4, 1, 2)})
    planner.commit()
    assert not planner.keeps and plan.macs == 0
    assert computed(plan, 0) == [Window(0, 9, 0, 7)] and computed(plan, 1) == [Window(2, 4, 1, 2)]


def test_requests_that_cannot_be_planned() -> None:
    planner = HostPlanner(every_op())
    for request, error in (
        ({}, RequestError),
        ({"no": None}, RequestError),
        ({"up": Window(0, 99, 0, 1)}, WindowError),
    ):
        with pytest.raises(error):
            planner.plan(request)
    with pytest.raises(RequestError, match="to be kept"):
        HostPlanner(every_op(), keep=[999])
    if native.available():
        with pytest.raises(RequestError, match="nothing is planned"):
            planner.commit()
