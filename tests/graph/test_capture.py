"""Capture: names, outputs, constants, in-place operations, and what is refused."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tracenet
from tracenet.graph import capture
from tracenet.graph.graph import CONSTANT, INPUT
from tracenet_kernels.errors import CaptureError, InputError
from tracenet_kernels.window import Window


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(self, *tensors)


def names(model: nn.Module, *shapes: tuple[int, ...]) -> list[str]:
    graph = capture(model.eval(), tuple(torch.zeros(shape) for shape in shapes))
    return [node.name for node in graph.nodes if node.op not in (INPUT, CONSTANT)]


class Shared(nn.Module):
    """A head called on two levels, as in an FPN."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())
        self.out = nn.ModuleDict({"score": nn.Conv2d(2, 1, 1)})

    def forward(self, x: Tensor) -> list[Tensor]:
        return [torch.sigmoid(self.out["score"](self.tower(level))) for level in (x, F.max_pool2d(x, 2))]


def test_names_are_module_paths_with_the_call_of_shared_modules() -> None:
    found = names(Shared(), (1, 2, 8, 8))
    assert found[:1] == ["max_pool2d"]
    assert found[1:5] == ["tower.0", "tower.1", "out.score", "sigmoid"]
    assert found[5:] == ["tower.0@1", "tower.1@1", "out.score@1", "sigmoid_1"]


def test_names_are_unique_even_beside_inputs_of_that_name() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.x(x).relu().relu()

    assert names(Clash(), (1, 2, 4, 4)) == ["x_1", "relu", "relu_1"]


def test_what_depends_on_no_input_becomes_a_constant() -> None:
    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0))

        def forward(self, x: Tensor) -> Tensor:
            y, z = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
            return x + torch.exp(self.scale) * (y * z) + torch.zeros_like(x) + x.new_ones(4, 5)

    model = Grid().eval()
    graph = capture(model, torch.zeros(1, 1, 4, 5))
    assert [node.op for node in graph.nodes if node.op not in (INPUT, CONSTANT)] == ["aten.add"] * 3
    traced, x = tracenet.trace(model, torch.zeros(1, 1, 4, 5)), torch.rand(1, 1, 4, 5)
    torch.testing.assert_close(traced.run(x, traced.plan({0: None}))[0], model(x))


Pair = namedtuple("Pair", "first second")


@dataclass
class Prediction:
    scores: Tensor
    boxes: list[Tensor]


torch.export.register_dataclass(Prediction, serialized_type_name="tests.graph.Prediction")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda x: x + 1, ["output"]),
        (lambda x: (x + 1, x + 2), ["0", "1"]),
        (lambda x: [x + 1, (x + 2, x + 3)], ["0", "1.0", "1.1"]),
        (lambda x: {"P3": x + 1, "rest": [x + 2]}, ["P3", "rest.0"]),
        (lambda x: Pair(x + 1, x + 2), ["first", "second"]),
        (lambda x: Prediction(x + 1, [x + 2, x + 3]), ["scores", "boxes.0", "boxes.1"]),
        (lambda x: (x + 1, None, 3), ["0"]),
    ],
)
def test_output_names_come_from_the_structure(body: Callable[[Tensor], Any], expected: list[str]) -> None:
    model = Function(lambda _, x: body(x)).eval()
    x = torch.rand(1, 2, 4, 4)
    traced = tracenet.trace(model, x)
    assert traced.output_names == expected
    outputs = traced.run(x, traced.plan(dict.fromkeys(expected)))
    for offset, name in enumerate(expected, start=1):
        torch.testing.assert_close(outputs[name], x + offset)


def test_one_node_may_be_several_outputs_and_an_output_may_be_an_input_or_constant() -> None:
    model = Function(lambda self, x: ((y := self.conv(x)), y, x, self.count)).eval()
    x = torch.rand(1, 2, 6, 6)
    traced = tracenet.trace(model, x)
    plan = traced.plan({0: Window(0, 1, 0, 1), 1: Window(4, 5, 4, 5), 2: Window(0, 2, 0, 6), 3: None})
    outputs = traced.run(x, plan)
    want = model(x)[0].detach()
    torch.testing.assert_close(outputs[0], want[:, :, :1, :1])
    torch.testing.assert_close(outputs[1], want[:, :, 4:5, 4:5])
    assert torch.equal(outputs[2], x[:, :, :2])
    assert torch.equal(outputs[3], model.count)
    assert plan.macs == 2 * 18 * 2  # both cells, and not what lies between them
    assert plan.hull_macs == 2 * 18 * 25


