"""Twin of the stem."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tracenet_kernels.reference.pools import max_pool2d

Pair = tuple[int, int]


def stem_conv(
    image: Tensor,
    weight: Tensor,
    size: Pair,
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "relu",
) -> Tensor:
    """Normalised image [H, W, 3] -> [*size, out]: ``act(conv * scale + bias)``; 0 off the image."""
    amounts: list[int] = []
    for axis in (1, 0):
        reach = (size[axis] - 1) * stride[axis] - padding[axis] + dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        amounts += [padding[axis], reach - image.shape[axis]]
    batch = F.pad(image.movedim(-1, 0)[None], amounts)
    y = F.conv2d(batch, weight.to(image.dtype), None, stride, 0, dilation)[0].movedim(0, -1)
    if scale is not None:
        y = y * scale
    if bias is not None:
        y = y + bias
    return y.relu() if activation == "relu" else y


def stem(
    image: Tensor,
    weight: Tensor,
    size: Pair,
    conv_size: Pair,
    *,
    pool_kernel: Pair = (3, 3),
    pool_stride: Pair = (2, 2),
    pool_padding: Pair = (1, 1),
    **attributes: object,
) -> Tensor:
    """:func:`stem_conv`, then maximum pooling over cells on its plane."""
    y = stem_conv(image, weight, conv_size, **attributes)  # type: ignore[arg-type]
    return max_pool2d(y, size, kernel=pool_kernel, stride=pool_stride, padding=pool_padding)
