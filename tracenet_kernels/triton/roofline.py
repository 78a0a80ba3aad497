"""How long kernels should take, from what they do and what a part can do; and the tiles that this model prefers.

A lower bound with the few terms that matter at batch 1: ``launch + max(compute, memory, level 2)``, where the busiest
multiprocessor has ``ceil(programs / multiprocessors)`` programs to run. It says which layers are far from what the part
allows, and which configuration to begin with where none has been measured. ``python -m
tracenet_kernels.triton.roofline`` prints it per layer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenet_kernels.errors import InputError
from tracenet_kernels.triton.configs import ConvConfig, ConvKey
from tracenet_kernels.triton.devices import KIB, PARTS, REGISTERS_MULTIPROCESSOR, Part, limits, part
from tracenet_kernels.triton.launch import Cost, Launch
from tracenet_kernels.triton.text import aligned

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1, "float8_e4m3fn": 1}
"""dtype -> bytes of an element."""
SHARED_BANDWIDTH = 128
"""Bytes per clock that a multiprocessor reads from its shared memory."""
STEP_CLOCKS = 100
"""Clocks of a tile's step that no copy or product hides: barriers and addresses (assumption)."""
MAX_SPLIT = 32


@dataclass(frozen=True, slots=True)
class Work:
    """What a launch does on one part.

    Attributes:
        cost: multiply-adds and bytes.
        programs: of the grid.
        dtype: of the planes it reads.
        tensor_cores: whether it multiplies on them.
        pdl: whether it starts while its predecessor ends.
    """

    cost: Cost
    programs: int
    dtype: str = "float16"
    tensor_cores: bool = True
    pdl: bool = False

    @classmethod
    def of(cls, launch: Launch) -> Work:
        """Of a launch; its dtype is that of the first plane or weight among its arguments."""
        names = (str(getattr(_tensor(value), "dtype", "")).removeprefix("torch.") for value in launch.args.values())
        dtype = next((name for name in names if name in SIZES), "float32")
        return cls(
            launch.cost, math.prod(launch.grid), dtype, launch.tensor_cores, bool(launch.options.get("launch_pdl"))
        )


def _tensor(value: Any) -> Any:
    """The tensor behind a tensor descriptor."""
    return getattr(value, "base", value) if type(value).__name__ == "TensorDescriptor" else value


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of a launch by what bounds it; ``seconds`` is what it should take."""

    launch: float
    compute: float
    memory: float
    level2: float

    @property
    def seconds(self) -> float:
        return self.launch + max(self.compute, self.memory, self.level2)

    @property
    def bound(self) -> str:
        """The largest of the four terms."""
        terms = {"launch": self.launch, "compute": self.compute, "memory": self.memory, "level 2": self.level2}
        return max(terms, key=terms.__getitem__)


def predict(work: Work | Launch, on: Part, *, warm: bool = True) -> Prediction:
    """What a launch should take.

    Args:
        work: a launch or what it does.
        on: the part.
        warm: whether what it reads is in the level-2 cache already, if it fits.
    """
    work = Work.of(work) if isinstance(work, Launch) else work
    moved = work.cost.read + work.cost.written
    rounds = math.ceil(max(1, work.programs) / on.multiprocessors)
    per_program = work.cost.macs / max(1, work.programs)
    compute = rounds * per_program / (on.rate(work.dtype, work.tensor_cores) / on.multiprocessors)
    # Few programs cannot ask for bytes as fast as memory delivers them.
    busy = min(1.0, work.programs / on.multiprocessors)
    cached = warm and moved <= on.l2
    memory = 0.0 if cached else moved / on.bandwidth
    return Prediction(
        on.launch_pdl if work.pdl else on.launch, compute, memory, moved / (on.l2_bandwidth * max(busy, 1e-9))
    )


def shared_bytes(key: ConvKey, config: ConvConfig) -> int:
    """Shared memory of a configuration, at most: the pipeline's tiles of both operands, or the output's tile."""
    size = SIZES.get(key.dtype, 4)
    tiles = max(1, config.stages) * (config.block_m + config.block_n) * config.block_k * size
    return max(tiles, config.block_m * config.block_n * 4) + 2 * KIB


def fits(key: ConvKey, config: ConvConfig, arch: int) -> bool:
    """Whether a configuration surely fits an architecture's shared memory and registers."""
    sums = config.block_m * config.block_n / (32 * config.warps)  # one register each; twice as many spill
    return shared_bytes(key, config) <= limits(arch).shared_block and sums <= 64


