"""Other processes: with a time limit after which they and all that they started are gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.machine import ROOT


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; None: its time was up.
        output: the last lines that it printed.
    """

    code: int | None
    output: str


def run_child(command: Sequence[str], seconds: float, log: Path, env: Mapping[str, str] | None = None) -> Ended:
    """Run a command in the project's folder; what it prints goes into ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        code: int | None
        try:
            code = child.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(child)
    return Ended(code, "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]))


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the group that the process leads; workers outlive their parent otherwise."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
