"""Every backward rule on a tiny network: exact, sound, and tight where the operation has a formula."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tracenet
from tracenet.rft.rules import registered_ops
from tracenet.rft.rules.convolution import sliding_demand, transposed_demand
from tracenet.rft.rules.resize import nearest_exact_taps, nearest_taps
from tracenet_kernels.errors import UnsupportedOpError
from tracenet_kernels.ops import aligned_bilinear
from tracenet_kernels.window import Window

aten = torch.ops.aten

Shape = tuple[int, ...]


class Function(nn.Module):
    """A function as a module; further arguments of the call are inputs."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> object:
        return self.function(*tensors)


class Held(nn.Module):
    """As :class:`Function`, with a parameter passed as the last argument."""

    def __init__(self, function: Callable[..., object], *shape: int) -> None:
        super().__init__()
        self.function = function
        self.held = nn.Parameter(torch.zeros(shape))

    def forward(self, *tensors: Tensor) -> object:
        return self.function(*tensors, self.held)


@dataclass(frozen=True)
class Case:
    """One network. ``tight``: every edge of the demanded window influences the request. ``barriers``: how many."""

    name: str
    make: Callable[[], nn.Module]
    shapes: Shape | tuple[Shape, ...]
    tight: bool = True
    barriers: int = 0
    tolerance: float = 1e-12


def layer(name: str, make: Callable[[], nn.Module], *shape: int, **options: object) -> Case:
    return Case(name, make, shape, **options)  # type: ignore[arg-type]


def function(name: str, body: Callable[..., object], *shape: int, **options: object) -> Case:
    return Case(name, lambda: Function(body), shape, **options)  # type: ignore[arg-type]


def resize(name: str, shape: Shape, tight: bool = False, **options: object) -> Case:
    return function(f"interpolate-{name}", lambda x: F.interpolate(x, **options), *shape, tight=tight)  # type: ignore[arg-type]


P = (2, 3, 9, 11)  # an odd plane with batch 2

CONVOLUTIONS = [
    layer("conv-1x1", lambda: nn.Conv2d(3, 2, 1), *P),
    layer("conv-3x3", lambda: nn.Conv2d(3, 2, 3, padding=1), *P),
    layer("conv-7x7-stride-2", lambda: nn.Conv2d(3, 2, 7, 2, 3), *P),
    layer("conv-stride-above-kernel", lambda: nn.Conv2d(3, 2, 2, 3), *P),
    layer("conv-dilated", lambda: nn.Conv2d(3, 2, 3, padding=2, dilation=2), *P),
    layer("conv-grouped", lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), 2, 4, 9, 8),
    layer("conv-depthwise", lambda: nn.Conv2d(3, 6, 5, 1, 2, groups=3, bias=False), *P),
    layer("conv-asymmetric", lambda: nn.Conv2d(3, 2, (1, 5), (3, 2), (0, 3), (1, 2)), *P, tight=False),
    layer("conv-valid", lambda: nn.Conv2d(3, 2, (4, 3)), *P),
    layer("conv-same", lambda: nn.Conv2d(3, 2, (4, 3), padding="same", dilation=(1, 2)), *P),
    layer("conv-same-even", lambda: nn.Conv2d(3, 2, 2, padding="same"), *P),
    layer("conv-valid-string", lambda: nn.Conv2d(3, 2, 3, padding="valid"), *P),
    layer("conv-big-padding", lambda: nn.Conv2d(3, 2, 3, 1, 6), 1, 3, 4, 5),
    layer("conv-big-padding-stride", lambda: nn.Conv2d(3, 2, 2, 3, 5, 2), 1, 3, 4, 5),
    layer("conv-padding-reflect", lambda: nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), *P, tight=False),
    layer("conv-padding-circular", lambda: nn.Conv2d(3, 2, 3, padding=2, padding_mode="circular"), *P, tight=False),
    layer("conv-3d", lambda: nn.Conv3d(2, 3, (3, 3, 5), (2, 1, 2), (1, 1, 2)), 1, 2, 4, 9, 11),
    layer("conv-3d-dilated-grouped", lambda: nn.Conv3d(4, 4, (1, 3, 3), 1, (0, 2, 1), (1, 2, 1), 2), 1, 4, 2, 9, 11),
    layer("conv-3d-unbatched", lambda: nn.Conv3d(2, 3, (3, 3, 1), 1, (1, 1, 0)), 2, 4, 9, 11, tight=False),
    function(
        "conv-3d-channels-last",
        lambda x: F.conv3d(
            x.permute(0, 2, 3, 1)[:, None], torch.linspace(-1, 1, 18).double().view(2, 1, 3, 3, 1), padding=(1, 1, 0)
        ),
        *P,
    ),
    function(
        "conv-1d-rows",
        lambda x: F.conv1d(x[:, 0], torch.linspace(-1, 1, 81).double().view(3, 9, 3)),
        *P,
        barriers=1,
        tight=False,
    ),
    function(
        "conv-1d-tokens",
        lambda x: F.conv1d(x.flatten(2), torch.ones(3, 3, 3).double(), padding=1),
        *P,
        barriers=1,
        tight=False,
    ),
    function(
        "pool-1d-tokens",
        lambda x: x + F.avg_pool1d(x.flatten(2), 9).mean(2)[..., None, None],
        *P,
        barriers=1,
        tight=False,
    ),
    function(
        "pool-1d-tokens-max",
        lambda x: x + F.max_pool1d(x.flatten(2), 9).mean(2)[..., None, None],
        *P,
        barriers=1,
        tight=False,
    ),
    function(
        "pool-1d-tokens-adaptive",
        lambda x: x + F.adaptive_avg_pool1d(x.flatten(2), 4).mean(2)[..., None, None],
        *P,
        barriers=1,
        tight=False,
    ),
    layer("conv-unbatched", lambda: nn.Conv2d(3, 2, 3, 2, 1), 3, 9, 11),
    function(
        "conv-overload",
        lambda x: aten.convolution(
            x, x[0, :, :3, :3].mean() * torch.ones(2, 3, 3, 3).double(), None, [2, 1], [1, 1], [1, 1], False, [0, 0], 1
        ),
        *P,
        tight=False,
        barriers=1,
    ),
    layer("conv-dynamic-filter", lambda: DynamicFilter(), *P, tight=False, barriers=1),
    layer("transposed", lambda: nn.ConvTranspose2d(3, 2, 3), *P),
    layer("transposed-2x2", lambda: nn.ConvTranspose2d(3, 2, 2, 2), *P),
    layer("transposed-4x4", lambda: nn.ConvTranspose2d(3, 2, 4, 2, 1), *P),
    layer("transposed-output-padding", lambda: nn.ConvTranspose2d(3, 2, 3, 2, 1, output_padding=1), *P),
    layer("transposed-dilated", lambda: nn.ConvTranspose2d(3, 2, 3, 2, 1, 1, dilation=2), *P, tight=False),
    layer("transposed-grouped", lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2), 2, 4, 5, 4),
    layer("transposed-depthwise", lambda: nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=4, bias=False), 2, 4, 5, 4),
    layer("transposed-asymmetric", lambda: nn.ConvTranspose2d(3, 2, (1, 5), (3, 2), (0, 2), (2, 1)), *P),
    layer("transposed-gaps", lambda: nn.ConvTranspose2d(3, 2, 1, 4, output_padding=3), 1, 3, 4, 3),
    layer("transposed-unbatched", lambda: nn.ConvTranspose2d(3, 2, 3, 2), 3, 4, 5),
]


