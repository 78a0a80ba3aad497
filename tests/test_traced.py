"""The public interface of a traced network: requests and inputs that are wrong are refused with what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracenet
from tracenet.crop_pad import Patch
from tracenet_kernels.errors import BackendError, InputError, RequestError, TraceNetError, WindowError
from tracenet_kernels.window import Window


class Net(nn.Module):
    """One plane and one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.conv(x)
        return {"map": y, "vector": y.mean((2, 3))}


@pytest.fixture(scope="module")
def traced() -> tracenet.TracedModel:
    return tracenet.trace(Net().eval(), torch.zeros(1, 3, 8, 10))


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ({}, RequestError, "request is empty; ask for at least one"),
        (Window(0, 1, 0, 1), RequestError, "request is a Window; pass a dict"),
        (None, RequestError, "request is a NoneType; pass a dict"),
        ({2: None}, RequestError, "2 is not an output; ask by index 0..1 or by name: map, vector"),
        ({-1: None}, RequestError, "-1 is not an output"),
        ({True: None}, RequestError, "True is not an output"),
        ({"mask": None}, RequestError, "'mask' is not an output.*map, vector"),
        ({0: Window(0, 9, 0, 1)}, WindowError, r"'?0'? is \[0, 9\) x \[0, 1\), its plane is 8 x 10.*clip"),
        ({0: Window(-1, 2, 0, 1)}, WindowError, "its plane is 8 x 10"),
        ({0: Window(20, 22, 0, 1)}, WindowError, "its plane is 8 x 10"),
        ({0: Window(2, 2, 0, 1)}, WindowError, "is empty.*at least one cell"),
        ({0: (0, 1.5, 0, 1)}, WindowError, r"y1 is 1.5 \(float\); pass an integer"),
        ({0: (0.0, 1.0, 0.0, 1.0)}, WindowError, "pass an integer"),
        ({0: (3, 1, 0, 1)}, WindowError, "ends before it starts"),
        ({0: (0, 1, 0)}, WindowError, r"is \(0, 1, 0\); pass Window"),
        ({0: "abcd"}, WindowError, "pass Window"),
        ({0: 5}, WindowError, "is 5; pass Window"),
        ({0: (0, True, 0, 1)}, WindowError, "pass an integer"),
        ({1: Window(0, 2, 0, 2)}, WindowError, r"shape \[1, 4\] without rows and columns.*None"),
    ],
)
def test_wrong_requests(traced: tracenet.TracedModel, request_: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        traced.plan(request_)
    assert isinstance(caught.value, TraceNetError)


def test_right_requests(traced: tracenet.TracedModel) -> None:
    assert traced.output_names == ["map", "vector"]
    window = Window(1, 3, 2, 4)
    for value in (window, (1, 3, 2, 4), [1, 3, 2, 4], tuple(np.array([1, 3, 2, 4]))):
        assert traced.plan({"map": value}).request == {"map": window}
    assert traced.plan({"vector": None}).request == traced.plan({"vector": Window(0, 1, 0, 1)}).request
    outputs = traced.run(torch.ones(1, 3, 8, 10), traced.plan({"vector": None, 0: window}))
    assert {key: tuple(tensor.shape) for key, tensor in outputs.items()} == {"vector": (1, 4), 0: (1, 4, 2, 2)}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.zeros(1, 3, 8, 11), r"\(1, 3, 8, 11\) torch.float32, but the capture was made for \(1, 3, 8, 10\)"),
        (torch.zeros(2, 3, 8, 10), "trace the model again at this size"),
        (torch.zeros(1, 3, 8, 10, dtype=torch.float64), "torch.float64, but the capture was made for"),
        (torch.zeros(3, 8, 10), "the capture was made for"),
        ([torch.zeros(1, 3, 8, 10)] * 2, "run got 2 inputs; the network takes 1: "),
        ([], "run got 0 inputs"),
        (np.zeros((1, 3, 8, 10), np.float32), "is a ndarray; pass a tensor"),
        (None, "is a NoneType; pass a tensor"),
    ],
)
def test_wrong_inputs(traced: tracenet.TracedModel, inputs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        traced.run(inputs, traced.plan({0: None}))


def test_an_input_may_be_the_part_that_the_plan_reads(traced: tracenet.TracedModel) -> None:
    x = torch.rand(1, 3, 8, 10)
    plan = traced.plan({0: Window(2, 4, 3, 7)})
    read = plan.windows[traced.graph.inputs[0].name]
    expected = traced.run(x, plan)[0]
    for window in (read, Window(read.y0, 8, 0, read.x1), Window(0, 8, 0, 10)):
        rows, columns = window.slices
        poisoned = torch.full_like(x, torch.nan)
        poisoned[..., rows, columns] = x[..., rows, columns]
        assert torch.equal(traced.run(Patch(window, poisoned[..., rows, columns]), plan)[0], expected)
    for patch, words in (
        (Patch(Window(2, 4, 3, 7), x[:, :, 2:4, 3:7]), "the plan reads .* the patch holds"),
        (Patch(read, x), "its window .* asks for"),
        (Patch(Window(0, 8, 0, 10), x.double()), "torch.float64, but its window .* torch.float32"),
    ):
        with pytest.raises(InputError, match=words):
            traced.run(patch, plan)


def test_wrong_plans_and_backends(traced: tracenet.TracedModel) -> None:
    x = torch.zeros(1, 3, 8, 10)
    other = tracenet.trace(Net().eval(), x)
    with pytest.raises(RequestError, match="another traced model; call plan"):
        traced.run(x, other.plan({0: None}))
    with pytest.raises(RequestError, match="run got a dict as its plan"):
        traced.run(x, {0: None})  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="'cuda' is not available; choose one of"):
        traced.run(x, traced.plan({0: None}), backend="cuda")


def test_lists_and_tuples_of_inputs_and_moves_between_devices() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a * self.weight - b

    a, b = torch.rand(1, 3, 4, 5), torch.rand(3, 4, 5)
    traced = tracenet.trace(Two().eval(), [a, b])
    assert traced.to("cpu") is traced
    plan = traced.plan({0: Window(1, 2, 1, 4)})
    for inputs in ([a, b], (a, b)):
        torch.testing.assert_close(traced.run(inputs, plan)[0], (a - b)[:, :, 1:2, 1:4])


def test_captures_of_one_model_share_its_weights() -> None:
    model = Net().eval()
    one, two = (tracenet.trace(model, torch.zeros(1, 3, 8, width)) for width in (10, 12))
    for graph in (one.graph, two.graph):
        graph.by_name["conv.weight"].value = model.conv.weight.detach().clone()
    x = torch.rand(1, 3, 8, 12)
    before = two.run(x, two.plan({0: None}))[0]
    two.share_weights(one)
    assert two.graph.by_name["conv.weight"].value is one.graph.by_name["conv.weight"].value
    assert torch.equal(two.run(x, two.plan({0: None}))[0], before)
    other = tracenet.trace(Net().eval(), torch.zeros(1, 3, 8, 10))
    other.share_weights(one)
    assert other.graph.by_name["conv.weight"].value is not one.graph.by_name["conv.weight"].value


def test_a_model_with_hooks_gradients_and_shared_weights_is_captured_as_it_runs() -> None:
    model = Net().eval()
    model.conv.register_forward_hook(lambda module, args, output: output + 1)
    x = torch.rand(1, 3, 8, 10, requires_grad=True)
    traced = tracenet.trace(model, x)
    got = traced.run(x, traced.plan({0: Window(0, 3, 7, 10)}))[0]
    torch.testing.assert_close(got, model(x)["map"][:, :, :3, 7:].detach())
