"""8-bit steps in torch: the same bits as ``csrc/include/tracenet/conv_int8.hpp``, by way of float64 sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tracenet.engine.reference_windows import padded, window_of
from tracenet.engine.schedule import ACTIVATIONS, Plane, Step
from tracenet_kernels.windowed_int8 import quantise_weight


def run_int8_step(
    step: Step, x: Sequence[Tensor], sources: Sequence[Plane], weights: dict[str, Tensor], plane: Plane
) -> Tensor:
    """A ``conv2d`` or ``convert`` step that reads or gives a uint8 plane.

    Args:
        x: values of the planes ``sources`` that it reads, ``[1, C, H, W]`` in their dtypes.
        weights: attribute -> fp32 tensor.
        plane: that it gives.
    """
    if step.op == "convert":
        y = dequantised(x[0], sources[0])
    else:
        y = _conv2d(step, x, sources, weights, plane)
    return y if plane.dtype == "float32" else quantised(y, plane)


def quantised(y: Tensor, plane: Plane) -> Tensor:
    """``clamp(round_half_even(y / scale) + zero_point, 0, 255)``, the quotient as a product in fp32."""
    inverse = torch.tensor(1.0) / torch.tensor(plane.scale, dtype=torch.float32)
    steps = (y * inverse).clamp(-plane.zero_point, 255 - plane.zero_point).round()
    return (steps + plane.zero_point).to(torch.uint8)


def dequantised(q: Tensor, plane: Plane) -> Tensor:
    """``(q - zero_point) * scale``; values of an fp32 plane as they are."""
    if plane.dtype == "float32":
        return q
    return (q.float() - plane.zero_point) * torch.tensor(plane.scale, dtype=torch.float32)


def _conv2d(
    step: Step, x: Sequence[Tensor], sources: Sequence[Plane], weights: dict[str, Tensor], plane: Plane
) -> Tensor:
    window = window_of(step)
    values, scale = map(torch.from_numpy, quantise_weight(weights["weight"].numpy()))
    centred = padded(x[0].double() - sources[0].zero_point, window, plane.height, plane.width, 0.0)
    sums = F.conv2d(centred, values.double(), None, window[1], 0, window[3], step.ints.get("groups", 1))
    multiplier = torch.tensor(sources[0].scale, dtype=torch.float32) * scale
    if "scale" in weights:
        multiplier = multiplier * weights["scale"]
    y = sums.float() * multiplier.view(-1, 1, 1)
    if "bias" in weights:
        y = y + weights["bias"].view(-1, 1, 1)
    if len(x) > 1:
        factor = step.ints.get("residual_factor", 1)
        residual = dequantised(x[1], sources[1]).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        y = y + residual[..., : plane.height, : plane.width]
    return F.relu(y) if ACTIVATIONS[step.ints.get("activation", 0)] == "relu" else y
