"""Packed weights, kept beside the tensors they were made from.

Packing takes milliseconds and a copy through the host, so an operation packs a weight once: until the tensor is
modified in place, moved or dropped. Writes that autograd's version counter does not see, such as those through
``weight.data``, are not noticed; inference tensors have no such counter and are packed at every call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from tracenet_kernels.triton.weights import DeviceWeight

_Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]


class _Packs:
    """All packs of one tensor, while it is in one state."""

    def __init__(self, state: tuple[int, int]) -> None:
        self.state = state
        self.found: dict[_Geometry, DeviceWeight] = {}


_packs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def packed(
    weight: Tensor,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> DeviceWeight:
    """``weight`` [out, in / groups, kernel_y, kernel_x] as the kernels read it, in its own dtype and on its device."""
    geometry = stride, padding, dilation, groups
    if weight.is_inference():
        return _pack(weight, geometry)
    state = weight._version, weight.data_ptr()
    packs = _packs.get(weight)
    if packs is None or packs.state != state:
        packs = _packs[weight] = _Packs(state)
    if geometry not in packs.found:
        packs.found[geometry] = _pack(weight, geometry)
    return packs.found[geometry]


# Outside inference mode, so that packs can be kept by whoever looks at their versions.
@torch.inference_mode(False)
@torch.no_grad()
def _pack(weight: Tensor, geometry: _Geometry) -> DeviceWeight:
    from tracenet_kernels.triton.weights import pack_weight

    stride, padding, dilation, groups = geometry
    return pack_weight(
        weight,
        dtype=weight.dtype,
        device=weight.device,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
