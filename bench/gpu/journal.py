"""What a stage has done so far, on disk: finished cases survive a crash, a time limit and the next call."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tracenet.files import save_json

DONE = 0
FAILED = 1
REFUSED = 2
AGAIN = 75
"""Exit code of a stage that has cases left: call it once more."""
MAX_ATTEMPTS = 2
"""Times that a case may end its process before it counts as failed."""

Row = dict[str, Any]


class OutOfTime(Exception):  # noqa: N818 - nothing is wrong, the case is measured by the next call
    """Raised by a case that needs more time than this call has left.

    Args:
        progress: the next call goes on where this one stopped, so the attempt does not count.
    """

    def __init__(self, progress: bool = False) -> None:
        super().__init__("out of time")
        self.progress = progress


Case = Callable[[], Row]
"""Measures; returns plain data with a ``status``: ``ok``, ``wrong``, ``failed: ...`` or ``skipped: ...``."""


class Journal:
    """The file of one stage, replaced as a whole after every case.

    Args:
        path: of the JSON file. What another key has written there is moved aside.
        stage: its name.
        key: of the sources and the machine; results of the same key are kept.
        facts: written beside the cases.
        seconds: of this call; what does not fit waits for the next one.
        clock: seconds; tests give their own.
    """

    def __init__(
        self,
        path: Path,
        stage: str,
        key: str,
        facts: Mapping[str, Any],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._clock = clock
        self._end = clock() + seconds
        self._longest = 0.0
        self._lock = threading.Lock()
        before = _read(path)
        if before is not None and before.get("key") != key:
            path.replace(path.with_name(f"{path.stem}.{before.get('commit', 'unknown')}.json"))
            before = None
        self.rows: dict[str, Row] = {row["id"]: row for row in (before or {}).get("cases", ())}
        self.data: dict[str, Any] = {**(before or {}), **facts, "stage": stage, "key": key}
        self.data.setdefault("cases", [])
        self.data["complete"] = bool(before and before.get("complete"))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.data["complete"])

    @property
    def seconds_left(self) -> float:
        return self._end - self._clock()

    def put(self, name: str, value: Any) -> None:
        """Write a value beside the cases."""
        with self._lock:
            self.data[name] = value
            self._save()

    def run(self, cases: Mapping[str, Case], broken: Callable[[], bool] = lambda: False, jobs: int = 1) -> int:
        """Measure what is not yet measured, in order, until the time is spent.

        Args:
            cases: by a name that stays the same from call to call.
            broken: whether this process can measure nothing more, asked after a case has failed.
            jobs: cases at the same time.

        Returns:
            :data:`DONE`; :data:`FAILED`: all measured, some wrong or failed; :data:`AGAIN`: call once more.
        """
        waiting = [name for name in cases if not self._finished(name)]
        stopped = threading.Event()
        started = [0]

        def one(name: str) -> None:
            if stopped.is_set():
                return
            if started[0] >= jobs and self.seconds_left <= self._longest:
                stopped.set()
                return
            started[0] += 1
            row = self._measure(name, cases[name])
            if row is None or (row["status"].startswith("failed") and broken()):
                stopped.set()

        if jobs > 1:
            with ThreadPoolExecutor(jobs) as pool:
                list(pool.map(one, waiting))
        else:
            for name in waiting:
                one(name)
        if not all(self._finished(name) for name in cases):
            return AGAIN
        self.put("complete", True)
        return self.code

    @property
    def code(self) -> int:
        """Of a complete stage."""
        return DONE if all(row["status"].startswith(("ok", "skipped")) for row in self.rows.values()) else FAILED

    def _finished(self, name: str) -> bool:
        row = self.rows.get(name)
        if row is None:
            return False
        if row["status"] != "running":
            return True
        if row["attempts"] < MAX_ATTEMPTS:
            return False
        row["status"] = f"failed: the process ended {row['attempts']} times during this case"
        return True

    def _measure(self, name: str, case: Case) -> Row | None:
        attempts = self.rows.get(name, {}).get("attempts", 0) + 1
        self._set({"id": name, "status": "running", "attempts": attempts})
        begin = self._clock()
        try:
            row = case()
        except OutOfTime as stopped:
            if stopped.progress:
                self._set({"id": name, "status": "running", "attempts": attempts - 1})
            return None
        except Exception as error:  # a case that fails must not end the others
            text = str(error).strip() or "no message"
            row = {"status": f"failed: {type(error).__name__}: {text[:600]}"}
        seconds = self._clock() - begin
        self._longest = max(self._longest, seconds)
        row = {"id": name, **row, "seconds": round(seconds, 3)}
        self._set(row)
        return row

    def _set(self, row: Row) -> None:
        with self._lock:
            self.rows[row["id"]] = row
            self._save()

    def _save(self) -> None:
        self.data["cases"] = list(self.rows.values())
        save_json(_finite(self.data), self.path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _finite(value: Any) -> Any:
    """The same data with numbers that JSON cannot write as None."""
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
