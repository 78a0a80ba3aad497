"""Convolution with its epilogue, on windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tracenet_kernels import reference
from tracenet_kernels.errors import InputError
from tracenet_kernels.ops.checks import (
    Pair,
    WindowLike,
    check_activation,
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

PRECISIONS = ("ieee", "tf32", "tf32x3")


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    residual_factor: int = 1,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    activation: str = "none",
    precision: str = "ieee",
    size: tuple[int, int] | None = None,
    window: WindowLike = None,
) -> Tensor:
    """``act(scale * conv(x) + bias + residual)`` in one pass; products are summed in fp32 and rounded once.

    ``conv(x)[i, j, o] = sum over k_y, k_x, c of x[i * s - p + d * k_y, j * s - p + d * k_x, c] * w[o, c, k_y, k_x]``
    with zeros off the plane. ``groups`` as many as there are channels is a depthwise convolution.

    Args:
        x: [H, W, C] of fp32, fp16 or bf16; on a CPU also fp64.
        weight: [out, C / groups, kernel_y, kernel_x] of the same dtype, in torch's layout. On a GPU it is packed at
            the first call and again after it is modified in place (not through ``weight.data``).
        bias, scale: fp32 [out].
        residual: [ceil(H_out / f), ceil(W_out / f), out] of the same dtype; its cell (i // f, j // f) is added,
            f = ``residual_factor``.
        stride, padding, dilation: a number, or (y, x); padding before the first row and column.
        activation: ``none`` or ``relu``.
        precision: of fp32 products on a GPU: ``ieee``, or on tensor cores ``tf32`` (10 bits) or ``tf32x3``.
        size: rows and columns of the whole result; what lies past ``x`` after its last cell is zero as well. None:
            ``(n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1``.
        window: ``(y0, y1, x0, x1)`` on the whole result; None: all of it.

    Returns:
        [y1 - y0, x1 - x0, out], contiguous, of the dtype of ``x``.

    Raises:
        InputError: shapes, dtypes, devices or attributes that do not fit, or an input that requires a gradient.
        WindowError: a window that is not on the result's plane.
        BackendError: CUDA tensors where no Triton kernel can run.
    """
    refuse_gradients("conv2d", x, weight, bias, scale, residual)
    return torch.ops.tracenet.conv2d(
        x,
        weight,
        bias,
        scale,
        residual,
        residual_factor,
        pair(stride),
        pair(padding),
        pair(dilation),
        groups,
        activation,
        precision,
        size,
        listed(window),
    )


def conv2d_out(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    residual_factor: int = 1,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    activation: str = "none",
    precision: str = "ieee",
    window: WindowLike = None,
    table: Tensor | None = None,
    bound: tuple[int, int] | None = None,
) -> None:
    """:func:`conv2d` in place: writes windows of ``out`` and nothing else of it.

    Args:
        out: [H_out, W_out, out], the whole result's plane, of a real dtype; shares no memory with ``x``.
        window: ``(y0, y1, x0, x1)`` of ``out``; None: all of it, or those of ``table``.
        table: int32 [n, 4] on the device: y0, y1, x0, x1 per row, each on ``out``.
        bound: rows and columns that no window of ``table`` exceeds: it sizes the launch. None: those of ``out``.

    All else, and what is raised: see :func:`conv2d`.
    """
    refuse_gradients("conv2d_out", out, x, weight, bias, scale, residual)
    torch.ops.tracenet.conv2d_out(
        out,
        x,
        weight,
        bias,
        scale,
        residual,
        residual_factor,
        pair(stride),
        pair(padding),
        pair(dilation),
        groups,
        activation,
        precision,
        listed(window),
        table,
        bound,
    )


class _Arguments(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    residual: Tensor | None
    residual_factor: int
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    activation: str
    precision: str

    @property
    def geometry(self) -> dict[str, Any]:
        pairs = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return {name: (value[0], value[1]) for name, value in pairs.items()} | {"groups": self.groups}

    @property
    def epilogue(self) -> dict[str, Any]:
        names = ("scale", "bias", "residual", "residual_factor", "activation")
        return {name: getattr(self, name) for name in names}


def _results(a: _Arguments, size: Sequence[int] | None) -> Results:
    check_plane(a.x, "x")
    check_weight(a.weight, "weight", a.x, a.x.shape[2], a.groups)
    out = a.weight.shape[0]
    check_vector(a.bias, "bias", a.x, out)
    check_vector(a.scale, "scale", a.x, out)
    check_activation(a.activation)
    if a.precision not in PRECISIONS:
        raise InputError(f"precision {a.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    cells = sliding_size("conv2d", a.x.shape[:2], a.weight.shape[2:], a.stride, a.padding, a.dilation, size)
    if a.residual is not None:
        check_plane(a.residual, "residual", a.x)
        f = a.residual_factor
        if f < 1:
            raise InputError(f"residual_factor is {f}; pass an integer >= 1")
        wanted = (-(-cells[0] // f), -(-cells[1] // f), out)
        if tuple(a.residual.shape) != wanted:
            raise InputError(f"the residual has shape {tuple(a.residual.shape)}; for factor {f} pass {wanted}")
    return Results(cells, (out,), a.x.dtype)


def _twin(a: _Arguments, size: Size) -> list[Tensor]:
    return [reference.conv2d(a.x, a.weight, plane=size, **a.geometry, **a.epilogue)]


def _launches(a: _Arguments, outs: Sequence[DevicePlane], windows: Windows) -> list[Launch]:
    from tracenet_kernels.triton.conv2d import conv2d_launches
    from tracenet_kernels.triton.depthwise import depthwise_launches

    pack = packed(a.weight, **a.geometry)
    if a.groups == a.x.shape[2] == a.weight.shape[0] > 1:
        return depthwise_launches(a.x, pack, outs[0], windows, **a.epilogue)
    return conv2d_launches(a.x, pack, outs[0], windows, precision=a.precision, **a.epilogue)


Family(
    "conv2d",
    _Arguments,
    "Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? residual, int residual_factor, int[] stride, "
    "int[] padding, int[] dilation, int groups, str activation, str precision",
    _results,
    _twin,
    _launches,
).register()