def sliced_write(self: Function, x: Tensor) -> Tensor:
    y = self.conv(x)
    y[:, 0] *= 2
    y[..., 1:3, :] = y[..., 2:4, :].clone()
    return y


def view_write(self: Function, x: Tensor) -> Tensor:
    y = self.conv(x)
    y[:, :1].add_(y[:, 1:])
    return y.view(1, 2, 36).mul_(2).view(1, 2, 6, 6)


@pytest.mark.parametrize(
    "body",
    [
        lambda self, x: F.relu(self.conv(x), inplace=True) + 1,
        lambda self, x: self.conv(x).add_(x).clamp_(min=0),
        sliced_write,
        view_write,
        lambda self, x: torch.no_grad()(self.conv)(x),
        lambda self, x: F.dropout(self.conv(x), 0.5, training=False),
    ],
)
def test_in_place_operations_and_views_simply_work(body: Callable[..., Tensor]) -> None:
    model = Function(body).eval()
    x = torch.rand(1, 2, 6, 6)
    traced = tracenet.trace(model, x)
    for window in (Window(0, 6, 0, 6), Window(1, 2, 0, 3), Window(3, 6, 5, 6)):
        got = traced.run(x, traced.plan({0: window}))[0]
        torch.testing.assert_close(got, model(x)[(..., *window.slices)].detach())


def counts(self: Function, x: Tensor) -> Tensor:
    self.count.add_(1)
    return x * self.count


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda self, x: x if x.sum() > 0 else -x, "Control flow that depends on"),
        (lambda self, x: x * x.max().item(), "frozen into the graph"),
        (lambda self, x: torch.fft.fft2(x).abs(), "complex"),
        (lambda self, x: x + torch.randn_like(x), "random numbers"),
        (lambda self, x: x + torch.rand(4, 4), "random numbers"),
        (lambda self, x: F.dropout(x, 0.5, training=True), "random numbers"),
        (lambda self, x: torch.bernoulli(x), "random numbers"),
        (counts, "buffer 'count'"),
        (lambda self, x: F.relu_(x), "overwrites its input"),
        (lambda self, x: x[x > 0], "torch.export could not|data-dependent"),
        (lambda self, x: None, "returns no tensors"),
        (lambda self, x: x.nonexistent, "torch.export could not capture Function"),
    ],
)
def test_what_cannot_be_captured_is_refused_with_a_reason(body: Callable[..., Any], words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        capture(Function(body).eval(), torch.rand(1, 2, 4, 4))


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (lambda x: x, torch.zeros(1), "trace got a function; pass a torch.nn.Module"),
        (nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 4, 4), "training mode .*model.eval"),
        (nn.Sequential(nn.ReLU(), nn.Dropout()).eval().append(nn.BatchNorm2d(1)), torch.zeros(1, 1, 4, 4), "first: 2"),
        (nn.ReLU().eval(), 5, "is a int; pass tensors"),
        (nn.ReLU().eval(), None, "is a NoneType; pass tensors"),
        (nn.ReLU().eval(), (), "no example inputs"),
        (nn.ReLU().eval(), ([torch.zeros(1)],), "is a list; pass tensors"),
        (nn.ReLU().eval(), torch.zeros(1, 3, 0, 4), "must be positive"),
        (nn.ReLU().eval(), torch.zeros(1, 3, 4, 4, dtype=torch.complex64), "pass real tensors"),
    ],
)
def test_wrong_arguments(model: Any, inputs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        tracenet.trace(model, inputs)


def test_unused_inputs_stay_inputs() -> None:
    traced = tracenet.trace(Function(lambda self, x, y: x * 2).eval(), (torch.zeros(1, 2, 4, 4), torch.zeros(3)))
    x = torch.rand(1, 2, 4, 4)
    assert torch.equal(traced.run([x, torch.zeros(3)], traced.plan({0: None}))[0], x * 2)


def test_graph_lists_users_and_drops_what_is_not_reachable() -> None:
    graph = capture(Shared().eval(), torch.zeros(1, 2, 8, 8))
    users = graph.users()
    assert [node.name for node in users[graph.by_name["tower.0"]]] == ["tower.1"]
    graph.outputs = {"0": graph.by_name["tower.1"]}
    graph.keep_reachable()
    assert [node.name for node in graph.nodes if node.op != CONSTANT] == [graph.inputs[0].name, "tower.0", "tower.1"]
    assert [node.index for node in graph.nodes] == list(range(len(graph)))
    assert "tower.0" in repr(graph.by_name["tower.0"])
