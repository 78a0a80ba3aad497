"""Runs in turns, each checked after its clock has stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.end_to_end.network import TOLERANCE

PAUSE = 0.01
"""Seconds between two runs: threads of the one before stop spinning."""


@dataclass
class Contestant:
    """Something that is timed and checked.

    Attributes:
        run: what is timed.
        error: of its result.
        times: milliseconds.
        worst: largest error so far, over all runs.
        missing: why it cannot run, or an empty string.
    """

    run: Callable[[], Any]
    error: Callable[[Any], float]
    times: list[float] = field(default_factory=list)
    worst: float = 0.0
    missing: str = ""

    @classmethod
    def absent(cls, reason: str) -> Contestant:
        """Takes no part."""
        return cls(lambda: None, lambda _: 0.0, missing=reason)

    def check(self) -> bool:
        """Run once untimed, which also warms up; whether the result is right."""
        if not self.missing:
            self.worst = max(self.worst, self.error(self.run()))
        return self.exact

    def measure(self) -> None:
        """One timed and checked run; nothing where an earlier one was wrong or it cannot run."""
        if self.missing or not self.exact:
            return
        time.sleep(PAUSE)
        start = time.perf_counter()
        result = self.run()
        self.times.append((time.perf_counter() - start) * 1e3)
        self.worst = max(self.worst, self.error(result))

    @property
    def exact(self) -> bool:
        return self.worst <= TOLERANCE

    @property
    def status(self) -> str:
        """``"ok"``, ``"wrong"`` or ``"not available: ..."``."""
        if self.missing:
            return f"not available: {self.missing}"
        return "ok" if self.exact else "wrong"

    @property
    def median_ms(self) -> float | None:
        """None where a result was wrong or nothing was timed."""
        return median(self.times) if self.times and self.exact else None

    @property
    def min_ms(self) -> float | None:
        return min(self.times) if self.times and self.exact else None
