"""Convolution through tensor descriptors: borders by zero fill, parity views, swapped operands, windows, bad input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from tests.kernels.triton.cells import DEVICE, FLOATS
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.triton.configs import ConvConfig
from tracenet_kernels.triton.conv2d_tma import conv2d_tma, conv2d_tma_launches, fits, rectangle, why_not
from tracenet_kernels.triton.descriptors import MIN_CAPABILITY, descriptor_signature
from tracenet_kernels.triton.planes import DevicePlane, Windows, interpreted
from tracenet_kernels.triton.split_k import Scratch
from tracenet_kernels.triton.weights import pack_weight
from tracenet_kernels.window import Window

pytestmark = pytest.mark.skipif(
    not interpreted() and torch.cuda.get_device_capability() < MIN_CAPABILITY, reason="no tensor memory accelerator"
)

SMALL = ConvConfig(block_m=16, block_n=16, block_k=16, warps=4, stages=2)


@dataclass
class Case:
    """A convolution with random values; channels of planes lie ``pitch`` elements apart."""

    channels: int = 8
    out: int = 8
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    padding: int | None = None
    size: tuple[int, int] = (8, 10)
    dtype: torch.dtype = torch.float32
    factor: int = 0
    activation: str = "relu"
    config: ConvConfig = SMALL
    x: Tensor = field(init=False)

    def __post_init__(self) -> None:
        pitch = -(-self.channels // 8) * 8
        self.x = self.values(*self.size, pitch)[..., : self.channels]
        weight = self.values(self.out, self.channels, self.kernel, self.kernel) / (self.kernel * self.channels**0.5)
        self.weight = weight.to(self.dtype)
        self.geometry = {
            "stride": self.stride,
            "padding": self.kernel // 2 * self.dilation if self.padding is None else self.padding,
            "dilation": self.dilation,
        }
        self.packed = pack_weight(self.weight, dtype=self.dtype, device=DEVICE, **self.geometry)
        self.scale = (torch.rand(self.out) + 0.5).to(DEVICE)
        self.bias = torch.randn(self.out).to(DEVICE)
        y = F.conv2d(self.x.double().movedim(-1, 0)[None], self.weight.double(), **self.geometry)[0].movedim(0, -1)
        y = y * self.scale + self.bias
        self.residual = None
        if self.factor:
            small = [-(-n // self.factor) for n in y.shape[:2]]
            self.residual = self.values(*small, self.out)
            grown = self.residual.double().repeat_interleave(self.factor, 0).repeat_interleave(self.factor, 1)
            y = y + grown[: y.shape[0], : y.shape[1]]
        self.expected = y.relu() if self.activation == "relu" else y

    @property
    def full(self) -> Window:
        return Window.full(*self.expected.shape[:2])

    def values(self, *shape: int) -> Tensor:
        return torch.randn(*shape).to(self.dtype).to(DEVICE)

    def arguments(self, out: Any, windows: Any) -> dict[str, Any]:
        return {
            "x": self.x,
            "weight": self.packed,
            "out": out,
            "windows": windows,
            "scale": self.scale,
            "bias": self.bias,
            "residual": self.residual,
            "residual_factor": self.factor or 1,
            "activation": self.activation,
            "config": self.config,
        }

    def run(self, *windows: Window, **changed: Any) -> Tensor:
        out = poisoned(*self.expected.shape, dtype=self.dtype, device=DEVICE)
        conv2d_tma(**(self.arguments(out, windows) | changed))
        assert_only_written(out, windows, axes=(0, 1))
        for window in windows:
            if not window.is_empty:
                assert_close(out[window.slices], self.expected[window.slices])
        return out


def inner(full: Window) -> Window:
    return Window(full.y1 // 3, full.y1 - 1, full.x1 // 4, full.x1 - 2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_windows(dtype: torch.dtype, stride: int) -> None:
    case = Case(dtype=dtype, stride=stride)
    full = case.full
    whole = case.run(full)
    last = Window(full.y1 - 1, full.y1, full.x1 - 1, full.x1)
    some = case.run(Window(0, 1, 0, 1), last, Window(2, 2, 0, 3), inner(full))
    assert torch.equal(some[inner(full).slices], whole[inner(full).slices])


@pytest.mark.parametrize(
    "case",
    [
        {"kernel": 1, "channels": 24, "out": 40},
        {"kernel": 1, "stride": 2, "size": (6, 10)},
        {"channels": 5, "out": 3, "activation": "none"},
        {"channels": 37, "out": 19, "config": ConvConfig(16, 16, 32, warps=4, stages=2)},
        {"dilation": 2},
        {"dilation": 2, "stride": 2, "padding": 3},
        {"kernel": 5, "padding": 4},
        {"kernel": 7, "stride": 2, "padding": 3, "channels": 3},
        {"factor": 1},
        {"factor": 2, "size": (7, 9)},
        {"out": 70, "config": ConvConfig(16, 64, 16, warps=4, stages=2), "factor": 1, "dtype": torch.float16},
        {"config": ConvConfig(32, 16, 16, warps=4, stages=2)},
    ],
    ids=str,
)
def test_geometries(case: dict[str, Any]) -> None:
    made = Case(**case)
    made.run(inner(made.full), Window(0, 2, 0, 3))


def test_the_order_of_operands_does_not_matter() -> None:
    """Output channels are rows of the matrix instruction from 64 on, columns below."""
    case = Case(out=24)
    swapped = case.run(case.full, config=ConvConfig(16, 64, 16, warps=4, stages=2))
    assert_close(swapped, case.run(case.full).double())


@pytest.mark.parametrize("split", [2, 5, 100])
def test_split_sums(split: int) -> None:
    """They are added in a fixed order, and counters are left at zero for the next run; a window may be empty."""
    case = Case(channels=24, out=20, factor=1)
    scratch = Scratch(DEVICE)
    config = ConvConfig(16, 16, 16, split_k=split, warps=4, stages=2)
    windows = [inner(case.full), Window(3, 3, 0, 0), Window(0, 1, 0, 3)]
    first = case.run(*windows, config=config, scratch=scratch)
    assert torch.equal(first.nan_to_num(), case.run(*windows, config=config, scratch=scratch).nan_to_num())
    assert not scratch.counters(0).any()


def test_absent_scale_bias_and_default_configuration() -> None:
    case = Case(activation="none", size=(5, 6))
    case.expected = (case.expected - case.bias) / case.scale
    case.run(case.full, scale=None, bias=None, config=None)


@settings(max_examples=10)
@given(st.data(), st.sampled_from([1, 2]))
def test_windows_are_bit_identical(data: st.DataObject, stride: int) -> None:
    torch.manual_seed(0)
    case = Case(stride=stride, dtype=torch.float16, size=(8, 12))
    rows = sorted(data.draw(st.tuples(*[st.integers(0, case.full.y1)] * 2), label="rows"))
    columns = sorted(data.draw(st.tuples(*[st.integers(0, case.full.x1)] * 2), label="columns"))
    window = Window(*rows, *columns)
    assert torch.equal(case.run(window)[window.slices], case.run(case.full)[window.slices])


@pytest.mark.parametrize(("stride", "origin"), [(1, (1, 1)), (2, (3, 1))])
def test_parts_of_planes_and_a_table_on_the_device(stride: int, origin: tuple[int, int]) -> None:
    """A part starts at any cell, odd ones included; its edges are no border unless the plane ends there."""
    case = Case(stride=stride, size=(12, 12), factor=1)
    y, x = origin
    part = DevicePlane(case.x[y : y + 8, x:].clone()[:, : 12 - x - (12 - x) % 2], case.size, origin)
    window = Window(2, 4, 2, 4)
    table = torch.tensor([[-1] * 4, list(window)], dtype=torch.int32, device=DEVICE)
    plane = (case.full.y1, case.full.x1)
    out = poisoned(3, 4, case.out, device=DEVICE)
    assert case.residual is not None
    conv2d_tma(
        **case.arguments(DevicePlane(out, plane, (2, 1)), Windows(table, 1, 1, (4, 4)))
        | {"x": part, "residual": DevicePlane(case.residual[1:], plane, (1, 0))}
    )
    held = window.shift(-2, -1)
    assert_only_written(out, [held], axes=(0, 1))
    assert_close(out[held.slices], case.expected[window.slices])


def test_what_lies_around_a_window_does_not_count() -> None:
    """Rectangles read past their window; what they find there stays without effect."""
    case = Case()
    window = Window(3, 5, 4, 7)
    case.x[:2], case.x[6:], case.x[:, :3], case.x[:, 8:] = (torch.nan,) * 4
    case.run(window)


@pytest.mark.parametrize(
    ("cells", "bound", "expected"),
    [
        (64, (64, 64), (1, 64)),
        (64, (8, 8), (8, 8)),
        (64, (20, 12), (4, 16)),
        (16, (1, 1), (1, 16)),
        (32, (9, 1), (16, 2)),
    ],
)
def test_rectangle(cells: int, bound: tuple[int, int], expected: tuple[int, int]) -> None:
    assert rectangle(cells, bound) == expected


def test_launches_are_data() -> None:
    case = Case(out=24, dtype=torch.float16, factor=1)
    out = poisoned(8, 10, 24, dtype=torch.float16, device=DEVICE)
    (launch,) = conv2d_tma_launches(**case.arguments(out, [Window(0, 5, 0, 7)] * 2), name="p3")
    assert (launch.name, launch.grid, launch.tensor_cores) == ("p3", (3, 2, 2), True)
    assert launch.cost.macs == 2 * 35 * 24 * 9 * 8
    assert launch.cost.written == 2 * 35 * 24 * 2
    assert not set(launch.args) & set(launch.meta)
    assert descriptor_signature(launch.args["x"]).replace(" ", "") == "tensordesc<fp16[2,8,16]>"


def test_fits() -> None:
    case = Case()
    assert fits(case.x, case.packed)
    assert "multiples of 16 bytes" in why_not(torch.zeros(4, 4, 6, device=DEVICE), case.packed)
    assert "multiples of 16 bytes" in why_not(torch.zeros(4, 4, 9, device=DEVICE)[..., 1:], case.packed)
    strided = pack_weight(case.weight, dtype=torch.float32, device=DEVICE, stride=2, padding=1)
    assert "even number" in why_not(torch.zeros(5, 4, 8, device=DEVICE), strided)
    threefold = pack_weight(case.weight, dtype=torch.float32, device=DEVICE, stride=3)
    assert "stride (3, 3)" in why_not(case.x, threefold)
    grouped = pack_weight(case.weight[:, :4], dtype=torch.float32, device=DEVICE, groups=2)
    assert "2 groups" in why_not(case.x, grouped)
    assert "torch.int8" in why_not(case.x.to(torch.int8), case.packed)


def test_bad_input() -> None:
    case = Case()
    out = poisoned(*case.expected.shape, device=DEVICE)

    def refused(match: str, error: type[Exception] = InputError, **changed: Any) -> None:
        with pytest.raises(error, match=match):
            conv2d_tma_launches(**(case.arguments(out, case.full) | changed))

    refused("x holds", x=case.x.double())
    refused("out holds", out=out.half())
    refused("take conv2d", x=torch.zeros(4, 4, 9, device=DEVICE)[..., 1:])
    refused("the weight takes 8 channels", x=case.x[..., :4])
    refused("the weight gives 8 channels", out=out[..., :4])
    refused("activation 'tanh'", activation="tanh")
    refused("residual is 8 channels on a plane of", residual=case.x[:4])
    refused("factor 0", residual=case.x, residual_factor=0)
    refused("share memory", residual=out)
    refused("scale is", scale=case.scale[:3])
    refused("precision 'ieee' has no tensor cores", precision="ieee")
    refused("not within", WindowError, windows=Window(0, 9, 0, 1))
    if interpreted():
        refused("does not exist in Triton's interpreter", pdl=True)
