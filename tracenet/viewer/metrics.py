"""Counters, gauges and histograms in the Prometheus text format (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper ends of a histogram's buckets."""
Labels = tuple[str, ...]


class Counter:
    """A number per combination of labels that only grows."""

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.text, self.labels = name, text, tuple(labels)
        self._lock = threading.Lock()
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}

    def add(self, *labels: str, by: float = 1.0) -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + by

    def value(self, *labels: str) -> float:
        return self._values.get(labels, 0.0)

    def lines(self) -> list[str]:
        with self._lock:
            values = sorted(self._values.items())
        return [f"{self.name}{_labelled(self.labels, at)} {_number(value)}" for at, value in values]


class Gauge:
    """A number that is looked up when it is asked for."""

    kind = "gauge"

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self.name, self.text, self._read = name, text, read

    def lines(self) -> list[str]:
        return [f"{self.name} {_number(self._read())}"]


class Histogram:
    """How many observations were at most so large, their number and their sum, per combination of labels."""

    kind = "histogram"

    def __init__(self, name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS) -> None:
        self.name, self.text, self.labels, self._buckets = name, text, tuple(labels), tuple(buckets)
        self._lock = threading.Lock()
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, value: float, *labels: str) -> None:
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self._buckets) + 1))
            counts[bisect_left(self._buckets, value)] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + value

    def lines(self) -> list[str]:
        with self._lock:
            taken = [(at, list(counts), self._sums[at]) for at, counts in sorted(self._counts.items())]
        lines = []
        for at, counts, total in taken:
            below = 0
            for bound, count in zip((*self._buckets, float("inf")), counts, strict=True):
                below += count
                edge = "+Inf" if bound == float("inf") else _number(bound)
                lines.append(f"{self.name}_bucket{_labelled((*self.labels, 'le'), (*at, edge))} {below}")
            lines.append(f"{self.name}_sum{_labelled(self.labels, at)} {_number(total)}")
            lines.append(f"{self.name}_count{_labelled(self.labels, at)} {below}")
        return lines


class Metrics:
    """What the server counts.

    Args:
        gauges: name -> what it says, and how it is read.
    """

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        self.requests = Counter("tracenet_requests_total", "Requests answered.", ("route", "method", "status"))
        self.seconds = Histogram("tracenet_request_seconds", "From the head of a request to its answer.", ("route",))
        self.clicks = Counter("tracenet_clicks_total", "Clicks, by how they ended.", ("outcome",))
        self.click_seconds = Histogram("tracenet_click_seconds", "Phases of answered clicks.", ("phase",))
        self.macs = Counter("tracenet_click_macs_total", "Multiply-adds that clicks computed.")
        self.uploads = Counter("tracenet_uploads_total", "Photos that visitors sent, by how that ended.", ("outcome",))
        self._gauges = [Gauge(name, *what) for name, what in gauges.items()]

    def text(self) -> str:
        """All of it in the text format."""
        counted = (self.requests, self.seconds, self.clicks, self.click_seconds, self.macs, self.uploads)
        families: list[Counter | Histogram | Gauge] = [*counted, *self._gauges]
        lines = []
        for one in families:
            lines += [f"# HELP {one.name} {one.text}", f"# TYPE {one.name} {one.kind}", *one.lines()]
        return "\n".join(lines) + "\n"


def _labelled(names: Labels, values: Labels) -> str:
    if not names:
        return ""
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + pairs + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
