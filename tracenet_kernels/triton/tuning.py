"""Measures configurations of convolutions on a GPU and keeps the fastest that is right.

Every candidate computes the layer on random data and is compared with the plain-torch twin before it is timed. The
timer is an argument, so that the search runs in Triton's interpreter as well.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from tracenet_kernels import reference
from tracenet_kernels.errors import TraceNetError
from tracenet_kernels.testing import TOLERANCES, errors
from tracenet_kernels.triton.cases import Layer, centre, tma_takes
from tracenet_kernels.triton.configs import ConvConfig, ConvKey, Table, Target, part_like
from tracenet_kernels.triton.conv2d import conv2d_launches, conv2d_levels_launches
from tracenet_kernels.triton.conv2d_tma import conv2d_tma_launches
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.planes import DevicePlane, Windows
from tracenet_kernels.triton.roofline import ranked
from tracenet_kernels.triton.weights import pack_weight

_log = logging.getLogger(__name__)

Timer = Callable[[Sequence[Launch]], float]
"""Launches -> seconds that they take."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A layer with data: builds its launches with a configuration, and says whether they compute what they should."""

    build: Callable[[ConvConfig], list[Launch]]
    is_right: Callable[[], bool]


def keys_of(layers: Sequence[Layer], dtype: torch.dtype, arch: int) -> dict[ConvKey, Layer]:
    """Distinct keys of layers, by every family that takes them, each with the first layer that has it."""
    name = str(dtype).removeprefix("torch.")
    found: dict[ConvKey, Layer] = {}
    for layer in layers:
        found.setdefault(layer.key(name), layer)
        if tma_takes(layer, dtype, arch):
            found.setdefault(layer.key(name, "conv2d_tma"), layer)
    return found


