"""Plain-torch twins of the project's operations: short, slow, and the oracle in tests.

A twin computes the whole plane, [H, W, C] in and out, in the dtype of what it is given (float64 in tests).
"""

from tracenet_kernels.reference.bottleneck import bottleneck_tail
from tracenet_kernels.reference.conv import conv2d, dequantise, quantise
from tracenet_kernels.reference.depthwise import depthwise
from tracenet_kernels.reference.elementwise import add, pixels, sigmoid
from tracenet_kernels.reference.mask_head import mask_head
from tracenet_kernels.reference.plan_windows import plan_windows
from tracenet_kernels.reference.pools import avg_pool2d, max_pool2d
from tracenet_kernels.reference.resizes import aligned_bilinear, resize, resize_taps
from tracenet_kernels.reference.stem import stem, stem_conv

__all__ = [
    "add",
    "aligned_bilinear",
    "avg_pool2d",
    "bottleneck_tail",
    "conv2d",
    "depthwise",
    "dequantise",
    "mask_head",
    "max_pool2d",
    "pixels",
    "plan_windows",
    "quantise",
    "resize",
    "resize_taps",
    "sigmoid",
    "stem",
    "stem_conv",
]
