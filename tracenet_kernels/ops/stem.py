"""The first convolution of a network and its pooling, on windows, from a photo or an image."""

from __future__ import annotations

import math
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
    check_real,
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

Triple = tuple[float, float, float]
COLOURS = 3


def stem(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    stride: Pair = 2,
    padding: Pair = 3,
    dilation: Pair = 1,
    activation: str = "relu",
    conv_size: tuple[int, int] | None = None,
    pool_kernel: Pair = 3,
    pool_stride: Pair = 2,
    pool_padding: Pair = 1,
    mean: Triple | None = None,
    std: Triple | None = None,
    reverse: bool = False,
    size: tuple[int, int] | None = None,
    window: WindowLike = None,
) -> Tensor:
    """``max_pool2d(act(scale * conv(image) + bias))`` in one pass; the plane between the two is never stored.

    The convolution is that of :func:`tracenet_kernels.ops.conv2d` with zeros off the image, the pooling that of
    :func:`tracenet_kernels.ops.max_pool2d`. A photo is normalised on the way, ``(pixel - mean) / std``.

    Args:
        image: uint8 [rows, columns, 3], a photo, or [3, rows, columns] of fp32, fp16 or bf16 with contiguous columns,
            normalised already; on a CPU also fp64.
        weight: [out, 3, kernel_y, kernel_x] of fp32, fp16 or bf16; products are summed in fp32.
        bias, scale: fp32 [out].
        stride, padding, dilation: of the convolution; a number, or (y, x).
        activation: ``none`` or ``relu``.
        conv_size: rows and columns between the two; None: those that the image gives. An image that the network sees
            with zeros to its right and below needs none of them in memory: pass what the padded image would give.
        pool_kernel, pool_stride, pool_padding: of the pooling; a number, or (y, x).
        mean, std: of a photo, in the order of the network's channels; with an image neither.
        reverse: channel c of the network is channel 2 - c of the photo.
        size: rows and columns of the whole result; None: those that ``conv_size`` gives.
        window: ``(y0, y1, x0, x1)`` on the whole result; None: all of it.

    Returns:
        [y1 - y0, x1 - x0, out], contiguous, of the dtype of ``weight``.

    Raises:
        InputError: shapes, dtypes, devices or attributes that do not fit, or an input that requires a gradient.
        WindowError: a window that is not on the result's plane.
        BackendError: CUDA tensors where no Triton kernel can run.
    """
    refuse_gradients("stem", image, weight, bias, scale)
    return torch.ops.tracenet.stem(
        image,
        weight,
        bias,
        scale,
        pair(stride),
        pair(padding),
        pair(dilation),
        activation,
        conv_size,
        pair(pool_kernel),
        pair(pool_stride),
        pair(pool_padding),
        mean,
        std,
        reverse,
        size,
        listed(window),
    )


def stem_out(
    out: Tensor,
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    stride: Pair = 2,
    padding: Pair = 3,
    dilation: Pair = 1,
    activation: str = "relu",
    conv_size: tuple[int, int] | None = None,
    pool_kernel: Pair = 3,
    pool_stride: Pair = 2,
    pool_padding: Pair = 1,
    mean: Triple | None = None,
    std: Triple | None = None,
    reverse: bool = False,
    window: WindowLike = None,
    table: Tensor | None = None,
    bound: tuple[int, int] | None = None,
) -> None:
    """:func:`stem` in place: writes windows of ``out``, the whole result's plane, and nothing else of it.

    ``window``, ``table`` and ``bound``: see :func:`tracenet_kernels.ops.conv2d_out`.
    """
    refuse_gradients("stem_out", out, image, weight, bias, scale)
    torch.ops.tracenet.stem_out(
        out,
        image,
        weight,
        bias,
        scale,
        pair(stride),
        pair(padding),
        pair(dilation),
        activation,
        conv_size,
        pair(pool_kernel),
        pair(pool_stride),
        pair(pool_padding),
        mean,
        std,
        reverse,
        listed(window),
        table,
        bound,
    )


