"""conv2d_levels: several planes of one weight in one launch, against the twin of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.kernels.triton.convolutions import DEVICE, DTYPES, SMALL
from tracenet_kernels import reference
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.triton.configs import ConvConfig
from tracenet_kernels.triton.conv2d import conv2d, conv2d_levels, conv2d_levels_launches
from tracenet_kernels.triton.planes import DevicePlane, Windows
from tracenet_kernels.triton.split_k import Scratch
from tracenet_kernels.triton.weights import pack_weight
from tracenet_kernels.window import EMPTY, Window

SMALL32 = ConvConfig(16, 16, 32)
SIDES = ((9, 11), (5, 6), (3, 3), (2, 2), (1, 1))


def views(sides: tuple[tuple[int, int], ...], channels: int, dtype: torch.dtype, fill: bool) -> list[Tensor]:
    """Planes one after the other in one allocation, as in an executor's workspace."""
    sizes = [rows * columns * channels for rows, columns in sides]
    if fill:
        workspace = torch.randn(sum(sizes)).to(DEVICE, dtype)
    else:
        workspace = poisoned(sum(sizes), dtype=dtype, device=DEVICE)
    parts = workspace.split(sizes)
    return [values.view(rows, columns, channels) for values, (rows, columns) in zip(parts, sides, strict=True)]


class Head:
    """A 3x3 convolution with padding 1 over five levels."""

    def __init__(self, dtype: torch.dtype, channels: int = 18, out_channels: int = 20) -> None:
        weight = torch.randn(out_channels, channels, 3, 3).to(dtype)
        self.xs = views(SIDES, channels, dtype, True)
        self.outs = views(SIDES, out_channels, dtype, False)
        self.weight = pack_weight(weight, dtype=dtype, device=DEVICE, padding=1)
        self.scales = [torch.rand(out_channels, device=DEVICE) + 0.5 if level != 2 else None for level in range(5)]
        self.biases = [torch.randn(out_channels, device=DEVICE) if level != 1 else None for level in range(5)]
        self.expected = [
            reference.conv2d(
                x.double(),
                weight.to(DEVICE).double(),
                plane=side,
                padding=(1, 1),
                scale=None if scale is None else scale.double(),
                bias=None if bias is None else bias.double(),
                activation="relu",
            )
            for x, side, scale, bias in zip(self.xs, SIDES, self.scales, self.biases, strict=True)
        ]

    def run(self, windows: Windows | list[Window], config: ConvConfig = SMALL, **options: Any) -> None:
        conv2d_levels(
            self.xs,
            self.weight,
            self.outs,
            windows,
            scales=self.scales,
            biases=self.biases,
            activation="relu",
            config=config,
            **options,
        )

    def check(self, windows: list[list[Window]]) -> None:
        for out, expected, of_level in zip(self.outs, self.expected, windows, strict=True):
            assert_only_written(out, of_level, axes=(0, 1))
            for window in of_level:
                if not window.is_empty:
                    assert_close(out[window.slices], expected[window.slices])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_level_gives_what_its_twin_gives(dtype: torch.dtype) -> None:
    head = Head(dtype)
    windows = [Window(0, 2, 3, 11), Window(2, 5, 1, 6), EMPTY, Window(0, 2, 0, 2), Window(0, 1, 0, 1)]
    head.run(windows)
    head.check([[window] for window in windows])


@pytest.mark.parametrize("swap", [False, True])
def test_several_pieces_of_a_level_and_split_sums(swap: bool) -> None:
    head, scratch = Head(torch.float32), Scratch(DEVICE)
    pieces = [(0, Window(0, 1, 0, 11)), (2, Window(1, 3, 0, 2)), (0, Window(8, 9, 4, 8))]
    table = torch.tensor([[0, 9, 0, 11], *(list(window) for _, window in pieces)], dtype=torch.int32, device=DEVICE)
    head.run(
        Windows(table, 1, 3, bound=(2, 11)),
        ConvConfig(16, 16, 16, split_k=2, swap=swap),
        levels=[level for level, _ in pieces],
        scratch=scratch,
    )
    head.check([[window for level, window in pieces if level == i] for i in range(5)])
    assert not scratch.counters(0).any()


