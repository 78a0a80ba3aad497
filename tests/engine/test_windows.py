"""Windows of schedules in Python against the C++ planner, and sweeps over many requests against single ones."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tracenet
from tests.engine.networks import UNet, randomised, tracenet_inputs, tracenet_model
from tests.engine.schedules import Builder, every_op
from tracenet.engine.lower import lower
from tracenet.engine.program import Program
from tracenet.engine.schedule import Plane, Schedule, Step
from tracenet.engine.session import Session
from tracenet.engine.windows import NotSeparable, plan_windows, sweep
from tracenet_kernels import native
from tracenet_kernels.errors import RequestError, WindowError
from tracenet_kernels.window import EMPTY, Window, hull

needs_native = pytest.mark.skipif(not native.available(), reason=native.why_not())


@pytest.fixture(scope="module")
def small_tracenet() -> Schedule:
    torch.manual_seed(2)
    model = tracenet_model(tower_norm="bn_per_level")
    return lower(tracenet.trace(model, tracenet_inputs(model, 160, 128)).graph)


@pytest.fixture(scope="module")
def unet() -> Schedule:
    return lower(tracenet.trace(randomised(UNet()), (torch.randn(1, 3, 64, 96),)).graph)


def random_schedule(seed: int) -> Schedule:
    rng = random.Random(seed)
    builder = Builder(seed)
    planes = [builder.image(rng.randint(1, 3), rng.randint(1, 23), rng.randint(2, 23))]
    for _ in range(rng.randint(1, 9)):
        planes.append(builder.random_step(planes, lambda *options: rng.choice(options)))
    return builder.schedule({f"out{plane}": plane for plane in planes[1:]})


def random_request(schedule: Schedule, rng: random.Random) -> dict[int, Window]:
    chosen = rng.sample(list(schedule.outputs.values()), rng.randint(1, min(3, len(schedule.outputs))))
    request = {}
    for plane in chosen:
        (y0, y1), (x0, x1) = (
            sorted(rng.sample(range(side + 1), 2))
            for side in (schedule.planes[plane].height, schedule.planes[plane].width)
        )
        request[plane] = Window(y0, y1, x0, x1)
    return request


def same_as_native(schedule: Schedule, rng: random.Random, requests: int) -> None:
    session = Session(Program(schedule))
    for _ in range(requests):
        request = random_request(schedule, rng)
        expected = session._native.plan(list(request.items())).windows
        assert plan_windows(schedule, request) == [Window(*window) for window in expected]


@needs_native
@pytest.mark.parametrize("name", ["small_tracenet", "unet", "every_op"])
def test_windows_are_those_of_the_native_planner(name: str, request: pytest.FixtureRequest) -> None:
    schedule = every_op() if name == "every_op" else request.getfixturevalue(name)
    same_as_native(schedule, random.Random(0), 30)


@needs_native
@settings(max_examples=60)
@given(st.integers(0, 2**31))
def test_windows_of_random_schedules_are_those_of_the_native_planner(seed: int) -> None:
    same_as_native(random_schedule(seed), random.Random(seed), 6)


@settings(max_examples=60)
@given(st.integers(0, 2**31))
def test_sweeps_are_the_windows_of_single_requests_or_not_separable(seed: int) -> None:
    check_sweep(random_schedule(seed), random.Random(seed), 5, may_refuse=True)


@pytest.mark.parametrize("name", ["small_tracenet", "unet"])
def test_sweeps_of_networks_are_the_windows_of_single_requests(name: str, request: pytest.FixtureRequest) -> None:
    for seed in range(3):
        check_sweep(request.getfixturevalue(name), random.Random(seed), 8, may_refuse=False)


def check_sweep(schedule: Schedule, rng: random.Random, count: int, *, may_refuse: bool) -> None:
    first = random_request(schedule, rng)
    requests = [first]
    while len(requests) < count:
        sides = {plane: (schedule.planes[plane].height, schedule.planes[plane].width) for plane in first}
        spans = {plane: [sorted(rng.sample(range(side + 1), 2)) for side in both] for plane, both in sides.items()}
        requests.append({plane: Window(*y, *x) for plane, (y, x) in spans.items()})
    try:
        (top, bottom), (left, right) = (
            sweep(
                schedule,
                axis,
                {plane: [request[plane][2 * axis] for request in requests] for plane in first},
                {plane: [request[plane][2 * axis + 1] for request in requests] for plane in first},
            )
            for axis in (0, 1)
        )
    except NotSeparable:
        assert may_refuse
        return
    for i, request in enumerate(requests):
        found = [Window(*edges) for edges in zip(top[i], bottom[i], left[i], right[i], strict=True)]
        assert found == plan_windows(schedule, request)


def external() -> Schedule:
    b = Builder(0)
    image = b.image(2, 9, 7)
    before = b.step("conv2d", [image], 2, 9, 7, {"kernel_y": 3, "pad_y": 1}, tensors={"weight": b.tensor(2, 2, 3, 1)})
    mixed = b.step("external", [before], 2, 9, 7)
    return b.schedule({"out": b.step("sigmoid", [mixed], 2, 9, 7)})


def test_external_steps_compute_whole_planes_from_whole_planes() -> None:
    schedule = external()
    windows = plan_windows(schedule, {3: Window(2, 4, 1, 2)})
    assert windows == [Window(0, 9, 0, 7), Window(0, 9, 0, 7), Window(0, 9, 0, 7), Window(2, 4, 1, 2)]
    lo, hi = sweep(schedule, 0, {3: [2, 0]}, {3: [4, 1]})
    assert lo.tolist() == [[0, 0, 0, 2], [0, 0, 0, 0]] and hi.tolist() == [[9, 9, 9, 4], [9, 9, 9, 1]]


def test_where_only_padding_is_read_nothing_is_demanded_and_sweeps_refuse() -> None:
    planes = (Plane("image", 1, 4, 4), Plane("out", 1, 8, 8))
    step = Step("max_pool2d", "out", (0,), 1, {"kernel_y": 1, "kernel_x": 1, "pad_y": 2, "pad_x": 2})
    schedule = Schedule(planes, (step,), (0,), {"out": 1})
    assert plan_windows(schedule, {1: Window(0, 2, 0, 8)}) == [EMPTY, Window(0, 2, 0, 8)]
    assert plan_windows(schedule, {1: Window(0, 3, 0, 8)})[0] == Window(0, 1, 0, 4)
    with pytest.raises(NotSeparable, match="nothing but padding"):
        sweep(schedule, 0, {1: [0, 2]}, {1: [1, 3]})


def test_where_nothing_is_demanded_windows_are_empty(small_tracenet: Schedule) -> None:
    plane = small_tracenet.outputs["logits5"]
    windows = plan_windows(small_tracenet, {plane: Window(0, 1, 0, 1)})
    assert windows[small_tracenet.outputs["mask"]] == EMPTY and not windows[small_tracenet.inputs[0]].is_empty
    lo, hi = sweep(small_tracenet, 1, {plane: [0]}, {plane: [1]})
    assert lo[0, small_tracenet.outputs["mask"]] == hi[0, small_tracenet.outputs["mask"]] == 0


def test_windows_of_several_outputs_hold_those_of_each(small_tracenet: Schedule) -> None:
    request = random_request(small_tracenet, random.Random(3))
    together = plan_windows(small_tracenet, request)
    apart = [plan_windows(small_tracenet, {plane: window}) for plane, window in request.items()]
    assert all(both.contains(hull(each)) for both, each in zip(together, zip(*apart, strict=True), strict=True))


def test_the_float32_arithmetic_of_resizes() -> None:
    b = Builder(0)
    image = b.image(1, 700, 3)
    ratio = float(np.float32(700) / np.float32(1999))
    out = b.step("resize", [image], 1, 1999, 3, {"mode": 0}, {"ratio_y": ratio, "ratio_x": 1.0})
    rows = np.arange(1999)
    lo, hi = sweep(b.schedule({"out": out}), 0, {out: rows}, {out: rows + 1})
    taken = torch.nn.functional.interpolate(torch.arange(700.0)[None, None], size=1999, mode="nearest")[0, 0]
    assert np.array_equal(lo[:, image], taken.numpy()) and np.array_equal(hi[:, image], lo[:, image] + 1)


def test_requests_that_cannot_be_planned(small_tracenet: Schedule) -> None:
    plane = small_tracenet.outputs["logits5"]
    for request, error in (
        ({len(small_tracenet.planes): Window(0, 1, 0, 1)}, RequestError),
        ({plane: Window(0, 99, 0, 1)}, WindowError),
        ({plane: EMPTY}, WindowError),
    ):
        with pytest.raises(error):
            plan_windows(small_tracenet, request)
    for starts, stops in (
        ({}, {}),
        ({plane: [0]}, {}),
        ({999: [0]}, {999: [1]}),
        ({plane: [0]}, {plane: [0]}),
        ({plane: [0]}, {plane: [99]}),
        ({plane: [-1]}, {plane: [1]}),
        ({plane: [0, 0]}, {plane: [1]}),
    ):
        with pytest.raises(RequestError):
            sweep(small_tracenet, 0, starts, stops)
    lonely = replace(small_tracenet, planes=(*small_tracenet.planes, Plane("lonely", 1, 1, 1)))
    with pytest.raises(RequestError, match="no step computes it"):
        plan_windows(lonely, {len(small_tracenet.planes): Window(0, 1, 0, 1)})
