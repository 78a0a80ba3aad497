"""Random convolutional networks under random requests: traced equals full, and nothing outside the demand is read.

``TRACENET_RANDOM_NETWORKS`` sets the number of networks (40 by default).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tracenet
from tracenet_kernels.ops import aligned_bilinear
from tracenet_kernels.window import Window

EXAMPLES = int(os.environ.get("TRACENET_RANDOM_NETWORKS", "40"))
LARGEST = 40  # rows and columns; larger planes are pooled
POINTWISE = (torch.relu, torch.sigmoid, F.silu, torch.tanh)


@dataclass(frozen=True)
class Value:
    """A tensor of the network under construction: its number, channels and plane."""

    index: int
    channels: int
    height: int
    width: int


@dataclass
class Recipe:
    """Steps ``(kind, operand numbers, options)`` and the numbers of the outputs; ``str`` of it shows the network."""

    channels: int
    height: int
    width: int
    batch: int
    steps: list[tuple[str, tuple[int, ...], dict[str, Any]]] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


class Network(nn.Module):
    """A recipe as a module."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.layers = nn.ModuleList(self._layer(kind, options) for kind, _, options in recipe.steps)

    @staticmethod
    def _layer(kind: str, options: dict[str, Any]) -> nn.Module:
        if kind in ("conv", "transposed"):
            options = dict(options)
            norm = options.pop("norm")
            conv = (nn.Conv2d if kind == "conv" else nn.ConvTranspose2d)(**options)
            return nn.Sequential(conv, nn.BatchNorm2d(options["out_channels"])) if norm else conv
        if kind in ("max_pool", "avg_pool"):
            return (nn.MaxPool2d if kind == "max_pool" else nn.AvgPool2d)(**options)
        return nn.Identity()

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [x]
        for (kind, operands, options), layer in zip(self.recipe.steps, self.layers, strict=True):
            values.append(self._step(kind, [values[i] for i in operands], options, layer))
        return [values[i] for i in self.recipe.outputs]

    def _step(self, kind: str, x: list[Tensor], options: dict[str, Any], layer: nn.Module) -> Tensor:
        if kind in ("conv", "transposed", "max_pool", "avg_pool"):
            return layer(x[0])
        if kind == "pointwise":
            return POINTWISE[options["which"]](x[0])
        if kind == "in_place":
            return F.relu_(x[0] * 1.5)
        if kind == "resize":
            return F.interpolate(x[0], **options)
        if kind == "aligned":
            return aligned_bilinear(x[0], options["factor"])
        if kind == "resize_like":
            return x[1] + F.interpolate(x[0][:, :1], size=x[1].shape[-2:], mode=options["mode"])
        if kind == "pad":
            return F.pad(x[0], options["pads"], mode=options["mode"])
        if kind == "concat":
            return torch.cat(x, 1)
        if kind == "add":
            return x[0] + x[1][:, :1]
        if kind == "crop":
            return x[0][..., options["y"] :: options["step"], options["x"] :]
        if kind == "shuffle":
            return F.pixel_shuffle(torch.cat([x[0]] * 4, 1), 2)
        if kind == "unshuffle":
            return F.pixel_unshuffle(x[0], 2)
        if kind == "gate":
            return x[0] * torch.sigmoid(x[0].mean((2, 3), keepdim=True))
        assert kind == "softmax"
        return x[0].softmax(1)


