"""The schedule: what an executor walks, as plain data.

A schedule belongs to one network at one input size, not to a click. Its steps run in order; each computes a window of
one plane from windows of others. Which windows is decided per click, from the same step data, by the backward rules of
the operations (:mod:`tracenet.rft.rules` in Python, ``csrc/runtime`` in C++).

Operations, their ``inputs`` (plane numbers, in this order) and attributes; *window attributes* are
``kernel_y kernel_x stride_y stride_x pad_y pad_x dilation_y dilation_x`` (padding before the first row or column; what
lies past the plane after the last is padding as well):

========================  ==========================  ========================================================
op                        inputs                      attributes
========================  ==========================  ========================================================
``conv2d``                x, [residual]               window attributes, ``groups``, ``activation``,
                                                      ``residual_factor``; floats ``a b``; tensors ``weight``
                                                      [out, in / groups, ky, kx], ``bias``, ``scale`` [out]
``max_pool2d``            x                           window attributes
``avg_pool2d``            x                           window attributes, ``count_include_pad``, ``divisor``
``stem``                  image                       as ``conv2d`` without residual, then ``pool_`` + window
                                                      attributes, ``conv_height``, ``conv_width``
``resize``                x, [addend]                 ``mode`` (:data:`RESIZE_MODES`), ``factor``; floats
                                                      ``ratio_y ratio_x``
``add``                   a, [b]                      ``activation``; floats ``a b``
``sigmoid``               x
``concat``                x, ...                      channels in order
``mask_head``             features, theta, origin,    ``stride``, ``factor`` (0: logits on the features' plane,
                          size_of_interest            f: followed by aligned bilinear upsampling by f)
``convert``               x                           to the dtype of the output's plane
``mul``                   a, b                        ``activation``; floats ``a b``. b is a plane like a, or one
                                                      cell, whose channels multiply every pixel
``plane_mean``            x                           one cell: the mean of each channel over the whole plane
``group_norm``            x                           ``groups``, ``activation``; floats ``epsilon a b``; tensors
                                                      ``scale``, ``bias`` [channels]; statistics of the whole plane
``take_channels``         x                           ``first``: as many channels as the output has, from there
``external``              anything                    run by Python, node by node
========================  ==========================  ========================================================

A ``conv2d`` whose x is a ``uint8`` plane is an 8-bit convolution (``csrc/include/tracenet/conv_int8.hpp``): its weight
is quantised symmetrically, one scale per output channel, when a program is built. It may add and give planes of either
dtype. All other operations but ``convert`` read and give ``float32``, and inputs of the network are ``float32``;
outputs are delivered as real values.

``activation`` is a position in :data:`ACTIVATIONS`; ``a`` and ``b`` are the bounds of a clip, ``a`` is the slope of a
leaky ReLU. A stem has ReLU, and 8-bit convolutions have ReLU or none. A value is what
``csrc/include/tracenet/conv.hpp`` and ``kernels.hpp`` say.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tracenet_kernels.activations import ACTIVATIONS as ACTIVATIONS

OPS = (
    "conv2d",
    "max_pool2d",
    "avg_pool2d",
    "stem",
    "resize",
    "add",
    "sigmoid",
    "concat",
    "mask_head",
    "external",
    "convert",
    "mul",
    "plane_mean",
    "take_channels",
    "group_norm",
)
DTYPES = ("float32", "uint8")
RESIZE_MODES = ("nearest", "bilinear", "bilinear_align_corners", "aligned_bilinear")


@dataclass(frozen=True, slots=True)
class Plane:
    """A node's full output. Flat values, such as mask parameters, are one cell (``height == width == 1``).

    Attributes:
        name: of the graph's node.
        keep: worth keeping between clicks of one image.
        dtype: one of :data:`DTYPES`.
        scale, zero_point: of a ``uint8`` plane, whose integers stand for ``(q - zero_point) * scale``.
    """

    name: str
    channels: int
    height: int
    width: int
    keep: bool = False
    dtype: str = "float32"
    scale: float = 1.0
    zero_point: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel launch.

    Attributes:
        op: one of :data:`OPS`.
        name: of the last graph node it computes.
        inputs, output: plane numbers.
        ints, floats: attributes; see the module's table. Absent ones take the value that means "nothing" (stride,
            dilation, groups, residual_factor, factor of a resize and kernel 1, all others 0; ratios 1).
        tensors: attribute -> name in :attr:`Schedule.tensors`.
        group: neighbouring steps with the same non-zero number do not depend on each other and share their weight; an
            executor may run them as one launch.
        nodes: names of all graph nodes it stands for, in order.
    """

    op: str
    name: str
    inputs: tuple[int, ...]
    output: int
    ints: dict[str, int] = field(default_factory=dict)
    floats: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    group: int = 0
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Schedule:
    """Planes, the steps that compute them in order, and the weights.

    Attributes:
        inputs: plane numbers of the network's inputs, in the order of its arguments.
        outputs: output name -> plane number, for every output of the graph that is computed by a step.
        tensors: name -> fp32 array, C-contiguous, in torch's own layout; steps that share a weight name one array.
    """

    planes: tuple[Plane, ...]
    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: dict[str, int]
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
