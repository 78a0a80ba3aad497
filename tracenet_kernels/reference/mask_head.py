"""Twin of the dynamic mask head."""

from __future__ import annotations

import torch
from torch import Tensor

from tracenet_kernels.reference.resizes import resize


def mask_head(
    features: Tensor,
    theta: Tensor,
    origin: tuple[float, float],
    size_of_interest: float,
    *,
    stride: int = 8,
    factor: int = 0,
    sigmoid: bool = False,
) -> Tensor:
    """[h, w, 8] -> [h, w, 1], or ``factor`` times that; see the kernel for the formula."""
    height, width, _ = features.shape
    w1, w2, w3, b1, b2, b3 = theta.to(features.dtype).split((80, 64, 8, 8, 8, 1))
    rows = (origin[1] - (torch.arange(height, dtype=features.dtype) * stride + stride // 2)) / size_of_interest
    columns = (origin[0] - (torch.arange(width, dtype=features.dtype) * stride + stride // 2)) / size_of_interest
    where = torch.stack([columns.expand(height, width), rows.view(-1, 1).expand(height, width)], -1)
    y = torch.cat([where, features], -1)
    y = (y @ w1.view(8, 10).T + b1).relu()
    y = (y @ w2.view(8, 8).T + b2).relu()
    y = y @ w3.view(1, 8).T + b3
    if factor:
        y = resize(y, (factor * height, factor * width), mode="aligned_bilinear", factor=factor)
    return y.sigmoid() if sigmoid else y
