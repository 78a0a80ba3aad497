"""Depthwise convolution against its twin: windows, geometries, channels, dtypes, epilogue, bad input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from tests.kernels.triton.cells import DEVICE, FLOATS, check_kernel, drawn_window, exact, random_plane
from tracenet_kernels import reference
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.testing import poisoned
from tracenet_kernels.triton.depthwise import depthwise, depthwise_launches
from tracenet_kernels.triton.planes import DevicePlane, Windows
from tracenet_kernels.triton.weights import pack_weight
from tracenet_kernels.window import Window


@dataclass
class Case:
    """A depthwise convolution with random values."""

    channels: int = 7
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    dilation: int = 1
    padding: int = 1
    size: tuple[int, int] = (7, 9)
    dtype: torch.dtype = torch.float32
    factor: int = 0
    activation: str = "relu"
    affine: bool = True
    x: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.x = random_plane(*self.size, self.channels, self.dtype)
        self.filters = torch.randn(self.channels, 1, *self.kernel).to(self.dtype)
        self.weight = self.packed(self.filters, groups=self.channels)
        span = [self.dilation * (k - 1) + 1 for k in self.kernel]
        rows, columns = ((n + 2 * self.padding - s) // self.stride + 1 for n, s in zip(self.size, span, strict=True))
        self.out_size = (rows, columns)
        self.scale = (torch.rand(self.channels) + 0.5).to(DEVICE) if self.affine else None
        self.bias = torch.randn(self.channels).to(DEVICE) if self.affine else None
        least = [-(-n // max(1, self.factor)) for n in self.out_size]
        self.residual = random_plane(*least, self.channels, self.dtype, seed=1) if self.factor else None

    def packed(self, filters: Tensor, **arguments: Any) -> Any:
        geometry = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return pack_weight(filters, dtype=self.dtype, device=DEVICE, **geometry, **arguments)

    def expected(self) -> Tensor:
        return reference.depthwise(
            exact(self.x),
            self.filters.double(),
            plane=self.out_size,
            stride=(self.stride,) * 2,
            padding=(self.padding,) * 2,
            dilation=(self.dilation,) * 2,
            scale=None if self.scale is None else exact(self.scale),
            bias=None if self.bias is None else exact(self.bias),
            residual=None if self.residual is None else exact(self.residual),
            residual_factor=self.factor or 1,
            activation=self.activation,
        )

    @property
    def epilogue(self) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "bias": self.bias,
            "residual": self.residual,
            "residual_factor": self.factor or 1,
            "activation": self.activation,
        }

    def demand(self, window: Window) -> Window:
        ends = []
        for axis, (a, b) in enumerate(((window.y0, window.y1), (window.x0, window.x1))):
            start = a * self.stride - self.padding
            ends += [start, (b - 1) * self.stride - self.padding + self.dilation * (self.kernel[axis] - 1) + 1]
        return Window(*ends).clip(*self.size)

    def check(self, windows: list[Window] | None = None) -> None:
        def kernel(x: DevicePlane, out: DevicePlane, table: Windows) -> None:
            depthwise(x, self.weight, out, table, **self.epilogue)

        check_kernel(kernel, self.x, self.expected(), self.demand, windows=windows)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_windows(dtype: torch.dtype) -> None:
    Case(dtype=dtype).check()


@pytest.mark.parametrize(
    "case",
    [
        Case(stride=2),
        Case(dilation=2, padding=2, channels=16),
        Case(kernel=(5, 3), padding=2, stride=2),
        Case(kernel=(7, 7), padding=3, channels=3),
        Case(kernel=(1, 1), padding=0, channels=1),
        Case(factor=1, channels=33, dtype=torch.float16),
        Case(factor=2, activation="none"),
        Case(affine=False, activation="none", channels=130, size=(3, 4)),
    ],
    ids=lambda case: f"k{case.kernel[0]}s{case.stride}d{case.dilation}f{case.factor}c{case.channels}",
)
def test_geometries(case: Case) -> None:
    case.check([Window(1, 3, 0, 2)])


@settings(max_examples=10)
@given(st.data())
def test_any_window(data: st.DataObject) -> None:
    torch.manual_seed(0)
    case = Case(stride=data.draw(st.sampled_from([1, 2])), factor=data.draw(st.sampled_from([0, 1, 2])))
    case.check([data.draw(drawn_window(*case.out_size))])


def test_launches_are_data() -> None:
    case = Case(channels=24, dtype=torch.float16)
    out = poisoned(7, 9, 24, dtype=torch.float16, device=DEVICE)
    (launch,) = depthwise_launches(case.x, case.weight, out, [Window(0, 5, 0, 7)] * 2, name="stage2")
    assert launch.name == "stage2" and launch.grid[2] == 2 and not launch.tensor_cores
    assert launch.cost.macs == 2 * 35 * 24 * 9
    assert launch.cost.written == 2 * 35 * 24 * 2
    assert launch.args["weight"].shape == (9, 24)
    assert not set(launch.args) & set(launch.meta)


def test_bad_input() -> None:
    case = Case(channels=8, factor=1)
    out = poisoned(7, 9, 8, device=DEVICE)

    def refused(match: str, error: type[Exception] = InputError, **changed: Any) -> None:
        arguments = {"x": case.x, "weight": case.weight, "out": out, "windows": Window(0, 1, 0, 1), **case.epilogue}
        with pytest.raises(error, match=match):
            depthwise_launches(**(arguments | changed))

    refused("x holds", x=case.x.to(torch.int8))
    refused("x has 8 channels and out 7", out=out[..., :7])
    refused("take conv2d", weight=case.packed(torch.zeros(8, 2, 3, 3), groups=4))
    refused("pack the weight in the dtype of x", x=case.x.half())
    refused("activation 'tanh'", activation="tanh")
    refused("residual is 8 channels", residual=case.x[:3])
    refused("share memory", residual=out)
    refused("bias is", bias=torch.zeros(3, device=DEVICE))
    refused("not within", WindowError, windows=Window(0, 8, 0, 1))
