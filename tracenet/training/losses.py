"""Losses of one-click training. All return one value per item; the caller weighs and averages."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_sum(weights: object, values: dict[str, Tensor], terms: Collection[str]) -> Tensor:
    """Sum of those ``values`` that are among ``terms``, each times the attribute of ``weights`` of its name."""
    return torch.stack([getattr(weights, name) * value for name, value in values.items() if name in terms]).sum()


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (arXiv 1708.02002), element by element, same shape as ``logits``.

    ``-alpha_t (1 - p_t)^gamma log(p_t)``; ``target`` is 0 or 1, ``p_t`` the probability given to it, ``alpha_t`` is
    ``alpha`` for ones and ``1 - alpha`` for zeros.
    """
    p = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = p + target - 2 * p * target  # 1 - p_t
    return (alpha * target + (1 - alpha) * (1 - target)) * missed.pow(gamma) * cross_entropy


def boundary_weights(target: Tensor, factor: float, radius: int = 2) -> Tensor:
    """``1 + factor`` within ``radius`` samples (chessboard distance) of a mask's edge, 1 elsewhere: ``[M, h, w]``."""
    x = target[:, None]
    size = 2 * radius + 1
    grown = F.max_pool2d(x, size, 1, radius)
    shrunk = -F.max_pool2d(-x, size, 1, radius)
    return 1 + factor * (grown - shrunk)[:, 0]


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """``1 - (2 sum(p t) + 1) / (sum(p^2) + sum(t^2) + 1)`` per mask; ``[M, h, w]`` both, target in [0, 1]."""
    p = logits.sigmoid()
    overlap = (p * target).sum((1, 2))
    total = p.square().sum((1, 2)) + target.square().sum((1, 2))
    return 1 - (2 * overlap + 1) / (total + 1)


def window_bce(
    logits: Tensor,
    target: Tensor,
    boxes: Tensor,
    stride: int,
    grow: float = 0.5,
    pad: float = 8,
    boundary: float = 0.0,
) -> Tensor:
    """Mean binary cross-entropy per mask inside its box, each side moved out by ``grow * side + pad`` pixels.

    Args:
        logits, target: ``[M, h, w]`` at ``stride`` pixels per sample.
        boxes: ``[M, 4]`` (x0, y0, x1, y1) in pixels.
        boundary: extra weight of samples near the mask's edge, see :func:`boundary_weights`.
    """
    h, w = logits.shape[-2:]
    weight = box_samples(boxes, h, w, stride, grow, pad)
    if boundary > 0:
        weight = weight * boundary_weights(target, boundary)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (each * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)


def box_samples(boxes: Tensor, height: int, width: int, stride: int, grow: float, pad: float) -> Tensor:
    """1 where a sample's centre lies in the enlarged box, else 0: ``[M, height, width]``."""
    margin = (boxes[:, 2:] - boxes[:, :2]) * grow + pad
    low, high = boxes[:, :2] - margin, boxes[:, 2:] + margin
    x = (torch.arange(width, device=boxes.device) + 0.5) * stride
    y = (torch.arange(height, device=boxes.device) + 0.5) * stride
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
