"""``TRACENET_DEBUG=2``: launches one by one, each timed and printed as one aligned line on stderr."""

from __future__ import annotations

import os
import sys
import time

import torch

from tracenet.engine.gpu.capture import Replay, Work
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.window import Window


def asked() -> bool:
    """Whether the environment asks for it."""
    return os.environ.get("TRACENET_DEBUG") == "2"


class Printed:
    """In place of a capture: every replay launches kernel by kernel and waits for each.

    A line says name, first window, grid, kernel, time and rates. Multiply-adds and bytes are those of the largest
    window of the class, so rates of smaller windows are less than printed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, work: Work) -> Replay:
        return _Printing(work, self._device)


class _Printing:
    def __init__(self, work: Work, device: torch.device) -> None:
        self._work = tuple(work)
        self._device = device

    def replay(self) -> None:
        for launch in self._work:
            self._wait()
            start = time.perf_counter()
            launch()
            self._wait()
            if isinstance(launch, Launch):
                print(line(launch, 1e6 * (time.perf_counter() - start)), file=sys.stderr)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def line(launch: Launch, microseconds: float) -> str:
    """What is printed of a launch."""
    rows = launch.args.get("windows", launch.args.get("table"))
    row = rows.reshape(-1, 4)[launch.args.get("first_window", 0)].tolist() if rows is not None else (0, 0, 0, 0)
    kernel = getattr(launch.kernel, "__name__", type(launch.kernel).__name__)
    size = "x".join(map(str, launch.grid))
    moved = launch.cost.read + launch.cost.written
    return (
        f"{launch.name:<36} {Window(*row)!s:<24} {size:<12} {kernel:<24} {microseconds:10.1f} us "
        f"{2e-3 * launch.cost.macs / microseconds:8.1f} GFLOP/s {1e-3 * moved / microseconds:7.1f} GB/s"
    )
