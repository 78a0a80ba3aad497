"""Twins of the convolutions, and of how 8-bit planes stand for real values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def conv2d(
    x: Tensor,
    weight: Tensor,
    *,
    plane: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    residual_factor: int = 1,
    activation: str = "none",
) -> Tensor:
    """``act(scale * conv(x) + bias + residual)`` on the whole plane.

    Args:
        x: [H, W, C].
        weight: [out, C / groups, kernel_y, kernel_x].
        plane: rows and columns of the result; what lies past ``x`` after its last row or column is zero as well.
        padding: rows and columns of zeros before the first one.
        residual: [ceil(H_out / f), ceil(W_out / f), out]; its cell (y // f, x // f) is added, f = ``residual_factor``.

    Returns:
        [H_out, W_out, out].
    """
    reach = [
        (cells - 1) * step + (taps - 1) * spread + 1
        for cells, step, taps, spread in zip(plane, stride, weight.shape[2:], dilation, strict=True)
    ]
    after = [max(0, n - size - before) for n, size, before in zip(reach, x.shape, padding, strict=False)]
    padded = F.pad(x.movedim(2, 0), (padding[1], after[1], padding[0], after[0]))[:, : reach[0], : reach[1]]
    y = F.conv2d(padded.unsqueeze(0), weight, None, stride, 0, dilation, groups)[0]
    y = y.movedim(0, 2)
    if scale is not None:
        y = y * scale
    if bias is not None:
        y = y + bias
    if residual is not None:
        grown = residual.repeat_interleave(residual_factor, 0).repeat_interleave(residual_factor, 1)
        y = y + grown[: plane[0], : plane[1]]
    return y.relu() if activation == "relu" else y


def dequantise(q: Tensor, scale: float, zero_point: int = 0) -> Tensor:
    """The real values, in float64, that an 8-bit plane stands for: ``(q - zero_point) * scale``."""
    return (q.double() - zero_point) * scale


def quantise(real: Tensor, scale: float, zero_point: int = 0, dtype: torch.dtype = torch.int8) -> Tensor:
    """``clamp(round(real / scale) + zero_point, -128, 127)``, halves to even; fp8: the nearest value within +-448."""
    if dtype == torch.int8:
        return ((real / scale).round() + zero_point).clamp(-128, 127).to(dtype)
    return (real / scale).float().clamp(-448, 448).to(dtype)
