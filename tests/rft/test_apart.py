"""Demands far apart: disjoint windows per node give the full network's values, for no more work than their hull."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tracenet
from tests.rft.test_random_networks import Network, Recipe, _window, recipes
from tracenet.engine.execute import NativeExecutor
from tracenet.rft import Plan
from tracenet.rft.rules.pointwise import crop_output
from tracenet.rft.trace import MAX_PIECES, apart_windows
from tracenet.traced import TracedModel
from tracenet_kernels import native
from tracenet_kernels.errors import RequestError, WindowError
from tracenet_kernels.window import Window, hull, subtract_all

needs_native = pytest.mark.skipif(not native.available(), reason=native.why_not())


class Pyramid(nn.Module):
    """Two levels with a top-down path, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.down, self.lateral = nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(8, 12, 1)
        self.head = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        x = F.relu(x + self.b(F.relu(self.a(x))))
        top = self.down(x)
        fine = self.lateral(x) + F.interpolate(top, size=x.shape[-2:], mode="nearest")
        return {"coarse": self.head(top), "fine": self.head(fine)}


@pytest.fixture(scope="module")
def net() -> tuple[Pyramid, TracedModel, Tensor]:
    torch.manual_seed(0)
    model = Pyramid().eval()
    x = torch.randn(1, 3, 128, 192)
    return model, tracenet.trace(model, x), x


CLICKS = [Window.of_cell(2, 3), Window(14, 16, 40, 43), Window.of_cell(29, 6)]


def assert_equals_full(plan: Plan, outputs: dict[Any, Any], full: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    for key, windows in plan.asked.items():
        got = outputs[key] if isinstance(plan.request[key], list) else [outputs[key]]
        assert len(got) == len(windows)
        plane = full[str(key)]
        for tensor, window in zip(got, windows, strict=True):
            wanted = crop_output(plan.graph.outputs[str(key)], plane, window)
            torch.testing.assert_close(tensor, wanted, rtol=0, atol=tolerance * max(float(wanted.abs().max()), 1e-3))


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_native)])
def test_clicks_far_apart_in_one_request(net: tuple[Pyramid, TracedModel, Tensor], backend: str) -> None:
    model, traced, x = net
    if backend == "native":
        traced._native = NativeExecutor(traced.graph, poison=True)
    with torch.no_grad():
        full = model(x)
    request: dict[int | str, Any] = {"fine": CLICKS, "coarse": (15, 16, 22, 24)}
    plan, one = traced.plan(request), traced.plan(request, max_pieces=1)
    assert plan.macs < 0.3 * plan.hull_macs
    assert one.macs == one.hull_macs == plan.hull_macs
    assert all(len(pieces) == 1 for pieces in one.pieces.values())
    assert max(map(len, plan.pieces.values())) > 2
    assert plan.windows["fine"] == hull(CLICKS)
    assert f"windows apart save {1 - plan.macs / plan.hull_macs:.1%}" in plan.table()
    assert "apart" not in one.table()
    assert plan.bytes < one.bytes
    for each in (plan, one):
        outputs = traced.run(x, each, backend=backend)
        assert isinstance(outputs["fine"], list)
        assert_equals_full(each, outputs, full)
    separate = [traced.plan({"fine": window}).macs for window in CLICKS]
    assert plan.macs <= sum(separate) + traced.plan({"coarse": request["coarse"]}).macs


@needs_native
def test_the_native_backend_gives_the_same_bits(net: tuple[Pyramid, TracedModel, Tensor]) -> None:
    _, traced, x = net
    traced._native = NativeExecutor(traced.graph, poison=True)
    plans = [traced.plan({"fine": CLICKS}, max_pieces=count) for count in (1, 2, 4)]
    assert plans[0].macs > plans[1].macs > plans[2].macs
    outputs = [traced.run(x, plan, backend="native")["fine"] for plan in plans]
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs[0], other, strict=True))
    inner = next(n.name for n in traced.graph.nodes if n.name == "stem.3")  # no output, so its hull is computed
    plan = traced.plan({inner: CLICKS})
    assert plan.macs < plan.hull_macs
    wanted = traced.run(x, plan)[inner]
    for got, tensor in zip(traced.run(x, plan, backend="native")[inner], wanted, strict=True):
        torch.testing.assert_close(got, tensor, rtol=0, atol=1e-4)


def test_several_outputs_far_apart_without_a_list(net: tuple[Pyramid, TracedModel, Tensor]) -> None:
    model, traced, x = net
    with torch.no_grad():
        full = model(x)
    plan = traced.plan({"fine": Window.of_cell(1, 1), "coarse": Window.of_cell(15, 23)})
    assert plan.macs < plan.hull_macs
    assert_equals_full(plan, traced.run(x, plan), full)


def test_windows_that_lie_close_or_save_too_little_stay_one(net: tuple[Pyramid, TracedModel, Tensor]) -> None:
    _, traced, _ = net
    close = traced.plan({"fine": [Window(4, 6, 4, 6), Window(4, 6, 6, 9)]})
    assert close.macs == close.hull_macs
    plan = traced.plan({"fine": CLICKS}, min_saving=0)
    share = 1 - plan.macs / plan.hull_macs
    for wanted, apart in ((share - 1e-6, True), (share + 1e-6, False)):
        chosen = traced.plan({"fine": CLICKS}, min_saving=wanted)
        assert (chosen.macs < chosen.hull_macs) == apart


