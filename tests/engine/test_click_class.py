"""Click classes against single plans: tables hold every click's windows, bounds are met and never passed."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tracenet
from tests.engine.networks import tracenet_inputs, tracenet_model
from tests.engine.schedules import Builder
from tracenet.engine.click_class import Anywhere, AtClick, ClickClass, RequestForm, rounded_side
from tracenet.engine.lower import lower
from tracenet.engine.schedule import Plane, Schedule, Step
from tracenet.engine.windows import NotSeparable, plan_windows
from tracenet.standard import standard_request
from tracenet_kernels import reference
from tracenet_kernels.errors import ClickError, RequestError
from tracenet_kernels.window import EMPTY, Window

WIDTH, HEIGHT = 160, 128
HEADS = ("logits", "reg", "ctr", "theta")


@pytest.fixture(scope="module")
def network() -> tuple[torch.nn.Module, Schedule]:
    torch.manual_seed(2)
    model = tracenet_model(tower_norm="bn_per_level")
    return model, lower(tracenet.trace(model, tracenet_inputs(model, WIDTH, HEIGHT)).graph)


@pytest.fixture(scope="module")
def locate(network: tuple[torch.nn.Module, Schedule]) -> ClickClass:
    return ClickClass.of(network[1], RequestForm.locate(network[1], HEADS, (3, 5)))


def test_every_click_finds_its_windows_and_some_meet_each_bound(
    network: tuple[torch.nn.Module, Schedule], locate: ClickClass
) -> None:
    schedule = network[1]
    assert locate.unit == 8 and locate.click is not None
    assert (locate.click[0].positions, locate.click[1].positions) == (HEIGHT // 8, WIDTH // 8)
    largest = np.zeros((len(schedule.planes), 2), int)
    for y in range(3, HEIGHT, 8):
        for x in range(5, WIDTH, 8):
            largest = np.maximum(largest, [(w.height, w.width) for w in locate.windows((x, y))])
    assert largest.tolist() == [list(bound) for bound in locate.bounds]
    assert locate.bounds[schedule.outputs["mask"]] == (0, 0)


@settings(max_examples=20)
@given(st.floats(0, WIDTH, exclude_max=True), st.floats(0, HEIGHT, exclude_max=True))
def test_windows_of_clicks_are_the_planners(
    network: tuple[torch.nn.Module, Schedule], locate: ClickClass, x: float, y: float
) -> None:
    assert locate.windows((x, y)) == plan_windows(network[1], locate.request((x, y)))


@settings(max_examples=15)
@given(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.sampled_from([1, 2, 5, 8, 32]))
def test_the_standard_request(network: tuple[torch.nn.Module, Schedule], x: int, y: int, cells: int) -> None:
    model, schedule = network
    form = RequestForm.locate(schedule, HEADS, (3, 5)).with_square(schedule, "mask", 8, cells)
    clicks = ClickClass.of(schedule, form)
    request = standard_request(model.config, (WIDTH, HEIGHT), (x, y), (3, 5), cells)
    asked = {schedule.outputs[str(name)]: window for name, window in request.items()}
    assert clicks.request((x, y)) == asked
    within(clicks, plan_windows(schedule, asked))
    assert clicks.windows((x, y)) == plan_windows(schedule, asked)


def within(clicks: ClickClass, windows: list[Window]) -> None:
    assert all(w.height <= h and w.width <= c for w, (h, c) in zip(windows, clicks.bounds, strict=True))


def random_window(rng: random.Random, bound: tuple[int, int], sides: tuple[int, int]) -> Window:
    spans = []
    for most, length in zip(bound, sides, strict=True):
        cells = rng.randint(1, min(most, length))
        start = rng.randint(0, length - cells)
        spans += [start, start + cells]
    return Window(*spans)


def test_windows_of_the_mask(network: tuple[torch.nn.Module, Schedule]) -> None:
    schedule, rng = network[1], random.Random(0)
    plane = schedule.outputs["mask_half"]
    clicks = ClickClass.of(schedule, RequestForm.segment(schedule, 21, 29))
    assert clicks.form.rules == {plane: Anywhere(24, 32)} and clicks.click is None and clicks.bounds[plane] == (24, 32)
    for _ in range(20):
        window = random_window(rng, (24, 32), clicks.sides[plane])
        windows = clicks.windows(None, {plane: window})
        assert windows == plan_windows(schedule, {plane: window})
        within(clicks, windows)


def test_a_click_and_a_window_in_one_form(network: tuple[torch.nn.Module, Schedule]) -> None:
    schedule, rng = network[1], random.Random(1)
    plane = schedule.outputs["mask_half"]
    form = RequestForm.locate(schedule, HEADS, (3, 3))
    clicks = ClickClass.of(schedule, RequestForm({**form.rules, plane: Anywhere(6, 9)}))
    for _ in range(15):
        click = rng.uniform(0, WIDTH - 0.5), rng.uniform(0, HEIGHT - 0.5)
        given = {plane: random_window(rng, (6, 9), clicks.sides[plane])}
        windows = clicks.windows(click, given)
        assert windows == plan_windows(schedule, clicks.request(click, given))
        within(clicks, windows)
    image = schedule.inputs[0]  # opposite corners
    assert clicks.bounds[image] == (HEIGHT, WIDTH)


def test_sides_are_rounded_up_and_stay_on_the_plane() -> None:
    assert [rounded_side(n, 100) for n in (1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 17, 25, 49, 64, 65, 97)] == [
        *(1, 2, 3, 4, 6, 6, 8, 12, 12, 16, 24, 32, 64, 64, 96, 100)
    ]


def test_tables_grow_where_coordinates_do_not_fit_in_16_bits() -> None:
    builder = Builder(0)
    image = builder.image(1, 40000, 2)
    schedule = builder.schedule({"out": builder.step("sigmoid", [image], 1, 40000, 2)})
    clicks = ClickClass.of(schedule, RequestForm({1: AtClick(1)}))
    assert clicks.click is not None and [table.lo.dtype for table in clicks.click] == [np.int32, np.int16]
    assert clicks.windows((1, 39999)) == [Window(39999, 40000, 1, 2)] * 2


def test_what_is_not_separable_is_refused() -> None:
    planes = (Plane("image", 1, 4, 4), Plane("out", 1, 8, 8))
    step = Step("max_pool2d", "out", (0,), 1, {"pad_y": 2, "pad_x": 2})
    with pytest.raises(NotSeparable):
        ClickClass.of(Schedule(planes, (step,), (0,), {"out": 1}), RequestForm({1: Anywhere(8, 8)}))


def test_what_cannot_be_asked(network: tuple[torch.nn.Module, Schedule], locate: ClickClass) -> None:
    schedule = network[1]
    for click in (None, (WIDTH, 0), (0, HEIGHT), (-1, 0), (math.nan, 0), (0, math.inf)):
        with pytest.raises(ClickError, match="give x and y"):
            locate.request(click)
    plane = schedule.outputs["mask_half"]
    clicks = ClickClass.of(schedule, RequestForm({plane: Anywhere(4, 4)}))
    for window in (EMPTY, Window(0, 5, 0, 1), Window(62, 66, 0, 1)):
        with pytest.raises(RequestError, match="give one of 1 to 4 x 4 cells"):
            clicks.windows(None, {plane: window})
    for form in (RequestForm({}), RequestForm({999: AtClick(8)}), RequestForm({plane: AtClick(0)})):
        with pytest.raises(RequestError):
            ClickClass.of(schedule, form)
    with pytest.raises(RequestError, match="is not an output"):
        RequestForm.segment(schedule, 3, 3, "masks")
    flat = Builder(0)
    flat.image(3, 1, 1)
    with pytest.raises(RequestError, match="exactly one"):
        ClickClass.of(flat.schedule({"out": 0}), RequestForm({0: AtClick(1)}))


def test_tables_are_what_a_device_gathers_from(network: tuple[torch.nn.Module, Schedule], locate: ClickClass) -> None:
    plane = network[1].outputs["mask_half"]
    segment = ClickClass.of(network[1], RequestForm({plane: Anywhere(16, 16)}))
    for clicks, tables, request, asked in (
        (locate, locate.click, [77, 40], ((77, 40), None)),
        (segment, segment.anywhere[plane], [3, 17, 30, 40], (None, {plane: Window(3, 17, 30, 40)})),
    ):
        assert tables is not None
        rows, columns = ((torch.from_numpy(axis.lo), torch.from_numpy(axis.hi)) for axis in tables)
        unit = clicks.unit if len(request) == 2 else 0
        found = reference.plan_windows(torch.tensor(request), rows, columns, unit=unit)
        assert [Window(*row) for row in found[:, 0].tolist()] == clicks.windows(*asked)