class _Arguments(NamedTuple):
    image: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    activation: str
    conv_size: Sequence[int] | None
    pool_kernel: Sequence[int]
    pool_stride: Sequence[int]
    pool_padding: Sequence[int]
    mean: Sequence[float] | None
    std: Sequence[float] | None
    reverse: bool

    @property
    def is_photo(self) -> bool:
        return self.image.dtype == torch.uint8

    @property
    def image_size(self) -> Size:
        """Rows and columns."""
        sides = self.image.shape[:2] if self.is_photo else self.image.shape[1:]
        return sides[0], sides[1]

    @property
    def geometry(self) -> dict[str, Any]:
        """Of the convolution."""
        return {name: _size(getattr(self, name)) for name in ("stride", "padding", "dilation")}

    @property
    def pooling(self) -> dict[str, Any]:
        return {name: _size(getattr(self, name)) for name in ("pool_kernel", "pool_stride", "pool_padding")}

    @property
    def normalisation(self) -> dict[str, Any]:
        """Of a photo."""
        return {"mean": _triple(self.mean), "std": _triple(self.std), "reverse": self.reverse}

    @property
    def between(self) -> Size:
        """Rows and columns of the convolution."""
        return sliding_size(
            "stem", self.image_size, self.weight.shape[2:], self.stride, self.padding, self.dilation, self.conv_size
        )


def _results(a: _Arguments, size: Sequence[int] | None) -> Results:
    _check_image(a)
    check_real(a.weight, "weight")
    check_weight(a.weight, "weight", a.weight, COLOURS)
    if a.weight.device != a.image.device:
        raise InputError(f"the weight is on {a.weight.device}, the image on {a.image.device}; move them to one device")
    out = a.weight.shape[0]
    check_vector(a.bias, "bias", a.weight, out)
    check_vector(a.scale, "scale", a.weight, out)
    check_activation(a.activation)
    cells = sliding_size("the pooling", a.between, a.pool_kernel, a.pool_stride, a.pool_padding, (1, 1), size)
    return Results(cells, (out,), a.weight.dtype)


def _check_image(a: _Arguments) -> None:
    shape = tuple(a.image.shape)
    if a.image.ndim != 3 or 0 in shape or shape[2 if a.is_photo else 0] != COLOURS:
        raise InputError(
            f"the image is {a.image.dtype} {shape}; pass uint8 [rows, columns, 3] or real [3, rows, columns]"
        )
    if a.image.stride(2) != 1 or any(stride < 1 for stride in a.image.stride()):
        raise InputError(f"the image has strides {a.image.stride()}; pass image.contiguous()")
    if not a.is_photo:
        check_real(a.image, "the image")
        if a.mean is not None or a.std is not None or a.reverse:
            raise InputError("mean, std and reverse are for uint8 photos; pass an image without them")
        return
    if a.mean is None or a.std is None or len(a.mean) != COLOURS or len(a.std) != COLOURS:
        raise InputError(f"a photo with mean {a.mean} and std {a.std}; pass three numbers of each")
    if not all(map(math.isfinite, (*a.mean, *a.std))) or 0 in a.std:
        raise InputError(f"a photo with mean {a.mean} and std {a.std}; pass finite numbers, none of std 0")


def _twin(a: _Arguments, size: Size) -> list[Tensor]:
    if a.is_photo:
        image = reference.pixels(a.image, a.image_size, **a.normalisation).to(a.weight.dtype)
    else:
        image = a.image.movedim(0, -1).to(a.weight.dtype)
    whole = reference.stem(
        image,
        a.weight,
        size,
        a.between,
        scale=a.scale,
        bias=a.bias,
        activation=a.activation,
        **a.geometry,
        **a.pooling,
    )
    return [whole]


def _launches(a: _Arguments, outs: Sequence[DevicePlane], windows: Windows) -> list[Launch]:
    from tracenet_kernels.triton.stem import stem_launches

    return stem_launches(
        a.image,
        packed(a.weight, **a.geometry),
        outs[0],
        windows,
        conv_plane=a.between,
        scale=a.scale,
        bias=a.bias,
        activation=a.activation,
        **a.pooling,
        **(a.normalisation if a.is_photo else {}),
    )


def _size(value: Sequence[int]) -> Size:
    return value[0], value[1]


def _triple(value: Sequence[float] | None) -> Triple | None:
    return None if value is None else (value[0], value[1], value[2])


Family(
    "stem",
    _Arguments,
    "Tensor image, Tensor weight, Tensor? bias, Tensor? scale, int[] stride, int[] padding, int[] dilation, "
    "str activation, SymInt[]? conv_size, int[] pool_kernel, int[] pool_stride, int[] pool_padding, float[]? mean, "
    "float[]? std, bool reverse",
    _results,
    _twin,
    _launches,
).register()
