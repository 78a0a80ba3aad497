"""Windows of traced networks as ONNX models: valid, and equal to the full network in ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tracenet
from tests.graph.onnx_models import run_onnx, windows_of
from tests.networks import randomised
from tracenet.onnx_export import input_values, onnx_model
from tracenet.rft.rules.pointwise import crop_output
from tracenet.standard import standard_request
from tracenet.traced import TracedModel
from tracenet_kernels.errors import CaptureError, InputError, RequestError, UnsupportedOpError
from tracenet_kernels.window import Window


class Function(nn.Module):
    """A layer made of a function, between two convolutions."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 8, 3, 1, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.before(x))


def check(traced: TracedModel, x: Tensor, window: Window | None, full: Tensor, how: str = "window") -> onnx.ModelProto:
    plan = traced.plan({0: window})
    model = onnx_model(traced, plan, how)
    got = torch.from_numpy(run_onnx(model, input_values(plan, [x], how))["0"])
    wanted = crop_output(next(iter(traced.graph.outputs.values())), full, plan.request[0])
    scale = max(float(wanted.abs().max()), 1e-3)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * scale)
    return model


def gate(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def tokens(x: Tensor) -> Tensor:
    t = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(t, t, t)


def scattered(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 2:5] = x[:, :, 3:6] * 2
    return y


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6": F.relu6,
    "silu": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.4),
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "softplus": lambda x: F.softplus(x, 2.0),
    "clamp": lambda x: x.clamp(-0.1, 0.2) + x.clamp_min(0.1) - x.clamp_max(0.3),
    "arithmetic": lambda x: torch.rsub(x, 2.0, alpha=3) * 2 + torch.add(x, x, alpha=0.5) / 3 - x**2 + x.square(),
    "roots": lambda x: torch.rsqrt(x.abs() + 1) + torch.reciprocal(x.exp()),
    "choices": lambda x: torch.where((x > 0.1) | (x != x), x, -x).masked_fill(x < -0.5, 0.25),
    "softmax": lambda x: torch.softmax(x, 1) + torch.log_softmax(x, 1),
    "reductions": lambda x: x.mean(1, keepdim=True) + x.sum(1, True) * x.amax(1, True) + x.max(1, True)[0],
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max pool dilated": lambda x: F.max_pool2d(x, 3, 1, 1, dilation=2, ceil_mode=True),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average pool inside": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average pool divisor": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=5),
    "grid pool": lambda x: F.adaptive_avg_pool2d(x, (4, 5)),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "nearest exact": lambda x: F.interpolate(x, size=(20, 31), mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, size=(20, 31), mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2.0, mode="bicubic", align_corners=True),
    "antialias": lambda x: F.interpolate(x, size=(9, 8), mode="bilinear", antialias=True),
    "reflect": lambda x: F.pad(x, (2, 1, 3, 0), mode="reflect"),
    "circular": lambda x: F.pad(x, (2, 1, 3, 0), mode="circular"),
    "constant pad": lambda x: F.pad(x, (2, -1, 3, 0), value=0.5),
    "channel pad": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "shuffle": lambda x: F.pixel_shuffle(x, 2),
    "unshuffle": lambda x: F.pixel_unshuffle(x[..., :12, :14], 2),
    "channel shuffle": lambda x: x.view(1, 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    "flip and roll": lambda x: x.flip(3) + x.roll(2, 2),
    "split": lambda x: torch.cat([part * i for i, part in enumerate(x.chunk(4, 1))], 1)[:, [3, 1, 0]],
    "stack": lambda x: torch.stack([x[:, :4], x[:, 4:]], 1).flatten(1, 2),
    "select": lambda x: x[:, 2].unsqueeze(1).expand(-1, 3, -1, -1) + x.narrow(1, 1, 3),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "glu": lambda x: F.glu(x, 1),
    "layer norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2),
    "squeeze excite": gate,
    "global pool": lambda x: F.adaptive_avg_pool2d(x, 1) * x,
    "attention": tokens,
    "scatter": scattered,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_equal_the_full_network(name: str) -> None:
    model, x = Function(FUNCTIONS[name]).eval(), torch.randn(1, 3, 13, 15)
    traced = tracenet.trace(model, x)
    with torch.no_grad():
        full = model(x)
    plane = traced.graph.outputs["output"].plane
    _, _, cell, patch, _ = windows_of(*plane)
    windows = [patch, cell] if traced.graph.outputs["output"].layout is not None else [None]
    for window, how in zip(windows, ("window", "whole"), strict=False):
        check(traced, x, window, full, how)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "strided": lambda: nn.Conv2d(3, 8, 5, 2, 2),
    "grouped": lambda: nn.Conv2d(3, 9, 3, 1, 2, 2, 3, bias=False),
    "same": lambda: nn.Conv2d(3, 4, (4, 3), padding="same"),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 4, 2, 1),
    "transposed sparse": lambda: nn.ConvTranspose2d(3, 4, 2, 3, 1, output_padding=2),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)),
    "group norm": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8)),
    "instance norm": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True)),
    "prelu": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8)),
    "shared padding": lambda: SharedPadding(),
}


