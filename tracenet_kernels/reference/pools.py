"""Twins of the poolings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


def _taps(x: Tensor, size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, fill: float) -> Tensor:
    """[H', W', C, taps]: every tap of every output cell; ``fill`` off the plane."""
    amounts: list[int] = []
    for axis in (1, 0):
        reach = (size[axis] - 1) * stride[axis] - padding[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        amounts += [padding[axis], reach - x.shape[axis]]
    padded = F.pad(x.movedim(-1, 0), amounts, value=fill)
    return torch.stack(
        [
            padded[
                :,
                ky * dilation[0] :: stride[0],
                kx * dilation[1] :: stride[1],
            ][:, : size[0], : size[1]].movedim(0, -1)
            for ky in range(kernel[0])
            for kx in range(kernel[1])
        ],
        -1,
    )


def max_pool2d(
    x: Tensor, size: Pair, *, kernel: Pair, stride: Pair, padding: Pair = (0, 0), dilation: Pair = (1, 1)
) -> Tensor:
    """[H, W, C] -> [*size, C]: the largest tap on the plane; NaN wins."""
    lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    return _taps(x, size, kernel, stride, padding, dilation, lowest).amax(-1)


def avg_pool2d(
    x: Tensor,
    size: Pair,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    count_include_pad: bool = True,
    divisor: int = 0,
) -> Tensor:
    """[H, W, C] -> [*size, C]: the mean over the taps on the plane; see the kernel for what is divided by."""
    sums = _taps(x, size, kernel, stride, padding, (1, 1), 0.0).sum(-1)
    ones = torch.ones(*x.shape[:2], 1, dtype=x.dtype, device=x.device)
    pad = padding
    if count_include_pad:
        ones = F.pad(ones, (0, 0, pad[1], pad[1], pad[0], pad[0]), value=1.0)
        pad = (0, 0)
    cells = _taps(ones, size, kernel, stride, pad, (1, 1), 0.0).sum(-1)
    return sums / (divisor or cells.clamp(min=1))
