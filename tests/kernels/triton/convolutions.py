"""Random convolutions for tests: what a kernel takes, and what its twin gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tracenet_kernels import reference
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.triton.configs import ConvConfig
from tracenet_kernels.triton.conv2d import conv2d
from tracenet_kernels.triton.planes import DevicePlane, interpreted
from tracenet_kernels.triton.weights import DeviceWeight, pack_weight
from tracenet_kernels.window import Window

DEVICE = "cpu" if interpreted() else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALL = ConvConfig(16, 16, 16)


@dataclass
class Convolution:
    """Operands of a convolution of planes of one dtype, and its twin's whole plane in float64."""

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
        geometry: dict[str, Any] = {
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

    def run(self, windows: list[Window], config: ConvConfig | None = SMALL, **options: Any) -> Tensor:
        out = self.out()
        conv2d(self.x, self.weight, out, windows, config=config, **self.epilogue, **options)
        return out

    def check(self, windows: list[Window], config: ConvConfig = SMALL) -> Tensor:
        """The output, whose windows are what the twin gives, and which is untouched elsewhere."""
        out = self.run(windows, config)
        assert_only_written(out, windows, axes=(0, 1))
        for window in windows:
            if not window.is_empty:
                assert_close(out[window.slices], self.expected[window.slices], what=f"window {window}")
        return out


def part(tensor: Tensor, window: Window, **fields: Any) -> DevicePlane:
    """A plane of which only ``window`` is in memory, with rows further apart than they are long."""
    wider = poisoned(window.height, window.width + 2, tensor.shape[2], dtype=tensor.dtype, device=tensor.device)
    wider[:, : window.width] = tensor[window.slices]
    plane = (tensor.shape[0], tensor.shape[1])
    return DevicePlane(wider[:, : window.width], plane, (window.y0, window.x0), **fields)
