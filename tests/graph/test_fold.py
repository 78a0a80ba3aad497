"""BatchNorm folding: same values, fewer nodes, and only where nobody else sees the convolution or its weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tracenet
from tracenet.graph import capture, fold_batch_norm


def randomised(model: nn.Module) -> nn.Module:
    for name, tensor in model.double().state_dict().items():
        if "num_batches" not in name:
            tensor.uniform_(0.5, 1.5) if "var" in name else tensor.uniform_(-1.0, 1.0)
    return model.eval()


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(4, 6, 3, 2, 1),
        lambda: nn.Conv2d(4, 6, 3, bias=False),
        lambda: nn.Conv2d(4, 8, 3, groups=2),
        lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False),
        lambda: nn.Conv2d(4, 6, 3, padding="same"),
        lambda: nn.ConvTranspose2d(4, 6, 3, 2),
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2),
        lambda: nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=4, bias=False),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_folding_keeps_the_values(make: Callable[[], nn.Module], affine: bool) -> None:
    conv = make()
    model = randomised(nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels, eps=1e-3, affine=affine), nn.ReLU()))
    x = torch.randn(2, 4, 7, 6).double()
    graph = capture(model, x)
    assert fold_batch_norm(graph) == 1
    assert not any("batch_norm" in node.op for node in graph.nodes)
    for fold in (True, False):
        traced = tracenet.trace(model, x, fold_bn=fold)
        got = traced.run(x, traced.plan({0: None}))[0]
        torch.testing.assert_close(got, model(x).detach(), rtol=1e-10, atol=1e-10)


class Net(nn.Module):
    def __init__(self, body: Callable[[Net, Tensor], object]) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.body = body

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)


@pytest.mark.parametrize(
    ("body", "folded"),
    [
        (lambda net, x: (y := net.conv(x)) + net.norm(y), 0),
        (lambda net, x: ((y := net.conv(x)), net.norm(y)), 0),
        (lambda net, x: net.norm(torch.relu(net.conv(x))), 0),
        (lambda net, x: net.norm(x), 0),
        (lambda net, x: net.other(net.norm(net.conv(x))), 1),
        (lambda net, x: net.norm(net.conv(x)) + net.other(net.conv(x)), 0),
        (lambda net, x: net.norm(net.conv(x)) + net.conv(x), 0),
        (lambda net, x: net.norm(net.conv(x)) + net.norm(net.conv(x)), 2),
        (lambda net, x: (net.norm(net.conv(x)), x), 1),
    ],
)
def test_only_what_nobody_else_sees_is_folded(body: Callable[[Net, Tensor], object], folded: int) -> None:
    model = randomised(Net(body))
    x = torch.randn(1, 2, 6, 6).double()
    graph = capture(model, x)
    assert fold_batch_norm(graph) == folded
    traced = tracenet.trace(model, x)
    want = model(x)
    outputs = traced.run(x, traced.plan(dict.fromkeys(range(len(traced.output_names)))))
    for key, tensor in enumerate(want if isinstance(want, tuple) else (want,)):
        torch.testing.assert_close(outputs[key], tensor.detach(), rtol=1e-10, atol=1e-10)


def test_the_model_itself_is_left_alone() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tracenet.trace(model, torch.zeros(1, 2, 4, 4).double())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
