"""Twins of the resizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def aligned_bilinear(x: Tensor, factor: int) -> Tensor:
    """See :func:`tracenet_kernels.ops.aligned_bilinear`."""
    if factor == 1:
        return x.clone()
    h, w = x.shape[-2:]
    x = F.pad(x, (0, 1, 0, 1), mode="replicate")
    x = F.interpolate(x, size=(factor * h + 1, factor * w + 1), mode="bilinear", align_corners=True)
    half = factor // 2
    x = F.pad(x, (half, 0, half, 0), mode="replicate")
    return x[:, :, : factor * h, : factor * w]


def resize_taps(mode: str, length: int, out: int, ratio: float, factor: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Both cells that every output of an axis reads, and the second one's weight; coordinates in float32."""
    if mode == "aligned_bilinear":
        scaled = (torch.arange(out) - factor // 2).clamp(0, (length - 1) * factor)
        low, rest = scaled // factor, scaled % factor
        return low, low + (rest > 0).long(), rest.double() / factor
    i, r = torch.arange(out, dtype=torch.float32), torch.tensor(ratio, dtype=torch.float32)
    if mode == "nearest":
        low = (i * r).floor().long().clamp(max=length - 1)
        return low, low, torch.zeros(out, dtype=torch.float64)
    if length == out:
        return i.long(), i.long(), torch.zeros(out, dtype=torch.float64)
    source = i * r if mode == "bilinear_align_corners" else ((i + 0.5) * r - 0.5).clamp(min=0)
    low = source.floor().long().clamp(max=length - 1)
    return low, (low + 1).clamp(max=length - 1), (source - low).clamp(0, 1).double()


def resize(
    x: Tensor, size: tuple[int, int], *, mode: str, ratio: tuple[float, float] = (1.0, 1.0), factor: int = 1
) -> Tensor:
    """[H, W, C] -> [*size, C]."""
    for axis in (0, 1):
        low, high, weight = resize_taps(mode, x.shape[axis], size[axis], ratio[axis], factor)
        t = weight.to(x.dtype).view(-1, 1, 1) if axis == 0 else weight.to(x.dtype).view(-1, 1)
        x = x.index_select(axis, low) * (1 - t) + x.index_select(axis, high) * t
    return x
