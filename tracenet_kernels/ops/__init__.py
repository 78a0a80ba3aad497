"""Public functional operations on tensors, registered with ``torch.library`` under ``tracenet::``.

They can be called, captured and compiled anywhere: CPU tensors take the plain-torch twin of
:mod:`tracenet_kernels.reference`, CUDA tensors the Triton kernels, which are imported at the first call. A plane is a
tensor [rows, columns, channels] with contiguous channels; ``images.movedim(1, -1)[i]`` of a channels_last batch is
one without a copy. :func:`aligned_bilinear` alone is for batches [N, C, H, W], as networks are written.

Every operation has two forms. ``conv2d(x, ...)`` returns a new tensor: the whole result, or ``window`` of it,
``(y0, y1, x0, x1)`` on the result's plane; the inputs are whole planes either way, so a window's border is that of the
plane. ``conv2d_out(out, x, ...)`` writes windows of the plane ``out`` in place and nothing else of it. It also takes a
table of windows, int32 [n, 4] on the device, so that windows which only the device knows need no synchronisation; its
rows must lie on the plane, and an empty row is skipped. Nothing but the CPU can check that.

A call crosses the dispatcher, checks its arguments and builds its launches: about a hundred microseconds, which a
network of a hundred steps at batch 1 cannot afford. Executors call ``<family>_launches`` of
:mod:`tracenet_kernels.triton` once and only run what they got; these operations are for users and ``torch.compile``.

A twin computes the whole plane even for a window. What computes windows fast on a CPU is
:mod:`tracenet_kernels.windowed` and :mod:`tracenet_kernels.window_ops`, on arrays.

There are no gradients but that of :func:`aligned_bilinear`: an input that requires one is an error where gradients are
recorded.
"""

from tracenet_kernels.ops.bottleneck import bottleneck_tail, bottleneck_tail_out
from tracenet_kernels.ops.conv import conv2d, conv2d_out
from tracenet_kernels.ops.mask_head import mask_head, mask_head_out
from tracenet_kernels.ops.planning import plan_windows
from tracenet_kernels.ops.pools import avg_pool2d, avg_pool2d_out, max_pool2d, max_pool2d_out
from tracenet_kernels.ops.resizes import aligned_bilinear, resize, resize_out
from tracenet_kernels.ops.stem import stem, stem_out

__all__ = [
    "aligned_bilinear",
    "avg_pool2d",
    "avg_pool2d_out",
    "bottleneck_tail",
    "bottleneck_tail_out",
    "conv2d",
    "conv2d_out",
    "mask_head",
    "mask_head_out",
    "max_pool2d",
    "max_pool2d_out",
    "plan_windows",
    "resize",
    "resize_out",
    "stem",
    "stem_out",
]
