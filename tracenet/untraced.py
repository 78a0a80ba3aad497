"""The untraced network in PyTorch, with arrays in and out: what traced clicks are compared with and scored by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tracenet.conventions import SIZES_OF_INTEREST
from tracenet.inference import Floats, as_logits, mask_origin
from tracenet.models import TraceNet
from tracenet_kernels.errors import InputError


@torch.inference_mode()
def planes_of(model: TraceNet, image: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """All outputs of the whole network for an input ``[1, 3, H, W]``, as :class:`TraceNet` returns them."""
    return {name: plane.numpy() for name, plane in model(torch.from_numpy(image)).items()}


@torch.inference_mode()
def half_logits(model: TraceNet, features: Floats, theta: Floats, clicks: Floats, level: int) -> Floats:
    """Mask logits ``[N, h/2, w/2]`` of the padded working image for filters predicted at one level.

    Args:
        model: gives the mask head and the conventions.
        features: ``maskfeat`` ``[1, 8, h/8, w/8]``.
        theta: ``[N, 169]``.
        clicks: ``[N, 2]`` (x, y) on the working image.
        level: the level that predicted ``theta``.
    """
    if model.mask_head is None:
        raise InputError("the model has mask_branch='none'; it predicts no masks")
    origin = mask_origin(clicks, level, model.config.rel_to)
    size = torch.full((len(theta),), SIZES_OF_INTEREST[level])
    low = model.mask_head(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (features, theta, origin)), size)
    return as_logits(model.upsample_mask(low)[:, 0].numpy(), model.config)
