"""Resizes: of planes on windows, and the one that networks of batches are written with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tracenet_kernels import reference
from tracenet_kernels.errors import InputError
from tracenet_kernels.ops.checks import WindowLike, check_plane, checked_size, listed, refuse_gradients
from tracenet_kernels.ops.registration import Family, Results, Size
from tracenet_kernels.triton.planes import DevicePlane, Windows

if TYPE_CHECKING:
    from tracenet_kernels.triton.launch import Launch

RESIZE_MODES = ("nearest", "bilinear", "bilinear_align_corners", "aligned_bilinear")

# One node in a captured graph, so that a tracer can give it one exact backward rule instead of several loose ones.
_library = torch.library.Library("tracenet", "DEF")
_library.define("aligned_bilinear(Tensor x, int factor) -> Tensor")
_library.impl("aligned_bilinear", reference.aligned_bilinear, "CompositeImplicitAutograd")


def aligned_bilinear(x: Tensor, factor: int) -> Tensor:
    """Resize by an integer factor so that corner *pixels* stay aligned (AdelaiDet's convention).

    Output ``i`` of each axis reads the source coordinate ``t = clamp((i - f // 2) / f, 0, n - 1)``
    and interpolates linearly between ``floor(t)`` and ``floor(t) + 1``.

    Args:
        x: ``[N, C, H, W]``, any floating dtype.
        factor: integer ``f >= 1``.

    Returns:
        ``[N, C, f * H, f * W]``, same dtype.

    Raises:
        InputError: ``x`` is not four-dimensional or ``factor`` is not positive.

    Source: CondInst (arXiv 2003.05664), mask head; AdelaiDet's ``aligned_bilinear``.
    """
    if x.ndim != 4:
        raise InputError(f"aligned_bilinear got a tensor of shape {tuple(x.shape)}; pass [N, C, H, W]")
    if factor < 1:
        raise InputError(f"aligned_bilinear got factor {factor}; pass an integer >= 1")
    return torch.ops.tracenet.aligned_bilinear(x, factor)


def resize(
    x: Tensor,
    size: tuple[int, int] | None = None,
    *,
    mode: str,
    ratio: tuple[float, float] | None = None,
    factor: int = 1,
    addend: Tensor | None = None,
    window: WindowLike = None,
) -> Tensor:
    """``resize(x) + addend``, computed in fp32 and rounded once; coordinates are those of the whole plane.

    ==========================  ==================================================================================
    mode                        cells that output i of an axis with n input cells reads
    ==========================  ==================================================================================
    ``nearest``                 ``min(floor(i * ratio), n - 1)``
    ``bilinear``                both neighbours of ``max((i + 0.5) * ratio - 0.5, 0)``, the last cell replicated
    ``bilinear_align_corners``  both neighbours of ``i * ratio``, the last cell replicated
    ``aligned_bilinear``        both neighbours of ``clamp((i - f // 2) / f, 0, n - 1)``, f = ``factor``
    ==========================  ==================================================================================

    Args:
        x: [H, W, C] of fp32, fp16 or bf16; on a CPU also fp64.
        size: rows and columns of the whole result; for ``aligned_bilinear`` f * H and f * W, which is what None means.
        mode: one of :data:`RESIZE_MODES`.
        ratio: input cells per output cell, (y, x). None: ``in / out``, with aligned corners ``(in - 1) / (out - 1)``.
        factor: of ``aligned_bilinear``.
        addend: [*size, C] of the same dtype.
        window: ``(y0, y1, x0, x1)`` on the whole result; None: all of it.

    Returns:
        [y1 - y0, x1 - x0, C], contiguous, of the dtype of ``x``.

    Raises:
        InputError: shapes, dtypes or attributes that do not fit, or an input that requires a gradient.
        WindowError: a window that is not on the result's plane.
        BackendError: CUDA tensors where no Triton kernel can run.
    """
    refuse_gradients("resize", x, addend)
    return torch.ops.tracenet.resize(x, addend, mode, ratio, factor, size, listed(window))


def resize_out(
    out: Tensor,
    x: Tensor,
    *,
    mode: str,
    ratio: tuple[float, float] | None = None,
    factor: int = 1,
    addend: Tensor | None = None,
    window: WindowLike = None,
    table: Tensor | None = None,
    bound: tuple[int, int] | None = None,
) -> None:
    """:func:`resize` in place: writes windows of ``out`` [*size, C] and nothing else of it.

    ``window``, ``table`` and ``bound``: see :func:`tracenet_kernels.ops.conv2d_out`.
    """
    refuse_gradients("resize_out", out, x, addend)
    torch.ops.tracenet.resize_out(out, x, addend, mode, ratio, factor, listed(window), table, bound)


class _Arguments(NamedTuple):
    x: Tensor
    addend: Tensor | None
    mode: str
    ratio: Sequence[float] | None
    factor: int

    def ratio_to(self, size: Size) -> tuple[float, float]:
        """Input cells per output cell."""
        if self.ratio is not None:
            return self.ratio[0], self.ratio[1]
        less = 1 if self.mode == "bilinear_align_corners" else 0
        y, x = ((n - less) / max(1, m - less) for n, m in zip(self.x.shape[:2], size, strict=True))
        return y, x


def _results(a: _Arguments, size: Sequence[int] | None) -> Results:
    check_plane(a.x, "x")
    if a.mode not in RESIZE_MODES:
        raise InputError(f"resize mode {a.mode!r}; choose one of {', '.join(RESIZE_MODES)}")
    if a.ratio is not None and (len(a.ratio) != 2 or not all(0 <= value < math.inf for value in a.ratio)):
        raise InputError(f"resize with ratio {a.ratio}; pass two finite numbers >= 0, (y, x)")
    rows, columns, channels = a.x.shape
    if a.mode == "aligned_bilinear":
        if a.factor < 1:
            raise InputError(f"resize with factor {a.factor}; pass an integer >= 1")
        wanted = (a.factor * rows, a.factor * columns)
        if size is not None and tuple(size) != wanted:
            raise InputError(
                f"aligned bilinear resize by {a.factor} to {tuple(size)}; pass a size of {wanted}, or None"
            )
        cells = wanted
    elif size is None:
        raise InputError(f"resize in mode {a.mode} without a size; pass the result's rows and columns")
    else:
        cells = checked_size("resize", size)
    if a.addend is not None:
        check_plane(a.addend, "addend", a.x)
        if tuple(a.addend.shape) != (*cells, channels):
            raise InputError(f"the addend has shape {tuple(a.addend.shape)}; pass {(*cells, channels)}")
    return Results(cells, (channels,), a.x.dtype)


def _twin(a: _Arguments, size: Size) -> list[Tensor]:
    whole = reference.resize(a.x, size, mode=a.mode, ratio=a.ratio_to(size), factor=a.factor)
    return [whole if a.addend is None else whole + a.addend]


def _launches(a: _Arguments, outs: Sequence[DevicePlane], windows: Windows) -> list[Launch]:
    from tracenet_kernels.triton.resize import resize_launches

    ratio = a.ratio_to(outs[0].plane)
    return resize_launches(a.x, outs[0], windows, mode=a.mode, ratio=ratio, factor=a.factor, addend=a.addend)


Family(
    "resize",
    _Arguments,
    # PyTorch's functionalisation of operations in place has a parameter of its own that is called "mode".
    "Tensor x, Tensor? addend, str resize_mode, float[]? ratio, int factor",
    _results,
    _twin,
    _launches,
).register()
