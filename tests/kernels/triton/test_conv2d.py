"""conv2d on windows against its twin: geometries, borders, windows, epilogues, split sums, errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tracenet_kernels import reference
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.window import Window

pytest.importorskip("triton")

from tracenet_kernels.triton.configs import ConvConfig
from tracenet_kernels.triton.conv2d import conv2d
from tracenet_kernels.triton.planes import interpreted
from tracenet_kernels.triton.weights import DeviceWeight, pack_weight

DEVICE = "cpu" if interpreted() else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALL = ConvConfig(16, 16, 16)


@dataclass
class Case:
    """A convolution with random operands: what the kernel takes, and its twin's whole plane in float64."""

    plane: tuple[int, int] = (7, 9)
    channels: int = 19
    out_channels: int = 21
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    out_plane: tuple[int, int] = (7, 9)
    dtype: torch.dtype = torch.float32
    scaled: bool = True
    residual_factor: int = 0
    activation: str = "none"
    x: Tensor = field(init=False)
    weight: DeviceWeight = field(init=False)
    expected: Tensor = field(init=False)
    epilogue: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.x = torch.randn(*self.plane, self.channels).to(DEVICE, self.dtype)
        weight = torch.randn(self.out_channels, self.channels // self.groups, *self.kernel).to(self.dtype)
        geometry = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }
        self.weight = pack_weight(weight, dtype=self.dtype, device=DEVICE, **geometry)
        self.epilogue = {"activation": self.activation}
        if self.scaled:
            self.epilogue["scale"] = torch.rand(self.out_channels, device=DEVICE) + 0.5
            self.epilogue["bias"] = torch.randn(self.out_channels, device=DEVICE)
        if self.residual_factor:
            rows, columns = (-(-side // self.residual_factor) for side in self.out_plane)
            self.epilogue["residual"] = torch.randn(rows, columns, self.out_channels).to(DEVICE, self.dtype)
            self.epilogue["residual_factor"] = self.residual_factor
        exact = {key: value.double() if isinstance(value, Tensor) else value for key, value in self.epilogue.items()}
        self.expected = reference.conv2d(
            self.x.double(), weight.to(DEVICE).double(), plane=self.out_plane, **geometry, **exact
        )

    def out(self) -> Tensor:
        return poisoned(*self.out_plane, self.out_channels, dtype=self.dtype, device=DEVICE)

    def check(self, windows: list[Window], config: ConvConfig = SMALL) -> Tensor:
        out = self.out()
        conv2d(self.x, self.weight, out, windows, config=config, **self.epilogue)
        assert_only_written(out, windows, axes=(0, 1))
        for window in windows:
            if not window.is_empty:
                assert_close(out[window.slices], self.expected[window.slices], what=f"window {window}")
        return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel": (1, 1), "padding": (0, 0)},
        {"kernel": (1, 1), "padding": (0, 0), "stride": (2, 2), "out_plane": (4, 5)},
        {},
        {"stride": (2, 2), "out_plane": (4, 5), "channels": 16, "out_channels": 16},
        {"kernel": (7, 7), "padding": (3, 3), "stride": (2, 2), "out_plane": (4, 5), "channels": 3},
        {"dilation": (2, 3), "padding": (2, 3), "kernel": (3, 2), "stride": (1, 2), "out_plane": (7, 5)},
        {"groups": 2, "channels": 34, "out_channels": 42},
        {"groups": 6, "channels": 6, "out_channels": 6},
        {"kernel": (3, 3), "padding": (0, 0), "out_plane": (5, 7)},
        {"out_plane": (10, 11)},
    ],
    ids=["1x1", "1x1s2", "3x3", "3x3s2", "7x7s2", "dilated", "grouped", "depthwise", "valid", "past-the-end"],
)
def test_every_geometry_gives_what_its_twin_gives(geometry: dict[str, Any], dtype: torch.dtype) -> None:
    case = Case(dtype=dtype, **geometry)
    rows, columns = case.out_plane
    case.check([Window(0, 2, 0, columns), Window(rows - 1, rows, columns - 2, columns)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual_factor", [1, 2, 3])
def test_the_epilogue_adds_residuals_and_clips(residual_factor: int, dtype: torch.dtype) -> None:
    case = Case(dtype=dtype, residual_factor=residual_factor, activation="relu", channels=16)
    case.check([Window(1, 4, 2, 9), Window(5, 7, 0, 3)])
    assert (case.expected == 0).any()
    Case(dtype=dtype, scaled=False, channels=5).check([Window(3, 5, 3, 6)])
