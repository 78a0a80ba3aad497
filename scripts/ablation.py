"""What each ingredient of the one-click recipe brings: short runs that differ in one setting each.

    python scripts/ablation.py configs/ablation_cpu.toml --rows configs/ablation_rows.toml --out RUNS --json out.json

Every row is ``tracenet train`` on the same configuration with the row's settings on top, judged by one click on the
objects of the held-back photos. Rows whose views are alike share their cached planes. A killed script goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tracenet.distributed import Ranks
from tracenet.files import save_json
from tracenet.training.config import load_config
from tracenet.training.run import train
from tracenet.training.selection import ROWS
from tracenet_kernels.errors import InputError, TraceNetError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FIGURES = ("mean", "pooled", "hit_rate_70")


def read_rows(path: Path) -> dict[str, list[str]]:
    """Row name -> overrides, from a TOML file of ``"name" = ["table.key=value", ...]``."""
    try:
        rows = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the rows {path}: {error}") from error
    if not rows or not all(isinstance(v, list) and all(isinstance(s, str) for s in v) for v in rows.values()):
        raise InputError(f'{path} needs lines like "name" = ["table.key=value"]')
    return rows


def run_row(config: Path, overrides: list[str], out: Path, cache: Path) -> dict[str, float]:
    """Train one row and read its figures on the held-back photos."""
    settings = load_config(config, [*overrides, f"run.cache={json.dumps(str(cache))}"])
    start = time.monotonic()
    train(settings, out, Ranks(0, 1, torch.device("cpu")))
    last = json.loads((out / ROWS).read_text().splitlines()[-1])
    return {**{name: last[name] for name in FIGURES}, "minutes": (time.monotonic() - start) / 60}


def table(rows: dict[str, dict[str, float]]) -> Table:
    """Figures of every row, and how far its mean IoU is from the first row's."""
    shown = Table("row", "mean IoU", "difference", "pooled IoU", "IoU >= 0.7")
    base = next(iter(rows.values()))["mean"]
    for name, row in rows.items():
        shown.add_row(
            name,
            f"{row['mean']:.3f}",
            f"{row['mean'] - base:+.3f}",
            f"{row['pooled']:.3f}",
            f"{row['hit_rate_70']:.3f}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="TOML file of the rows")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path, required=True, help="figures of all rows")
    args = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for name, overrides in read_rows(args.rows).items():
        # By what it changes: rows may be renamed or reordered between two calls.
        folder = args.out / hashlib.sha256(repr(overrides).encode()).hexdigest()[:10]
        done = folder / "row.json"
        if not done.exists():
            result = run_row(args.config, overrides, folder, args.out / "cache")
            save_json(result, done)
        results[name] = json.loads(done.read_text())
        save_json({"config": args.config.name, "rows": results}, args.json)
        Console().print(table(results))


if __name__ == "__main__":
    try:
        main()
    except TraceNetError as error:
        sys.exit(f"ablation: {error}")
