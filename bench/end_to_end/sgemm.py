"""What the machine can do, and whether it is doing something else: float32 matrix products between the runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median

import torch

SIDE = 2048
"""As in :mod:`bench.kernels`."""
IDLE_SHARE = 0.9
"""Share of the processor time it could have that a product gets on an idle machine, at least."""


@dataclass
class Sgemm:
    """Samples of PyTorch's matrix product.

    Attributes:
        rates: multiply-adds per second, the best of a few products each time.
        cpu_shares: processor time of these products over threads times wall time; less than 1 where other processes
            take the processor away.
    """

    threads: int
    rates: list[float] = field(default_factory=list)
    cpu_shares: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._operands = torch.randn(2, SIDE, SIDE)
        self._product = torch.empty(SIDE, SIDE)

    def sample(self, repeats: int = 3) -> None:
        """Take one sample."""
        best = float("inf")
        begun, used = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            start = time.perf_counter()
            torch.mm(*self._operands, out=self._product)
            best = min(best, time.perf_counter() - start)
        self.cpu_shares.append((time.process_time() - used) / (time.perf_counter() - begun) / self.threads)
        self.rates.append(SIDE**3 / best)

    @property
    def rate(self) -> float:
        """Median."""
        return median(self.rates)

    @property
    def idle(self) -> bool:
        """Whether the machine was free for these measurements in most samples."""
        return median(self.cpu_shares) >= IDLE_SHARE