class DynamicFilter(nn.Module):
    """Weights computed from the input, as in a dynamic mask head."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(3, 2 * 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.make(x.mean((0, 2, 3))).view(2, 3, 1, 1)
        return F.conv2d(x, weight, weight[:, 0, 0, 0])


POOLS = [
    layer("max-pool", lambda: nn.MaxPool2d(3, 2, 1), *P),
    layer("max-pool-ceil", lambda: nn.MaxPool2d(2, 2, ceil_mode=True), *P),
    layer("max-pool-ceil-stride", lambda: nn.MaxPool2d(3, 4, 1, ceil_mode=True), *P),
    layer("max-pool-dilated", lambda: nn.MaxPool2d(3, 1, 1, dilation=2), *P, tight=False),
    layer("max-pool-asymmetric", lambda: nn.MaxPool2d((1, 3), (2, 1), (0, 1)), *P),
    layer("max-pool-indices-unused", lambda: Function(lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0]), *P),
    layer("avg-pool", lambda: nn.AvgPool2d(3, 2, 1), *P),
    layer("avg-pool-ceil", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), *P),
    layer("avg-pool-ceil-no-pad", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), *P),
    layer("avg-pool-no-pad", lambda: nn.AvgPool2d((5, 3), 1, (2, 1), count_include_pad=False), *P),
    layer("avg-pool-divisor", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=7), *P),
    layer("lp-pool", lambda: nn.LPPool2d(2, 2), *P),
    layer("adaptive-avg-grid", lambda: nn.AdaptiveAvgPool2d((4, 3)), *P),
    layer("adaptive-avg-up", lambda: nn.AdaptiveAvgPool2d((13, 5)), *P),
    layer("adaptive-max-grid", lambda: nn.AdaptiveMaxPool2d((4, 3)), *P),
    layer("adaptive-avg-rows", lambda: nn.AdaptiveAvgPool2d((None, 1)), *P),
    layer("adaptive-avg-one", lambda: nn.AdaptiveAvgPool2d(1), *P, barriers=1),
    layer("adaptive-max-one", lambda: nn.AdaptiveMaxPool2d(1), *P, barriers=1),
    function("adaptive-avg-core", lambda x: aten._adaptive_avg_pool2d(x, [3, 4]), *P),
]

RESIZES = (
    [
        resize(f"{mode}-{name}", P, tight, mode=mode, **options)
        for mode, tight in (
            ("nearest", True),
            ("nearest-exact", True),
            ("area", True),
            ("bilinear", False),
            ("bicubic", False),
        )
        for name, options in (
            ("size-up", {"size": (20, 17)}),
            ("size-down", {"size": (4, 7)}),
            ("size-same", {"size": (9, 15)}),
            ("twice", {"scale_factor": 2}),
            ("half", {"scale_factor": 0.5}),
            ("factor", {"scale_factor": (1.7, 2.3), "recompute_scale_factor": False}),
            ("factor-down", {"scale_factor": (0.7, 0.3)}),
            ("recomputed", {"scale_factor": (1.7, 0.6), "recompute_scale_factor": True}),
            ("near-one", {"scale_factor": (1.05, 2.05)}),
            ("large", {"scale_factor": (9.3, 6.1)}),
        )
    ]
    + [
        resize(f"{mode}-{name}", P, mode=mode, align_corners=align, **options)
        for mode in ("bilinear", "bicubic")
        for name, align, options in (
            ("aligned-up", True, {"size": (20, 17)}),
            ("aligned-down", True, {"size": (4, 7)}),
            ("aligned-one", True, {"size": (1, 6)}),
            ("aligned-factor", True, {"scale_factor": 1.7}),
            ("antialias-down", False, {"size": (4, 3), "antialias": True}),
            ("antialias-up", False, {"size": (13, 19), "antialias": True}),
            ("antialias-same", False, {"scale_factor": (1.05, 0.4), "antialias": True}),
            ("antialias-aligned", True, {"size": (5, 30), "antialias": True}),
        )
    ]
    + [
        layer("upsample-module", lambda: nn.Upsample(scale_factor=3, mode="bilinear"), *P, tight=False),
        layer("upsample-pixel", lambda: nn.UpsamplingNearest2d(size=(4, 30)), *P),
    ]
)

ALIGNED = [
    function(f"aligned-bilinear-{f}", lambda x, f=f: aligned_bilinear(x, f), 2, 2, 5, 7, tolerance=1e-6)
    for f in (1, 2, 3, 4, 8)
]


def space_to_depth(x: Tensor, r: int = 3) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h // r, r, w // r, r).permute(0, 3, 5, 1, 2, 4).reshape(n, c * r * r, h // r, w // r)


def depth_to_space(x: Tensor, r: int = 2) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, c // r**2, r, r, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // r**2, h * r, w * r)


def channel_shuffle(x: Tensor, groups: int = 3) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def tokens_and_back(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return (tokens * 2 + 1).permute(0, 2, 1).unflatten(2, x.shape[-2:])


def space_attention(x: Tensor) -> Tensor:
    return x * torch.sigmoid(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1).sum(1, keepdim=True))


def written(x: Tensor, where: Callable[[Tensor], Tensor], value: Callable[[Tensor], Tensor | float]) -> Tensor:
    y = x * 2
    view = where(y)
    view.copy_(torch.as_tensor(value(x)).double().expand_as(view))
    return y


def assigned(x: Tensor, *index: object) -> Tensor:
    y = x * 2
    y[index] = 0.5
    return y


INDEXING = [
    function("pad-constant", lambda x: F.pad(x, (1, 2, 3, 0), value=2.5), *P),
    function("pad-constant-negative", lambda x: F.pad(x, (-1, 2, 3, -4)), *P),
    function("pad-channels", lambda x: F.pad(x, (1, 0, 0, 2, 1, 2)), *P),
    function("pad-reflect", lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"), *P, tight=False),
    function("pad-reflect-negative", lambda x: F.pad(x, (-4, 5, 3, -2), mode="reflect"), *P, tight=False),
    function("pad-replicate", lambda x: F.pad(x, (4, 2, 3, 1), mode="replicate"), *P),
    function("pad-replicate-negative", lambda x: F.pad(x, (-4, 2, 3, -1), mode="replicate"), *P),
    function("pad-circular", lambda x: F.pad(x, (4, 2, 3, 1), mode="circular"), *P, tight=False),
    function("pad-circular-negative", lambda x: F.pad(x, (-2, 5, 4, -3), mode="circular"), *P, tight=False),
    layer("pad-module", lambda: nn.ZeroPad2d((0, 1, 0, 1)), *P),
    function("pad-core", lambda x: aten.constant_pad_nd(x, [1, 2], 3.0), *P),
    function("pad-core-reflect", lambda x: aten.reflection_pad2d(x, [1, 2, 0, 3]), *P, tight=False),
    function("pad-core-replicate", lambda x: aten.replication_pad2d(x, [1, 2, 0, 3]), *P),
    function("pad-core-circular", lambda x: aten._pad_circular(x, [1, 2, 0, 3]), *P, tight=False),
    function("pad-core-enum", lambda x: aten._pad_enum(x, [1, 2, 0, 3], 2, None), *P),
    function("slice", lambda x: x[:, 1:, 2:-1, 3:], *P),
    function("slice-step", lambda x: x[:, ::2, 1::3, 2:9:2], *P),
    function("slice-focus", lambda x: torch.cat([x[..., ::2, 1::2], x[..., 1::2, ::2]], 1), 2, 3, 8, 10),
    function("narrow", lambda x: x.narrow(2, 2, 4), *P),
    function("flip", lambda x: x.flip(1, 3), *P),
    function("flip-both", lambda x: x.flip((2, 3)), *P),
    function("roll", lambda x: x.roll((2, -3), (2, 3)), *P, tight=False),
    function("roll-channels", lambda x: x.roll(1, 1), *P),
    function("repeat", lambda x: x.repeat(1, 2, 1, 3), *P, tight=False),
    function("repeat-interleave", lambda x: x.repeat_interleave(3, 2).repeat_interleave(2, 1), *P),
    function("index-select", lambda x: x.index_select(3, torch.tensor([4, 4, 0, 7])), *P),
    function("index-channels", lambda x: x[:, [2, 1, 0, 0]], *P),
    function("index-rows", lambda x: x[:, :, torch.tensor([3, -1, 4])], *P),
    function("index-mixed", lambda x: x[:, torch.tensor([0, 1]), torch.tensor([3, 4])], *P, barriers=1, tight=False),
    function("select-channel", lambda x: x[:, 1], *P),
    function("select-row", lambda x: x[:, :, 4], *P, barriers=1, tight=False),
    function("expand", lambda x: x[:, :1].expand(-1, 4, -1, -1), *P),
    function("expand-column", lambda x: x.mean(3, keepdim=True).expand(-1, -1, -1, 5), *P, barriers=1),
    function("expand-as", lambda x: x[:, :1].expand_as(x), *P, tight=False),
    function(
        "expand-channels",
        lambda x: x * x.mean((2, 3)).sigmoid().view(2, -1, 1, 1).expand(-1, -1, *x.shape[-2:]),
        *P,
        barriers=1,
    ),
    function("broadcast-to", lambda x: torch.broadcast_to(x, (3, 2, 3, 9, 11)), *P),
    function("pixel-shuffle", lambda x: F.pixel_shuffle(x, 2), 2, 8, 3, 5),
    function("pixel-unshuffle", lambda x: F.pixel_unshuffle(x, 3), 2, 2, 9, 6),
    function("space-to-depth", space_to_depth, 2, 2, 9, 6),
    function("depth-to-space", depth_to_space, 2, 8, 3, 5),
    function("channel-shuffle", channel_shuffle, 2, 6, 4, 5),
    function("channel-shuffle-module", lambda x: channel_shuffle(x, 2).flip(1), 2, 6, 4, 5),
    function("tokens-and-back", tokens_and_back, *P),
    function("tokens-out", lambda x: x.flatten(2).transpose(1, 2) * 3, *P),
    function("tokens-chunks", lambda x: operator.mul(*x.flatten(2).transpose(1, 2).split([2, 1], -1)), *P),
    function(
        "tokens-of-two-planes", lambda x: x.flatten(2) + x.transpose(2, 3).flatten(2), *P, barriers=1, tight=False
    ),
    function("tokens-cat-plane", lambda x: torch.cat([x.flatten(2), x.flatten(2)], 2), *P, barriers=1, tight=False),
    function("tokens-cat-channels", lambda x: torch.cat([x.flatten(2), x.flatten(2) * 2], 1), *P),
    function("batch-into-channels", lambda x: x.view(1, 6, 9, 11) * 2, *P),
    function("batch-and-channels-flat", lambda x: x.flatten(0, 1).unsqueeze(1), *P),
    function("rows-into-channels", lambda x: x.reshape(2, 27, 11), *P, barriers=1, tight=False),
    function("plane-split-oddly", lambda x: x.reshape(2, 3, 11, 9), *P, barriers=1, tight=False),
    function("flatten-all", lambda x: x.flatten(1), *P, barriers=1),
    function("view-as", lambda x: x.view_as(x.transpose(0, 0)) + x.reshape_as(x), *P),
    function("unsafe-view", lambda x: aten._unsafe_view(x, [2, 3, 3, 3, 11]), *P),
    function("flatten-one-column", lambda x: x.mean(3, keepdim=True).flatten(2), *P, barriers=2, tight=False),
    function("transpose-plane", lambda x: x.transpose(2, 3), *P),
    function("transpose-plane-added", lambda x: x + x.transpose(2, 3), 2, 3, 7, 7, barriers=1, tight=False),
    function("nhwc", lambda x: x.permute(0, 2, 3, 1).movedim(-1, 1).moveaxis(1, 2).swapaxes(1, 2).swapdims(0, 0), *P),
    function("matrix-transpose", lambda x: x[0, 0].t() + x[1, 0].mT, *P),
    function("squeeze", lambda x: x.unsqueeze(1).squeeze(1).unsqueeze(-1).squeeze(), *P),
    function("squeeze-one-row", lambda x: x.squeeze(), 1, 3, 1, 5, barriers=1, tight=False),
    function("cat-channels", lambda x: torch.cat([x, x * 2, x[:, :1]], 1), *P),
    function("cat-rows", lambda x: torch.cat([x, x * 2, x[:, :, :2]], 2), *P, tight=False),
    function("cat-columns", lambda x: torch.concat([x[..., 5:], x[..., :2]], -1), *P, tight=False),
    function("cat-alias", lambda x: aten.concatenate([x, x + 1], 1), *P),
    function(
        "cat-constant", lambda x: torch.cat([torch.ones(2, 3, 2, 11).double(), x, x.new_zeros(2, 3, 1, 11)], 2), *P
    ),
    function("stack", lambda x: torch.stack([x, x * 2], 2), *P),
    function("stack-last", lambda x: torch.stack([x, x * 2], -1).flatten(3), *P, barriers=0),
    function("chunk", lambda x: operator.sub(*x.chunk(2, 1)), 2, 4, 5, 6),
    function("chunk-rows", lambda x: x.chunk(2, 2)[1], *P),
    function("split-rows", lambda x: x.split([2, 3, 4], 2)[1], *P),
    function("split-columns", lambda x: [part * 2 for part in x.split(4, -1)][2], *P),
    function("tensor-split", lambda x: torch.tensor_split(x, (4, 8), dim=3)[1], *P),
    function("hsplit-vsplit", lambda x: torch.hsplit(x, 3)[1] + torch.vsplit(x, 2)[0][:, :1], *P),
    function("unbind-channels", lambda x: reduce(torch.add, x.unbind(1)), *P),
    function("write-channels", partial(written, where=lambda y: y[:, 1:], value=lambda x: x[:, :2] * 3), *P),
    function(
        "write-rows",
        partial(written, where=lambda y: y[:, :, 2:7:2], value=lambda x: x[:, :, 5:8] * 3),
        *P,
        tight=False,
    ),
    function(
        "write-columns", partial(written, where=lambda y: y[..., -2:], value=lambda x: x[..., :2]), *P, tight=False
    ),
    function("write-one-channel", partial(written, where=lambda y: y[:, 1], value=lambda x: x[:, 0] * 5), *P),
    function(
        "write-one-row",
        partial(written, where=lambda y: y[:, :, 3], value=lambda x: x[:, :, 5]),
        *P,
        barriers=2,
        tight=False,
    ),
    function("write-value", lambda x: assigned(x, ..., slice(2, 4), slice(0, 1)), *P, tight=False),
    function("write-mask", lambda x: torch.where(x > 0.5, x, x * 2).masked_fill(x > 0.9, 0.0), *P),
    function("view-then-add", lambda x: (lambda y: (y[:, :1].add_(1), y * 2)[1])(x + 1), *P),
]


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then LayerNorm and Linear on channels-last."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(F.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class EfficientChannelAttention(nn.Module):
    """A 1-d convolution over channels after global pooling: nothing in it has a plane."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        return x * torch.sigmoid(self.conv(pooled).transpose(-1, -2).unsqueeze(-1))


