"""Twin of the depthwise convolution."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tracenet_kernels.reference.conv import conv2d


def depthwise(x: Tensor, weight: Tensor, **arguments: Any) -> Tensor:
    """:func:`~tracenet_kernels.reference.conv.conv2d` with one group per channel.

    Args:
        x: [H, W, C].
        weight: [C, 1, kernel_y, kernel_x].
        arguments: all others of ``conv2d`` but ``groups``.
    """
    return conv2d(x, weight, groups=x.shape[-1], **arguments)
