"""8-bit schedules: what values planes take, and which of them become uint8.

Convolutions read uint8 activations and int8 weights; everything else stays fp32. A range per plane is measured on
images (:class:`Calibration`) and cut where rounding and saturation together lose least. It belongs to a network, not
to an input size: planes have the same names at every size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracenet.engine.reference import External, run_schedule
from tracenet.engine.schedule import ACTIVATIONS, Plane, Schedule, Step
from tracenet.files import save_json
from tracenet_kernels.errors import InputError
from tracenet_kernels.windowed_int8 import MOST_TERMS, Quantisation

_BINS = 8192
_CUTS = 41  # candidates for each end of a range


@dataclass(frozen=True, slots=True)
class Range:
    """What a plane's values span, after cutting off outliers that cost more than they are worth."""

    low: float
    high: float


class Histogram:
    """Counts of values in equal bins over [-reach, reach]. The reach doubles as larger values come."""

    def __init__(self) -> None:
        self.reach = 0.0
        self.counts = np.zeros(_BINS, np.float64)
        self.low = self.high = 0.0

    def add(self, values: Tensor) -> None:
        """Count fp32 values.

        Raises:
            InputError: some are not finite.
        """
        low, high = (float(end) for end in torch.aminmax(values))
        if not np.isfinite([low, high]).all():
            raise InputError("a plane holds values that are not finite; check the network and its inputs")
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if largest == 0:
            self.counts[_BINS // 2] += values.numel()
            return
        if self.reach == 0:
            self.reach = 2.0 ** np.ceil(np.log2(largest))
        while self.reach < largest:
            self._double()
        self.counts += torch.histc(values.flatten(), _BINS, -self.reach, self.reach).double().numpy()

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(_BINS)
        self.counts[_BINS // 4 : 3 * _BINS // 4] = pairs
        self.reach *= 2

    def range(self) -> Range:
        """The range whose 256 steps give the least mean squared error.

        Each end is one of a few shares of the farthest value on its side; 0 is always inside.
        """
        if self.reach == 0:
            return Range(0.0, 0.0)
        used = np.flatnonzero(self.counts)
        counts = self.counts[used]
        centres = (used + 0.5) * (2 * self.reach / _BINS) - self.reach
        shares = np.linspace(0.2, 1, _CUTS)
        # One end after the other, twice: the error hardly couples them.
        best = Range(self.low, self.high)
        for _ in range(2):
            for end in ("low", "high"):
                candidates = [replace(best, **{end: float(share) * getattr(self, end)}) for share in shares]
                best = min(candidates, key=lambda candidate: _squared_error(centres, counts, candidate))
        return best


def _squared_error(centres: NDArray[np.floating], counts: NDArray[np.floating], candidate: Range) -> float:
    grid = Quantisation.of_range(candidate.low, candidate.high)
    steps = np.clip(np.rint(centres / grid.scale) + grid.zero_point, 0, 255)
    return float((counts * ((steps - grid.zero_point) * grid.scale - centres) ** 2).sum())


class Calibration:
    """Measures the planes that convolutions read or add, image by image, at any input size."""

    def __init__(self) -> None:
        self.samples = 0
        self._histograms: dict[str, Histogram] = {}

    def add(self, schedule: Schedule, inputs: Sequence[Tensor], external: External | None = None) -> None:
        """Run a schedule and count what its planes hold.

        Args:
            schedule: in fp32, at the size of the inputs.
            inputs: of the network; an image of the kind it will see.
            external: computes external steps, see :func:`tracenet.engine.reference.run_schedule`.

        Raises:
            InputError: a plane is not finite.
        """
        read = {x for step in schedule.steps if step.op == "conv2d" for x in step.inputs}
        names = {number: schedule.planes[number].name for number in read - set(schedule.inputs)}

        def observe(number: int, value: Tensor) -> None:
            if number in names:
                self._histograms.setdefault(names[number], Histogram()).add(value)

        run_schedule(schedule, inputs, external, observe)
        self.samples += 1

    def ranges(self) -> dict[str, Range]:
        """Plane name -> range.

        Raises:
            InputError: there were no samples.
        """
        if not self.samples:
            raise InputError("there are no samples to calibrate on; add the inputs of some images")
        return {name: histogram.range() for name, histogram in self._histograms.items()}


def save_ranges(ranges: Mapping[str, Range], path: Path) -> None:
    """Write ranges as JSON, plane name -> [low, high]."""
    save_json({name: [one.low, one.high] for name, one in ranges.items()}, path)


def load_ranges(path: Path) -> dict[str, Range]:
    """What :func:`save_ranges` wrote.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    try:
        pairs = json.loads(path.read_text())
        return {name: Range(float(low), float(high)) for name, (low, high) in pairs.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no ranges ({error}); pass what save_ranges wrote") from error


def calibrate(
    schedule: Schedule, samples: Iterable[Sequence[Tensor]], external: External | None = None
) -> dict[str, Range]:
    """:class:`Calibration` on samples of one size.

    Raises:
        InputError: there are no samples, or a plane is not finite.
    """
    calibration = Calibration()
    for inputs in samples:
        calibration.add(schedule, inputs, external)
    return calibration.ranges()


def quantise(schedule: Schedule, ranges: Mapping[str, Range], keep_fp32: Iterable[str] = ()) -> Schedule:
    """The same network with 8-bit convolutions.

    Every ``conv2d`` becomes one whose input is a plane with a range, not an input of the network. A plane that an
    8-bit convolution gives and only 8-bit convolutions read (or add) becomes uint8, also where it is an output of the
    network besides. Any other plane that one reads stays fp32 and is converted once; results, which no step reads,
    stay fp32.

    Args:
        schedule: in fp32.
        ranges: of :func:`calibrate`.
        keep_fp32: names of steps that stay as they are.

    Raises:
        InputError: a range is not finite or ends before it starts, or a name in ``keep_fp32`` is no step's.
    """
    exempt = set(keep_fp32)
    unknown = exempt - {step.name for step in schedule.steps}
    if unknown:
        raise InputError(f"no step is called {sorted(unknown)[0]!r}; pass names of steps")
    grids = {
        number: Quantisation.of_range(ranges[plane.name].low, ranges[plane.name].high)
        for number, plane in enumerate(schedule.planes)
        if plane.name in ranges
    }
    int8 = _int8_steps(schedule, grids, exempt)
    producers = {step.output: step for step in schedule.steps}
    readers: dict[int, list[Step]] = {}
    for step in schedule.steps:
        for number in step.inputs:
            readers.setdefault(number, []).append(step)
    planes = [
        _as_uint8(plane, grids[number])
        if number in grids
        and number in producers
        and number in readers
        and all(step.output in int8 for step in (producers[number], *readers[number]))
        else plane
        for number, plane in enumerate(schedule.planes)
    ]
    steps: list[Step] = []
    copies: dict[int, int] = {}
    for launch in _launches(schedule.steps):
        for step in launch:
            x = step.inputs[0] if step.inputs else -1
            if step.output not in int8 or planes[x].dtype == "uint8" or x in copies:
                continue
            copies[x] = len(planes)
            name = f"{planes[x].name}:uint8"  # no node has a colon
            planes.append(replace(_as_uint8(planes[x], grids[x]), name=name, keep=False))
            steps.append(Step("convert", name, (x,), copies[x]))
        for step in launch:
            if step.output in int8 and step.inputs[0] in copies:
                step = replace(step, inputs=(copies[step.inputs[0]], *step.inputs[1:]))
            steps.append(step)
    return replace(schedule, planes=tuple(planes), steps=tuple(steps))


def _as_uint8(plane: Plane, grid: Quantisation) -> Plane:
    return replace(plane, dtype="uint8", scale=grid.scale, zero_point=grid.zero_point)


def _launches(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps that run as one, in order."""
    launches: list[list[Step]] = []
    for step in steps:
        if launches and step.group and launches[-1][-1].group == step.group:
            launches[-1].append(step)
        else:
            launches.append([step])
    return launches


def _int8_steps(schedule: Schedule, grids: Mapping[int, Quantisation], exempt: set[str]) -> set[int]:
    """Output planes of the steps that become 8-bit; steps of one launch do so together."""

    def fits(step: Step) -> bool:
        if step.op != "conv2d" or step.name in exempt or step.inputs[0] not in grids:
            return False
        if ACTIVATIONS[step.ints.get("activation", 0)] not in ("none", "relu"):
            return False
        weight = schedule.tensors[step.tensors["weight"]]
        return weight[0].size <= MOST_TERMS

    return {step.output for launch in _launches(schedule.steps) if all(map(fits, launch)) for step in launch}
