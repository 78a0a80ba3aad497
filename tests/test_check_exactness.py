"""``check_exactness`` and the rule ``Local``: right rules pass, wrong ones are found and named."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tracenet
from tracenet.rft.rules import Barrier, Local, Pointwise, registry
from tracenet.rft.rules.registry import Demand, Reader, Rule
from tracenet_kernels.errors import ExactnessError, InputError, UnsupportedOpError
from tracenet_kernels.window import Window


@torch.library.custom_op("tests_check::shifted_sum", mutates_args=())
def shifted_sum(x: Tensor, y: Tensor, above: int, below: int, left: int, right: int, edge: str) -> Tensor:
    """Sum of the cells that lie within reach, of both operands."""
    padded = F.pad(x + y, [left, right, above, below], mode=edge)
    kernel = torch.ones(x.shape[1], 1, above + below + 1, left + right + 1, dtype=x.dtype)
    return F.conv2d(padded, kernel, groups=x.shape[1])


@shifted_sum.register_fake
def _(x: Tensor, y: Tensor, above: int, below: int, left: int, right: int, edge: str) -> Tensor:
    return torch.empty_like(x)


class Between(nn.Module):
    """Two convolutions with an operation of one's own between them."""

    def __init__(self, *reach: int, edge: str = "constant", second: str = "plane") -> None:
        super().__init__()
        self.reach, self.edge, self.second = reach, edge, second
        self.before, self.after = nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(3, 2, 3, padding=1)
        self.map = nn.Parameter(torch.randn(1, 3, 9, 11))
        self.vector = nn.Parameter(torch.randn(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        other = {"plane": x * 2, "constant": self.map, "vector": self.vector}[self.second]
        return self.after(shifted_sum(x, other, *self.reach, self.edge))


class Reaches(Local):
    def reach(self, node: Any) -> tuple[int, int, int, int]:
        return tuple(node.args[2:6])


@pytest.fixture(autouse=True)
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that a test registers are gone after it."""
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))


def image() -> Tensor:
    return torch.rand(1, 2, 18, 22)


@settings(max_examples=20, deadline=None)
@given(
    reach=st.tuples(*[st.integers(0, 3)] * 4),
    edge=st.sampled_from(["constant", "replicate"]),
    second=st.sampled_from(["plane", "constant", "vector"]),
)
def test_local_is_exact_at_every_reach_edge_and_kind_of_operand(reach: Any, edge: str, second: str) -> None:
    tracenet.register_rule(shifted_sum, replace=True)(Reaches())
    model = Between(*reach, edge=edge, second=second).double().eval()
    found = tracenet.check_exactness(model, image().double(), requests=12, tolerance=1e-9)
    assert found.largest_error < 1e-9
    assert found.barriers == ()
    assert found.smallest_share < 1


def test_a_reach_that_is_too_short_is_found_and_named() -> None:
    tracenet.register_rule(shifted_sum)(Local((1, 2, 1, 0)))
    tracenet.check_exactness(Between(1, 2, 1, 0).eval(), image(), backends=("torch", "auto"))
    with pytest.raises(ExactnessError) as caught:
        tracenet.check_exactness(Between(1, 3, 1, 0).eval(), image())
    message = str(caught.value)
    assert "on the torch backend, 'output' [" in message
    assert "the first wrong node is 'shifted_sum' (tests_check.shifted_sum, at test_check_exactness.py:" in message
    assert isinstance(caught.value, AssertionError)


def test_the_same_seed_asks_the_same() -> None:
    tracenet.register_rule(shifted_sum)(Local(1))
    model, x = Between(1, 1, 1, 1).eval(), image()
    assert tracenet.check_exactness(model, x) == tracenet.check_exactness(model, x)
    assert tracenet.check_exactness(model, x, requests=0).requests == 4


class ReadsEverything(Pointwise):
    """Demands a window and computes with the whole plane."""

    def run(self, node: Any, window: Window, read: Reader) -> Tensor:
        x = node.args[0]
        return read(Demand(x, x.full_window, x.layout.axes))[..., window.y0 : window.y1, window.x0 : window.x1]


def test_reading_more_than_is_demanded_is_an_error() -> None:
    tracenet.register_rule("aten.relu", replace=True)(ReadsEverything())
    with pytest.raises(tracenet.TraceNetError, match="was neither computed nor"):
        tracenet.check_exactness(nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1)).eval(), image())


def test_barriers_flat_outputs_and_several_inputs() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"map": x * x.mean((2, 3), keepdim=True), "vector": x.amax((2, 3)) * scale}

    found = tracenet.check_exactness(Net().eval(), [image(), torch.rand(1, 2)])
    assert found.barriers == ("mean (aten.mean): reduces over the plane", "amax (aten.amax): reduces over the plane")
    assert found.smallest_share == 1


def test_operations_are_registered_by_themselves_or_by_name() -> None:
    for op in (shifted_sum, "tests_check.shifted_sum", "tests_check::shifted_sum", torch.ops.tests_check.shifted_sum,
               torch.ops.tests_check.shifted_sum.default):  # fmt: skip
        tracenet.register_rule(op, replace=True)(Barrier())
        assert "tests_check.shifted_sum" in registry.registered_ops()
        del registry._RULES["tests_check.shifted_sum"]
    with pytest.raises(UnsupportedOpError, match=r"tests_check.shifted_sum \(at test_check_exactness.py:"):
        tracenet.check_exactness(Between(1, 1, 1, 1).eval(), image())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: tracenet.register_rule(3)(Barrier()), "a int came as an operation"),
        (lambda: tracenet.register_rule("")(Barrier()), "a str came as an operation"),
        (lambda: tracenet.register_rule("mylib.f")(print), "came as a rule; pass a tracenet.Rule"),  # type: ignore[arg-type]
        (lambda: tracenet.check_exactness(nn.ReLU().eval(), image(), requests=-1), "requests is -1"),
        (lambda: tracenet.check_exactness(nn.ReLU().eval(), image(), tolerance=0), "tolerance 0"),
    ],
)
def test_wrong_arguments(wrong: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        wrong()


def test_a_negative_reach_is_refused() -> None:
    tracenet.register_rule(shifted_sum)(Local(-1))
    with pytest.raises(InputError, match=r"the rule of tests_check.shifted_sum reaches -1"):
        tracenet.check_exactness(Between(1, 1, 1, 1).eval(), image())


class Wider(Rule):
    """Gives more than the window."""

    def layout(self, node: Any) -> Any:
        return node.args[0].layout

    def demands(self, node: Any, window: Window) -> Iterable[Demand]:
        return [Demand(node.args[0], node.full_window, node.layout.axes)]

    def run(self, node: Any, window: Window, read: Reader) -> Tensor:
        return read(next(iter(self.demands(node, window))))


def test_a_rule_that_gives_another_shape_is_named() -> None:
    tracenet.register_rule("aten.relu", replace=True)(Wider())
    with pytest.raises(tracenet.TraceNetError, match=r"node 'relu' .aten.relu. gave .* its rule must give"):
        tracenet.check_exactness(nn.ReLU().eval(), image())