class CoordinateAttention(nn.Module):
    """Means over one axis at a time, joined, convolved and split again."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.rows, self.columns = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        joined = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], 2)
        rows, columns = F.hardswish(self.shared(joined)).split([h, w], 2)
        return x * self.rows(rows).sigmoid() * self.columns(columns.permute(0, 1, 3, 2)).sigmoid()


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.position = nn.Parameter(torch.zeros(1, 20, 4))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(tokens).view(n, h * w, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c)
        return (tokens + self.out(mixed)).transpose(1, 2).reshape(n, c, h, w)


class MatrixAttention(nn.Module):
    """Attention written out with matrix products."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        weight = (torch.bmm(tokens.transpose(1, 2), tokens) / 3).softmax(-1)
        return torch.einsum("nct,nst->ncs", tokens, torch.matmul(weight, weight)).view_as(x)


def square(name: str, body: Callable[[Tensor], object], **options: object) -> Case:
    return function(name, body, 2, 4, 5, 5, **options)


MIXING = [
    layer("convnext", ConvNeXtBlock, *P),
    layer("layer-norm-plane", lambda: nn.LayerNorm((9, 11)), *P, barriers=1),
    layer("layer-norm-all", lambda: nn.LayerNorm((3, 9, 11)), *P, barriers=1),
    function("native-layer-norm", lambda x: aten.native_layer_norm(x.movedim(1, -1), [3], None, None, 1e-5)[0], *P),
    function("rms-norm", lambda x: F.rms_norm(x.movedim(1, -1), (3,)), *P),
    function("normalize", lambda x: F.normalize(x, dim=1), *P),
    function("softmax", lambda x: x.softmax(1), *P),
    function("softmax-plane", lambda x: x.softmax(3), *P, barriers=1, tight=False),
    function("softmax-core", lambda x: aten._softmax(x, 1, False) + aten._log_softmax(x, -3, False), *P),
    function("along-channels", lambda x: x.log_softmax(1) + x.cumsum(1) + x.cumprod(1) + x.logcumsumexp(1), *P),
    function("sort-channels", lambda x: torch.sort(x, 1)[0], *P),
    function("cumsum-rows", lambda x: x.cumsum(2), *P, barriers=1, tight=False),
    function("glu", lambda x: F.glu(x, 1), 2, 4, 9, 11),
    layer("linear-last-axis-plane", lambda: nn.Linear(11, 4), *P, barriers=1),
    layer("prelu", lambda: nn.PReLU(3), *P),
    function("fake-quantise", lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 3, -128, 127), *P, tight=False),
    function(
        "fake-quantise-channels",
        lambda x: torch.fake_quantize_per_channel_affine(
            x, torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, dtype=torch.int32), 1, -128, 127
        ),
        *P,
        tight=False,
    ),
    layer("batch-norm", lambda: nn.BatchNorm2d(3), *P),
    function(
        "batch-norm-core",
        lambda x: aten._native_batch_norm_legit_no_training(x, None, None, *torch.ones(2, 3).double(), 0.1, 1e-5)[0],
        *P,
    ),
    layer("instance-norm-stored", lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), *P),
    layer("instance-norm", lambda: nn.InstanceNorm2d(3, affine=True), *P, barriers=1),
    layer("group-norm", lambda: nn.GroupNorm(3, 3), *P, barriers=1),
    function("group-norm-core", lambda x: aten.native_group_norm(x, None, None, 2, 3, 99, 1, 1e-5)[0], *P, barriers=1),
    function(
        "reduce-channels",
        lambda x: (
            x.mean(1, True)
            + x.sum(1, True)
            + x.amax(1, True)
            + x.amin(1, True)
            + x.var(1, keepdim=True)
            + x.std(1, keepdim=True)
            + x.max(1, True)[0]
            + x.min(1, True).values
            + torch.var_mean(x, 1, keepdim=True)[1]
            + torch.std_mean(x, dim=1, keepdim=True)[0]
            + x.prod(1, True)
            + x.logsumexp(1, True)
            + x.norm(dim=1, keepdim=True)
        ),
        *P,
    ),
    function("reduce-channels-gone", lambda x: x.mean(1) * x.argmax(1) + aten.norm(x, 2, [1]) - x.argmin(1), *P),
    function(
        "reduce-any", lambda x: (x > 0.4).all(1) | (x > 0.9).any(1) & (x[:, 0] > 0.3) ^ (x[:, 1] > 0.5), *P, tight=False
    ),
    function("reduce-batch", lambda x: x.mean(0), *P),
    function("reduce-rows", lambda x: x.mean(2, keepdim=True), *P, barriers=1),
    function("reduce-columns-gone", lambda x: x.sum(3), *P, barriers=1),
    function("reduce-all", lambda x: x - x.mean(), *P, barriers=1),
    function("reduce-all-max", lambda x: x / x.max(), *P, barriers=1),
    function("element-wise-max", lambda x: torch.max(x, x.mean(1, True)) + torch.min(x[:, :1], x), *P),
    function("global-mean", lambda x: x.mean((2, 3)), *P, barriers=1),
    layer("squeeze-excite", SqueezeExcite, *P, barriers=1),
    layer("channel-attention-1d", EfficientChannelAttention, *P, barriers=1),
    function("space-attention", space_attention, *P),
    layer("coordinate-attention", CoordinateAttention, *P, tight=False, barriers=4),
    layer("attention", SelfAttention, 2, 4, 4, 5, barriers=1, tight=False),
    layer("matrix-attention", MatrixAttention, 2, 3, 4, 5, barriers=2, tight=False),
    square(
        "matrix-products",
        lambda x: torch.matmul(x, x) + torch.baddbmm(x[:, 0], x[:, 1], x[:, 2]).unsqueeze(1),
        barriers=2,
        tight=False,
    ),
    square(
        "flat-products",
        lambda x: torch.mm(x[0, 0], x[1, 0]) + torch.addmm(x[0, 0], x[0, 1], x[0, 2]),
        barriers=2,
        tight=False,
    ),
    square(
        "vector-products",
        lambda x: torch.mv(x[0, 0], x[0, 1, :, 2]) * torch.dot(x[0, 0, 0], x[0, 0, 1]),
        barriers=4,
        tight=False,
    ),
    square("unfold", lambda x: F.fold(F.unfold(x, 3, padding=1), (5, 5), 3, padding=1), barriers=1, tight=False),
    square("window-views", lambda x: x.unfold(2, 3, 1), barriers=1, tight=False),
    square("gathers", lambda x: x.gather(3, x.argsort(3)) + x.scatter(2, x.argsort(2), 1.0), barriers=4, tight=False),
    square(
        "top-k",
        lambda x: x.topk(2, 1)[0] + x.kthvalue(2, 1, keepdim=True)[0] + x.median(1, keepdim=True)[0],
        barriers=3,
        tight=False,
    ),
    square(
        "grid-sample",
        lambda x: (
            F.grid_sample(x, x[:, :2].movedim(1, 3), align_corners=False)
            + aten.grid_sampler_2d(x, x[:, :2].movedim(1, 3), 0, 0, False)
        ),
        barriers=2,
        tight=False,
    ),
    square("take-along", lambda x: torch.take_along_dim(x, x.argsort(1), 1), barriers=2, tight=False),
    square(
        "index-writes",
        lambda x: x.index_add(2, torch.tensor([1, 2]), x[:, :, :2]) + x.scatter_add(2, x.argsort(2), x),
        barriers=3,
        tight=False,
    ),
    square(
        "index-put",
        lambda x: torch.index_put(x, (torch.tensor([0]), torch.tensor([1])), x[0, 0]),
        barriers=1,
        tight=False,
    ),
    square("as-strided", lambda x: torch.as_strided(x, (2, 4, 3, 3), (100, 25, 5, 1)), barriers=1, tight=False),
]

