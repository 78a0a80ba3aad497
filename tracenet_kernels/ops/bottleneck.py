"""The fused tail of a bottleneck block, on windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tracenet_kernels import reference
from tracenet_kernels.errors import InputError
from tracenet_kernels.ops.checks import (
    Pair,
    WindowLike,
    check_plane,
    check_vector,
    check_weight,
    listed,
    pair,
    refuse_gradients,
    sliding_size,
)
from tracenet_kernels.ops.packing import packed
from tracenet_kernels.ops.registration import Family, Results, Size
from tracenet_kernels.triton.planes import DevicePlane, Windows

if TYPE_CHECKING:
    from tracenet_kernels.triton.launch import Launch

Affine = tuple[Tensor | None, Tensor | None]
"""Scale and bias of a convolution, fp32 [out] or None: 1 and 0."""


def bottleneck_tail(
    x: Tensor,
    residual: Tensor,
    mid: Tensor,
    expand: Tensor,
    following: Tensor | None = None,
    *,
    stride: Pair = 1,
    mid_affine: Affine = (None, None),
    expand_affine: Affine = (None, None),
    following_affine: Affine = (None, None),
    window: WindowLike = None,
) -> tuple[Tensor, Tensor | None]:
    """A block's 3x3 and last 1x1, and the first 1x1 of the block that follows, without storing the 3x3's plane.

    ``t = relu(s * mid(x) + b)``, ``y = relu(s * expand(t) + b + residual)``, ``z = relu(s * following(y) + b)``

    Args:
        x: [H, W, in] of fp32, fp16 or bf16; on a CPU also fp64.
        residual: [H', W', out] of the same dtype, ``H' = (H - 1) // stride + 1``: the result's plane.
        mid, expand, following: [M, in, 3, 3] with padding 1, [out, M, 1, 1], [Z, out, 1, 1], of the same dtype.
        stride: of ``mid``; a number, or (y, x).
        mid_affine, expand_affine, following_affine: (scale, bias) of each, fp32 or None.
        window: ``(y0, y1, x0, x1)`` on the result's plane; None: all of it.

    Returns:
        ``y`` [y1 - y0, x1 - x0, out] and ``z`` [y1 - y0, x1 - x0, Z], the latter None without ``following``.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, an input that requires a gradient, or on a GPU more
            channels than one kernel keeps on chip: run :func:`tracenet_kernels.ops.conv2d` for each instead.
        WindowError: a window that is not on the result's plane.
        BackendError: CUDA tensors where no Triton kernel can run.
    """
    affine = (*mid_affine, *expand_affine, *following_affine)
    refuse_gradients("bottleneck_tail", x, residual, mid, expand, following, *affine)
    planes = torch.ops.tracenet.bottleneck_tail(
        x, residual, mid, expand, following, pair(stride), *affine, None, listed(window)
    )
    return planes[0], (None if following is None else planes[1])


def bottleneck_tail_out(
    out: Tensor,
    following_out: Tensor | None,
    x: Tensor,
    residual: Tensor,
    mid: Tensor,
    expand: Tensor,
    following: Tensor | None = None,
    *,
    stride: Pair = 1,
    mid_affine: Affine = (None, None),
    expand_affine: Affine = (None, None),
    following_affine: Affine = (None, None),
    window: WindowLike = None,
    table: Tensor | None = None,
    bound: tuple[int, int] | None = None,
) -> None:
    """:func:`bottleneck_tail` in place: writes windows of ``out`` and ``following_out``, and nothing else of them.

    Both have the dtype of ``x``, lie on one plane and share memory with nothing that is read; the latter is None
    without ``following``. ``window``, ``table`` and ``bound``: see :func:`tracenet_kernels.ops.conv2d_out`.
    """
    affine = (*mid_affine, *expand_affine, *following_affine)
    refuse_gradients("bottleneck_tail_out", out, following_out, x, residual, mid, expand, following, *affine)
    outs = [out] if following_out is None else [out, following_out]
    torch.ops.tracenet.bottleneck_tail_out(
        outs, x, residual, mid, expand, following, pair(stride), *affine, listed(window), table, bound
    )


class _Arguments(NamedTuple):
    x: Tensor
    residual: Tensor
    mid: Tensor
    expand: Tensor
    following: Tensor | None
    stride: Sequence[int]
    mid_scale: Tensor | None
    mid_bias: Tensor | None
    expand_scale: Tensor | None
    expand_bias: Tensor | None
    following_scale: Tensor | None
    following_bias: Tensor | None


def _results(a: _Arguments, size: Sequence[int] | None) -> Results:
    check_plane(a.x, "x")
    check_weight(a.mid, "mid", a.x, a.x.shape[2])
    check_weight(a.expand, "expand", a.x, a.mid.shape[0])
    channels = [a.expand.shape[0]]
    kernels = [tuple(a.mid.shape[2:]), tuple(a.expand.shape[2:])]
    vectors = [(a.mid_scale, a.mid_bias, a.mid.shape[0]), (a.expand_scale, a.expand_bias, channels[0])]
    if a.following is not None:
        check_weight(a.following, "following", a.x, channels[0])
        channels.append(a.following.shape[0])
        kernels.append(tuple(a.following.shape[2:]))
        vectors.append((a.following_scale, a.following_bias, channels[1]))
    elif a.following_scale is not None or a.following_bias is not None:
        raise InputError("following_affine is given without following; pass both or neither")
    if kernels != [(3, 3), (1, 1), (1, 1)][: len(kernels)]:
        raise InputError(f"mid, expand and following have kernels {kernels}; pass (3, 3), (1, 1) and (1, 1)")
    for name, (scale, bias, length) in zip(("mid", "expand", "following"), vectors, strict=False):
        check_vector(scale, f"the scale of {name}", a.x, length)
        check_vector(bias, f"the bias of {name}", a.x, length)
    cells = sliding_size("bottleneck_tail", a.x.shape[:2], (3, 3), a.stride, (1, 1), (1, 1), None)
    if size is not None and tuple(size) != cells:
        raise InputError(f"the outputs have {tuple(size)} cells; pass planes of {cells}")
    check_plane(a.residual, "residual", a.x)
    if tuple(a.residual.shape) != (*cells, channels[0]):
        raise InputError(f"the residual has shape {tuple(a.residual.shape)}; pass {(*cells, channels[0])}")
    return Results(cells, tuple(channels), a.x.dtype)


def _twin(a: _Arguments, size: Size) -> list[Tensor]:
    y, z = reference.bottleneck_tail(
        a.x,
        a.mid,
        a.expand,
        a.residual,
        a.following,
        stride=(a.stride[0], a.stride[1]),
        mid_affine=(a.mid_scale, a.mid_bias),
        expand_affine=(a.expand_scale, a.expand_bias),
        following_affine=(a.following_scale, a.following_bias),
    )
    return [y] if z is None else [y, z]


def _launches(a: _Arguments, outs: Sequence[DevicePlane], windows: Windows) -> list[Launch]:
    from tracenet_kernels.triton.bottleneck_tail import bottleneck_tail_launches

    return bottleneck_tail_launches(
        a.x,
        packed(a.mid, stride=(a.stride[0], a.stride[1]), padding=(1, 1)),
        packed(a.expand),
        None if a.following is None else packed(a.following),
        residual=a.residual,
        block_out=outs[0],
        next_out=outs[1] if len(outs) > 1 else None,
        windows=windows,
        mid_scale=a.mid_scale,
        mid_bias=a.mid_bias,
        expand_scale=a.expand_scale,
        expand_bias=a.expand_bias,
        next_scale=a.following_scale,
        next_bias=a.following_bias,
    )


Family(
    "bottleneck_tail",
    _Arguments,
    "Tensor x, Tensor residual, Tensor mid, Tensor expand, Tensor? following, int[] stride, Tensor? mid_scale, "
    "Tensor? mid_bias, Tensor? expand_scale, Tensor? expand_bias, Tensor? following_scale, Tensor? following_bias",
    _results,
    _twin,
    _launches,
    several=True,
).register()
