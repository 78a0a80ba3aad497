"""Tensor descriptors: how the tensor memory accelerator of sm_90 and newer reads planes and weights.

A descriptor holds base, sizes and strides; a kernel names the coordinates of a box and gets zeros for what lies
outside. So the border of a plane needs no mask, negative coordinates included.
"""

from __future__ import annotations

import torch
from triton.runtime.jit import mangle_type
from triton.tools.tensor_descriptor import TensorDescriptor

from tracenet_kernels.triton.planes import DevicePlane
from tracenet_kernels.triton.weights import DeviceWeight

MIN_CAPABILITY = (9, 0)
ALIGNMENT = 16
"""Bytes that base and strides are multiples of."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def why_not_plane(plane: DevicePlane, stride: tuple[int, int]) -> str:
    """Why a descriptor cannot read ``plane`` for a convolution of ``stride``, as a clause; empty where it can."""
    size, tensor = plane.tensor.element_size(), plane.tensor
    if plane.dtype not in DTYPES:
        return f"planes of {plane.dtype} have no kernel"
    if stride not in ((1, 1), (2, 2)):
        return f"stride {stride} is neither (1, 1) nor (2, 2)"
    if tensor.data_ptr() % ALIGNMENT or plane.row_stride * size % ALIGNMENT or plane.pixel_stride * size % ALIGNMENT:
        return (
            f"base and strides must be multiples of {ALIGNMENT} bytes, pixels are {plane.pixel_stride * size} bytes "
            f"apart, rows {plane.row_stride * size}"
        )
    if stride == (2, 2) and (tensor.shape[0] % 2 or tensor.shape[1] % 2):
        return f"stride 2 needs an even number of rows and columns in memory, here are {tuple(tensor.shape[:2])}"
    if tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) < MIN_CAPABILITY:
        return (
            f"the device has compute capability {torch.cuda.get_device_capability(tensor.device)}, not {MIN_CAPABILITY}"
        )
    return ""


def plane_descriptor(plane: DevicePlane, stride: int, rows: int, columns: int, channels: int) -> TensorDescriptor:
    """Boxes of ``rows`` x ``columns`` cells x ``channels`` of what a plane holds, every ``stride``-th cell.

    For stride 1 the coordinates are (row, column, channel) of the tensor. For stride 2 the tensor is seen as
    [rows / 2, 2, columns / 2, 2, channels], and the box holds cells of one parity.
    """
    tensor = plane.tensor
    height, width, depth = tensor.shape
    row, pixel = plane.row_stride, plane.pixel_stride
    if stride == 1:
        return TensorDescriptor(tensor, [height, width, depth], [row, pixel, 1], [rows, columns, channels])
    return TensorDescriptor(
        tensor,
        [height // 2, 2, width // 2, 2, depth],
        [2 * row, row, 2 * pixel, pixel, 1],
        [rows, 1, columns, 1, channels],
    )


def weight_descriptor(weight: DeviceWeight, outputs: int, channels: int) -> TensorDescriptor:
    """Boxes of ``outputs`` rows x ``channels`` of a packed weight, seen as [out, taps * padded channels]."""
    rows = weight.tensor.flatten(1)
    return TensorDescriptor(rows, list(rows.shape), [rows.shape[1], 1], [outputs, channels])


def descriptor_signature(descriptor: TensorDescriptor) -> str:
    """The type of a kernel's argument, as ``triton.compile`` wants it: ``tensordesc<fp16[4, 8, 64]>``."""
    return str(mangle_type(descriptor))
