"""Runs the list: every model in a process of its own, with limits of time and memory; one that dies ends nothing else.

The JSON is written after each model, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.zoo.models import SIZE, Entry
from tracenet.files import save_json
from tracenet_kernels.errors import InputError


@dataclass(frozen=True)
class Settings:
    """What every row of one file has in common."""

    size: tuple[int, int] = SIZE
    repeats: int = 5
    threads: int = 2
    seconds: float = 180.0
    gigabytes: float = 8.0
    jobs: int = 1
    """Models measured at a time; with several, times disturb each other."""

    def plain(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return json.loads(json.dumps(asdict(self)))


def sweep(
    entries: Sequence[Entry],
    settings: Settings,
    output: Path,
    about: dict[str, Any],
    command: Callable[[Entry, Path], list[str]],
    progress: Callable[[dict[str, Any] | None], None] = lambda row: None,
    again: bool = False,
) -> dict[str, Any]:
    """Measure what ``output`` does not hold yet.

    Args:
        about: device, commit and versions. A file is only continued by a run with the same device and versions; every
            row holds the commit that it was measured at.
        command: what measures an entry and writes its row to the path.
        progress: called with each finished row, and with None for each that the file already held.
        again: measure all of the entries, whether the file holds them or not.

    Returns:
        the whole report, as in the file.

    Raises:
        InputError: the file is of another run, or cannot be written.
    """
    report = {**about, "settings": settings.plain(), "models": []}
    rows = {row["name"]: row for row in _held(output, report)}
    todo = [entry for entry in entries if again or entry.name not in rows]
    for _ in range(len(entries) - len(todo)):
        progress(None)
    with ThreadPoolExecutor(settings.jobs) as pool:
        running = [pool.submit(run_one, entry, settings, command) for entry in todo]
        try:
            for finished in as_completed(running):
                row = {**finished.result(), "commit": about["commit"]}
                rows[row["name"]] = row
                report["models"] = list(rows.values())
                save_json(report, output)
                progress(row)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    report["models"] = list(rows.values())
    return report


def _held(output: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    if not output.exists():
        return []
    try:
        held = json.loads(output.read_text())
        other = sorted(key for key in report if key not in ("models", "commit") and held[key] != report[key])
        rows: list[dict[str, Any]] = held["models"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{output} holds no results of this benchmark; delete it or choose another file") from error
    if other:
        raise InputError(
            f"{output} is of a run with another {', '.join(other)}; delete it to start anew, or choose another file"
        )
    return rows


def run_one(entry: Entry, settings: Settings, command: Callable[[Entry, Path], list[str]]) -> dict[str, Any]:
    """The row of one model; a crash, a lack of memory or of time is recorded in it."""
    from bench.zoo.measure import Row

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        target, log = Path(folder) / "row.json", Path(folder) / "log.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command(entry, target),
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).resolve().parents[2],
                env={**os.environ, "OMP_NUM_THREADS": str(settings.threads)},
                start_new_session=True,
            )
            try:
                code = process.wait(settings.seconds)
                ended = f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
            except subprocess.TimeoutExpired:
                ended = f"longer than {settings.seconds:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if target.exists():
            row = json.loads(target.read_text())
        else:
            lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
            row = Row(entry.name, reason=f"the process ended without a result ({ended}): {lines[-1][:300]}").plain()
    row.update(family=entry.family, source=entry.source, seconds=round(time.monotonic() - start, 1))
    row["load"] = round(os.getloadavg()[0], 1)
    row["size"] = list(entry.fixed or settings.size)
    return row


def own_command(settings: Settings) -> Callable[[Entry, Path], list[str]]:
    """The command that measures one model of the list."""

    def command(entry: Entry, target: Path) -> list[str]:
        options = ["--one", entry.name, "--json", str(target), "--size", f"{settings.size[1]}x{settings.size[0]}"]
        options += ["--repeats", str(settings.repeats), "--threads", str(settings.threads)]
        return [sys.executable, "-m", "bench.zoo", *options, "--gigabytes", str(settings.gigabytes)]

    return command


def limit_memory(gigabytes: float) -> None:
    """Let allocations of this process fail above a limit instead of taking the machine's memory."""
    size = int(gigabytes * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard < 0 else min(size, hard), hard))
