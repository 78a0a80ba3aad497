"""Kept features: a second request computes only what is missing, and equals computing from scratch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tracenet
from tracenet.crop_pad import Patch
from tracenet.rft import Plan
from tracenet.rft.trace import MAX_PIECES, merge_windows
from tracenet.traced import TracedModel
from tracenet_kernels.errors import ExecutionError, RequestError
from tracenet_kernels.window import EMPTY, Window, hull, subtract_all


class Pyramid(nn.Module):
    """Three stages; two heads read the last and the middle one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, 2, 1)
        self.middle = nn.Conv2d(2, 3, 3, 1, 1)
        self.last = nn.Conv2d(3, 2, 3, 1, 1)
        self.head = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        middle = torch.relu(self.middle(torch.relu(self.stem(x))))
        return {"deep": self.last(middle), "shallow": self.head(middle)}


@pytest.fixture
def net() -> tuple[Pyramid, TracedModel, Tensor]:
    model = Pyramid().double().eval()
    x = torch.randn(2, 1, 40, 48).double()
    return model, tracenet.trace(model, x), x


def computed(plan: Plan) -> dict[str, Window]:
    return {entry.node.name: entry.compute for entry in plan.nodes}


def run_with(traced: TracedModel, x: Tensor, request: dict[int | str, Window], store: dict[str, list[Patch]]) -> tuple:
    plan = traced.plan(request, kept={name: [patch.window for patch in patches] for name, patches in store.items()})
    outputs, _ = traced.run_keeping(x, plan, store)
    return plan, outputs


def keep(traced: TracedModel, x: Tensor, request: dict[int | str, Window], *names: str) -> dict[str, list[Patch]]:
    _, patches = traced.run_keeping(x, traced.plan(request), keep=names)
    assert set(patches) == set(names)
    return patches


def test_nothing_behind_a_fully_kept_node_is_visited(net) -> None:
    _, traced, x = net
    store = keep(traced, x, {"deep": Window(5, 11, 6, 12)}, "relu_1")
    (name,) = store
    plan, outputs = run_with(traced, x, {"shallow": Window(6, 9, 7, 10)}, store)
    assert set(plan.windows) == {name, "head", "shallow"}
    assert computed(plan)[name] == EMPTY
    assert plan.macs == 2 * 9 * 3  # the 1x1 head on nine cells of two images
    fresh = traced.run(x, traced.plan({"shallow": Window(6, 9, 7, 10)}))
    torch.testing.assert_close(outputs["shallow"], fresh["shallow"], rtol=0, atol=1e-12)


def test_the_same_request_again_costs_nothing(net) -> None:
    _, traced, x = net
    request: dict[int | str, Window] = {"deep": Window(5, 11, 6, 12)}
    store = keep(traced, x, request, "last")
    plan, outputs = run_with(traced, x, request, store)
    assert plan.macs == 0
    assert [entry.node.name for entry in plan.nodes] == ["last"]
    assert torch.equal(outputs["deep"], traced.run(x, traced.plan(request))["deep"])


def test_an_overlapping_request_computes_the_missing_strip(net) -> None:
    model, traced, x = net
    store = keep(traced, x, {"deep": Window(2, 8, 0, 24)}, "last")
    request: dict[int | str, Window] = {"deep": Window(4, 11, 0, 24)}
    plan, outputs = run_with(traced, x, request, store)
    assert computed(plan)["last"] == Window(8, 11, 0, 24)
    assert plan.macs < traced.plan(request).macs
    torch.testing.assert_close(outputs["deep"], model(x)["deep"][:, :, 4:11].detach(), rtol=0, atol=1e-12)


def test_several_patches(net) -> None:
    model, traced, x = net
    full = model(x)["deep"].detach()
    windows = [Window(0, 4, 0, 10), Window(4, 8, 0, 10), Window(0, 8, 10, 15)]
    store = {"last": [Patch(w, full[(..., *w.slices)]) for w in windows]}
    plan, outputs = run_with(traced, x, {0: Window(1, 7, 2, 14)}, store)
    assert plan.macs == 0
    assert torch.equal(outputs[0], full[:, :, 1:7, 2:14])

    plan, outputs = run_with(traced, x, {0: Window(1, 7, 2, 18)}, store)
    assert computed(plan)["last"] == Window(1, 7, 15, 18)
    torch.testing.assert_close(outputs[0], full[:, :, 1:7, 2:18], rtol=0, atol=1e-12)

    plan, outputs = run_with(traced, x, {0: Window(0, 9, 0, 16)}, store)  # an L: its two arms are computed
    assert {entry.node.name: set(entry.pieces) for entry in plan.nodes}["last"] == {
        Window(8, 9, 0, 16),
        Window(0, 8, 15, 16),
    }
    torch.testing.assert_close(outputs[0], full[:, :, :9, :16], rtol=0, atol=1e-12)


