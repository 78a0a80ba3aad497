"""The C++ kernels that are not convolutions, on windows of planes in place.

Planes are float32, [rows, columns, channels]: a NumPy array or CPU tensor that holds a whole plane, or a
:class:`~tracenet_kernels.arrays.Plane` that says which part of one an array holds. Every function computes exactly
``window`` of ``out`` (by default all that ``out`` holds), writes nothing else, reads only what the window demands, and
gives a cell the same bits whatever the window and the number of threads.

All raise :class:`~tracenet_kernels.errors.InputError` for arrays, sizes or attributes that do not fit,
:class:`~tracenet_kernels.errors.WindowError` for malformed windows, both before anything is written, and
:class:`~tracenet_kernels.errors.BackendError` where the extension is not built.
"""

from __future__ import annotations

import numpy as np

from tracenet_kernels import native
from tracenet_kernels.activations import ACTIVATIONS
from tracenet_kernels.arrays import Array, Plane, as_array, as_plane
from tracenet_kernels.errors import InputError
from tracenet_kernels.window import Window
from tracenet_kernels.windowed import PackedConv, Pair

RESIZE_MODES = ("nearest", "bilinear", "bilinear_align_corners", "aligned_bilinear")
"""In the order of the extension's own numbers."""


def max_pool2d(
    x: Plane | Array,
    out: Plane | Array,
    window: Window | None = None,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> None:
    """``out[y, x, c] = max_k x[y * s - p + d * k_y, x * s - p + d * k_x, c]`` over the taps on the plane; NaN wins."""
    out = as_plane(out, "out")
    native.require().max_pool2d(as_plane(x, "x"), out, _window(window, out), _pairs(kernel, stride, padding, dilation))


def avg_pool2d(
    x: Plane | Array,
    out: Plane | Array,
    window: Window | None = None,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair = 0,
    count_include_pad: bool = True,
    divisor: int = 0,
) -> None:
    """Mean over the taps on the plane.

    Args:
        x, out: planes.
        window: of ``out``.
        kernel, stride, padding: per axis.
        count_include_pad: divide by the taps on the plane and its padding, not only by those on the plane. Taps past
            the padding, which ``ceil_mode`` allows, never count.
        divisor: divide by this instead, where it is not 0.
    """
    out = as_plane(out, "out")
    native.require().avg_pool2d(
        as_plane(x, "x"),
        out,
        _window(window, out),
        _pairs(kernel, stride, padding, 1),
        bool(count_include_pad),
        divisor,
    )


def resize(
    x: Plane | Array,
    out: Plane | Array,
    window: Window | None = None,
    *,
    mode: str,
    ratio: tuple[float, float] = (1.0, 1.0),
    factor: int = 1,
    addend: Plane | Array | None = None,
) -> None:
    """``out = resize(x) + addend``; coordinates are those of the whole plane.

    Args:
        x, out: planes with as many channels.
        window: of ``out``.
        mode: one of :data:`RESIZE_MODES`.
        ratio: input cells per output cell and axis, as torch computes it: ``1 / scale_factor`` or ``in / out``, or
            ``(in - 1) / (out - 1)`` with aligned corners. Not used by ``aligned_bilinear``.
        factor: of ``aligned_bilinear``: see :func:`tracenet_kernels.ops.aligned_bilinear`.
        addend: on the plane of ``out``; may be ``out`` itself.
    """
    if mode not in RESIZE_MODES:
        raise InputError(f"resize mode {mode!r}; choose one of {', '.join(RESIZE_MODES)}")
    out = as_plane(out, "out")
    native.require().resize(
        as_plane(x, "x"),
        None if addend is None else as_plane(addend, "addend"),
        out,
        _window(window, out),
        RESIZE_MODES.index(mode),
        float(ratio[0]),
        float(ratio[1]),
        factor,
    )


def add(
    a: Plane | Array,
    b: Plane | Array | None,
    out: Plane | Array,
    window: Window | None = None,
    *,
    relu: bool = False,
) -> None:
    """``out = act(a + b)``, or ``act(a)`` without ``b``. ``out`` may be ``a`` or ``b``."""
    out = as_plane(out, "out")
    second = None if b is None else as_plane(b, "b")
    native.require().add(as_plane(a, "a"), second, out, _window(window, out), bool(relu))


def activate(
    x: Plane | Array, out: Plane | Array, window: Window | None = None, *, kind: str, a: float = 0.0, b: float = 0.0
) -> None:
    """``out = f(x)``; NaN stays NaN. ``out`` may be ``x``.

    Args:
        x, out: planes of one size.
        window: of ``out``.
        kind: one of :data:`~tracenet_kernels.activations.ACTIVATIONS`.
        a, b: bounds of a clip; ``a`` is the slope of a leaky ReLU.
    """
    if kind not in ACTIVATIONS:
        raise InputError(f"activation {kind!r}; choose one of {', '.join(ACTIVATIONS)}")
    out = as_plane(out, "out")
    number = ACTIVATIONS.index(kind)
    native.require().activate(as_plane(x, "x"), out, _window(window, out), number, float(a), float(b))


def multiply(a: Plane | Array, b: Plane | Array, out: Plane | Array, window: Window | None = None) -> None:
    """``out = a * b``; ``b`` is a plane like ``a``, or one cell, whose channels multiply every pixel.

    ``out`` may be ``a``.
    """
    out = as_plane(out, "out")
    native.require().multiply(as_plane(a, "a"), as_plane(b, "b"), out, _window(window, out))


def plane_mean(x: Plane | Array, out: Plane | Array) -> None:
    """The one cell of ``out`` is the mean of each channel over the whole plane of ``x``."""
    out = as_plane(out, "out")
    native.require().plane_mean(as_plane(x, "x"), out, out.extent)


def group_norm(
    x: Plane | Array,
    out: Plane | Array,
    window: Window | None = None,
    *,
    groups: int,
    scale: Array | None = None,
    bias: Array | None = None,
    epsilon: float = 1e-5,
) -> None:
    """``out = (x - mean) / sqrt(variance + epsilon) * scale + bias``, mean and variance of a group of channels.

    Args:
        x: its whole plane, of which the statistics are.
        out: a plane of the same size.
        window: of ``out``.
        groups: equal groups of neighbouring channels.
        scale, bias: fp32 [channels]; None: 1 and 0.
        epsilon: as in torch.
    """
    out = as_plane(out, "out")
    native.require().group_norm(
        as_plane(x, "x"),
        out,
        _window(window, out),
        groups,
        float(epsilon),
        None if scale is None else as_array(scale, "scale"),
        None if bias is None else as_array(bias, "bias"),
    )


def take_channels(x: Plane | Array, out: Plane | Array, window: Window | None = None, *, first: int = 0) -> None:
    """``out = x[..., first : first + channels of out]``."""
    out = as_plane(out, "out")
    native.require().take_channels(as_plane(x, "x"), first, out, _window(window, out))


def sigmoid(x: Plane | Array, out: Plane | Array, window: Window | None = None) -> None:
    """``out = 1 / (1 + exp(-x))``. ``out`` may be ``x``."""
    out = as_plane(out, "out")
    native.require().sigmoid(as_plane(x, "x"), out, _window(window, out))


def copy_channels(x: Plane | Array, out: Plane | Array, window: Window | None = None, *, first: int = 0) -> None:
    """``out[..., first : first + channels of x] = x``; the other channels stay as they are."""
    out = as_plane(out, "out")
    native.require().copy_channels(as_plane(x, "x"), first, out, _window(window, out))


def mask_head(
    features: Plane | Array,
    theta: Array,
    out: Plane | Array,
    window: Window | None = None,
    *,
    origin: tuple[float, float],
    size_of_interest: float,
    stride: int = 8,
    factor: int = 0,
) -> None:
    """The dynamic mask head (CondInst, arXiv 2003.05664), logits or upsampled logits in one pass.

    Three 1x1 layers 10 -> 8 -> 8 -> 1, ReLU after the first two, over
    ``[(origin_x - px) / soi, (origin_y - py) / soi, 8 features]`` with ``p = stride * i + stride // 2`` of cell ``i``.

    Args:
        features: 8 channels, h x w cells.
        theta: [169]: weights (80, 64, 8; each row-major out, in), then biases (8, 8, 1).
        out: 1 channel; h x w, or ``factor`` times that.
        window: of ``out``.
        origin: (x, y) in input pixels.
        size_of_interest: the ``soi`` of the level that predicted ``theta``.
        stride: input pixels per cell.
        factor: 0 for logits on the features' plane; f for aligned bilinear upsampling by f after it.
    """
    out = as_plane(out, "out")
    native.require().mask_head(
        as_plane(features, "features"),
        as_array(theta, "theta"),
        float(origin[0]),
        float(origin[1]),
        float(size_of_interest),
        stride,
        factor,
        out,
        _window(window, out),
    )


def normalise_pixels(
    photo: Plane | Array,
    out: Plane | Array,
    window: Window | None = None,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    reverse: bool = False,
) -> None:
    """``out = (photo - mean) / std``, 0 to the right of the photo and below it.

    Args:
        photo: uint8, 3 channels; its plane is the photo without padding.
        out: 3 channels, the padded plane.
        window: of ``out``.
        mean, std: in the order of the output's channels.
        reverse: channel c of the output is channel 2 - c of the photo, for BGR networks.
    """
    out = as_plane(out, "out")
    native.require().normalise_pixels(
        as_plane(photo, "photo", dtype=np.uint8),
        out,
        _window(window, out),
        np.asarray(mean, dtype=np.float32),
        np.asarray(std, dtype=np.float32),
        bool(reverse),
    )


def from_planar(planar: Array, out: Plane | Array, window: Window | None = None) -> None:
    """``out[y, x, c] = planar[c, y, x]``: torch's layout to the kernels'. ``planar`` holds whole planes."""
    out = as_plane(out, "out")
    native.require().from_planar(as_array(planar, "planar"), out, _window(window, out))


def stem(
    x: Plane | Array,
    packed: PackedConv,
    out: Plane | Array,
    window: Window | None = None,
    *,
    conv_size: tuple[int, int],
    bias: Array | None = None,
    kernel: Pair = 3,
    stride: Pair = 2,
    padding: Pair = 1,
    dilation: Pair = 1,
) -> None:
    """Convolution + bias + ReLU, then maximum pooling, in one pass; the plane between them is never stored.

    Bit for bit what :func:`tracenet_kernels.windowed.conv2d` followed by :func:`max_pool2d` gives.

    Args:
        x, out: planes.
        packed: the convolution's weights.
        window: of ``out``.
        conv_size: height and width of the plane between the two.
        bias: fp32 [out]; None: 0.
        kernel, stride, padding, dilation: of the pooling.
    """
    out = as_plane(out, "out")
    native.require().stem(
        packed.handle,
        None if bias is None else as_array(bias, "bias"),
        conv_size[0],
        conv_size[1],
        as_plane(x, "x"),
        out,
        _window(window, out),
        _pairs(kernel, stride, padding, dilation),
    )


def _window(window: Window | None, out: Plane) -> Window:
    return out.extent if window is None else Window(*window)


def _pairs(*values: Pair) -> tuple[tuple[int, int], ...]:
    return tuple((value, value) if isinstance(value, int) else (value[0], value[1]) for value in values)
