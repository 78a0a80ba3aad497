"""Clocks: host and device, cold and warm, everybody in turns.

*Warm* follows a run of the same thing, so what fits the level-2 cache is there. *Cold* follows a write of twice the
cache's size: planes and weights come from memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Protocol

import torch

Run = Callable[[], Any]

HEAD_START = 1_000_000
"""Clocks for which the device is kept busy, so that the host has enqueued everything before the first event passes."""


class Timer(Protocol):
    """Measures runs on one device."""

    def wall(self, run: Run, *, cold: bool) -> tuple[float, Any]:
        """Milliseconds from the call to the end of its work on the device, and what it returned."""
        ...

    def device(self, run: Run, *, cold: bool, head_start: int = HEAD_START) -> float:
        """Milliseconds on the device alone: the host is ahead, its time does not count."""
        ...

    def captured(self, run: Run, times: int = 1) -> Run:
        """The same work so many times over as one captured graph."""
        ...


class CudaTimer:
    """CUDA events, captured graphs and the host's clock.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        level2 = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or (32 << 20)
        self._flush = torch.empty(2 * level2, dtype=torch.uint8, device=device)
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def wall(self, run: Run, *, cold: bool) -> tuple[float, Any]:
        if cold:
            self._flush.zero_()
        torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        result = run()
        torch.cuda.synchronize(self._device)
        return (time.perf_counter() - start) * 1e3, result

    def device(self, run: Run, *, cold: bool, head_start: int = HEAD_START) -> float:
        torch.cuda.synchronize(self._device)
        torch.cuda._sleep(head_start)
        if cold:
            self._flush.zero_()
        self._begin.record()
        run()
        self._end.record()
        self._end.synchronize()
        return self._begin.elapsed_time(self._end)

    def captured(self, run: Run, times: int = 1) -> Run:
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, chooses algorithms, fills allocators
                run()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(times):
                result = run()
        torch.cuda.synchronize(self._device)

        def replay() -> Any:
            graph.replay()
            return result

        return replay


class DryTimer:
    """Runs everything once and says that it took as long as it was told: for tests of all that is around a clock."""

    def __init__(self, ms: float = 1.0) -> None:
        self.ms = ms
        self._results: dict[Run, Any] = {}

    def wall(self, run: Run, *, cold: bool) -> tuple[float, Any]:
        if run not in self._results:
            self._results[run] = run()
        return self.ms * (2 if cold else 1), self._results[run]

    def device(self, run: Run, *, cold: bool, head_start: int = HEAD_START) -> float:
        return self.wall(run, cold=cold)[0]

    def captured(self, run: Run, times: int = 1) -> Run:
        return run


def in_turns(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of everybody, one sample each per round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            ms = run()
            if number:
                times[name].append(ms)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, and the quartiles' distance as a share of the median."""
    ordered = sorted(values)
    middle = median(ordered)
    low, high = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4 - (len(ordered) > 1)]
    return {"median": middle, "min": ordered[0], "spread": (max(high, low) - low) / middle if middle else 0.0}