BROADCASTS = [
    Case("parameter-channels", lambda: Held(lambda x, p: x * p, 3, 1, 1), P),
    Case("parameter-plane", lambda: Held(lambda x, p: x * p, 9, 11), P),
    Case("parameter-row", lambda: Held(lambda x, p: x + p, 11), P),
    Case("parameter-column", lambda: Held(lambda x, p: p - x, 1, 1, 9, 1), P),
    Case("parameter-scalar", lambda: Held(lambda x, p: x * p), P),
    Case("parameter-larger", lambda: Held(lambda x, p: x * p, 4, 2, 3, 9, 11), P),
    Case("position-tokens", lambda: Held(lambda x, p: x.flatten(2).transpose(1, 2) + p, 1, 99, 3), P),
    Case("position-plane", lambda: Held(lambda x, p: x[:, :, :1] * p, 1, 1, 9, 11), P, barriers=0, tight=False),
    function("grid", lambda x: x + torch.arange(11.0).double() * torch.arange(9.0).double()[:, None], *P),
    function("row-and-column", lambda x: x.mean(2, True) * x.mean(3, True), *P, barriers=2),
    function("scalars", lambda x: (3 - x) ** 2 / 7, *P),
    Case("two-inputs", lambda: Function(lambda a, b: a * b), (P, (3, 9, 11))),
    Case("input-row", lambda: Function(lambda a, b: a * b), (P, (1, 1, 1, 11))),
    Case("input-flat", lambda: Function(lambda a, b: a * b), (P, (11,)), tight=False),
    Case("input-scalar", lambda: Function(lambda a, b: a * b), (P, ()), tight=False),
    Case("input-planes-differ", lambda: Function(lambda a, b: a[:, :, :3, :3] + b), (P, (2, 3, 3, 3))),
]


