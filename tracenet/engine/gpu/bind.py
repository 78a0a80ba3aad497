"""Binding: the units of a schedule become kernel launches on a session's memory, for one class of requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from tracenet.engine.gpu.memory import Bound, Memory
from tracenet.engine.gpu.program import GpuProgram
from tracenet.engine.gpu.units import Unit
from tracenet.engine.reference_windows import window_of
from tracenet.engine.schedule import ACTIVATIONS, RESIZE_MODES, Schedule, Step
from tracenet_kernels.errors import ExecutionError, TraceNetError
from tracenet_kernels.triton import (
    bottleneck_tail,
    conv2d,
    conv2d_tma,
    depthwise,
    elementwise,
    mask_head,
    pools,
    resize,
    stem,
)
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.planes import DevicePlane, Windows
from tracenet_kernels.triton.split_k import Scratch

Launches = list[Launch]


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image input that is a photo's pixels: normalised as they are read, 0 right of and below the photo.

    Attributes:
        photo: uint8 [rows, columns, 3] in the device's memory, at a fixed address.
        mean, std: per channel of the network, in units of pixels.
        reverse: the network's channels are the photo's in reverse.
    """

    photo: Tensor
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    reverse: bool


class Binding:
    """What one class of requests launches.

    Attributes:
        launches: in order.
        bounds: per plane, what the class' windows do not exceed.
    """

    def __init__(
        self,
        program: GpuProgram,
        order: Sequence[Unit],
        memory: Memory,
        bounds: Sequence[Bound],
        pixels: dict[int, Pixels],
        scratch: Scratch,
        *,
        tma: bool = False,
        pdl: bool = False,
    ) -> None:
        self.bounds = tuple(bounds)
        self.launches: Launches = []
        binder = _Binder(program, memory, self.bounds, pixels, scratch, tma, pdl)
        for number in program.schedule.inputs:
            self.launches += binder.input_plane(number)
        for unit in order:
            self.launches += binder.named(unit)


