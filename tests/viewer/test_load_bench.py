"""The load benchmark measures what it says, here against a server in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bench import viewer_load
from tests.viewer.servers import Running, running
from tracenet import Predictor


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[Any]:
    with running(predictor) as found:
        yield handle(found)


def handle(found: Running) -> Any:
    """What the benchmark asks of a server of its own."""
    return SimpleNamespace(host="127.0.0.1", port=found.port, rss=1 << 20, process=SimpleNamespace(pid=os.getpid()))


def test_quantiles_are_observed_values() -> None:
    assert viewer_load.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert viewer_load.quantile([float(i) for i in range(1, 101)], 0.95) == 95.0
    assert viewer_load.quantile([7.0], 0.95) == 7.0


def test_load_and_memory(server: Any) -> None:
    ticks: list[int] = []
    for kind in viewer_load.KINDS:
        row = viewer_load.measure_load(server, 2, kind, 0.3, lambda: ticks.append(1))
        assert row["statuses"] == {"200": row["requests"]}
        assert row["per_second"] == pytest.approx(row["requests"] / row["seconds"])
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["photo_was_open"] == 1
    memory = viewer_load.measure_memory(server, 40, lambda: ticks.append(1))
    assert memory["statuses"] == {"200": 40}
    assert [at for at, _ in memory["rss_mib"]] == list(range(1, 41))
    assert memory["growth_mib"] == 0
    assert len(ticks) > 42


def test_abuse_is_answered(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = viewer_load.measure_abuse(server, 18, 0, 3, lambda: None, without=("slow uploads", "oversize JSON"))
    assert all(row["answers_after"] for row in found.values())
    assert sum(found["malformed photos"]["outcomes"].values()) == 18
    assert set(found["malformed photos"]["outcomes"]) <= {"201", "422 bad_image"}
    assert found["decompression bombs"]["outcomes"] == {"422 bad_image": 20}
    assert set(found["path traversal"]["outcomes"]) <= {"404", "400"}
    assert found["3 tabs"]["outcomes"] == {"pages 200": 9, "clicks 200": 3}
    result = {"load": [], "memory": {"clicks": 0, "statuses": {}, "max_mib": 0.0, "growth_mib": 0.0}, "abuse": found}
    result["memory"] |= {"first_half_mean_mib": 0.0, "second_half_mean_mib": 0.0}
    assert len(viewer_load.tables(result)) == 3


def test_an_answer_that_leaks_is_called_so() -> None:
    assert viewer_load.status_of(b"HTTP/1.1 404 Not Found\r\n") == "404"
    assert viewer_load.status_of(b"") == "closed"
