"""Convolution weights as the Triton kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tracenet_kernels.errors import InputError

PADDING = 16
"""Input channels of a group are padded with zeros to a multiple of this: whole tensor-core and 16-byte accesses."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn)
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}

Pair = int | tuple[int, int]


def as_pair(value: Pair) -> tuple[int, int]:
    """``(y, x)``; one number stands for both."""
    return value if isinstance(value, tuple) else (value, value)


@dataclass(frozen=True, slots=True)
class DeviceWeight:
    """A packed weight and the geometry of its convolution.

    Attributes:
        tensor: [out, kernel_y * kernel_x, padded input channels of a group], contiguous.
        in_channels, groups: of the input; channels of a group are ``in_channels / groups``.
        kernel, stride, padding, dilation: (y, x); padding before the first row and column.
        scales: fp32 [out] of an int8 or fp8 weight, which stands for ``tensor * scales``; else None.
        sums: int32 [out], the sum of all integers of an int8 output channel; else None.
    """

    tensor: Tensor
    in_channels: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    scales: Tensor | None = None
    sums: Tensor | None = None

    @property
    def out_channels(self) -> int:
        return self.tensor.shape[0]

    @property
    def group_channels(self) -> int:
        """Input channels of one group, without padding."""
        return self.in_channels // self.groups

    @property
    def taps(self) -> int:
        return self.tensor.shape[1]


def pack_weight(
    weight: Tensor,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> DeviceWeight:
    """Pack ``weight`` [out, in / groups, kernel_y, kernel_x] for the kernels.

    int8 and fp8 weights are quantised symmetrically, one scale per output channel: ``scale = max|w| / largest``.

    Raises:
        InputError: not such a tensor, a dtype that is not in :data:`DTYPES`, a geometry that is no convolution.
    """
    if weight.ndim != 4 or 0 in weight.shape:
        raise InputError(f"the weight has shape {tuple(weight.shape)}; pass [out, in / groups, kernel_y, kernel_x]")
    if dtype not in DTYPES:
        raise InputError(f"weights of {dtype} have no kernel; choose one of {', '.join(map(str, DTYPES))}")
    out, group_channels, ky, kx = weight.shape
    if groups < 1 or out % groups:
        raise InputError(f"{out} output channels do not divide into {groups} groups")
    pairs = as_pair(stride), as_pair(padding), as_pair(dilation)
    if min(pairs[0]) < 1 or min(pairs[1]) < 0 or min(pairs[2]) < 1:
        raise InputError(f"stride {stride}, padding {padding}, dilation {dilation}; strides and dilations are >= 1")
    rows = weight.detach().float().permute(0, 2, 3, 1).reshape(out, ky * kx, group_channels)
    scales = sums = None
    if dtype in _LARGEST:
        largest = rows.abs().amax((1, 2))
        scales = torch.where(largest > 0, largest / _LARGEST[dtype], torch.ones_like(largest))
        rows = rows / scales.view(-1, 1, 1)
        if dtype == torch.int8:
            rows = rows.round().clamp(-127, 127)
            sums = rows.sum((1, 2)).to(torch.int32).to(device)
        scales = scales.to(device)
    padded = torch.zeros(out, ky * kx, -(-group_channels // PADDING) * PADDING)
    padded[..., :group_channels] = rows.cpu()
    packed = padded.to(dtype).to(device)
    return DeviceWeight(packed, group_channels * groups, groups, (ky, kx), *pairs, scales, sums)
