"""Windows of steps as torch takes them: what the oracles of :mod:`tracenet.engine.reference` share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tracenet.engine.schedule import Step

WINDOW = tuple(f"{name}_{axis}" for name in ("kernel", "stride", "pad", "dilation") for axis in "yx")
PairsOfWindow = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]


def window_of(step: Step, prefix: str = "") -> PairsOfWindow:
    """Kernel, stride, padding before and dilation as (y, x) pairs."""
    values = [step.ints.get(prefix + name, int(not name.startswith("pad"))) for name in WINDOW]
    kernel, stride, pad, dilation = zip(values[::2], values[1::2], strict=True)
    return kernel, stride, pad, dilation


def padded(x: Tensor, window: PairsOfWindow, height: int, width: int, fill: float) -> Tensor:
    """``x`` with padding, or cut, to exactly what ``height`` x ``width`` outputs read."""
    amounts: list[int] = []
    for axis, out in ((1, width), (0, height)):
        k, s, p, d = (pair[axis] for pair in window)
        amounts += [p, (out - 1) * s - p + d * (k - 1) + 1 - x.shape[2 + axis]]
    return F.pad(x, amounts, value=fill)
