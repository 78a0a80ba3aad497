"""ResNet-50/101 backbones that return C2..C5 (He et al., arXiv 1512.03385).

Parameter names are torchvision's. ``stride_in_1x1`` puts the stride of a downsampling bottleneck in
its first 1x1 convolution (the original MSRA placement); otherwise it sits in the 3x3.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tracenet_kernels.errors import InputError

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1 -> 3x3 -> 1x1 with a residual: ``relu(f(x) + shortcut(x))``, [N, Cin, H, W] -> [N, 4 * width, H/s, W/s]."""

    def __init__(self, in_channels: int, width: int, stride: int, stride_in_1x1: bool) -> None:
        super().__init__()
        out_channels = width * EXPANSION
        s1, s3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=s1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=s3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(y + shortcut)


class ResNet(nn.Module):
    """[N, 3, H, W] -> ``(C2, C3, C4, C5)`` with 256, 512, 1024, 2048 channels at strides 4, 8, 16, 32."""

    def __init__(self, depth: int = 50, stride_in_1x1: bool = False) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise InputError(f"ResNet depth {depth} is not available; choose one of {sorted(BLOCKS)}")
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = 64
        for stage, blocks in enumerate(BLOCKS[depth]):
            width = 64 * 2**stage
            layers = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Bottleneck(in_channels, width, stride, stride_in_1x1))
                in_channels = width * EXPANSION
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return c2, c3, c4, c5
