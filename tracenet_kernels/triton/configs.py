"""Tile sizes of the kernels: which configuration a launch takes.

Looked up for the current device, in this order: the user's file of that GPU (:func:`user_file`), the shipped file of
that GPU, the shipped file of the nearest architecture, the model of :mod:`tracenet_kernels.triton.roofline`. Files are
JSON as :func:`read_table` describes them. Nothing here needs Triton or a GPU; without one, as in Triton's interpreter,
tiles that suit an interpreter are taken and no file is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tracenet_kernels.backends import say_once
from tracenet_kernels.errors import ConfigError
from tracenet_kernels.triton.devices import Part, nearest_arch, nearest_part

FORMAT = "tracenet-kernel-configs"
VERSION = 1
ORIGINS = ("model", "measured")
FAMILIES = ("conv2d", "conv2d_levels", "conv2d_tma", "bottleneck_tail")
_LIKE = MappingProxyType({"bfloat16": "float16", "float8_e4m3fn": "int8"})
"""dtype -> one of the same size and rate, whose configurations serve where there are none."""
SHIPPED = Path(__file__).parent / "configs"


@dataclass(frozen=True, slots=True)
class ConvConfig:
    """Of a matrix-shaped kernel.

    Attributes:
        block_m, block_n, block_k: output cells, output channels and input channels of one tile.
        split_k: programs that share one tile's sum.
        warps, stages: of Triton.
        swap: output channels are the rows of the tensor-core product and cells its columns: a window of few cells
            then wastes no rows of an instruction that takes 64.
    """

    block_m: int = 64
    block_n: int = 64
    block_k: int = 32
    split_k: int = 1
    warps: int = 4
    stages: int = 3
    swap: bool = False


@dataclass(frozen=True, slots=True)
class ConvKey:
    """What a configuration depends on, and nothing else.

    Attributes:
        family: ``conv2d``, ``conv2d_levels``, ``conv2d_tma``, ``bottleneck_tail``.
        dtype: of the planes, such as ``float16``.
        cells: of the window, rounded up to a power of two (at least 16).
        in_channels, out_channels: of one group.
        taps: kernel_y * kernel_x.
        jobs: windows per launch.
    """

    family: str
    dtype: str
    cells: int
    in_channels: int
    out_channels: int
    taps: int
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class Target:
    """The GPU that configurations are for.

    Attributes:
        name: as CUDA names it.
        arch: compute capability, 90 for 9.0.
        multiprocessors: how many it has.
    """

    name: str
    arch: int
    multiprocessors: int

    @classmethod
    def of(cls, part: Part) -> Target:
        return cls(part.name, part.arch, part.multiprocessors)


@dataclass(frozen=True, slots=True)
class Table:
    """A file of configurations.

    Attributes:
        gpu, arch: what they are for.
        origin: ``"model"`` or ``"measured"``.
        configs: key -> configuration.
        micros: key -> measured microseconds, of those that are.
        path: where it came from, for messages.
    """

    gpu: str
    arch: int
    origin: str
    configs: Mapping[ConvKey, ConvConfig]
    micros: Mapping[ConvKey, float] = field(default_factory=dict)
    path: Path | None = None


def bucket(cells: int) -> int:
    """Cells rounded up to a power of two, at least 16."""
    return max(16, 1 << (max(1, cells) - 1).bit_length())


_assumed: ContextVar[Target | None] = ContextVar("_assumed", default=None)


@contextmanager
def assume(target: Target | Part) -> Iterator[Target]:
    """Launches built inside take the configurations of ``target``, whatever device there is."""
    chosen = Target.of(target) if isinstance(target, Part) else target
    token = _assumed.set(chosen)
    try:
        yield chosen
    finally:
        _assumed.reset(token)


def current_target() -> Target | None:
    """What :func:`assume` says, else the current CUDA device, else None; None also in Triton's interpreter."""
    assumed = _assumed.get()
    if assumed is not None:
        return assumed
    import torch

    from tracenet_kernels.gpu import interpreted

    if interpreted() or not torch.cuda.is_available():
        return None
    return _device(torch.cuda.current_device())


@lru_cache(maxsize=16)
def _device(index: int) -> Target:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return Target(properties.name, properties.major * 10 + properties.minor, properties.multi_processor_count)


