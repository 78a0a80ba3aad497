"""Writes the tables of configurations that come with the package: ``python -m tracenet_kernels.triton.shipped``.

No GPU is needed. Of every layer the model's best candidates are compiled ahead of time, and the first that passes the
gate (no spills, tensor cores, shared memory that fits) is taken. ``tracenet tune`` measures instead.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from tracenet_kernels.triton.configs import SHIPPED, ConvConfig, ConvKey, Table, assume, table_text
from tracenet_kernels.triton.devices import REPRESENTATIVES

DTYPES = (torch.float16, torch.int8)
TRIES = 24
"""Candidates that are compiled before a layer is left to the model."""


def passing(arch: int, entry: tuple[ConvKey, int]) -> ConvConfig | None:
    """The best candidate for a layer (its key and position) that passes the gate, or None."""
    from tracenet_kernels.triton.aot import compile_job, job_of
    from tracenet_kernels.triton.cases import LAYERS, TMA_ARCH, layer_launches, part_of
    from tracenet_kernels.triton.planes import ahead_of_time
    from tracenet_kernels.triton.roofline import ranked

    (key, position), part = entry, part_of(arch)
    dtype = getattr(torch, key.dtype)
    with assume(part), ahead_of_time(divmod(arch, 10)):
        for config in islice(ranked(key, part), TRIES):
            built = layer_launches(LAYERS[position], dtype, key.family, pdl=arch >= TMA_ARCH, config=config)
            if not any(compile_job(job_of(launch, arch)).problems for launch in built):
                return config
    return None


def table_of(arch: int, pool: ProcessPoolExecutor) -> Table:
    """The table of an architecture."""
    from tracenet_kernels.triton.cases import LAYERS, part_of, tma_takes

    first: dict[ConvKey, int] = {}
    for dtype in DTYPES:
        for position, layer in enumerate(LAYERS):
            name = str(dtype).removeprefix("torch.")
            first.setdefault(layer.key(name), position)
            if tma_takes(layer, dtype, arch):
                first.setdefault(layer.key(name, "conv2d_tma"), position)
    found = pool.map(partial(passing, arch), first.items())
    configs = {key: config for key, config in zip(first, found, strict=True) if config is not None}
    return Table(part_of(arch).name, arch, "model", configs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one file per architecture."""
    parser = argparse.ArgumentParser(prog="python -m tracenet_kernels.triton.shipped")
    parser.add_argument("--arch", type=int, nargs="+", default=list(REPRESENTATIVES))
    parser.add_argument("--out", type=Path, default=SHIPPED)
    options = parser.parse_args(arguments)
    os.environ["TRITON_INTERPRET"] = "0"  # kernels are imported below
    from tracenet_kernels.triton.aot import unsupported

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        for arch in options.arch:
            if why := unsupported(arch):
                print(f"sm_{arch} is left out: {why}")
                continue
            table = table_of(arch, pool)
            path = options.out / f"sm{arch}.json"
            path.write_text(table_text(table), encoding="utf-8")
            print(f"{path}: {len(table.configs)} configurations")
    return 0


if __name__ == "__main__":
    # By its own name: the other processes import this module so.
    from tracenet_kernels.triton.shipped import main as run

    sys.exit(run())
