"""Losses of one-click training. All return one value per item; the caller weighs and averages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def level_targets(boxes: Tensor, sharpness: float = 2.0) -> Tensor:
    """Soft level assignment ``[N, 5]`` of boxes ``[N, 4]``: ``softmax_l(-sharpness * (l - t)^2)`` over P3..P7.

    ``t = 4 + log2(max(w, h) / 90.5)`` clamped to [3, 7], so that FCOS's ranges 64/128/256/512 fall between levels.
    """
    size = (boxes[:, 2:] - boxes[:, :2]).amax(1).clamp(min=1)
    t = (4 + torch.log2(size / 90.5)).clamp(3, 7)
    levels = torch.arange(3, 8, dtype=boxes.dtype)
    return torch.softmax(-sharpness * (levels - t[:, None]).square(), 1)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """``1 - (2 sum(p t) + 1) / (sum(p^2) + sum(t^2) + 1)`` per mask; ``[M, h, w]`` both, target in [0, 1]."""
    p = logits.sigmoid()
    overlap = (p * target).sum((1, 2))
    total = p.square().sum((1, 2)) + target.square().sum((1, 2))
    return 1 - (2 * overlap + 1) / (total + 1)


def window_bce(logits: Tensor, target: Tensor, boxes: Tensor, stride: int, grow: float = 0.5, pad: float = 8) -> Tensor:
    """Mean binary cross-entropy per mask inside its box, each side moved out by ``grow * side + pad`` pixels.

    Args:
        logits, target: ``[M, h, w]`` at ``stride`` pixels per sample.
        boxes: ``[M, 4]`` (x0, y0, x1, y1) in pixels.
    """
    h, w = logits.shape[-2:]
    weight = box_samples(boxes, h, w, stride, grow, pad)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (each * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)


def box_samples(boxes: Tensor, height: int, width: int, stride: int, grow: float, pad: float) -> Tensor:
    """1 where a sample's centre lies in the enlarged box, else 0: ``[M, height, width]``."""
    margin = (boxes[:, 2:] - boxes[:, :2]) * grow + pad
    low, high = boxes[:, :2] - margin, boxes[:, 2:] + margin
    x = (torch.arange(width) + 0.5) * stride
    y = (torch.arange(height) + 0.5) * stride
    in_x = (x >= low[:, :1]) & (x < high[:, :1])
    in_y = (y >= low[:, 1:]) & (y < high[:, 1:])
    return (in_y[:, :, None] & in_x[:, None, :]).to(boxes.dtype)


def hard_iou(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """IoU of ``logits > 0`` with ``target >= 0.5`` where ``weight`` is 1, per mask."""
    a, b = (logits > 0) & (weight > 0), target >= 0.5
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp(min=1)


def giou_loss(a: Tensor, b: Tensor) -> Tensor:
    """``1 - GIoU`` (arXiv 1902.09630) of boxes ``[M, 4]`` (x0, y0, x1, y1)."""
    area_a = (a[:, 2:] - a[:, :2]).clamp(min=0).prod(1)
    area_b = (b[:, 2:] - b[:, :2]).clamp(min=0).prod(1)
    inter = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1).clamp(min=1e-6)
    union = (area_a + area_b - inter).clamp(min=1e-6)
    return 1 - inter / union + (hull - union) / hull


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """FCOS: ``sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))`` of points ``[M, 2]``; 0 outside the box."""
    low, high = points - boxes[:, :2], boxes[:, 2:] - points
    ratio = torch.minimum(low, high).clamp(min=0) / torch.maximum(low, high).clamp(min=1e-6)
    return ratio.prod(1).clamp(0, 1).sqrt()