def test_a_barrier_and_flattened_planes_are_never_split() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.GroupNorm(1, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.norm(x), self.linear(x.flatten(2).transpose(1, 2))]

    model, x = Mixed().eval(), torch.randn(1, 3, 20, 20)
    traced = tracenet.trace(model, x)
    windows = [Window.of_cell(0, 0), Window.of_cell(19, 19)]
    plan = traced.plan({0: windows, 1: windows}, min_saving=0)
    assert all(len(pieces) == 1 for pieces in plan.pieces.values())
    outputs = traced.run(x, plan)
    torch.testing.assert_close(outputs[0][1], model(x)[0][:, :, 19:, 19:].detach())
    torch.testing.assert_close(outputs[1][1], model(x)[1][:, -1:].detach())


def test_global_vectors_beside_clicks_far_apart() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(y * torch.sigmoid(y.mean((2, 3), keepdim=True)))

    model, x = Gated().eval(), torch.randn(1, 3, 40, 40)
    traced = tracenet.trace(model, x)
    request = {0: [Window.of_cell(3, 3), Window.of_cell(35, 36)]}
    cached = traced.plan(request, global_context="cached", vectors=traced.global_vectors(x))
    assert cached.exact
    assert cached.macs < cached.hull_macs
    full = {"output": model(x).detach()}
    got = traced.run(x, cached)[0]
    for tensor, window in zip(got, cached.asked[0], strict=True):
        torch.testing.assert_close(tensor, full["output"][(..., *window.slices)])
    window_plan = traced.plan(request, global_context="window")
    (approximation,) = window_plan.approximations
    assert approximation.how == "reduced from [2, 37) x [2, 38) of 40 x 40"
    assert traced.approximation_error(x, window_plan)[0].relative > 0


def test_wrong_lists_and_limits(net: tuple[Pyramid, TracedModel, Tensor]) -> None:
    _, traced, _ = net
    for value, words in (
        ([], r"is \[\]; pass Window\(y0, y1, x0, x1\), a list of them, or None"),
        ([None, Window(0, 1, 0, 1)], "a list of them"),
        ([Window(0, 1, 0, 1), (0, 1, 0)], r"is \(0, 1, 0\); pass Window"),
        ([Window(0, 1, 0, 1), Window(0, 99, 0, 1)], "its plane is 32 x 48"),
        ([Window(2, 2, 0, 1)], "is empty"),
    ):
        with pytest.raises(WindowError, match=words):
            traced.plan({"fine": value})
    for options, words in (
        ({"max_pieces": 0}, "max_pieces is 0; pass an integer from 1 to 16"),
        ({"max_pieces": 17}, "max_pieces is 17"),
        ({"max_pieces": True}, "max_pieces is True"),
        ({"max_pieces": 2.0}, "max_pieces is 2.0"),
        ({"min_saving": 1}, "min_saving is 1; pass a share from 0 to less than 1"),
        ({"min_saving": -0.1}, "min_saving is -0.1"),
        ({"min_saving": float("nan")}, "min_saving is nan"),
        ({"min_saving": "much"}, "min_saving is 'much'"),
    ):
        with pytest.raises(RequestError, match=words):
            traced.plan({"fine": CLICKS}, **options)


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 4), min_size=1, max_size=8), st.integers(1, 6))
def test_apart_windows_are_few_disjoint_and_cover(corners: list[tuple[int, int, int, int]], most: int) -> None:
    windows = [Window(min(a, b), max(a, b) + 1, min(c, d), max(c, d) + 1) for a, b, c, d in corners]
    pieces = apart_windows(windows, most)
    assert 1 <= len(pieces) <= most
    assert all(not subtract_all(window, pieces) for window in windows)
    assert hull(pieces) == hull(windows)
    assert all(a.intersect(b).is_empty for i, a in enumerate(pieces) for b in pieces[:i])


@needs_native
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(recipe=recipes(), data=st.data())
def test_random_networks_and_requests_on_the_native_backend(recipe: Recipe, data: st.DataObject) -> None:
    torch.manual_seed(0)
    model = Network(replace(recipe, batch=1)).eval()
    x = torch.randn(1, recipe.channels, recipe.height, recipe.width)
    traced = tracenet.trace(model, x)
    traced._native = NativeExecutor(traced.graph, poison=True)
    full = dict(zip(traced.graph.outputs, (tensor.detach() for tensor in model(x)), strict=True))
    scale = {name: max(float(tensor.abs().max()), 1e-3) for name, tensor in full.items()}
    for _ in range(2):
        request: dict[int | str, Any] = {}
        for key, node in traced.graph.outputs.items():
            request[key] = data.draw(st.lists(_window(*node.plane), min_size=1, max_size=4))
        plan = traced.plan(request, max_pieces=data.draw(st.integers(2, MAX_PIECES)), min_saving=0)
        if traced._obstacle(plan, [x]):
            return
        torch_outputs, outputs = traced.run(x, plan), traced.run(x, plan, backend="native")
        for key in request:
            for got, wanted in zip(outputs[key], torch_outputs[key], strict=True):
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * scale[str(key)])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(recipe=recipes(), data=st.data())
def test_random_networks_and_requests(recipe: Recipe, data: st.DataObject) -> None:
    torch.manual_seed(0)
    model = Network(recipe).double().eval()
    x = torch.randn(recipe.batch, recipe.channels, recipe.height, recipe.width).double()
    traced = tracenet.trace(model, x)
    full = dict(zip(traced.graph.outputs, (tensor.detach() for tensor in model(x)), strict=True))
    request: dict[int | str, Any] = {}
    for key, node in traced.graph.outputs.items():
        request[key] = data.draw(st.lists(_window(*node.plane), min_size=1, max_size=4))
    for most in (2, MAX_PIECES):
        plan = traced.plan(request, max_pieces=most, min_saving=0)
        assert plan.macs <= plan.hull_macs <= plan.full_macs
        assert max(map(len, plan.pieces.values())) <= most
        assert_equals_full(plan, traced.run(x, plan), full, 1e-7)
