"""cuDNN on the convolutions of a layer, by the three ways that PyTorch offers to compute a window.

``view``: the plane narrowed to the window and its halo, nothing is copied by us (PyTorch may, inside). ``crop``: a
contiguous crop, padded where the window meets the border; both are part of the time. ``full``: the whole plane. All of
them compute the convolution alone, without scale, residual and activation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.layers import Layer
from bench.gpu.network import Errors, compare
from tracenet.engine.reference_windows import PairsOfWindow, window_of
from tracenet.engine.schedule import Step
from tracenet_kernels.window import Window

Pair = tuple[int, int]


@dataclass(frozen=True)
class Convolution:
    """One convolution of a layer on one plane.

    Attributes:
        x: [1, C, H, W], channels_last in memory.
        weight: [out, C / groups, ky, kx] on the device.
        geometry: kernel, stride, padding before and dilation as (y, x).
        plane: rows and columns of the output.
        window: of the output.
    """

    x: Tensor
    weight: Tensor
    geometry: PairsOfWindow
    groups: int
    plane: Pair
    window: Window

    def full(self) -> Tensor:
        """The window, cut from the whole plane's result."""
        _, stride, padding, dilation = self.geometry
        y = F.conv2d(self.x, self.weight, None, stride, padding, dilation, self.groups)
        return y[(..., *self.window.slices)]

    def view(self) -> Tensor:
        """The window, from a view of the plane."""
        _, stride, _, dilation = self.geometry
        axes = [self._viewed(axis) for axis in (0, 1)]
        (y0, y1, top, pad_y), (x0, x1, left, pad_x) = axes
        part = self.x[:, :, y0:y1, x0:x1]
        y = F.conv2d(part, self.weight, None, stride, (pad_y, pad_x), dilation, self.groups)
        return y[:, :, top : top + self.window.height, left : left + self.window.width]

    def crop(self) -> Tensor:
        """The window, from a copy of what it reads."""
        _, stride, _, dilation = self.geometry
        (y0, y1), (x0, x1) = (self._reads(axis) for axis in (0, 1))
        height, width = self.x.shape[2:]
        part = self.x[:, :, max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
        part = part.contiguous(memory_format=torch.channels_last)
        sides = (max(-x0, 0), max(x1 - width, 0), max(-y0, 0), max(y1 - height, 0))
        if any(sides):
            part = F.pad(part, sides)
        return F.conv2d(part, self.weight, None, stride, 0, dilation, self.groups)

    def _reads(self, axis: int) -> Pair:
        """First and last row or column, one past it, that the window reads; border included."""
        kernel, stride, padding, dilation = (pair[axis] for pair in self.geometry)
        start, stop = self._span(axis)
        first = start * stride - padding
        return first, (stop - 1) * stride - padding + dilation * (kernel - 1) + 1

    def _span(self, axis: int) -> Pair:
        y0, y1, x0, x1 = self.window
        return (y0, y1) if axis == 0 else (x0, x1)

    def _viewed(self, axis: int) -> tuple[int, int, int, int]:
        """Where the view starts and stops, how many outputs before the window it gives, and its padding.

        Padding is the same on both sides; so where one side meets the border, the view begins at whole steps before the
        window, and what is computed too much is cut off.
        """
        first, last = self._reads(axis)
        length = self.x.shape[2 + axis]
        if first >= 0 and last <= length:
            return first, last, 0, 0
        _, stride, padding, _ = (pair[axis] for pair in self.geometry)
        start, _ = self._span(axis)
        extra = min(start, -(-padding // stride))
        return (start - extra) * stride, min(last, length), extra, padding


def convolutions(layer: Layer) -> list[Convolution]:
    """Of a layer; none where a step is no convolution."""
    if any(step.op != "conv2d" for step in layer.steps):
        return []
    found = []
    for step in layer.steps:
        plane = layer.schedule.planes[step.output]
        x = layer.memory.plane(step.inputs[0]).tensor.movedim(-1, 0)[None]
        weight = torch.from_numpy(layer.schedule.tensors[step.tensors["weight"]].copy()).to(x.device, x.dtype)
        found.append(
            Convolution(
                x,
                weight.contiguous(memory_format=torch.channels_last),
                window_of(step),
                step.ints.get("groups", 1),
                (plane.height, plane.width),
                _window(layer, step),
            )
        )
    return found


def _window(layer: Layer, step: Step) -> Window:
    return layer.window(step)


def peers_of(layer: Layer) -> dict[str, Callable[[], None]]:
    """Everything that the layer convolves, one convolution after the other, by each way."""
    convs = convolutions(layer)

    def runner(way: str) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                for conv in convs:
                    getattr(conv, way)()

        return run

    return {way: runner(way) for way in ("view", "crop", "full")} if convs else {}


def peer_errors(layer: Layer) -> dict[str, Errors]:
    """Of each way against the convolution of the whole plane in float64: who computes something else is no peer."""
    worst = {"view": Errors(), "crop": Errors(), "full": Errors()}
    for conv in convolutions(layer):
        _, stride, padding, dilation = conv.geometry
        whole = F.conv2d(conv.x.double(), conv.weight.double(), None, stride, padding, dilation, conv.groups)
        expected = whole[(..., *conv.window.slices)]
        for way in worst:
            with torch.inference_mode():
                worst[way] |= compare(getattr(conv, way)().double(), expected, whole)
    return worst