def problem(layer: Layer, family: str, dtype: torch.dtype, device: torch.device | str) -> Problem:
    """Random planes and weights of a layer, its output poisoned."""
    draw = torch.Generator().manual_seed(0)
    depth = layer.inputs * layer.taps
    weight = torch.randn(layer.outputs, layer.inputs, layer.kernel, layer.kernel, generator=draw) / depth**0.5
    bias = torch.randn(layer.outputs, generator=draw)
    packed = pack_weight(weight, dtype=dtype, device=device, stride=layer.stride, padding=layer.kernel // 2)
    real_weight = packed.tensor[..., : layer.inputs].double()
    if packed.scales is not None:
        real_weight = real_weight * packed.scales.double().view(-1, 1, 1)
    real_weight = real_weight.view(layer.outputs, layer.kernel, layer.kernel, layer.inputs).permute(0, 3, 1, 2)
    bias = bias.to(device)
    sides = [(-(-layer.plane[0] >> i) or 1, -(-layer.plane[1] >> i) or 1) for i in range(layer.levels)]
    xs = _planes([(r * layer.stride, c * layer.stride) for r, c in sides], layer.inputs, dtype, device, draw)
    outs = _planes(sides, layer.outputs, torch.float16 if dtype.itemsize == 1 else dtype, device, None)
    windows = [centre(side, layer.window) for side in sides]
    residual = None
    if layer.residual:
        f = layer.residual
        rows, columns = -(-layer.plane[0] // f), -(-layer.plane[1] // f)
        (residual,) = _planes([(rows, columns)], layer.outputs, outs[0].dtype, device, draw)
    wanted = [
        reference.conv2d(
            reference.dequantise(x.tensor, x.scale, x.zero_point) if dtype.itemsize == 1 else x.tensor.double(),
            real_weight,
            plane=side,
            stride=(layer.stride, layer.stride),
            padding=(layer.kernel // 2, layer.kernel // 2),
            bias=bias.double(),
            residual=None if residual is None else residual.tensor.double(),
            residual_factor=max(1, layer.residual),
            activation="relu" if layer.relu else "none",
        )[window.slices]
        for x, side, window in zip(xs, sides, windows, strict=True)
    ]
    table = Windows.of(windows, device)

    def build(config: ConvConfig) -> list[Launch]:
        activation = "relu" if layer.relu else "none"
        if layer.levels > 1:
            return conv2d_levels_launches(
                xs, packed, outs, table, biases=[bias] * layer.levels, activation=activation, config=config
            )
        of = conv2d_tma_launches if family == "conv2d_tma" else conv2d_launches
        return of(
            xs[0],
            packed,
            outs[0],
            table,
            bias=bias,
            residual=residual,
            residual_factor=max(1, layer.residual),
            activation=activation,
            config=config,
        )

    def is_right() -> bool:
        tolerance = TOLERANCES[outs[0].dtype]
        computed = [out.tensor[window.slices] for out, window in zip(outs, windows, strict=True)]
        right = all(
            bool(got.isfinite().all()) and errors(got, want).within(tolerance)
            for got, want in zip(computed, wanted, strict=True)
        )
        for out in outs:
            out.tensor.fill_(torch.nan)
        return right

    return Problem(build, is_right)


def _planes(
    sides: Sequence[tuple[int, int]],
    channels: int,
    dtype: torch.dtype,
    device: torch.device | str,
    draw: torch.Generator | None,
) -> list[DevicePlane]:
    """Planes in one allocation: random ones, or poisoned ones without a generator."""
    length = sum(rows * columns for rows, columns in sides) * channels
    scale, zero_point = (0.05, -3 if dtype == torch.int8 else 0) if dtype.itemsize == 1 else (1.0, 0)
    if draw is None:
        memory = torch.full((length,), torch.nan, dtype=dtype)
    elif dtype == torch.int8:
        memory = torch.randint(-60, 60, (length,), generator=draw, dtype=dtype)
    else:
        memory = torch.randn(length, generator=draw).to(dtype)
    memory, at, found = memory.to(device), 0, []
    for rows, columns in sides:
        view = memory[at : at + rows * columns * channels].view(rows, columns, channels)
        found.append(DevicePlane(view, (rows, columns), (0, 0), scale, zero_point))
        at += rows * columns * channels
    return found


def best_config(
    key: ConvKey, of: Problem, candidates: Sequence[ConvConfig], timer: Timer
) -> tuple[ConvConfig, float] | None:
    """The fastest candidate that is right, and its seconds; None where there is none."""
    best: tuple[ConvConfig, float] | None = None
    for config in candidates:
        try:
            launches = of.build(config)
            for launch in launches:
                launch()
            right = of.is_right()
        except TraceNetError as error:
            _log.info("%s refuses %s: %s", key, config, error)
            continue
        except Exception as error:  # the compiler and the driver raise whatever they meet; other candidates may run
            _log.info("%s does not run with %s: %s", key, config, error)
            continue
        if not right:
            _log.warning("%s is wrong with %s; this configuration is left out", key, config)
            continue
        seconds = timer(launches)
        if best is None or seconds < best[1]:
            best = config, seconds
    return best


def tune(
    layers: Mapping[ConvKey, Layer],
    target: Target,
    dtype: torch.dtype,
    device: torch.device | str,
    timer: Timer,
    *,
    known: Table | None = None,
    limit: int = 24,
    seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    keep: Callable[[Table], None] = lambda table: None,
    progress: Callable[[], None] = lambda: None,
) -> Table:
    """Measure what is not known yet.

    Args:
        layers: what to tune; see :func:`keys_of`.
        target: the GPU, whose model ranks the candidates.
        timer: seconds of launches.
        known: what an earlier run found; its entries stay as they are.
        limit: candidates per key, the model's best.
        seconds: begin no further key after this long.
        clock: seconds since some moment.
        keep: called with the table after every key.
        progress: called after every key.

    Returns:
        all that is known now.
    """
    table = known or Table(target.name, target.arch, "measured", {})
    end = None if seconds is None else clock() + seconds
    on = part_like(target)
    for key, layer in layers.items():
        if key not in table.configs and (end is None or clock() < end):
            of = problem(layer, key.family, dtype, device)
            found = best_config(key, of, list(islice(ranked(key, on), limit)), timer)
            if found is None:
                _log.warning("no configuration of %s runs and is right; the model's choice stays", key)
            else:
                configs, micros = {**table.configs, key: found[0]}, {**table.micros, key: found[1] * 1e6}
                table = replace(table, configs=configs, micros=micros)
                keep(table)
        progress()
    return table


class CudaTimer:
    """Median seconds of launches on the current CUDA device, what they read out of the level-2 cache beforehand.

    The flush keeps the device busy while the launches are enqueued, so that only their own time lies between events.
    """

    def __init__(self, runs: int = 25) -> None:
        size = 2 * max(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size, 16 << 20)
        self.runs = runs
        self.flush: Tensor = torch.empty(size // 4, dtype=torch.int32, device="cuda")

    def __call__(self, launches: Sequence[Launch]) -> float:
        times = []
        for _ in range(self.runs):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            before.record()
            for launch in launches:
                launch()
            after.record()
            after.synchronize()
            times.append(before.elapsed_time(after) / 1e3)
        return statistics.median(times)
