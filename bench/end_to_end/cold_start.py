"""From the start of a process to a written mask: ``tracenet segment`` as somebody at a prompt sees it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.end_to_end.timing import PAUSE
from tracenet.demo import CLICK, PHOTO, photo_path

_PROGRAM = """
import json, sys
from tracenet.cli import main
try:
    code = main()
except SystemExit as leaving:
    code = leaving.code
sys.stderr.write("\\nmodules:" + json.dumps({"code": code or 0, "torch": "torch" in sys.modules}))
"""
"""The console script's own call, which then says whether torch was imported."""


def segment_once(backend: str, output: Path, photo: Path, click: tuple[float, float]) -> dict[str, Any]:
    """One process.

    Returns:
        ``ms`` from its start to its end, ``torch_imported``, and ``error``: what it printed if it failed, else None.
    """
    output.unlink(missing_ok=True)
    words = ["segment", str(photo), "--click", f"{click[0]},{click[1]}", "-o", str(output), "--backend", backend]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *words], capture_output=True, text=True, check=False)
    ms = (time.perf_counter() - start) * 1e3
    printed, _, said = done.stderr.rpartition("\nmodules:")
    found = json.loads(said) if printed or said.startswith("{") else {"code": done.returncode or 1, "torch": None}
    failed = found["code"] != 0 or not output.exists()
    return {
        "ms": ms,
        "torch_imported": found["torch"],
        "error": (printed or done.stderr).strip()[-400:] if failed else None,
    }


def measure_cold_start(backend: str, repeats: int, advance: Callable[[], None]) -> dict[str, Any]:
    """One run that fills the caches, then ``repeats`` timed ones, a process each."""
    photo = photo_path(PHOTO)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "mask.png"
        runs = []
        for number in range(repeats + 1):
            run = segment_once(backend, output, photo, CLICK)
            if run["error"] is not None:
                return {"backend": backend, "status": f"not available: {run['error']}", "ms_median": None}
            if number:
                runs.append(run)
            time.sleep(PAUSE)
            advance()
    return {
        "backend": backend,
        "status": "ok",
        "photo": photo.name,
        "ms_median": median(run["ms"] for run in runs),
        "ms_min": min(run["ms"] for run in runs),
        "ms": [run["ms"] for run in runs],
        "torch_imported": any(run["torch_imported"] for run in runs),
    }