class SharedPadding(nn.Module):
    """One padding that two layers read, of which only one could take it over."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1))
        return self.a(padded) + self.b(padded) + F.max_pool2d(padded, 3, 1).mean(1, keepdim=True)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_equal_the_full_network(name: str) -> None:
    model, x = LAYERS[name]().eval(), torch.randn(1, 3, 13, 15)
    traced = tracenet.trace(model, x)
    with torch.no_grad():
        full = model(x)
    for window in windows_of(*full.shape[2:]):
        if traced.graph.inputs[0] in traced.plan({0: window}).by_node:
            check(traced, x, window, full)
        else:  # a cell between those that a sparse transposed convolution writes to
            with pytest.raises(RequestError, match="depends on no input"):
                onnx_model(traced, traced.plan({0: window}))


def test_parameters_of_many_channels_are_not_confused() -> None:
    """Ones and zeros that stand in for absent parameters may come to lie at one address after the other."""
    model = nn.Sequential(nn.Conv2d(3, 96, 3), nn.InstanceNorm2d(96), nn.ReLU(), nn.InstanceNorm2d(96)).eval()
    x = torch.randn(1, 3, 10, 11)
    with torch.no_grad():
        full = model(x)
    check(tracenet.trace(model, x), x, Window(1, 4, 2, 5), full)


def test_padding_moves_into_convolutions_and_pools() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 4, 5, 1, 2)).eval()
    x = torch.randn(1, 3, 16, 20)
    traced = tracenet.trace(model, x)
    with torch.no_grad():
        written = check(traced, x, Window(0, 3, 0, 10), model(x))
    assert [node.op_type for node in written.graph.node] == ["Conv", "MaxPool", "Conv", "Identity"]
    assert [list(a.ints) for node in written.graph.node for a in node.attribute if a.name == "pads"] == [
        [1, 1, 0, 1],
        [1, 1, 0, 0],
        [2, 2, 0, 2],
    ]


@settings(max_examples=15)
@given(data=st.data())
def test_random_networks_and_windows(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 99)))
    layers: list[nn.Module] = []
    channels = 3
    for _ in range(draw(st.integers(1, 4))):
        kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 2))
        padding = draw(st.integers(0, kernel // 2))
        kind = draw(st.sampled_from(["conv", "transposed", "max", "average", "resize"]))
        layers.append(
            {
                "conv": lambda c=channels, a=(kernel, stride, padding): nn.Conv2d(c, 4, *a),
                "transposed": lambda c=channels, a=(kernel, stride, padding): nn.ConvTranspose2d(c, 4, *a),
                "max": lambda a=(kernel, stride, padding): nn.MaxPool2d(*a),
                "average": lambda a=(kernel, stride, padding): nn.AvgPool2d(*a),
                "resize": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
            }[kind]()
        )
        channels = 4 if kind in ("conv", "transposed") else channels
    model, x = nn.Sequential(*layers).eval(), torch.randn(1, 3, 17, 14)
    try:
        full = model(x)
    except RuntimeError:
        return  # the plane shrank away
    height, width = full.shape[2:]
    y0, x0 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    window = Window(y0, draw(st.integers(y0 + 1, height)), x0, draw(st.integers(x0 + 1, width)))
    check(tracenet.trace(model, x), x, window, full.detach(), draw(st.sampled_from(["window", "whole"])))


@pytest.fixture(scope="module")
def network() -> tuple[Any, TracedModel, list[Tensor]]:
    model = randomised()
    inputs = [torch.randn(1, 3, 96, 128) * 60, torch.randn(1, 169), torch.tensor([[60.0, 40.0]]), torch.tensor([64.0])]
    return model, tracenet.trace(model, tuple(inputs)), inputs


def test_one_click_on_the_whole_network(network: tuple[Any, TracedModel, list[Tensor]], tmp_path: Path) -> None:
    """Heads at the click and the mask around it; the dynamic layers are matrix products of the input theta."""
    model, traced, inputs = network
    plan = traced.plan(standard_request(model.config, (128, 96), (60, 40), (3, 4), 6))
    with torch.no_grad():
        full = model(*inputs)
    for how, image in (("window", plan.windows["image"]), ("whole", Window.full(96, 128))):
        path = tracenet.export_onnx(traced, plan, tmp_path / f"{how}.onnx", inputs=how)
        written = onnx.load(path)
        onnx.checker.check_model(written, full_check=True)
        assert {node.domain for node in written.graph.node} == {""}
        assert [port.name for port in written.graph.input] == ["image", "theta", "origin", "size_of_interest"]
        assert sum(node.op_type == "MatMul" for node in written.graph.node) == 3
        metadata = {entry.key: json.loads(entry.value) for entry in written.metadata_props}
        assert metadata["tracenet.inputs"] == {
            "image": list(image),
            "theta": None,
            "origin": None,
            "size_of_interest": None,
        }
        assert metadata["tracenet.outputs"]["mask"] == list(plan.request["mask"])
        got = run_onnx(written, input_values(plan, inputs, how))
        for name, window in plan.request.items():
            wanted = full[str(name)][(..., *window.slices)]
            scale = float(full[str(name)].abs().max())
            torch.testing.assert_close(torch.from_numpy(got[str(name)]), wanted, rtol=0, atol=1e-4 * scale)


def test_inputs_that_are_not_read_are_left_out(network: tuple[Any, TracedModel, list[Tensor]]) -> None:
    _, traced, inputs = network
    plan = traced.plan({"logits3": Window.of_cell(3, 4)})
    written = onnx_model(traced, plan)
    assert [port.name for port in written.graph.input] == ["image"]
    assert list(input_values(plan, inputs)) == ["image"]


def test_an_exported_model_can_be_traced_again(network: tuple[Any, TracedModel, list[Tensor]]) -> None:
    """Through ONNX and back: the same windows and work as from PyTorch, the same values."""
    model, traced, inputs = network
    names: dict[int | str, Window | None] = dict.fromkeys(("logits3", "logits4", "maskfeat", "P5"))
    again = tracenet.trace(onnx_model(traced, traced.plan(names)))
    window = {"logits4": Window.of_cell(2, 3)}
    ours, theirs = traced.plan(window), again.plan(window)
    assert theirs.windows["image"] == ours.windows["image"]
    assert theirs.macs == ours.macs
    part = again.run(inputs[0], theirs)["logits4"]
    torch.testing.assert_close(part, model(inputs[0])["logits4"][:, :, 2:3, 3:4].detach(), rtol=1e-4, atol=1e-4)


# What is refused


def test_windows_far_apart_are_exported_as_their_hull() -> None:
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.stem(x)
            return y, self.coarse(y)

    torch.manual_seed(0)
    model, x = Levels().eval(), torch.randn(1, 3, 32, 32)
    traced = tracenet.trace(model, x)
    plan = traced.plan({0: Window.of_cell(1, 1), 1: Window.of_cell(15, 15)})
    assert plan.macs < plan.hull_macs
    got = run_onnx(onnx_model(traced, plan), input_values(plan, [x]))
    for key, tensor in traced.run(x, plan).items():
        torch.testing.assert_close(torch.from_numpy(got[str(key)]), tensor, rtol=0, atol=1e-5)
    with pytest.raises(RequestError, match="several windows of one output"):
        onnx_model(traced, traced.plan({0: [Window.of_cell(1, 1), Window.of_cell(9, 9)]}))


def test_wrong_arguments(tmp_path: Path) -> None:
    model, x = nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 16, 16)
    traced, other = tracenet.trace(model, x), tracenet.trace(model, x)
    plan = traced.plan({0: Window(2, 4, 2, 4)})
    with pytest.raises(InputError, match=r"inputs is 'crop'.*'window', 'whole'"):
        tracenet.export_onnx(traced, plan, tmp_path / "a.onnx", inputs="crop")
    with pytest.raises(RequestError, match="another traced model"):
        tracenet.export_onnx(other, plan, tmp_path / "a.onnx")
    with pytest.raises(InputError, match="does not exist"):
        tracenet.export_onnx(traced, plan, tmp_path / "none" / "a.onnx")
    two = tracenet.trace(nn.Sequential(model, nn.Conv2d(4, 4, 3)).eval(), x)
    kept = two.plan({0: Window(2, 4, 2, 4)}, kept={"0": [Window.full(14, 14)]})
    with pytest.raises(RequestError, match=r"'0' from kept values"):
        tracenet.export_onnx(two, kept, tmp_path / "a.onnx")
    gated = tracenet.trace(Function(gate).eval(), x)
    with pytest.raises(RequestError, match="global_context='window'"):
        tracenet.export_onnx(gated, gated.plan({0: Window(2, 4, 2, 4)}, global_context="window"), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_operations_without_a_standard_operator_are_named(tmp_path: Path) -> None:
    model, x = Function(lambda x: torch.fft.rfft2(x).abs()).eval(), torch.randn(1, 3, 8, 8)
    with pytest.raises((UnsupportedOpError, CaptureError), match=r"fft|complex"):
        tracenet.export_onnx(traced := tracenet.trace(model, x), traced.plan({0: None}), tmp_path / "a.onnx")
    model = Function(lambda x: torch.cumsum(x, 1)).eval()
    traced = tracenet.trace(model, x)
    with pytest.raises(UnsupportedOpError, match=r"aten.cumsum, which has no standard ONNX operator"):
        tracenet.export_onnx(traced, traced.plan({0: None}), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_networks_without_weights_are_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        traced = tracenet.trace(nn.Conv2d(3, 4, 3).eval(), torch.zeros(1, 3, 8, 8))
    with pytest.raises((CaptureError, InputError), match="meta"):
        tracenet.export_onnx(traced, traced.plan({0: None}), tmp_path / "a.onnx")
