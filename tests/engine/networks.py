"""Networks that tests of the engine lower, with statistics and scales that are not the initial ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracenet.models import create_model
from tracenet_kernels.ops import aligned_bilinear


def randomised(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with statistics of BatchNorm, biases and scales drawn at random."""
    for name, tensor in model.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 1.5)
        elif "running_mean" in name or name.endswith("bias"):
            tensor.uniform_(-0.3, 0.3)
        elif name.endswith("scales") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
    return model.eval()


def tracenet_model(**config: Any) -> nn.Module:
    return randomised(create_model("tracenet_r50_fpn", **{"channels": 32, **config}))


def tracenet_inputs(model: nn.Module, width: int = 96, height: int = 64) -> tuple[Tensor, ...]:
    image = torch.randn(1, 3, height, width)
    if model.mask_head is None:
        return (image,)
    return (image, 0.5 * torch.randn(1, 169), torch.rand(1, 2) * height, torch.full((1,), 64.0))


class UNet(nn.Module):
    """Down by pooling and by strides, up by every resize, skips by concatenation and by sums."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.down = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=2, dilation=2))
        self.deep = nn.Conv2d(12, 12, (3, 5), (2, 1), (1, 2))
        self.side = nn.Conv2d(12, 12, 1)
        self.up = nn.Conv2d(20, 6, 3, padding="same")
        self.out = nn.Conv2d(6, 5, 2, padding="same")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = self.stem(x)
        b = self.down(a)
        c = F.relu(self.deep(F.avg_pool2d(b, 3, 2, 1, ceil_mode=True, count_include_pad=False)))
        d = F.relu(self.side(b)) + F.interpolate(c, size=b.shape[-2:], mode="bilinear")
        e = self.up(torch.cat([a, F.interpolate(d, scale_factor=2)], 1))
        f = self.out(F.interpolate(e, scale_factor=2.0, mode="bilinear", align_corners=True))
        return {"low": d, "logits": f, "probability": f.sigmoid(), "half": aligned_bilinear(f, 2)}


class Mobile(nn.Module):
    """Inverted residuals with depthwise and grouped convolutions, ReLU6, squeeze and excitation, SiLU, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(24, 24, 5, 1, 2, groups=24, bias=False), nn.BatchNorm2d(24), nn.SiLU())
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, groups=2, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem((x - 0.5) / 0.25)
        y = self.depthwise(self.expand(x))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(y)
        return x, self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Norm and ReLU before the convolutions, everything concatenated; one convolution called twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (6, 10, 14))
        self.convs = nn.ModuleList(nn.Conv2d(c, 4, 3, padding=1) for c in (6, 10, 14))
        self.again = nn.Conv2d(18, 18, 1)
        self.up = nn.ConvTranspose2d(18, 3, 2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        y = F.relu(self.again(x))
        y = F.relu(self.again(y) * 2 + y)
        return y, self.up(F.leaky_relu(y, 0.1))[..., 1:, :]


class Pools(nn.Module):
    """Poolings with their conventions, sums of all kinds, and values that are returned under several names."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = F.max_pool2d(x, (3, 2), 2, (1, 0), ceil_mode=True)
        b = F.avg_pool2d(x, 3, 2, 1, count_include_pad=True)
        c = F.avg_pool2d(x, 2, divisor_override=3)
        d = F.max_pool2d(x, 5, 1, 2)
        e = F.interpolate(c, size=x.shape[-2:], mode="nearest")
        return {"a": a, "b": b, "c": c, "d": d, "sum": F.relu(d + e), "same": d.contiguous(), "twice": x + x, "x": x}


NETWORKS = {"unet": UNet, "mobile": Mobile, "dense": Dense, "pools": Pools}
