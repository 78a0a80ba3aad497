"""Public functional operations, registered with ``torch.library`` under ``tracenet::``.

An operation registered here stays one node in a captured graph, so a tracer can give it one exact
backward rule instead of composing several loose ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracenet_kernels import reference
from tracenet_kernels.errors import InputError

_library = torch.library.Library("tracenet", "DEF")
_library.define("aligned_bilinear(Tensor x, int factor) -> Tensor")
_library.impl("aligned_bilinear", reference.aligned_bilinear, "CompositeImplicitAutograd")


def aligned_bilinear(x: Tensor, factor: int) -> Tensor:
    """Resize by an integer factor so that corner *pixels* stay aligned (AdelaiDet's convention).

    Output ``i`` of each axis reads the source coordinate ``t = clamp((i - f // 2) / f, 0, n - 1)``
    and interpolates linearly between ``floor(t)`` and ``floor(t) + 1``.

    Args:
        x: ``[N, C, H, W]``, any floating dtype.
        factor: integer ``f >= 1``.

    Returns:
        ``[N, C, f * H, f * W]``, same dtype.

    Raises:
        InputError: ``x`` is not four-dimensional or ``factor`` is not positive.

    Source: CondInst (arXiv 2003.05664), mask head; AdelaiDet's ``aligned_bilinear``.
    """
    if x.ndim != 4:
        raise InputError(f"aligned_bilinear got a tensor of shape {tuple(x.shape)}; pass [N, C, H, W]")
    if factor < 1:
        raise InputError(f"aligned_bilinear got factor {factor}; pass an integer >= 1")
    return torch.ops.tracenet.aligned_bilinear(x, factor)
