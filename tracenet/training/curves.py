"""Loss curves of a run as a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

from tracenet.files import write_whole
from tracenet_kernels.errors import InputError

NOT_CURVES = ("step", "seconds_per_step")
COLUMNS = 4


def read_log(path: Path) -> list[dict[str, float]]:
    """Rows of a run's ``log.jsonl``.

    Raises:
        InputError: the file is absent or holds a line that is not one of the log.
    """
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except OSError as error:
        raise InputError(f"cannot read the log {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not the log of a run: {error}") from error
    if any(not isinstance(row, dict) or "step" not in row for row in rows):
        raise InputError(f"{path} is not the log of a run: every line needs a step")
    return rows


def smoothed(values: list[float], window: int) -> list[float]:
    """Mean of each value and its ``window - 1`` predecessors (as many as there are)."""
    out, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        out.append(total / min(i + 1, window))
    return out


def draw_curves(log: Path, picture: Path, window: int = 10) -> None:
    """One panel for every figure of ``log`` over the steps: as logged, and its running mean over ``window`` lines.

    Raises:
        InputError: the log cannot be read or is empty; matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InputError(f"drawing curves needs {error.name}; install it with pip install 'tracenet[train]'") from error
    rows = read_log(log)
    if not rows:
        raise InputError(f"{log} is empty; nothing was trained yet")
    names = [name for name in dict.fromkeys(k for row in rows for k in row) if name not in NOT_CURVES]
    height = math.ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 2.2 * height), layout="constrained")
    FigureCanvasAgg(figure)
    for i, name in enumerate(names):
        axes = figure.add_subplot(height, COLUMNS, i + 1)
        here = [row for row in rows if name in row]
        steps, values = [row["step"] for row in here], [row[name] for row in here]
        axes.plot(steps, values, color="0.8", linewidth=0.8)
        axes.plot(steps, smoothed(values, window), color="#1e6fd0", linewidth=1.5)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(color="0.93")
    write_whole(picture, lambda file: figure.savefig(file, format=picture.suffix.lstrip(".") or "png", dpi=110))
