"""Twin of the fused tail of a bottleneck block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bottleneck_tail(
    x: Tensor,
    mid: Tensor,
    expand: Tensor,
    residual: Tensor,
    following: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    mid_affine: tuple[Tensor | None, Tensor | None] = (None, None),
    expand_affine: tuple[Tensor | None, Tensor | None] = (None, None),
    following_affine: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor | None]:
    """``y = relu(expand(relu(mid(x))) + residual)`` and ``relu(following(y))``.

    Args:
        x, residual: [rows, columns, channels].
        mid, expand, following: [out, in, ky, kx]: 3x3 with padding 1, 1x1, 1x1.
        stride: of ``mid``.
        mid_affine, expand_affine, following_affine: (scale, bias) of each convolution, [out] or None.
    """
    t = F.relu(_affine(F.conv2d(x.movedim(-1, 0)[None], mid, None, stride, 1), mid_affine))
    y = F.relu(_affine(F.conv2d(t, expand), expand_affine) + residual.movedim(-1, 0))
    z = None if following is None else F.relu(_affine(F.conv2d(y, following), following_affine))[0].movedim(0, -1)
    return y[0].movedim(0, -1), z


def _affine(values: Tensor, affine: tuple[Tensor | None, Tensor | None]) -> Tensor:
    scale, bias = affine
    values = values if scale is None else values * scale.to(values.dtype).view(-1, 1, 1)
    return values if bias is None else values + bias.to(values.dtype).view(-1, 1, 1)
