"""Twins of the operations whose output cell reads one cell of each input."""

from __future__ import annotations

import torch
from torch import Tensor

Triple = tuple[float, float, float]


def add(a: Tensor, b: Tensor | None = None, *, activation: str = "none") -> Tensor:
    """``act(a + b)``."""
    total = a if b is None else a + b
    return total.relu() if activation == "relu" else total


def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + exp(-x))``."""
    return x.sigmoid()


def pixels(photo: Tensor, size: tuple[int, int], mean: Triple, std: Triple, *, reverse: bool = False) -> Tensor:
    """uint8 [rows, columns, 3] -> fp32 [*size, 3]: ``(photo - mean) / std``, 0 right of it and below."""
    out = torch.zeros(*size, 3)
    colours = photo.flip(-1) if reverse else photo
    out[: photo.shape[0], : photo.shape[1]] = (colours.float() - torch.tensor(mean)) / torch.tensor(std)
    return out