def conv_config(key: ConvKey) -> ConvConfig:
    """The configuration of a launch on the current device; the same for the same device and files.

    Raises:
        ConfigError: a file that is looked up is malformed.
    """
    target = current_target()
    return small_config(key) if target is None else _configured(key, target)


@lru_cache(maxsize=4096)
def _configured(key: ConvKey, target: Target) -> ConvConfig:
    from tracenet_kernels.triton.roofline import fits, model_config

    like = replace(key, dtype=_LIKE.get(key.dtype, key.dtype))
    for table in tables_for(target):
        config = table.configs.get(key) or table.configs.get(like)
        if config is not None and (table.gpu == target.name or fits(key, config, target.arch)):
            return config
    return model_config(key, part_like(target))


def part_like(target: Target) -> Part:
    """The figures of a target: of its part where it is known, else of its neighbour with the target's own size."""
    return nearest_part(target.name, target.arch).resized(target.arch, target.multiprocessors)


def small_config(key: ConvKey) -> ConvConfig:
    """Where there is no GPU: tiles near the size of the window, so that the interpreter computes little in vain.

    An interpreted operation costs the same for any block, so wide layers take wide blocks.
    """
    block_m = 16 if key.cells <= 16 else 32 if key.cells <= 64 else 64
    block_n = 16 if key.out_channels <= 16 else 32 if key.out_channels <= 32 else min(256, bucket(key.out_channels))
    return ConvConfig(block_m, block_n, min(512, bucket(key.in_channels)) if key.in_channels >= 64 else 32)


def file_name(gpu: str) -> str:
    """``"NVIDIA H200"`` -> ``"nvidia-h200.json"``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def user_file(gpu: str) -> Path:
    """Where the user's configurations of a GPU lie.

    ``TRACENET_KERNEL_CONFIGS`` is a folder of such files, or one file ending in ``.json`` for whatever GPU it names;
    without it, ``kernels`` in the user's configuration folder.
    """
    given = os.environ.get("TRACENET_KERNEL_CONFIGS")
    if given:
        return Path(given) if given.endswith(".json") else Path(given) / file_name(gpu)
    from platformdirs import user_config_dir

    return Path(user_config_dir("tracenet", appauthor=False)) / "kernels" / file_name(gpu)


@lru_cache(maxsize=16)
def tables_for(target: Target) -> tuple[Table, ...]:
    """Tables to look in, the best first.

    Raises:
        ConfigError: one of the files is malformed, or the user's one is of another GPU.
    """
    found = []
    mine = user_file(target.name)
    if mine.is_file():
        table = read_table(mine)
        if table.gpu != target.name:
            raise ConfigError(
                f"{mine} holds configurations of {table.gpu!r}, this GPU is {target.name!r}; run tracenet tune"
            )
        found.append(table)
    shipped = shipped_tables()
    exact = next((table for table in shipped if table.gpu == target.name), None)
    if exact is not None:
        return (*found, exact)
    by_arch = {table.arch: table for table in shipped if table.origin == "model"}
    if by_arch:
        nearest = by_arch[nearest_arch(target.arch, by_arch)]
        if not found:
            say_once(
                f"no kernel configurations for {target.name}; taking those of {nearest.gpu} (sm_{nearest.arch}, "
                f"{nearest.origin}): tracenet tune measures better ones"
            )
        found.append(nearest)
    return tuple(found)


@lru_cache(maxsize=1)
def shipped_tables() -> tuple[Table, ...]:
    """Every table that comes with the package."""
    return tuple(read_table(path) for path in sorted(SHIPPED.glob("*.json")))


def forget() -> None:
    """Read files anew at the next look-up."""
    for cached in (_configured, tables_for, shipped_tables):
        cached.cache_clear()


_LIMITS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "block_m": (1, 512),
        "block_n": (1, 512),
        "block_k": (16, 512),
        "split_k": (1, 256),
        "warps": (1, 32),
        "stages": (1, 16),
    }
)
_POWERS = ("block_m", "block_n", "block_k", "warps")


def read_table(path: str | Path) -> Table:
    """Read a file of configurations.

    An object with ``format`` (:data:`FORMAT`), ``version``, ``gpu``, ``arch``, ``origin`` (one of :data:`ORIGINS`) and
    ``configs``: a list of objects, each with all fields of :class:`ConvKey`, a ``config`` with fields of
    :class:`ConvConfig` (absent ones take their defaults) and perhaps ``micros``.

    Raises:
        ConfigError: it cannot be read, is no such file, is of another version, or holds something that cannot be.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as kernel configurations ({error}); delete it or tune again"
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigError(f"{path} does not hold kernel configurations; its format must be {FORMAT!r}")
    if data.get("version") != VERSION:
        raise ConfigError(f"{path} is of version {data.get('version')!r}, this package reads {VERSION}; tune again")
    unknown = data.keys() - {"format", "version", "gpu", "arch", "origin", "configs"}
    if unknown:
        raise ConfigError(f"{path} has the unknown entry {min(unknown)!r}")
    gpu, arch, origin, rows = (data.get(name) for name in ("gpu", "arch", "origin", "configs"))
    if not isinstance(gpu, str) or not gpu or not _is_count(arch, 10, 999) or origin not in ORIGINS:
        raise ConfigError(f"{path}: gpu {gpu!r}, arch {arch!r}, origin {origin!r}; origin is one of {ORIGINS}")
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: configs is {type(rows).__name__}, not a list")
    configs: dict[ConvKey, ConvConfig] = {}
    micros: dict[ConvKey, float] = {}
    for number, row in enumerate(rows):
        try:
            key, config, time = _read_row(row)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}, entry {number}: {error}") from error
        if key in configs:
            raise ConfigError(f"{path}, entry {number}: {key} is there twice")
        configs[key] = config
        if time is not None:
            micros[key] = time
    return Table(gpu, int(arch), origin, configs, micros, Path(path))  # type: ignore[arg-type]