def unary_operations(x: Tensor) -> list[Tensor]:
    """Every element-wise operator with one operand, on values in (0, 1)."""
    names = """abs acos alias asin atan ceil celu clone contiguous cos cosh detach elu erf exp exp2 expm1 floor frac
        gelu hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu lift_fresh_copy log log10
        log1p log2 log_sigmoid logical_not logit mish nan_to_num neg reciprocal relu relu6 round rrelu rsqrt selu sgn
        sigmoid sign silu sin sinh softplus softshrink sqrt square tan tanh trunc""".split()
    results = [getattr(aten, name)(x) for name in names if name not in ("contiguous", "rrelu", "softsign")]
    flags = x > 0.5
    return results + [
        F.rrelu(x),
        F.softsign(x),
        x.contiguous() + 0,
        aten.clamp(x, 0.2, 0.8),
        aten.clamp_min(x, 0.2),
        aten.clamp_max(x, 0.8),
        aten.bitwise_not(flags),
        aten.dropout(x, 0.5, False),
        aten.feature_dropout(x, 0.5, False),
        aten.alpha_dropout(x, 0.5, False),
        aten.threshold(x, 0.3, 0.1),
        aten.to(x, torch.float32),
        aten._to_copy(x, dtype=torch.float32),
        aten.pow(x, 3),
        aten.eq(x, 0.5),
        aten.fill(x, 2.0),
        aten.rsub(x, 1.0),
        torch.zeros_like(x) + x,
        torch.ones_like(x) * x,
        torch.full_like(x, 3.0) - x,
    ]