def _conv_size(n: int, k: int, s: int, p: int, d: int) -> int:
    return (n + 2 * p - d * (k - 1) - 1) // s + 1


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    recipe = Recipe(
        draw(st.integers(1, 3)), draw(st.integers(5, 23)), draw(st.integers(5, 23)), draw(st.sampled_from([1, 1, 2]))
    )
    values = [Value(0, recipe.channels, recipe.height, recipe.width)]

    def add(kind: str, operands: list[Value], channels: int, height: int, width: int, **options: Any) -> None:
        recipe.steps.append((kind, tuple(v.index for v in operands), options))
        values.append(Value(len(values), channels, height, width))

    for _ in range(draw(st.integers(2, 9))):
        x = values[-1] if draw(st.booleans()) else draw(st.sampled_from(values))
        n, h, w = x.channels, x.height, x.width
        kind = draw(st.sampled_from(KINDS))
        if max(h, w) > LARGEST or n > 16:
            kind = "conv"
        if kind == "conv":
            groups = draw(st.sampled_from([g for g in (1, 1, 2, n) if n % g == 0]))
            out = groups * draw(st.integers(1, 2))
            k, s = draw(_pair(1, 5)), draw(_pair(1, 3))
            d, p = draw(_pair(1, 2)), draw(_pair(0, 4))
            size = [_conv_size(m, *o) for m, o in zip((h, w), zip(k, s, p, d, strict=True), strict=True)]
            if min(size) >= 1:
                add("conv", [x], out, *size, in_channels=n, out_channels=out, kernel_size=k, stride=s, padding=p,
                    dilation=d, groups=groups, bias=draw(st.booleans()), norm=draw(st.booleans()))  # fmt: skip
        elif kind == "transposed":
            groups = draw(st.sampled_from([g for g in (1, n) if n % g == 0]))
            out = groups * draw(st.integers(1, 2))
            k, s, d, p = draw(_pair(1, 4)), draw(_pair(1, 3)), draw(_pair(1, 2)), draw(_pair(0, 1))
            extra = tuple(draw(st.integers(0, max(s[i], d[i]) - 1)) for i in range(2))
            size = [(m - 1) * s[i] - 2 * p[i] + d[i] * (k[i] - 1) + extra[i] + 1 for i, m in enumerate((h, w))]
            if min(size) >= 1:
                add("transposed", [x], out, *size, in_channels=n, out_channels=out, kernel_size=k, stride=s, padding=p,
                    output_padding=extra, dilation=d, groups=groups, norm=draw(st.booleans()))  # fmt: skip
        elif kind in ("max_pool", "avg_pool"):
            k = draw(st.integers(1, min(4, h, w)))
            s, p = draw(st.integers(1, 3)), draw(st.integers(0, k // 2))
            more: dict[str, Any] = {"ceil_mode": draw(st.booleans())}
            if kind == "avg_pool":
                more["count_include_pad"] = draw(st.booleans())
            with torch.no_grad():
                layer = (nn.MaxPool2d if kind == "max_pool" else nn.AvgPool2d)(k, s, p, **more)
                size = list(layer(torch.zeros(1, 1, h, w)).shape[-2:])
            add(kind, [x], n, *size, kernel_size=k, stride=s, padding=p, **more)
        elif kind == "resize":
            mode = draw(st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic", "area"]))
            size = [draw(st.integers(1, 2 * h)), draw(st.integers(1, 2 * w))]
            smooth = mode in ("bilinear", "bicubic")
            options = {"align_corners": draw(st.booleans()), "antialias": draw(st.booleans())} if smooth else {}
            if smooth and size[1] == 1:  # to one column, PyTorch 2.13 repeats the first row of contiguous planes
                options["antialias"] = False
            add("resize", [x], n, *size, mode=mode, size=size, **options)
        elif kind == "aligned":
            factor = draw(st.integers(1, 3))
            add("aligned", [x], n, h * factor, w * factor, factor=factor)
        elif kind in ("resize_like", "add", "concat"):
            same = [v for v in values if kind == "resize_like" or (v.height, v.width) == (h, w)]
            y = draw(st.sampled_from(same))
            if kind == "resize_like":
                add(kind, [x, y], y.channels, y.height, y.width, mode=draw(st.sampled_from(["nearest", "bilinear"])))
            else:
                add(kind, [x, y], n + (y.channels if kind == "concat" else 0), h, w)
        elif kind == "pad":
            mode = draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
            low = -1 if mode == "constant" and min(h, w) > 3 else 0
            pads = [draw(st.integers(low, min(3, m - 1))) for m in (w, w, h, h)]
            add("pad", [x], n, h + pads[2] + pads[3], w + pads[0] + pads[1], pads=pads, mode=mode)
        elif kind == "crop":
            y0, x0, step = draw(st.integers(0, h - 1)), draw(st.integers(0, w - 1)), draw(st.integers(1, 2))
            add("crop", [x], n, -(-(h - y0) // step), w - x0, y=y0, x=x0, step=step)
        elif kind == "shuffle":
            add("shuffle", [x], n, 2 * h, 2 * w)
        elif kind == "unshuffle":
            if h % 2 == 0 and w % 2 == 0:
                add("unshuffle", [x], 4 * n, h // 2, w // 2)
        else:
            add(kind, [x], n, h, w, **({"which": draw(st.integers(0, 3))} if kind == "pointwise" else {}))
    last = draw(st.lists(st.sampled_from(range(len(values))), max_size=2))
    recipe.outputs = [values[-1].index, *last]
    return recipe


KINDS = (
    ["conv"] * 6
    + ["transposed", "max_pool", "avg_pool", "resize", "concat", "add"] * 2
    + ["aligned", "resize_like", "pad", "crop", "shuffle", "unshuffle", "pointwise", "in_place", "softmax", "gate"]
)


def _pair(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    one = st.integers(low, high)
    return st.one_of(one.map(lambda n: (n, n)), st.tuples(one, one))


@st.composite
def _window(draw: st.DrawFn, height: int, width: int) -> Window:
    y0, x0 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Window(y0, draw(st.integers(y0 + 1, height)), x0, draw(st.integers(x0 + 1, width)))


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(recipe=recipes(), data=st.data())
def test_traced_equals_full(recipe: Recipe, data: st.DataObject, trace_check) -> None:
    torch.manual_seed(0)
    model = Network(recipe).double().eval()
    for name, tensor in model.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2.0)
        elif "running_mean" in name:
            tensor.uniform_(-1.0, 1.0)
    x = torch.randn(recipe.batch, recipe.channels, recipe.height, recipe.width).double()
    traced = tracenet.trace(model, x)
    nodes = list(traced.graph.outputs.values())

    whole = trace_check(model, traced, [x], dict.fromkeys(range(len(nodes))), 1e-7)
    assert whole.macs <= whole.full_macs  # crops and strides may leave cells that nobody reads
    everything = traced.plan({node.name: None for node in traced.graph.nodes if not node.is_constant})
    assert everything.macs == everything.full_macs

    vectors = traced.global_vectors(x)
    asked = data.draw(st.sets(st.sampled_from(range(len(nodes))), min_size=1))
    for _ in range(2):
        request = {key: data.draw(_window(*nodes[key].plane)) for key in sorted(asked)}
        plan = trace_check(model, traced, [x], request, 1e-7)
        assert 0 <= plan.macs <= plan.full_macs
        assert all(entry.node.full_window.contains(entry.window) for entry in plan.nodes)
        first, second = traced.run(x, plan), traced.run(x, plan)
        assert all(torch.equal(first[key], second[key]) for key in request)
        cached = traced.plan(request, global_context="cached", vectors=vectors)
        assert cached.exact
        assert cached.macs <= plan.macs
        for key, value in traced.run(x, cached).items():
            torch.testing.assert_close(value, first[key], rtol=0, atol=1e-7 * max(float(first[key].abs().max()), 1e-3))
