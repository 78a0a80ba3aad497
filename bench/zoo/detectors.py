"""Small detectors with dense heads: FCOS and RetinaNet on a feature pyramid, and a CSP network with SPPF and PAN."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.zoo.networks import ResidualBlock, conv_norm_act


class Backbone(nn.Module):
    """A ResNet of one block per stage; strides 8, 16, 32."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm_act(3, widths[0], 7, 2), nn.MaxPool2d(3, 2, 1))
        pairs = zip((widths[0], *widths), widths, (1, 2, 2, 2), strict=False)
        self.stages = nn.ModuleList(ResidualBlock(a, b, stride) for a, b, stride in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[2:]


class Pyramid(nn.Module):
    """Lateral 1x1, nearest top-down, 3x3; two further levels by strided convolution."""

    def __init__(self, widths: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)
        self.p6 = nn.Conv2d(channels, channels, 3, 2, 1)
        self.p7 = nn.Conv2d(channels, channels, 3, 2, 1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        inner = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]
        for level in (1, 0):
            inner[level] = inner[level] + F.interpolate(inner[level + 1], size=inner[level].shape[-2:], mode="nearest")
        levels = [smooth(m) for smooth, m in zip(self.smooth, inner, strict=True)]
        levels.append(self.p6(levels[-1]))
        levels.append(self.p7(F.relu(levels[-1])))
        return levels


def _tower(channels: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(conv_norm_act(channels, channels) for _ in range(depth)))


class Fcos(nn.Module):
    """Per level: class logits, distances with a learned scale, centerness; towers shared over the levels."""

    def __init__(self, channels: int = 48, classes: int = 5) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.pyramid = Pyramid((64, 96, 128), channels)
        self.class_tower, self.box_tower = _tower(channels, 2), _tower(channels, 2)
        self.logits = nn.Conv2d(channels, classes, 3, padding=1)
        self.distances = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        for i, level in enumerate(self.pyramid(self.backbone(x))):
            box = self.box_tower(level)
            outputs[f"logits{i + 3}"] = self.logits(self.class_tower(level))
            outputs[f"distances{i + 3}"] = F.relu(self.distances(box) * self.scales[i]) * 2 ** (i + 3)
            outputs[f"centerness{i + 3}"] = self.centerness(box)
        return outputs


class RetinaNet(nn.Module):
    """Per level: class logits and box offsets of every anchor; heads shared over the levels."""

    def __init__(self, channels: int = 48, classes: int = 5, anchors: int = 9) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.pyramid = Pyramid((64, 96, 128), channels)
        self.classify = nn.Sequential(_tower(channels, 2), nn.Conv2d(channels, anchors * classes, 3, padding=1))
        self.regress = nn.Sequential(_tower(channels, 2), nn.Conv2d(channels, anchors * 4, 3, padding=1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        for i, level in enumerate(self.pyramid(self.backbone(x)), 3):
            outputs[f"logits{i}"], outputs[f"offsets{i}"] = self.classify(level), self.regress(level)
        return outputs


class CrossStage(nn.Module):
    """A split of the channels, residual blocks on one part, everything concatenated and mixed."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        half = outputs // 2
        self.split = conv_norm_act(inputs, outputs, 1, act=nn.SiLU)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_norm_act(half, half, act=nn.SiLU), conv_norm_act(half, half, act=nn.SiLU))
            for _ in range(depth)
        )
        self.mix = conv_norm_act((2 + depth) * half, outputs, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.split(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.mix(torch.cat(parts, 1))


class PooledPyramid(nn.Module):
    """SPPF: three stride-1 max-poolings in a row, concatenated with their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = conv_norm_act(channels, channels // 2, 1, act=nn.SiLU)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.mix = conv_norm_act(channels * 2, channels, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.reduce(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.mix(torch.cat(parts, 1))


class YoloCspPan(nn.Module):
    """CSP stages, SPPF, a path up and a path down; per level boxes as distributions over 8 bins and class logits."""

    bins = 8

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 96), classes: int = 5) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Sequential(conv_norm_act(3, 16, 3, 2, act=nn.SiLU), conv_norm_act(16, 24, 3, 2, act=nn.SiLU))
        self.stage3 = nn.Sequential(conv_norm_act(24, a, 3, 2, act=nn.SiLU), CrossStage(a, a, 1))
        self.stage4 = nn.Sequential(conv_norm_act(a, b, 3, 2, act=nn.SiLU), CrossStage(b, b, 2))
        self.stage5 = nn.Sequential(conv_norm_act(b, c, 3, 2, act=nn.SiLU), CrossStage(c, c, 1), PooledPyramid(c))
        self.up4, self.up3 = CrossStage(b + c, b, 1), CrossStage(a + b, a, 1)
        self.down4, self.down5 = conv_norm_act(a, a, 3, 2, act=nn.SiLU), conv_norm_act(b, b, 3, 2, act=nn.SiLU)
        self.out4, self.out5 = CrossStage(a + b, b, 1), CrossStage(b + c, c, 1)
        self.boxes = nn.ModuleList(nn.Conv2d(width, 4 * self.bins, 1) for width in widths)
        self.logits = nn.ModuleList(nn.Conv2d(width, classes, 1) for width in widths)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        c3 = self.stage3(self.stem(x))
        c4 = self.stage4(c3)
        c5 = self.stage5(c4)
        t4 = self.up4(torch.cat((F.interpolate(c5, scale_factor=2.0), c4), 1))
        n3 = self.up3(torch.cat((F.interpolate(t4, scale_factor=2.0), c3), 1))
        n4 = self.out4(torch.cat((self.down4(n3), t4), 1))
        n5 = self.out5(torch.cat((self.down5(n4), c5), 1))
        outputs: dict[str, Tensor] = {}
        for i, (level, boxes, logits) in enumerate(zip((n3, n4, n5), self.boxes, self.logits, strict=True), 3):
            n, _, h, w = level.shape
            shares = boxes(level).view(n, 4, self.bins, h, w).softmax(2)
            bins = torch.arange(self.bins, dtype=level.dtype).view(1, 1, -1, 1, 1)
            outputs[f"distances{i}"] = (shares * bins).sum(2)
            outputs[f"logits{i}"] = logits(level)
        return outputs


DETECTORS: dict[str, Callable[[], nn.Module]] = {"fcos": Fcos, "retinanet": RetinaNet, "yolo_csp_pan": YoloCspPan}