def test_a_ring_costs_less_than_its_hull_and_every_layer_computes_only_what_it_needs(net) -> None:
    model, traced, x = net
    store = keep(traced, x, {"deep": Window(3, 17, 4, 20)}, "last", "relu_1", "relu")
    request: dict[int | str, Window] = {"deep": Window(2, 18, 3, 21)}
    plan, outputs = run_with(traced, x, request, store)
    assert plan.macs < 0.5 * traced.plan(request).macs
    pieces = {entry.node.name: entry.pieces for entry in plan.nodes}
    assert len(pieces["last"]) == 4
    assert sum(piece.area for piece in pieces["last"]) == 16 * 18 - 14 * 16
    torch.testing.assert_close(outputs["deep"], model(x)["deep"][:, :, 2:18, 3:21].detach(), rtol=0, atol=1e-12)


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 4), min_size=1, max_size=9))
def test_merged_windows_cover_the_given_ones_with_few(corners: list[tuple[int, int, int, int]]) -> None:
    windows = [Window(min(a, b), max(a, b) + 1, min(c, d), max(c, d) + 1) for a, b, c, d in corners]
    pieces = merge_windows(windows)
    assert 1 <= len(pieces) <= MAX_PIECES
    assert all(not subtract_all(window, pieces) for window in windows)
    assert hull(pieces) == hull(windows)


def test_kept_values_are_the_ones_used(net) -> None:
    _, traced, x = net
    marked = {"last": [Patch(Window(0, 4, 0, 4), torch.full((2, 2, 4, 4), 7.0).double())]}
    _, outputs = run_with(traced, x, {0: Window(2, 6, 0, 4)}, marked)
    assert torch.all(outputs[0][:, :, :2] == 7.0)
    assert not torch.any(outputs[0][:, :, 2:] == 7.0)


def test_patches_that_do_not_touch_the_request_change_nothing(net) -> None:
    _, traced, x = net
    store = keep(traced, x, {0: Window(0, 3, 0, 3)}, "last")
    plan, outputs = run_with(traced, x, {0: Window(10, 14, 10, 14)}, store)
    fresh = traced.plan({0: Window(10, 14, 10, 14)})
    assert plan.macs == fresh.macs
    assert torch.equal(outputs[0], traced.run(x, fresh)[0])


def test_flattened_planes_are_kept_whole_or_not_at_all() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x).flatten(2).transpose(1, 2))

    x = torch.randn(1, 1, 6, 7)
    traced = tracenet.trace(Tokens().eval(), x)
    store = keep(traced, x, {0: Window(0, 4, 0, 5)}, "linear")
    plan, outputs = run_with(traced, x, {0: Window(1, 3, 1, 4)}, store)
    assert plan.macs == 0
    torch.testing.assert_close(outputs[0], traced.run(x, traced.plan({0: Window(1, 3, 1, 4)}))[0])
    plan, outputs = run_with(traced, x, {0: Window(1, 5, 1, 4)}, store)
    assert computed(plan)["linear"] == Window(1, 5, 1, 4)
    torch.testing.assert_close(outputs[0], traced.run(x, traced.plan({0: Window(1, 5, 1, 4)}))[0])


def test_unknown_names_and_missing_patches_are_refused(net) -> None:
    _, traced, x = net
    with pytest.raises(RequestError, match="'lost' is kept but is not a node"):
        traced.plan({0: Window(0, 1, 0, 1)}, kept={"lost": [Window(0, 1, 0, 1)]})
    with pytest.raises(RequestError, match="'lost' is to be kept"):
        traced.run_keeping(x, traced.plan({0: Window(0, 1, 0, 1)}), keep=["lost"])
    plan = traced.plan({0: Window(0, 4, 0, 4)}, kept={"last": [Window(0, 3, 0, 4)]})
    with pytest.raises(ExecutionError, match=r"'last' is read.*nor is it in the store"):
        traced.run(x, plan)
