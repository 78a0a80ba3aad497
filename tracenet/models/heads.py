"""FCOS-style towers shared over the pyramid, with the box, centerness and filter heads.

Conventions: CondInst (arXiv 2003.05664) and FCOS (arXiv 1904.01355).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracenet.config import TOWER_NORMS
from tracenet.conventions import LEVELS, STRIDES, THETA
from tracenet_kernels.errors import InputError


class ConvNormAct(nn.Module):
    """``relu(norm(conv3x3(x)))``. With ``bn_per_level`` each pyramid level keeps its own BatchNorm."""

    def __init__(self, in_channels: int, channels: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=norm in ("gn", "none"))
        self.norm: nn.Module
        if norm == "bn":
            self.norm = nn.BatchNorm2d(channels)
        elif norm == "bn_per_level":
            self.norm = nn.ModuleList(nn.BatchNorm2d(channels) for _ in LEVELS)
        elif norm == "gn":
            self.norm = nn.GroupNorm(32, channels)
        elif norm == "none":
            self.norm = nn.Identity()
        else:
            raise InputError(f"tower norm {norm!r} is not known; choose one of {TOWER_NORMS}")

    def normalise(self, x: Tensor, level: int) -> Tensor:
        if isinstance(self.norm, nn.ModuleList):
            return self.norm[LEVELS.index(level)](x)
        return self.norm(x)

    def forward(self, x: Tensor, level: int = LEVELS[0]) -> Tensor:
        return F.relu(self.normalise(self.conv(x), level))


class Tower(nn.ModuleList):
    """Four ConvNormAct blocks applied in sequence to one level."""

    def __init__(self, channels: int, norm: str, depth: int = 4) -> None:
        super().__init__(ConvNormAct(channels, channels, norm) for _ in range(depth))

    def forward(self, x: Tensor, level: int) -> Tensor:
        for block in self:
            x = block(x, level)
        return x


class Heads(nn.Module):
    """Predictions of one level; weights are shared over levels, ``scales`` are learned per level.

    ``forward(P_l [N, C, h, w], level)`` returns
    ``logits [N, num_classes, h, w]`` (classification tower),
    ``reg [N, 4, h, w]`` = ``relu(scale_l * conv(x)) * stride_l``: left, top, right, bottom distances in pixels,
    ``ctr [N, 1, h, w]`` centerness logit, ``theta [N, 169, h, w]`` mask-head parameters (box tower), and
    ``level [N, 1, h, w]`` if ``level_head`` (classification tower; softmax over the five cells at the click).
    """

    def __init__(
        self, channels: int = 256, num_classes: int = 1, norm: str = "bn", level_head: bool = False, theta: int = THETA
    ) -> None:
        super().__init__()
        self.cls_tower = Tower(channels, norm)
        self.box_tower = Tower(channels, norm)
        self.logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.reg = nn.Conv2d(channels, 4, 3, padding=1)
        self.ctr = nn.Conv2d(channels, 1, 3, padding=1)
        self.theta = nn.Conv2d(channels, theta, 3, padding=1) if theta else None
        self.level = nn.Conv2d(channels, 1, 3, padding=1) if level_head else None
        self.scales = nn.Parameter(torch.ones(len(LEVELS)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.logits.bias is not None
        nn.init.constant_(self.logits.bias, -math.log((1 - 0.01) / 0.01))

    def forward(self, x: Tensor, level: int) -> dict[str, Tensor]:
        cls = self.cls_tower(x, level)
        box = self.box_tower(x, level)
        scale = self.scales[LEVELS.index(level)]
        out = {
            "logits": self.logits(cls),
            "reg": F.relu(scale * self.reg(box)) * STRIDES[level],
            "ctr": self.ctr(box),
        }
        if self.theta is not None:
            out["theta"] = self.theta(box)
        if self.level is not None:
            out["level"] = self.level(cls)
        return out
