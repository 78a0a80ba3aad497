"""Launches of the standard request, one unit of the schedule at a time: alone, on random planes, beside its oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.end_to_end.network import Levels
from bench.gpu.machine import Machine
from bench.gpu.network import DeviceNetwork, Errors, Precision, compare
from tracenet.engine.click_class import ClickClass
from tracenet.engine.gpu.bind import Binding
from tracenet.engine.gpu.memory import Bound, Memory
from tracenet.engine.gpu.program import GpuProgram
from tracenet.engine.gpu.units import Unit
from tracenet.engine.planner import HostPlanner, step_macs
from tracenet.engine.reference import run_schedule
from tracenet.engine.schedule import Schedule, Step
from tracenet_kernels.testing import assert_only_written
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.split_k import Scratch
from tracenet_kernels.window import Window


@dataclass(frozen=True)
class Variant:
    """A way to launch.

    Attributes:
        tma: convolve with tensor-memory copies where they fit.
        tails: ends of bottleneck blocks as one launch.
    """

    name: str
    tma: bool = False
    tails: bool = False


POINTERS = Variant("pointers")
TMA = Variant("tma", tma=True)
TAILS = Variant("tails", tails=True)


def variants(machine: Machine) -> list[Variant]:
    """Of a machine; tensor-memory copies exist from sm_90 on."""
    return [POINTERS, *([TMA] if machine.modern else []), TAILS]


class Layers:
    """A request's units on memory of their own.

    Attributes:
        windows: of every plane, for the click in the centre.
    """

    def __init__(self, network: DeviceNetwork, levels: Levels, precision: Precision, variant: Variant) -> None:
        self.variant = variant
        self.program = GpuProgram(
            network.schedule,
            network.device,
            precision.dtype_name,
            precision=precision.products,
            fuse_tails=variant.tails,
        )
        self._precision = precision
        self.order = self.program.units(False)
        self.memory = Memory(self.program, self.order, keep=False, pieces=1)
        self._scratch = Scratch(network.device)
        plan = HostPlanner(self.schedule).plan(network.request(network.centre, levels))
        self.windows = plan.windows
        self._bounds = [
            Bound(rows, columns, rows * columns)
            for rows, columns in ClickClass.of(self.schedule, network.form(levels)).bounds
        ]
        rows = [*plan.pieces[:, 0], *(np.array([*plan.windows[n]], np.int32) for n in self.schedule.inputs)]
        self.memory.table.copy_(torch.from_numpy(np.stack(rows).astype(np.int32)))

    @property
    def schedule(self) -> Schedule:
        return self.program.schedule

    @cached_property
    def units(self) -> dict[str, Unit]:
        """Units that the request needs, by the name of their first step, in order."""
        return {
            self._steps(unit)[0].name: unit
            for unit in self.order
            if any(not self.windows[step.output].is_empty for step in self._steps(unit))
        }

    def bind(self, units: Sequence[Unit]) -> list[Launch]:
        """Launches of some units, sized for the class of all standard requests."""
        binding = Binding(
            self.program,
            units,
            self.memory,
            self._bounds,
            {},
            self._scratch,
            tma=self.variant.tma,
        )
        return binding.launches

    def layer(self, unit: Unit) -> Layer:
        """One unit with random planes in front of it."""
        return Layer(self, unit, [step for step in self._steps(unit) if not self.windows[step.output].is_empty])

    def _steps(self, unit: Unit) -> list[Step]:
        return [self.schedule.steps[number] for number in unit.steps]

    @property
    def rounded(self) -> dict[str, Any]:
        """Weights and vectors as the oracle takes them: float64, weights rounded as the kernels' are."""
        return self._rounded

    @cached_property
    def _rounded(self) -> dict[str, Any]:
        weights = {step.tensors["weight"] for step in self.schedule.steps if "weight" in step.tensors}
        found = {}
        for name, values in self.schedule.tensors.items():
            tensor = torch.from_numpy(np.ascontiguousarray(values)).float()
            tensor = tensor.to(self._precision.dtype) if name in weights else tensor
            found[name] = tensor.double().numpy()
        return found


class Layer:
    """The launches of one unit.

    Attributes:
        steps: those whose windows are not empty.
        launches: in order.
    """

    def __init__(self, layers: Layers, unit: Unit, steps: list[Step]) -> None:
        self._layers, self.unit, self.steps = layers, unit, steps
        before = len(layers.bind([]))
        self.launches = layers.bind([unit])[before:]
        self._fill()

    @property
    def schedule(self) -> Schedule:
        return self._layers.schedule

    @property
    def memory(self) -> Memory:
        return self._layers.memory

    def run(self) -> None:
        """Everything once."""
        for launch in self.launches:
            launch()

    @property
    def macs(self) -> int:
        """Multiply-adds that the windows need."""
        return sum(step_macs(self.schedule, step, self._layers.windows[step.output]) for step in self.steps)

    @property
    def bytes(self) -> int:
        """Of windows and weights, each once, where every window is as large as its bound."""
        return sum(launch.cost.read + launch.cost.written for launch in self.launches)

    def window(self, step: Step) -> Window:
        return self._layers.windows[step.output]

    def errors(self) -> Errors:
        """Of every output plane against the schedule's oracle in float64 on whole planes.

        Raises:
            AssertionError: something was written outside the windows, or not everything inside.
        """
        written = self._written()
        for number in written:
            self.memory.plane(number).tensor.fill_(float("nan"))
        self.run()
        expected = self._expected()
        worst = Errors()
        for number, window in written.items():
            plane = self.memory.plane(number).tensor
            assert_only_written(plane, [window], axes=(0, 1))
            rows, columns = window.slices
            found = plane[rows, columns].cpu().double()
            whole = expected[number][0].movedim(0, -1)
            worst |= compare(found, whole[rows, columns], whole)
        return worst

    def _written(self) -> dict[int, Window]:
        if self.unit.kind != "tail":
            return {step.output: self.window(step) for step in self.steps}
        # The 3x3 convolution's plane never exists; what follows is computed where the block's output is.
        _, expand, *following = [self.schedule.steps[number] for number in self.unit.steps]
        return {step.output: self.window(expand) for step in (expand, *following)}

    def _inputs(self) -> list[int]:
        made = {step.output for step in self.steps}
        return list(dict.fromkeys(n for step in self.steps for n in step.inputs if n not in made))

    def _fill(self) -> None:
        """Random values wherever the unit reads: zeros hide mistakes and draw less power."""
        generator = torch.Generator().manual_seed(3)
        for number in self._inputs():
            target = self._storage(number)
            values = torch.randn(target.shape, generator=generator)
            if target.ndim == 1 and target.numel() == 1:
                values = values.abs() + 32  # what coordinates are divided by
            target.copy_(values)

    def _storage(self, number: int) -> Tensor:
        if number in self.memory.flat:
            return self.memory.flat[number]
        return self.memory.images[number] if number in self.memory.images else self.memory.plane(number).tensor

    def _expected(self) -> dict[int, Tensor]:
        numbers = self._inputs()
        values = []
        for number in numbers:
            stored = self._storage(number).cpu().double()
            flat, image = number in self.memory.flat, number in self.memory.images
            values.append(stored[None] if flat or image else stored.movedim(-1, 0)[None])
        part = Schedule(
            self.schedule.planes,
            tuple(self.steps),
            tuple(numbers),
            {step.name: step.output for step in self.steps},
            self._layers.rounded,
        )
        seen: dict[int, Tensor] = {}
        run_schedule(part, values, observe=seen.__setitem__)
        return seen