@dataclass(frozen=True)
class _Binder:
    program: GpuProgram
    memory: Memory
    bounds: tuple[Bound, ...]
    pixels: dict[int, Pixels]
    scratch: Scratch
    tma: bool
    pdl: bool

    @property
    def schedule(self) -> Schedule:
        return self.program.schedule

    def named(self, unit: Unit) -> Launches:
        """A unit's launches; errors name its step."""
        try:
            return self.unit(unit)
        except TraceNetError as error:
            name = self.schedule.steps[unit.steps[-1]].name
            raise ExecutionError(f"step {name!r} cannot be launched: {error}") from error

    def unit(self, unit: Unit) -> Launches:
        steps = [self.schedule.steps[n] for n in unit.steps]
        if unit.kind == "tail":
            return self._tail(steps) if self._active(steps[1]) else []
        if unit.kind == "levels":
            launches: Launches = []
            # Rows of the table follow each other only where no level is left out in between.
            for active, level_steps in groupby(steps, self._active):
                some = list(level_steps)
                if active:
                    launches += self._levels(some) if len(some) > 1 else self._step(some[0])
            return launches
        return self._step(steps[0]) if self._active(steps[0]) else []

    def input_plane(self, number: int) -> Launches:
        """An image that other steps than the stem read becomes a plane of the workspace."""
        image = self.memory.images.get(number)
        readers = [step for step in self.schedule.steps if number in step.inputs and step.op != "stem"]
        if image is None or not self.bounds[number].cells or not any(map(self._active, readers)):
            return []
        out, windows, name = self.memory.plane(number), self._windows(number), self.schedule.planes[number].name
        if number in self.pixels:
            source = self.pixels[number]
            return elementwise.pixels_launches(
                source.photo,
                out,
                windows,
                mean=source.mean,
                std=source.std,
                reverse=source.reverse,
                name=name,
                pdl=self.pdl,
            )
        return elementwise.planar_launches(image, out, windows, name=name, pdl=self.pdl)

    def _active(self, step: Step) -> bool:
        return self.bounds[step.output].cells > 0

    def _windows(self, *planes: int) -> Windows:
        return self.memory.windows(planes, self.bounds)

    def _step(self, step: Step) -> Launches:
        return _STEPS[step.op](self, step)

    def _conv(self, step: Step) -> Launches:
        weight = self.program.weight(step)
        x, out = self.memory.plane(step.inputs[0]), self.memory.plane(step.output)
        common: dict[str, Any] = {
            "scale": self.program.vector(step, "scale"),
            "bias": self.program.vector(step, "bias"),
            "residual": self.memory.plane(step.inputs[1]) if len(step.inputs) > 1 else None,
            "residual_factor": step.ints.get("residual_factor", 1),
            "activation": ACTIVATIONS[step.ints.get("activation", 0)],
            **self._common(step),
        }
        windows = self._windows(step.output)
        if weight.groups == weight.in_channels == weight.out_channels > 1:
            return depthwise.depthwise_launches(x, weight, out, windows, **common)
        if self.tma and self.program.on_tensor_cores and conv2d_tma.fits(x, weight):
            return conv2d_tma.conv2d_tma_launches(x, weight, out, windows, precision=self.program.precision, **common)
        return conv2d.conv2d_launches(
            x,
            weight,
            out,
            windows,
            precision=self.program.precision,
            scratch=self.scratch,
            **common,
        )

    def _levels(self, steps: Sequence[Step]) -> Launches:
        first = steps[0]
        return conv2d.conv2d_levels_launches(
            [self.memory.plane(step.inputs[0]) for step in steps],
            self.program.weight(first),
            [self.memory.plane(step.output) for step in steps],
            self._windows(*(step.output for step in steps)),
            scales=[self.program.vector(step, "scale") for step in steps],
            biases=[self.program.vector(step, "bias") for step in steps],
            levels=[level for level in range(len(steps)) for _ in range(self.memory.pieces)],
            activation=ACTIVATIONS[first.ints.get("activation", 0)],
            precision=self.program.precision,
            scratch=self.scratch,
            pdl=self.pdl,
            name=f"{first.name} +{len(steps) - 1}",
        )

    def _tail(self, steps: Sequence[Step]) -> Launches:
        mid, expand = steps[:2]
        following = steps[2] if len(steps) > 2 else None
        vector = self.program.vector
        return bottleneck_tail.bottleneck_tail_launches(
            self.memory.plane(mid.inputs[0]),
            self.program.weight(mid),
            self.program.weight(expand),
            None if following is None else self.program.weight(following),
            mid_scale=vector(mid, "scale"),
            mid_bias=vector(mid, "bias"),
            expand_scale=vector(expand, "scale"),
            expand_bias=vector(expand, "bias"),
            next_scale=None if following is None else vector(following, "scale"),
            next_bias=None if following is None else vector(following, "bias"),
            residual=self.memory.plane(expand.inputs[1]),
            block_out=self.memory.plane(expand.output),
            next_out=None if following is None else self.memory.plane(following.output),
            windows=self._windows(expand.output),
            precision=self.program.precision,
            pdl=self.pdl,
            name=steps[-1].name,
        )

    def _stem(self, step: Step) -> Launches:
        number = step.inputs[0]
        source = self.pixels.get(number)
        kernel, stride, padding, _ = window_of(step, "pool_")
        return stem.stem_launches(
            self.memory.images[number] if source is None else source.photo,
            self.program.weight(step),
            self.memory.plane(step.output),
            self._windows(step.output),
            conv_plane=(step.ints["conv_height"], step.ints["conv_width"]),
            scale=self.program.vector(step, "scale"),
            bias=self.program.vector(step, "bias"),
            activation=ACTIVATIONS[step.ints.get("activation", 0)],
            pool_kernel=kernel,
            pool_stride=stride,
            pool_padding=padding,
            mean=None if source is None else source.mean,
            std=None if source is None else source.std,
            reverse=source is not None and source.reverse,
            **self._common(step),
        )

    def _max_pool(self, step: Step) -> Launches:
        kernel, stride, padding, dilation = window_of(step)
        return pools.max_pool2d_launches(
            *self._planes(step),
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            **self._common(step),
        )

    def _avg_pool(self, step: Step) -> Launches:
        kernel, stride, padding, _ = window_of(step)
        return pools.avg_pool2d_launches(
            *self._planes(step),
            kernel=kernel,
            stride=stride,
            padding=padding,
            count_include_pad=bool(step.ints.get("count_include_pad")),
            divisor=step.ints.get("divisor", 0),
            **self._common(step),
        )

    def _resize(self, step: Step) -> Launches:
        return resize.resize_launches(
            *self._planes(step),
            mode=RESIZE_MODES[step.ints["mode"]],
            ratio=(step.floats.get("ratio_y", 1.0), step.floats.get("ratio_x", 1.0)),
            factor=step.ints.get("factor", 1),
            addend=self.memory.plane(step.inputs[1]) if len(step.inputs) > 1 else None,
            **self._common(step),
        )

    def _add(self, step: Step) -> Launches:
        return elementwise.add_launches(
            self.memory.plane(step.inputs[0]),
            self.memory.plane(step.inputs[1]) if len(step.inputs) > 1 else None,
            self.memory.plane(step.output),
            self._windows(step.output),
            activation=ACTIVATIONS[step.ints.get("activation", 0)],
            **self._common(step),
        )

    def _sigmoid(self, step: Step) -> Launches:
        return elementwise.sigmoid_launches(
            *self._planes(step),
            **self._common(step),
        )

    def _convert(self, step: Step) -> Launches:
        return elementwise.convert_launches(
            *self._planes(step),
            **self._common(step),
        )

    def _concat(self, step: Step) -> Launches:
        launches: Launches = []
        first = 0
        for number in step.inputs:
            launches += elementwise.copy_channels_launches(
                self.memory.plane(number),
                self.memory.plane(step.output),
                self._windows(step.output),
                first=first,
                **self._common(step),
            )
            first += self.schedule.planes[number].channels
        return launches

    def _mask_head(self, step: Step) -> Launches:
        features, theta, origin, size_of_interest = step.inputs
        return mask_head.mask_head_launches(
            self.memory.plane(features),
            self.memory.flat[theta],
            self.memory.flat[origin],
            self.memory.flat[size_of_interest],
            self.memory.plane(step.output),
            self._windows(step.output),
            stride=step.ints["stride"],
            factor=step.ints.get("factor", 0),
            **self._common(step),
        )

    def _common(self, step: Step) -> dict[str, Any]:
        return {"name": step.name, "pdl": self.pdl}

    def _planes(self, step: Step) -> tuple[DevicePlane, DevicePlane, Windows]:
        return self.memory.plane(step.inputs[0]), self.memory.plane(step.output), self._windows(step.output)


_STEPS: dict[str, Callable[[_Binder, Step], Launches]] = {
    "conv2d": _Binder._conv,
    "max_pool2d": _Binder._max_pool,
    "avg_pool2d": _Binder._avg_pool,
    "stem": _Binder._stem,
    "resize": _Binder._resize,
    "add": _Binder._add,
    "sigmoid": _Binder._sigmoid,
    "concat": _Binder._concat,
    "convert": _Binder._convert,
    "mask_head": _Binder._mask_head,
}