def test_one_launch_gives_the_bits_of_one_per_level() -> None:
    head, alone = Head(torch.float16), Head(torch.float16)
    windows = [Window(3, 5, 0, 5), Window(0, 1, 0, 6), *(Window.full(*side) for side in SIDES[2:])]
    head.run(windows)
    for level, (x, window) in enumerate(zip(head.xs, windows, strict=True)):
        out, scale, bias = alone.outs[level], head.scales[level], head.biases[level]
        conv2d(x, head.weight, out, window, scale=scale, bias=bias, activation="relu", config=SMALL)
        assert torch.equal(out[window.slices], head.outs[level][window.slices])


def test_levels_of_8_bit_planes_have_their_own_scales_and_zero_points() -> None:
    sides, channels = ((4, 5), (2, 3)), 12
    weight = torch.randn(9, channels, 3, 3)
    packed = pack_weight(weight, dtype=torch.int8, device=DEVICE, padding=1)
    values = [(torch.randn(*side, channels) * 40).round().clamp(-128, 127) for side in sides]
    xs = [
        DevicePlane(view.copy_(value), side, scale=scale, zero_point=zero)
        for view, value, side, scale, zero in zip(
            views(sides, channels, torch.int8, False), values, sides, (0.05, 0.02), (-7, 0), strict=True
        )
    ]
    outs = [
        DevicePlane(view, side, scale=scale, zero_point=zero)
        for view, side, scale, zero in zip(
            views(sides, 9, torch.int8, False), sides, (0.3, 0.2), (3, -128), strict=True
        )
    ]
    conv2d_levels(xs, packed, outs, [Window.full(*side) for side in sides], activation="relu", config=SMALL32)
    assert packed.scales is not None
    real_weight = packed.tensor[..., :channels].double() * packed.scales.double().view(-1, 1, 1)
    real_weight = real_weight.view(9, 3, 3, channels).movedim(3, 1)
    for x, out in zip(xs, outs, strict=True):
        real = reference.conv2d(
            reference.dequantise(x.tensor, x.scale, x.zero_point),
            real_weight,
            plane=x.plane,
            padding=(1, 1),
            activation="relu",
        )
        expected = reference.quantise(real, out.scale, out.zero_point)
        assert (out.tensor.int() - expected.int()).abs().max() <= 1
        assert (out.tensor != expected).float().mean() < 0.01


def test_misfits_are_named() -> None:
    head = Head(torch.float32)
    full = [Window.full(*side) for side in SIDES]

    def launches(**change: Any) -> None:
        arguments: dict[str, Any] = {"xs": head.xs, "weight": head.weight, "outs": head.outs, "windows": full}
        conv2d_levels_launches(**{**arguments, **change})

    with pytest.raises(InputError, match="5 inputs, 4 outputs"):
        launches(outs=head.outs[:4])
    with pytest.raises(InputError, match="5 inputs, 5 outputs, 1 scales"):
        launches(scales=[None])
    with pytest.raises(InputError, match="6 inputs"):
        launches(xs=[*head.xs, head.xs[0]], outs=[*head.outs, head.outs[0]])
    with pytest.raises(InputError, match="xs lie in several allocations"):
        launches(xs=[x.clone() for x in head.xs])
    with pytest.raises(InputError, match="pass one dtype"):
        launches(outs=[*head.outs[:4], head.outs[4].half()])
    with pytest.raises(InputError, match=r"levels \[0, 1\] of 5 windows"):
        launches(levels=[0, 1])
    with pytest.raises(InputError, match="pass a level from 0 to 4"):
        launches(levels=[0, 1, 2, 3, 5])
    with pytest.raises(WindowError, match="the part of the output in memory"):
        launches(levels=[0, 1, 2, 4, 4])