def _is_count(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _read_row(row: Any) -> tuple[ConvKey, ConvConfig, float | None]:
    if not isinstance(row, dict):
        raise ValueError(f"{row!r} is not an object")
    names = [f.name for f in fields(ConvKey)]
    if row.keys() - {*names, "config", "micros"} or {*names, "config"} - row.keys():
        raise ValueError(f"has the fields {sorted(row)}; needed are {[*names, 'config']}, and micros may be there")
    if row["family"] not in FAMILIES or not isinstance(row["dtype"], str):
        raise ValueError(f"family {row['family']!r} of {row['dtype']!r}; families are {FAMILIES}")
    for name in names[2:]:
        if not _is_count(row[name], 1, 2**31 - 1):
            raise ValueError(f"{name} is {row[name]!r}, not a positive number")
    key = ConvKey(**{name: row[name] for name in names})
    if key.cells != bucket(key.cells):
        raise ValueError(f"cells is {key.cells}, not a power of two from 16 on")
    time = row.get("micros")
    if time is not None and (isinstance(time, bool) or not isinstance(time, (int, float)) or not 0 < time < 1e9):
        raise ValueError(f"micros is {time!r}")
    return key, _read_config(row["config"]), time


def _read_config(values: Any) -> ConvConfig:
    if not isinstance(values, dict):
        raise ValueError(f"config is {values!r}, not an object")
    for name, value in values.items():
        if name in _LIMITS:
            low, high = _LIMITS[name]
            if not _is_count(value, low, high):
                raise ValueError(f"{name} is {value!r}, not within {low}..{high}")
            if name in _POWERS and value & (value - 1):
                raise ValueError(f"{name} is {value}, not a power of two")
        elif name not in _FLAGS:
            raise ValueError(f"config has the unknown field {name!r}")
        elif not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}, not true or false")
    return ConvConfig(**values)


_FLAGS = tuple(f.name for f in fields(ConvConfig) if f.name not in _LIMITS)


def table_text(table: Table) -> str:
    """A table as :func:`read_table` reads it: one entry per line, sorted."""
    head = {"format": FORMAT, "version": VERSION, "gpu": table.gpu, "arch": table.arch, "origin": table.origin}
    lines = []
    for key in sorted(table.configs, key=lambda key: tuple(asdict(key).values())):
        row: dict[str, Any] = {**asdict(key), "config": asdict(table.configs[key])}
        if key in table.micros:
            row["micros"] = round(table.micros[key], 3)
        lines.append("    " + json.dumps(row))
    body = ",\n".join(lines)
    top = "".join(f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items())
    return "{\n" + top + '  "configs": [\n' + body + "\n  ]\n}\n"