def binary_operations(x: Tensor) -> list[Tensor]:
    """Every element-wise operator with several operands."""
    y = x[:, :1] + 0.25
    names = """add atan2 copysign div eq floor_divide fmod ge gt le lt maximum minimum mul ne pow remainder sub
        true_divide xlogy""".split()
    flags, other = x > 0.5, y > 0.5
    flagged = [getattr(aten, f"bitwise_{name}")(flags, other) for name in ("and", "or", "xor")]
    flagged += [getattr(aten, f"logical_{name}")(flags, other) for name in ("and", "or", "xor")]
    return (
        [getattr(aten, name)(x, y) for name in names]
        + flagged
        + [
            aten.addcmul(x, y, x),
            aten.addcdiv(x, y, x),
            aten.lerp(x, y.expand_as(x), 0.3),
            aten.where(flags, x, y),
            aten.masked_fill(x, flags, 0.0),
            aten.type_as(x, y),
            aten.copy(x, y),
            aten.rsub(x, y),
        ]
    )


ELEMENTS = [
    function("element-wise-one", unary_operations, *P),
    function("element-wise-several", binary_operations, *P),
]

CASES = [*CONVOLUTIONS, *POOLS, *RESIZES, *ALIGNED, *INDEXING, *MIXING, *BROADCASTS, *ELEMENTS]
MET: set[str] = set()
"""Operations that the cases have brought up so far."""


