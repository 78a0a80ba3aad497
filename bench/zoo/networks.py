"""Small networks that the packages do not have: ShuffleNet V2, SqueezeNet, HRNet with a segmentation head."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm_act(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Convolution, BatchNorm, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


def _depthwise(channels: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


class ShuffleUnit(nn.Module):
    """Half of the channels pass, the other half is convolved; the halves are then interleaved."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half, self.stride = outputs // 2, stride
        taken = inputs if stride == 2 else inputs // 2
        self.branch = nn.Sequential(
            conv_norm_act(taken, half, 1), _depthwise(half, stride), conv_norm_act(half, half, 1)
        )
        self.passed = nn.Sequential(_depthwise(inputs, 2), conv_norm_act(inputs, half, 1)) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.passed is not None:
            out = torch.cat((self.passed(x), self.branch(x)), 1)
        else:
            kept, moved = x.chunk(2, 1)
            out = torch.cat((kept, self.branch(moved)), 1)
        n, c, h, w = out.shape
        return out.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleNetV2(nn.Module):
    """Strides 4 to 32."""

    def __init__(self, widths: tuple[int, ...] = (48, 96, 192), depths: tuple[int, ...] = (4, 8, 4)) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm_act(3, 24, stride=2), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.ModuleList()
        inputs = 24
        for width, depth in zip(widths, depths, strict=True):
            units = [ShuffleUnit(inputs, width, 2), *(ShuffleUnit(width, width, 1) for _ in range(depth - 1))]
            self.stages.append(nn.Sequential(*units))
            inputs = width

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class Fire(nn.Module):
    """A squeeze to few channels, then 1x1 and 3x3 side by side."""

    def __init__(self, inputs: int, squeezed: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.narrow = nn.Conv2d(squeezed, outputs // 2, 1)
        self.wide = nn.Conv2d(squeezed, outputs // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat((self.narrow(x), self.wide(x)), 1))


class SqueezeNet(nn.Module):
    """No BatchNorm; poolings that round up, so that the last row may hang over the edge."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.stages = nn.ModuleList(
            (
                nn.Sequential(Fire(64, 16, 128), Fire(128, 16, 128)),
                nn.Sequential(Fire(128, 32, 256), Fire(256, 32, 256)),
                nn.Sequential(Fire(256, 48, 384), Fire(384, 48, 384), Fire(384, 64, 512), Fire(512, 64, 512)),
            )
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(self.pool(maps[-1])))
        return maps


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and the way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_norm_act(inputs, outputs, 3, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.around = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.around(x))


class Exchange(nn.Module):
    """Every branch becomes the sum of all, strided down or resized up to its size."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.ways = nn.ModuleList(
            nn.ModuleList(_way(widths, a, b) for a in range(len(widths))) for b in range(len(widths))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        fused = []
        for target, ways in zip(maps, self.ways, strict=True):
            parts = [way(source) for way, source in zip(ways, maps, strict=True)]  # type: ignore[call-overload]
            parts = [F.interpolate(p, size=target.shape[-2:], mode="bilinear", align_corners=False) for p in parts]
            fused.append(F.relu(sum(parts)))
        return fused


def _way(widths: tuple[int, ...], source: int, target: int) -> nn.Module:
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(nn.Conv2d(widths[source], widths[target], 1, bias=False), nn.BatchNorm2d(widths[target]))
    steps: list[nn.Module] = [conv_norm_act(widths[source], widths[source], 3, 2) for _ in range(target - source - 1)]
    steps += [nn.Conv2d(widths[source], widths[target], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[target])]
    return nn.Sequential(*steps)


class HRNetSegmentation(nn.Module):
    """Branches of strides 4, 8 and 16 side by side; class logits from all of them, resized to stride 4."""

    def __init__(self, widths: tuple[int, ...] = (18, 36, 72), classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm_act(3, 32, stride=2), conv_norm_act(32, widths[0], stride=2))
        self.down = nn.ModuleList(conv_norm_act(a, b, 3, 2) for a, b in pairwise(widths))
        self.branches = nn.ModuleList(ResidualBlock(width, width) for width in widths)
        self.exchange = Exchange(widths)
        self.head = nn.Sequential(conv_norm_act(sum(widths), 64, 1), nn.Conv2d(64, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for down in self.down:
            maps.append(down(maps[-1]))
        maps = self.exchange([branch(m) for branch, m in zip(self.branches, maps, strict=True)])
        size = maps[0].shape[-2:]
        resized = [F.interpolate(m, size=size, mode="bilinear", align_corners=True) for m in maps]
        return self.head(torch.cat(resized, 1))


class ImageOnly(nn.Module):
    """TraceNet's own dense heads, as a function of the image alone."""

    def __init__(self) -> None:
        super().__init__()
        import tracenet

        self.model = tracenet.create_model("tracenet_r50_fpn", mask_branch="none")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.model(x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "shufflenet_v2": ShuffleNetV2,
    "squeezenet": SqueezeNet,
    "hrnet_segmentation": HRNetSegmentation,
    "tracenet_r50_fpn": ImageOnly,
}