def candidates(key: ConvKey, on: Part) -> Iterator[ConvConfig]:
    """Configurations that are worth trying: they fit, waste little of a tile and split sums no further than needed."""
    size = SIZES.get(key.dtype, 4)
    depth = -(-key.in_channels // 16) * 16
    block_ks = [k for k in (32, 64) if k * size <= 128 and (k <= depth or k == 32)]
    for block_m in (16, 32, 64, 128):
        if block_m > max(16, key.cells):
            continue
        for block_n in (16, 32, 64, 128, 256):
            if block_n > max(16, 1 << (key.out_channels - 1).bit_length()):
                continue
            for block_k in block_ks:
                yield from _fitted(key, on, block_m, block_n, block_k)


def _fitted(key: ConvKey, on: Part, block_m: int, block_n: int, block_k: int) -> Iterator[ConvConfig]:
    steps = key.taps * math.ceil(key.in_channels / block_k)
    tiles = key.jobs * math.ceil(key.cells / block_m) * math.ceil(key.out_channels / block_n)
    for warps in (4, 8):
        sums = block_m * block_n // (32 * warps)
        if sums > 64 or (sums < 8 and warps > 4):
            continue
        for stages in (2, 3, 4, 5):
            if stages > max(2, steps):
                continue
            for split_k in _splits(tiles, steps, on.multiprocessors) if key.family in _SPLITTING else (1,):
                for swap in (False, True) if _may_swap(key, on, block_m, block_n) else (False,):
                    config = ConvConfig(block_m, block_n, block_k, split_k, warps, stages, swap)
                    if fits(key, config, on.arch):
                        yield config


def _may_swap(key: ConvKey, on: Part, block_m: int, block_n: int) -> bool:
    """Few cells as the columns of an instruction that takes 64 rows: where there is one, and channels to fill it."""
    return key.family in ("conv2d", "conv2d_levels") and _wide_rows(on) and block_m < 64 <= block_n


def _wide_rows(on: Part) -> bool:
    """Whether matrix instructions take 64 rows or more, from shared memory: Hopper, Blackwell with tensor memory."""
    return on.arch // 10 in (9, 10, 11)


_SPLITTING = ("conv2d", "conv2d_levels", "conv2d_tma")
"""Families that take ``split_k``."""


def _splits(tiles: int, steps: int, multiprocessors: int) -> list[int]:
    """1, and powers of two up to the first that gives every multiprocessor a program; two steps at least per share."""
    found = [1]
    while tiles * found[-1] < multiprocessors and steps >= 4 * found[-1] and found[-1] < MAX_SPLIT:
        found.append(2 * found[-1])
    return found


def predict_conv(key: ConvKey, config: ConvConfig, on: Part) -> float:
    """Seconds of a convolution with a configuration, its weights in memory and its planes in the level-2 cache."""
    size = SIZES.get(key.dtype, 4)
    across = math.ceil(key.out_channels / config.block_n)
    tiles = key.jobs * math.ceil(key.cells / config.block_m) * across
    steps = key.taps * math.ceil(key.in_channels / config.block_k)
    own_steps = math.ceil(steps / config.split_k)
    programs = tiles * config.split_k
    resident = _resident(key, config, on)
    rounds = math.ceil(programs / (on.multiprocessors * resident))
    together = min(resident, math.ceil(programs / on.multiprocessors))
    multiply = _multiply(key, config, on)
    step = max(
        together * max(multiply, _operands(key, config, size, on)),
        together * (config.block_m + config.block_n) * config.block_k * size * on.multiprocessors / on.l2_bandwidth,
        on.latency / max(1, config.stages - 1),
        multiply + STEP_CLOCKS / on.clock,
    )
    run = rounds * (2 * on.latency + own_steps * step)
    weights = key.out_channels * key.taps * key.in_channels * size
    total = on.launch_pdl + max(run, weights / on.bandwidth)
    if config.split_k > 1:  # the last program of a tile waits for its ticket, then reads what all others have stored
        sums = tiles * config.block_m * config.block_n * 4 * config.split_k
        total += 2 * on.latency + 2 * sums / on.l2_bandwidth
    return total


def _resident(key: ConvKey, config: ConvConfig, on: Part) -> int:
    """Programs that fit on one multiprocessor."""
    registers = _registers(config) * 32 * config.warps
    return max(
        1,
        min(
            on.limits.shared_multiprocessor // (shared_bytes(key, config) + KIB),
            on.limits.warps // config.warps,
            on.limits.programs,
            REGISTERS_MULTIPROCESSOR // registers,
        ),
    )


def _registers(config: ConvConfig) -> int:
    """Registers of a thread: its sums, the operands and addresses that go with them, and what does not grow.

    A line through what Triton's convolution kernels take on sm_80 and sm_90.
    """
    return min(255, 60 + 5 * config.block_m * config.block_n // (64 * config.warps))


def _multiply(key: ConvKey, config: ConvConfig, on: Part) -> float:
    """Seconds of one tile's step on a multiprocessor's tensor cores (or its fp32 units).

    From Hopper on, only tiles of 64 rows and more reach the full rate: smaller ones take the instructions of Ampere,
    which run at about half of it.
    """
    rate = on.rate(key.dtype) / on.multiprocessors
    if _wide_rows(on) and _rows(key, config) < 64 and key.dtype in on.tensor:
        rate /= 2
    return max(16, _rows(key, config)) * max(8, _columns(key, config)) * config.block_k / rate


def _swapped(key: ConvKey, config: ConvConfig) -> bool:
    """Whether output channels are the rows of the product; ``conv2d_tma`` decides for itself."""
    return config.swap or (key.family == "conv2d_tma" and config.block_n >= 64)


def _rows(key: ConvKey, config: ConvConfig) -> int:
    return config.block_n if _swapped(key, config) else config.block_m


def _columns(key: ConvKey, config: ConvConfig) -> int:
    return config.block_m if _swapped(key, config) else config.block_n


def _operands(key: ConvKey, config: ConvConfig, size: int, on: Part) -> float:
    """Seconds that a tile's step reads shared memory.

    Wide instructions read both operands once per group of four warps. The others load them into registers: every warp
    its own rows and columns, of the arrangement of warps that reads least.
    """
    rows, columns = _rows(key, config), _columns(key, config)
    if _wide_rows(on) and rows >= 64:
        read = rows + columns * max(1, min(config.warps // 4, rows // 64))
    else:
        downs = [d for d in (1, 2, 4, 8) if d <= config.warps and d * 16 <= max(16, rows)]
        read = min(config.warps * (rows // d + columns * d // config.warps) for d in downs)
    return read * config.block_k * size / (SHARED_BANDWIDTH * on.clock)


def ranked(key: ConvKey, on: Part) -> list[ConvConfig]:
    """All candidates, the fastest first; of equals the one with the fewest steps, then the least shared memory."""

    def rank(config: ConvConfig) -> tuple[float, int, int, int]:
        seconds = round(predict_conv(key, config, on), 9)
        return seconds, -config.block_k, shared_bytes(key, config), config.split_k

    return sorted(candidates(key, on), key=rank)


def model_config(key: ConvKey, on: Part) -> ConvConfig:
    """The candidate that should be fastest."""
    return next(iter(ranked(key, on)), ConvConfig(16, 16, 32, 1, 4, 2))


@dataclass(frozen=True, slots=True)
class Row:
    """A layer of a report; ``measured`` in seconds where there is a measurement."""

    name: str
    programs: int
    cost: Cost
    prediction: Prediction
    measured: float | None


def report(launches: Iterable[Launch], on: Part, measured: Mapping[str, float], *, warm: bool = True) -> list[Row]:
    """Predictions of launches beside measurements by launch name, in seconds."""
    return [
        Row(
            launch.name,
            math.prod(launch.grid),
            launch.cost,
            predict(launch, on, warm=warm),
            measured.get(launch.name),
        )
        for launch in launches
    ]


def report_text(rows: Sequence[Row], on: Part, *, warm: bool) -> str:
    """A report as an aligned table, then its sums."""
    head = ("layer", "programs", "MMACs", "KB", "bound", "us", "measured", "of it")
    cells = [head]
    for row in rows:
        moved = row.cost.read + row.cost.written
        seconds = row.prediction.seconds
        cells.append(
            (
                row.name,
                str(row.programs),
                f"{row.cost.macs / 1e6:.1f}",
                f"{moved / 1e3:.0f}",
                row.prediction.bound,
                f"{seconds * 1e6:.2f}",
                "" if row.measured is None else f"{row.measured * 1e6:.2f}",
                "" if row.measured is None else f"{seconds / row.measured:.0%}",
            )
        )
    lines = aligned(cells, left={0, 4})
    total = sum(row.prediction.seconds for row in rows)
    lines.append(
        f"{len(rows)} launches on {on.name}, {'warm' if warm else 'cold'} level 2: {total * 1e6:.0f} us predicted"
        + _measured_sum(rows)
    )
    return "\n".join(lines)


def _measured_sum(rows: Sequence[Row]) -> str:
    known = [row for row in rows if row.measured is not None]
    if not known:
        return ""
    ours = sum(row.prediction.seconds for row in known)
    theirs = sum(row.measured for row in known if row.measured is not None)
    return f"; of the {len(known)} measured, {ours * 1e6:.0f} us predicted, {theirs * 1e6:.0f} us measured"


def read_measured(path: str | Path) -> dict[str, float]:
    """Measurements ``{"layer": microseconds}`` as seconds.

    Raises:
        InputError: the file does not hold such an object.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as measurements ({error})") from error
    if not isinstance(data, dict) or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 for value in data.values()
    ):
        raise InputError(f"{path} does not hold measurements; write an object of layer names and microseconds")
    return {name: value / 1e6 for name, value in data.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the layers of ResNet-50 at 1024 x 768 as one part should run them."""
    parser = argparse.ArgumentParser(prog="python -m tracenet_kernels.triton.roofline")
    parser.add_argument("--part", choices=sorted(PARTS), default="h100")
    parser.add_argument("--dtype", choices=sorted(SIZES), default="float16")
    parser.add_argument("--measured", type=Path, default=None, help='JSON of {"layer": microseconds}')
    parser.add_argument("--cold", action="store_true", help="nothing is in the level-2 cache")
    options = parser.parse_args(arguments)
    measured = {} if options.measured is None else read_measured(options.measured)
    os.environ["TRITON_INTERPRET"] = "0"  # kernels are imported below, to be described and not run
    from tracenet_kernels.triton.cases import network_launches

    on = part(options.part)
    rows = report(network_launches(on, options.dtype), on, measured, warm=not options.cold)
    print(report_text(rows, on, warm=not options.cold))
    return 0


if __name__ == "__main__":
    sys.exit(main())
