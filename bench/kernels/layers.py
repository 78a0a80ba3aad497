"""The convolutions of a network as a schedule runs them for one request: which launches, on which windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch

import tracenet
from tracenet.engine.lower import lower
from tracenet.engine.schedule import Plane, Schedule, Step
from tracenet.models.heads import THETA
from tracenet.rft.trace import Plan
from tracenet.standard import standard_request
from tracenet_kernels.window import Window

SIZE = (1024, 768)
MASK_CELLS = 32


@dataclass(frozen=True)
class Job:
    """One window of one launch; planes as (height, width)."""

    window: Window
    input: tuple[int, int]
    output: tuple[int, int]
    residual: tuple[int, int] | None = None


@dataclass(frozen=True)
class Layer:
    """One launch: the windows of all steps that share a weight and run side by side.

    Attributes:
        shape: of the weight, [out, in / groups, kernel_y, kernel_x].
        stride, padding, dilation: (y, x).
        residual_factor: output cells per residual cell along an axis.
        scaled: has a factor per output channel.
    """

    shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    activation: str
    scaled: bool
    residual_factor: int
    jobs: tuple[Job, ...]

    @property
    def pixels(self) -> int:
        """Output cells of all windows."""
        return sum(job.window.area for job in self.jobs)

    @property
    def macs(self) -> int:
        """Multiply-adds, padding included, as the tracer counts them."""
        outputs, inputs, kernel_y, kernel_x = self.shape
        return self.pixels * outputs * inputs * kernel_y * kernel_x

    def demand(self, job: Job) -> Window:
        """Cells of the input that a window reads."""
        _, _, kernel_y, kernel_x = self.shape
        y0, y1, x0, x1 = job.window
        (sy, sx), (py, px), (dy, dx) = self.stride, self.padding, self.dilation
        rows = (y0 * sy - py, (y1 - 1) * sy - py + dy * (kernel_y - 1) + 1)
        columns = (x0 * sx - px, (x1 - 1) * sx - px + dx * (kernel_x - 1) + 1)
        return Window(*rows, *columns)

    @property
    def bytes(self) -> int:
        """Bytes that must move at least once: input and output windows, residuals, weights."""
        outputs, inputs, kernel_y, kernel_x = self.shape
        cells = outputs * inputs * kernel_y * kernel_x
        for job in self.jobs:
            cells += self.demand(job).clip(*job.input).area * inputs * self.groups + job.window.area * outputs
            if job.residual is not None:
                cells += job.window.area // self.residual_factor**2 * outputs
        return 4 * cells


def standard_layers(levels: tuple[int, int]) -> dict[Layer, list[str]]:
    """Every distinct launch of ``tracenet_r50_fpn`` for a click in the centre of a 1024 x 768 image, with its names.

    The request is the heads at the click on ``levels`` and the 32 x 32 square of P3 cells around it from the mask.
    """
    width, height = SIZE
    click = (width // 2, height // 2)
    model = tracenet.create_model("tracenet_r50_fpn")
    inputs = (torch.zeros(1, 3, height, width), torch.zeros(1, THETA), torch.zeros(1, 2), torch.ones(1))
    traced = tracenet.trace(model, inputs)
    plan = traced.plan(standard_request(model.config, SIZE, click, levels, MASK_CELLS))
    layers: dict[Layer, list[str]] = {}
    for name, layer in _launches(lower(traced.graph), plan):
        layers.setdefault(layer, []).append(name)
    return layers


def _launches(schedule: Schedule, plan: Plan) -> Iterator[tuple[str, Layer]]:
    steps = [step for step in schedule.steps if step.op in ("conv2d", "stem") and step.nodes[0] in plan.windows]
    for _, shared in groupby(enumerate(steps), key=lambda item: item[1].group or -1 - item[0]):
        group = [step for _, step in shared]
        name = group[0].nodes[0] + (f" x {len(group)} levels" if len(group) > 1 else "")
        yield name, _layer(group, schedule, plan)


def _layer(steps: list[Step], schedule: Schedule, plan: Plan) -> Layer:
    first = steps[0]
    ints = first.ints
    stride, padding, dilation = (
        tuple(ints.get(f"{name}_{axis}", default) for axis in "yx")
        for name, default in (("stride", 1), ("pad", 0), ("dilation", 1))
    )
    outputs, inputs, kernel_y, kernel_x = schedule.tensors[first.tensors["weight"]].shape
    return Layer(
        shape=(outputs, inputs, kernel_y, kernel_x),
        stride=(stride[0], stride[1]),
        padding=(padding[0], padding[1]),
        dilation=(dilation[0], dilation[1]),
        groups=ints.get("groups", 1),
        activation="relu" if ints.get("activation") else "none",
        scaled="scale" in first.tensors,
        residual_factor=ints.get("residual_factor", 1),
        jobs=tuple(_job(step, schedule, plan) for step in steps),
    )


def _job(step: Step, schedule: Schedule, plan: Plan) -> Job:
    planes = [_size(schedule.planes[number]) for number in step.inputs]
    # A fused step's plane is its last node's; the convolution is its first, on another plane only before pooling.
    output = _size(schedule.planes[step.output])
    if step.op == "stem":
        output = (step.ints["conv_height"], step.ints["conv_width"])
    return Job(plan.windows[step.nodes[0]], planes[0], output, planes[1] if len(planes) > 1 else None)


def _size(plane: Plane) -> tuple[int, int]:
    return plane.height, plane.width