def build(case: Case) -> tuple[nn.Module, list[Tensor]]:
    """The network in float64 with positive parameters, and inputs in (0.1, 1): every weight that exists counts."""
    model = case.make().double().eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 1.0)
    shapes = case.shapes if case.shapes and isinstance(case.shapes[0], tuple) else (case.shapes,)
    return model, [torch.rand(shape).double() * 0.8 + 0.1 for shape in shapes]  # type: ignore[arg-type]


def windows_of(height: int, width: int) -> list[Window]:
    """All of a plane, two corners, an edge, and something in between."""
    x = width // 2
    found = {
        Window.full(height, width),
        Window.of_cell(0, 0),
        Window.of_cell(height - 1, width - 1),
        Window(height - 1, height, 0, width),
        Window(height // 3, max(2 * height // 3, height // 3 + 1), width // 4, max(x, width // 4 + 1)),
    }
    return sorted(found)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rule(case: Case, trace_check) -> None:
    model, inputs = build(case)
    traced = tracenet.trace(model, tuple(inputs))
    MET.update(node.op for node in traced.graph.nodes)
    nodes = list(traced.graph.outputs.values())
    planes = {node.plane for node in nodes}
    for plane in planes:
        keys = [i for i, node in enumerate(nodes) if node.plane == plane]
        for window in windows_of(*plane):
            request = {key: window if nodes[key].layout is not None else None for key in keys}
            plan = trace_check(model, traced, inputs, request, case.tolerance, case.tight)
            assert len(plan.barriers) <= case.barriers, plan.barriers
            if window == Window.full(*plane):
                assert len(plan.barriers) == case.barriers, plan.barriers
                assert plan.macs == plan.full_macs
            assert plan.macs <= plan.full_macs


def test_every_registered_operation_has_a_case() -> None:
    if not MET:
        pytest.skip("runs after the cases")
    complex_valued = {name for name in registered_ops() if "fft" in name}  # refused by the capture
    rest = {name for name in registered_ops() if name.startswith("aten.")} - MET - complex_valued
    rest -= {"aten.lift_fresh"}  # only constants pass through it
    assert not rest, sorted(rest)


@given(
    a=st.integers(0, 12), size=st.integers(1, 6), kernel=st.integers(1, 5), stride=st.integers(1, 4),
    padding=st.integers(0, 6), dilation=st.integers(1, 3),
)  # fmt: skip
def test_convolution_formulas(a: int, size: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
    b, length = a + size, 20
    taps = [i * stride - padding + k * dilation for i in range(a, b) for k in range(kernel)]
    assert sliding_demand(a, b, kernel, stride, padding, dilation) == (min(taps), max(taps) + 1)

    start, stop = transposed_demand(a, b, kernel, stride, padding, dilation, length)
    low, high = math.ceil((a + padding - dilation * (kernel - 1)) / stride), (b - 1 + padding) // stride + 1
    assert (start, stop) == (max(low, 0), min(high, length)) or start == stop
    sources = [j for j in range(length) for k in range(kernel) if a <= j * stride - padding + k * dilation < b]
    assert not sources or (start <= min(sources) and max(sources) < stop)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_aligned_bilinear_demands_no_tap_of_weight_zero(factor: int) -> None:
    height, width = 4, 6
    traced = tracenet.trace(Function(lambda x: aligned_bilinear(x, factor)).eval(), torch.zeros(1, 1, height, width))
    name = traced.graph.inputs[0].name

    def span(a: int, b: int, n: int) -> tuple[int, int]:
        low, high = (min(max((i - factor // 2) / factor, 0), n - 1) for i in (a, b - 1))
        return math.floor(low), math.ceil(high) + 1

    for a in range(factor * height):
        for b in range(a + 1, min(a + 4, factor * height) + 1):
            plan = traced.plan({0: Window(a, b, a, b)})
            assert plan.windows[name] == Window(*span(a, b, height), *span(a, b, width))


@pytest.mark.parametrize("align", [True, False])
def test_bilinear_demands_both_taps_of_the_first_and_last_output(align: bool) -> None:
    n, out = 7, 19
    traced = tracenet.trace(
        Function(lambda x: F.interpolate(x, size=(out, n), mode="bilinear", align_corners=align)).eval(),
        torch.zeros(1, 1, n, n),
    )
    name = traced.graph.inputs[0].name
    for a in range(out):
        for b in range(a + 1, out + 1):
            first, last = (i * (n - 1) / (out - 1) if align else max((i + 0.5) * n / out - 0.5, 0) for i in (a, b - 1))
            window = plan_rows(traced.plan({0: Window(a, b, 0, n)}).windows[name])
            # In float32 a coordinate that is a whole number may come out just below it.
            assert window[0] in (math.floor(first), math.floor(first - 1e-6))
            assert window[1] in (min(math.floor(last) + 2, n), min(math.floor(last - 1e-6) + 2, n))


def plan_rows(window: Window) -> tuple[int, int]:
    return window.y0, window.y1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@settings(max_examples=50)
@given(
    length=st.integers(1, 60), out=st.integers(1, 150), scale=st.sampled_from([None, 0.3, 1.05, 1.3, 2.05, 2.7, 5 / 3])
)
def test_nearest_agrees_with_the_operator(
    mode: str, dtype: torch.dtype, length: int, out: int, scale: float | None
) -> None:
    x = torch.arange(length).to(dtype)[None, None, :, None].expand(1, 5, length, 3).contiguous()
    if scale is None:
        want = F.interpolate(x, size=(out, 3), mode=mode)
    elif int(length * scale) < 1:
        return
    else:
        want = F.interpolate(x, scale_factor=(scale, 1.0), mode=mode)
    taps = nearest_taps if mode == "nearest" else nearest_exact_taps
    out = want.shape[2]
    got = taps(length, out, scale, small=out + 3 <= 128, real=np.float64 if dtype == torch.float64 else np.float32)
    assert got.taken[:, 0].tolist() == want[0, 0, :, 0].long().tolist()


@settings(max_examples=40)
@given(st.data())
def test_reshapes_of_any_kind(data: st.DataObject) -> None:
    """Shapes drawn freely: whatever the plane's fate, the values are right and a window is never too small."""
    shape = (data.draw(st.sampled_from([1, 2])), *(data.draw(st.sampled_from([1, 2, 3, 4, 6])) for _ in range(3)))
    targets = [shape, *(_regrouped(data, shape) for _ in range(2))]
    model = Function(lambda x: (x * 1.0).reshape(targets[1]).mul(2.0).reshape(targets[2]).add(1.0).reshape(shape) + x)
    x = torch.rand(shape).double()
    traced = tracenet.trace(model.eval(), x)
    window = data.draw(_window(*shape[-2:]))
    torch.testing.assert_close(
        traced.run(x, traced.plan({0: window}))[0], model(x)[(..., *window.slices)], rtol=1e-12, atol=0
    )


def _regrouped(data: st.DataObject, shape: Shape) -> Shape:
    """Another shape with as many cells: axes merged and split at random."""
    rest, axes = math.prod(shape), []
    while rest > 1 and len(axes) < 5:
        axes.append(data.draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0])))
        rest //= axes[-1]
    return (*axes, rest)


@st.composite
def _window(draw: st.DrawFn, height: int, width: int) -> Window:
    y0, x0 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Window(y0, draw(st.integers(y0 + 1, height)), x0, draw(st.integers(x0 + 1, width)))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[1], "indices of a max pooling"),
        (lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[1], "indices of a max pooling"),
        (lambda x: x.roll(3), "dims"),
        (lambda x: F.glu(x, 2), "GLU along the plane"),
        (lambda x: x.repeat(2, 1, 1, 1, 1), "new axes"),
        (lambda x: x.flatten(2)[:, :, 3:], "flattened rows and columns"),
        (lambda x: x.repeat_interleave(2), "flattens"),
        (lambda x: x.index_select(1, x.flatten().argsort()[:1]), "computed from data"),
        (lambda x: torch.rot90(x, 1, (2, 3)), "register_rule"),
        (lambda x: F.batch_norm(x, None, None, training=True), "batch statistics"),
        (lambda x: F.avg_pool3d(x, 2), "aten.avg_pool3d"),
        (lambda x: F.interpolate((x * 255).to(torch.uint8), size=(4, 4), mode="bilinear"), "floating type"),
    ],
)
def test_what_has_no_rule_is_named_when_a_plan_visits_it(body: Callable[[Tensor], Tensor], words: str) -> None:
    traced = tracenet.trace(Function(lambda x: (x + 1, body(x))).eval(), torch.rand(2, 4, 6, 6).double())
    assert traced.plan({0: Window(0, 1, 0, 1)}).macs == 0  # the other output stays usable
    with pytest.raises(UnsupportedOpError, match=words) as caught:
        traced.plan({1: Window(0, 1, 0, 1)})
    assert "node '" in str(caught.value)
