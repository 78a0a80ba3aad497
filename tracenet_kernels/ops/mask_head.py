"""The dynamic mask head, on windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tracenet_kernels import reference
from tracenet_kernels.errors import InputError
from tracenet_kernels.ops.checks import WindowLike, check_plane, check_vector, listed, refuse_gradients
from tracenet_kernels.ops.registration import Family, Results, Size
from tracenet_kernels.triton.planes import DevicePlane, Windows

if TYPE_CHECKING:
    from tracenet_kernels.triton.launch import Launch

FEATURES = 8
THETA = 169


def mask_head(
    features: Tensor,
    theta: Tensor,
    origin: Tensor,
    size_of_interest: Tensor,
    *,
    stride: int = 8,
    factor: int = 0,
    sigmoid: bool = False,
    window: WindowLike = None,
) -> Tensor:
    """Three dynamic 1x1 layers 10 -> 8 -> 8 -> 1, ReLU after the first two, and upsampling, in one pass.

    The input of cell (y, x) is ``[(origin_x - px) / soi, (origin_y - py) / soi, 8 features]`` with
    ``p = stride * i + stride // 2``; what it gives are logits. ``factor`` f > 0 resizes them as
    :func:`tracenet_kernels.ops.aligned_bilinear` does. Computed in fp32 and rounded once.

    Args:
        features: [h, w, 8] of fp32, fp16 or bf16; on a CPU also fp64.
        theta: fp32 [169]: weights (80, 64, 8; each row-major out, in), then biases (8, 8, 1).
        origin: fp32 [2]: (x, y) in input pixels.
        size_of_interest: fp32 [1]: the ``soi`` of the level that predicted ``theta``.
        stride: input pixels per cell.
        factor: 0 for values on the features' plane; else that many times as many cells on both axes.
        sigmoid: of the (upsampled) logits.
        window: ``(y0, y1, x0, x1)`` on the whole result; None: all of it.

    Returns:
        [y1 - y0, x1 - x0, 1], contiguous, of the features' dtype.

    Raises:
        InputError: shapes, dtypes, devices or attributes that do not fit, or an input that requires a gradient.
        WindowError: a window that is not on the result's plane.
        BackendError: CUDA tensors where no Triton kernel can run.

    Source: CondInst (arXiv 2003.05664).
    """
    refuse_gradients("mask_head", features, theta, origin, size_of_interest)
    return torch.ops.tracenet.mask_head(
        features, theta, origin, size_of_interest, stride, factor, sigmoid, None, listed(window)
    )


def mask_head_out(
    out: Tensor,
    features: Tensor,
    theta: Tensor,
    origin: Tensor,
    size_of_interest: Tensor,
    *,
    stride: int = 8,
    factor: int = 0,
    sigmoid: bool = False,
    window: WindowLike = None,
    table: Tensor | None = None,
    bound: tuple[int, int] | None = None,
) -> None:
    """:func:`mask_head` in place: writes windows of ``out``, [h, w, 1] or ``factor`` times that, and nothing else.

    ``window``, ``table`` and ``bound``: see :func:`tracenet_kernels.ops.conv2d_out`.
    """
    refuse_gradients("mask_head_out", out, features, theta, origin, size_of_interest)
    torch.ops.tracenet.mask_head_out(
        out, features, theta, origin, size_of_interest, stride, factor, sigmoid, listed(window), table, bound
    )


class _Arguments(NamedTuple):
    features: Tensor
    theta: Tensor
    origin: Tensor
    size_of_interest: Tensor
    stride: int
    factor: int
    sigmoid: bool


def _results(a: _Arguments, size: Sequence[int] | None) -> Results:
    check_plane(a.features, "features")
    rows, columns, channels = a.features.shape
    if channels != FEATURES:
        raise InputError(f"features have {channels} channels; pass {FEATURES}")
    check_vector(a.theta, "theta", a.features, THETA)
    check_vector(a.origin, "origin", a.features, 2)
    check_vector(a.size_of_interest, "size_of_interest", a.features, 1)
    if a.stride < 1 or a.factor < 0:
        raise InputError(f"mask_head with stride {a.stride}, factor {a.factor}; pass a stride >= 1 and a factor >= 0")
    times = max(1, a.factor)
    cells = (times * rows, times * columns)
    if size is not None and tuple(size) != cells:
        raise InputError(f"the result has {tuple(size)} cells; for factor {a.factor} pass {cells}")
    return Results(cells, (1,), a.features.dtype)


def _twin(a: _Arguments, size: Size) -> list[Tensor]:
    x, y = a.origin.tolist()
    whole = reference.mask_head(
        a.features, a.theta, (x, y), a.size_of_interest.item(), stride=a.stride, factor=a.factor, sigmoid=a.sigmoid
    )
    return [whole]


def _launches(a: _Arguments, outs: Sequence[DevicePlane], windows: Windows) -> list[Launch]:
    from tracenet_kernels.triton.mask_head import mask_head_launches

    return mask_head_launches(
        a.features,
        a.theta,
        a.origin,
        a.size_of_interest,
        outs[0],
        windows,
        stride=a.stride,
        factor=a.factor,
        sigmoid=a.sigmoid,
    )


Family(
    "mask_head",
    _Arguments,
    "Tensor features, Tensor theta, Tensor origin, Tensor size_of_interest, int stride, int factor, bool sigmoid",
    _results,
    _twin,
    _launches,
).register()
