r"""Any ConvNet: which of a list of models trace exactly, which report barriers, and what is gained.

    python -m bench.zoo --json out.json
    python -m bench.zoo --json out.json --only resnet18 --only fcos --again
    python -m bench.zoo --json bench/results/zoo_large.json --large --size 1024x768 --seconds 600
    python -m bench.zoo --json bench/results/zoo.json --page docs/zoo.md --with-large bench/results/zoo_large.json \
        --picture docs/zoo_break_even.png

Every model runs in a process of its own with limits of time and memory. The file is written after each; the same
command goes on where it stopped. ``--repeats 0`` checks without timing. Needs ``pip install 'tracenet[bench]'``.
"""

from __future__ import annotations

import argparse
import gc
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.zoo.models import LARGE, MODELS, SIZE, Entry
from bench.zoo.picture import draw
from bench.zoo.report import load, page, summary, table
from bench.zoo.sweep import Settings, limit_memory, own_command, sweep
from tracenet.files import check_target, save_json, save_text
from tracenet_kernels import native
from tracenet_kernels.errors import InputError, TraceNetError
from tracenet_kernels.threads import set_threads


def main() -> None:
    """Parse arguments, measure, print, write."""
    options = _parse()
    settings = Settings(
        options.size, options.repeats, options.threads, options.seconds, options.gigabytes, options.jobs
    )
    if options.one is not None:
        _one(_chosen([options.one])[0], settings, options.json)
        return
    try:
        report = _run(
            _chosen(LARGE if options.large else options.only)[: options.limit], settings, options.json, options.again
        )
        large = None if options.with_large is None else load(options.with_large)
        if options.picture is not None:
            check_target(options.picture)
            draw(report, options.picture)
        if options.page is not None:
            picture = None if options.picture is None else options.picture.name
            save_text(page(report, large, picture), options.page)
    except TraceNetError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
    console = Console(width=150, highlight=False)
    console.print(table(report))
    for what, value in summary(report["models"]).items():
        console.print(f"{what}: {value}")
    raise SystemExit(1 if any(m["status"] == "wrong" for m in report["models"]) else 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write, or to go on with")
    parser.add_argument("--page", type=Path, help="also write the results as a page")
    parser.add_argument("--with-large", type=Path, metavar="JSON", help="results of --large, for a part of the page")
    parser.add_argument("--picture", type=Path, help="also draw speed-up against share; the page shows it")
    parser.add_argument("--large", action="store_true", help="only the models that are measured on large images too")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this model; may be repeated")
    parser.add_argument("--again", action="store_true", help="measure also what the file holds already")
    parser.add_argument("--limit", type=int, help="only the first models of the list")
    parser.add_argument("--size", type=_size, default=SIZE, help="image as WIDTHxHEIGHT, 320x256 by default")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each kind; 0 checks only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=180.0, help="limit of time for one model")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="limit of address space for one model")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time; more than one disturbs the times")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    return parser.parse_args()


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it as 320x256")
    return int(height), int(width)


def _chosen(names: Sequence[str] | None) -> list[Entry]:
    if names is None:
        return list(MODELS)
    by_name = {entry.name: entry for entry in MODELS}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise SystemExit(f"{unknown[0]!r} is not in bench/zoo/models.py")
    return [by_name[name] for name in names]


def _run(entries: list[Entry], settings: Settings, output: Path, again: bool) -> dict[str, Any]:
    import torch

    from bench.report import environment
    from bench.zoo.build import missing_packages, versions

    if missing := missing_packages(entries):
        raise InputError(
            f"not installed: {', '.join(missing)}; pip install 'tracenet[bench]', or ask for --only own models"
        )
    check_target(output)
    torch.set_num_threads(settings.threads)
    about = {**environment(), "versions": versions()}
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True
    )
    with bar:
        task = bar.add_task("models", total=len(entries))

        def advance(row: dict[str, Any] | None) -> None:
            bar.advance(task)
            if row is not None:
                bar.console.print(f"{row['name']:26} {row['status']:9} {row['seconds']:6.1f} s  {row['reason'][:90]}")

        return sweep(entries, settings, output, about, own_command(settings), advance, again)


def _one(entry: Entry, settings: Settings, target: Path) -> None:
    """Measure one model in this process and write its row."""
    limit_memory(settings.gigabytes)
    import torch

    from bench.zoo.build import build
    from bench.zoo.measure import Row, measure

    torch.set_num_threads(settings.threads)
    if native.available():
        set_threads(settings.threads)
    row, size = Row(entry.name), entry.fixed or settings.size
    try:
        model = build(entry, size)
        gc.collect()
        measure(row, model, size, settings.repeats)
    except Exception as error:
        traceback.print_exc()
        row.status, row.reason = "failed", f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    save_json(row.plain(), target)


if __name__ == "__main__":
    main()
