"""Mask features and the dynamic mask head (CondInst, arXiv 2003.05664; the paper, section III-B)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracenet.conventions import MASK_CHANNELS, MASK_STRIDE, THETA, THETA_SIZES
from tracenet.models.heads import ConvNormAct
from tracenet_kernels.errors import InputError
from tracenet_kernels.ops import aligned_bilinear


class MaskBranch(nn.Module):
    """P3..P5 -> 8 mask features at stride 8.

    ``refine_l``: 3x3 256 -> 128, norm, ReLU; P4 and P5 resized to P3 by aligned bilinear; sum;
    four 3x3 128 -> 128, norm, ReLU; 1x1 128 -> 8.
    """

    def __init__(self, in_channels: int = 256, channels: int = 128, norm: str = "bn") -> None:
        super().__init__()
        for level in (3, 4, 5):
            self.add_module(f"refine{level}", ConvNormAct(in_channels, channels, norm))
        self.tower = nn.ModuleList(ConvNormAct(channels, channels, norm) for _ in range(4))
        self.out = nn.Conv2d(channels, MASK_CHANNELS, 1)

    def forward(self, p: dict[int, Tensor]) -> Tensor:
        x = self.refine3(p[3])
        for level in (4, 5):
            x = x + aligned_bilinear(getattr(self, f"refine{level}")(p[level]), 2 ** (level - 3))
        for block in self.tower:
            x = block(x)
        return self.out(x)


class PlainMaskBranch(nn.Module):
    """The paper's literal reading: P3 -> 1x1 -> 8 mask features at stride 8."""

    def __init__(self, in_channels: int = 256) -> None:
        super().__init__()
        self.out = nn.Conv2d(in_channels, MASK_CHANNELS, 1)

    def forward(self, p: dict[int, Tensor]) -> Tensor:
        return self.out(p[3])


def relative_coordinates(height: int, width: int, origin: Tensor, size_of_interest: Tensor) -> Tensor:
    """``rel = (origin - pixel) / size_of_interest`` with ``pixel = 8 * i + 4`` of P3 cell ``i``.

    Args:
        height, width: size of the P3 plane.
        origin: ``[N, 2]`` (x, y) in input pixels: the click, or the centre of its cell.
        size_of_interest: ``[N]``, :data:`tracenet.conventions.SIZES_OF_INTEREST` of the level that predicted them.

    Returns:
        ``[N, 2, height, width]``: rel_x, rel_y.
    """
    ys = torch.arange(height, device=origin.device, dtype=origin.dtype) * MASK_STRIDE + MASK_STRIDE // 2
    xs = torch.arange(width, device=origin.device, dtype=origin.dtype) * MASK_STRIDE + MASK_STRIDE // 2
    soi = size_of_interest.view(-1, 1, 1, 1)
    rel_x = (origin[:, 0].view(-1, 1, 1, 1) - xs.view(1, 1, 1, width)) / soi
    rel_y = (origin[:, 1].view(-1, 1, 1, 1) - ys.view(1, 1, height, 1)) / soi
    n = origin.shape[0]
    return torch.cat([rel_x.expand(n, 1, height, width), rel_y.expand(n, 1, height, width)], dim=1)


class MaskHead(nn.Module):
    """Three dynamic 1x1 layers over ``[rel_x, rel_y, 8 features]``; no parameters of its own.

    ``forward(features [1, 8, h, w] or [N, 8, h, w], theta [N, 169], origin [N, 2], size_of_interest [N])``
    returns stride-8 logits ``[N, 1, h, w]``.
    """

    def forward(self, features: Tensor, theta: Tensor, origin: Tensor, size_of_interest: Tensor) -> Tensor:
        if theta.ndim != 2 or theta.shape[1] != THETA:
            raise InputError(f"theta has shape {tuple(theta.shape)}; pass [N, {THETA}]")
        n = theta.shape[0]
        h, w = features.shape[-2:]
        coords = relative_coordinates(h, w, origin, size_of_interest)
        x = torch.cat([coords, features.expand(n, -1, -1, -1)], dim=1)  # [N, 10, h, w]
        w1, w2, w3, b1, b2, b3 = theta.split(THETA_SIZES, dim=1)
        x = x.reshape(1, n * (2 + MASK_CHANNELS), h, w)
        x = F.relu(F.conv2d(x, w1.reshape(n * 8, 10, 1, 1), b1.reshape(n * 8), groups=n))
        x = F.relu(F.conv2d(x, w2.reshape(n * 8, 8, 1, 1), b2.reshape(n * 8), groups=n))
        x = F.conv2d(x, w3.reshape(n, 8, 1, 1), b3.reshape(n), groups=n)
        return x.reshape(n, 1, h, w)


def upsample_logits(logits: Tensor) -> Tensor:
    """Stride-8 logits ``[N, 1, h, w]`` -> stride-2 logits ``[N, 1, 4h, 4w]`` by aligned bilinear."""
    return aligned_bilinear(logits, 4)


def upsample_probabilities(logits: Tensor) -> Tensor:
    """The paper's order: sigmoid, then a plain x4 bilinear resize. Returns probabilities ``[N, 1, 4h, 4w]``."""
    return F.interpolate(logits.sigmoid(), scale_factor=4.0, mode="bilinear", align_corners=False)
