"""Short tables of what the stages have written, and a picture of our times beside the peers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

STAGES = ("env", "build", "tests", "sanitizer", "tune", "kernels", "end_to_end", "predictor")
Report = dict[str, Any]
PEERS = {
    "full_compiled": "full, compiled",
    "full_graph": "full, CUDA graph",
    "full_eager": "full, eager",
    "crop_pad_graph": "crop+pad, CUDA graph",
    "crop_pad_eager": "crop+pad, eager",
}


def load(folder: Path, stage: str) -> Report | None:
    """What a stage has written, or None."""
    path = folder / f"{stage}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def show_stage(report: Report, console: Console) -> None:
    """One stage: where it ran, what is wrong, and its table."""
    state = "complete" if report["complete"] else "not finished: call again"
    dry = ", DRY RUN: no time is a time" if report["dry"] else ""
    where = f"{report['gpu']}, torch {report['torch']}, triton {report['triton']}, commit {report['commit']}"
    console.print(f"{report['stage']}: {state}{dry}; {where}")
    if report.get("failure"):
        console.print(f"  {report['failure']}")
    for row in report["cases"]:
        if row["status"] != "ok":
            console.print(f"  {row['id']}: {row['status']}")
    table = _TABLES.get(report["stage"])
    if table is not None:
        table(report, console)


def show(folder: Path, console: Console) -> None:
    """Every stage that has written something."""
    for stage in STAGES:
        report = load(folder, stage)
        if report is not None:
            show_stage(report, console)
            console.print()


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _tests(report: Report, console: Console) -> None:
    rows = [row for row in report["cases"] if "tests" in row]
    total, bad = sum(row["tests"] for row in rows), sum(row["failures"] + row["errors"] for row in rows)
    console.print(f"  {total} tests in {len(rows)} files, {bad} failed, {sum(row['skipped'] for row in rows)} skipped")


def _kernels(report: Report, console: Console) -> None:
    title = f"floor of the timer {_number(report.get('timer_floor_us'), '.1f')} us, part of every cold time"
    table = _table(
        title, "layer", "kernels", "MMACs", "cold us", "warm us", "model us", "TFLOP/s", "of peak", "GB/s", "of peak",
        "cuDNN view us", "crop us", "full us", "error",
    )  # fmt: skip
    for row in report["cases"]:
        if "kernels" not in row:
            continue
        peers = row.get("peers", {})
        table.add_row(
            row["id"],
            ",".join(dict.fromkeys(row["kernels"])),
            f"{row['macs'] / 1e6:.1f}",
            _number(row.get("cold_us"), ".1f", row["status"]),
            _number(row.get("warm_us"), ".1f", row["status"]),
            _number(row["predicted_warm_us"], ".1f"),
            _number(row.get("tflops"), ".1f"),
            _number(row.get("rate_share"), ".0%"),
            _number(row.get("gbs"), ".0f"),
            _number(row.get("bandwidth_share"), ".0%"),
            *(_number(peers.get(way, {}).get("warm_us"), ".1f") for way in ("view", "crop", "full")),
            _number(row["frobenius_error"], ".0e"),
        )
    console.print(table)
    for row in report["cases"]:
        if "launches" in row:
            alone = [r["warm_us"] for r in report["cases"] if _same(r, row) and r.get("warm_us") is not None]
            together = f"{row['warm_us']:.0f} us warm, {row['cold_us']:.0f} cold"
            console.print(
                f"  {row['id']}: {row['launches']} launches in one graph {together}; the {len(alone)} units of this "
                f"variant alone {sum(alone):.0f}; model {row['predicted_warm_us']:.0f}"
            )


def _same(row: dict[str, Any], whole: dict[str, Any]) -> bool:
    return "kernels" in row and all(row[key] == whole[key] for key in ("levels", "precision", "variant"))


def _end_to_end(report: Report, console: Console) -> None:
    rows = {row["id"]: row for row in report["cases"]}
    table = _table(
        "standard request, image on the device to logits on the device, medians, warm / cold",
        "case", "GMACs", "ours ms", "on device", "plan us", *PEERS.values(), "speed-up", "realised", "error",
    )  # fmt: skip
    for name, row in rows.items():
        if "peers" not in row or name.endswith("/compiled"):
            continue
        prefix = name.rpartition("/")[0]
        peers = {**row["peers"], **rows.get(f"{prefix}/compiled", {}).get("peers", {})}
        # A compiled network is timed in another process; what is shown of the captured one is this process' time.
        peers["full_graph"] = row["peers"].get("full_graph", {})
        table.add_row(
            name,
            f"{row['macs'] / 1e9:.1f} of {row['full_macs'] / 1e9:.1f}",
            _both(row),
            _number(row["device_ms_median"], ".3f"),
            _number(row["planning_us"], ".0f"),
            *(_both(peers.get(peer, {})) for peer in PEERS),
            f"{_number(row['speed_up'], '.2f')} / {_number(row['cold_speed_up'], '.2f')}",
            _number(row["realised_saving"], ".2f"),
            _number(row["frobenius_error"], ".0e"),
        )
    console.print(table)
    for name, row in rows.items():
        if "captures" in row:
            times = f"{_number(row['to_host_ms_median'], '.3f')} ms, at most {_number(row['to_host_ms_max'], '.3f')}"
            console.print(f"  {name}: {row['clicks']} clicks by {row['captures']} captured graph, {times} to the host")
        if "share_median" in row:
            share = f"{_number(row['share_median'], '.0%')} of the first in the median"
            console.print(f"  {name}: {share}, {_number(row['share_worst'], '.0%')} at worst")


def _predictor(report: Report, console: Console) -> None:
    table = _table(
        "from photo to mask", "backend", "set_image ms", "first click ms", "second click ms", "overlap",
        "waits of the first, second click",
    )  # fmt: skip
    for row in report["cases"]:
        if "min_iou" not in row:
            continue
        waits = row["waits"] or {}
        table.add_row(
            f"{row['id']} on {row['on']}",
            _number(row["set_image_ms"], ".2f", row["status"]),
            _number(row["first_click_ms"], ".2f", row["status"]),
            _number(row["second_click_ms"], ".2f", row["status"]),
            f"{row['min_iou']:.4f}",
            ", ".join(str(waits[name]["counted_by_torch"]) for name in ("first", "second") if name in waits),
        )
    console.print(table)


_TABLES: dict[str, Callable[[Report, Console], None]] = {
    "tests": _tests,
    "kernels": _kernels,
    "end_to_end": _end_to_end,
    "predictor": _predictor,
}


def picture(folder: Path, target: Path) -> str:
    """Draw our milliseconds beside the peers'.

    Returns:
        Why nothing was drawn, or an empty string.
    """
    try:
        import matplotlib
    except ImportError:
        return "matplotlib is not installed"
    report = load(folder, "end_to_end")
    rows = [row for row in (report or {}).get("cases", ()) if "peers" in row and row.get("ms_median")]
    if report is None or not rows:
        return "there are no end-to-end times"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    series = {"TraceNet": [row["ms_median"] for row in rows if "macs" in row]}
    rows = [row for row in rows if "macs" in row]
    for peer, label in PEERS.items():
        times = [row["peers"].get(peer, {}).get("ms_median") for row in rows]
        if any(times):
            series[label] = [time or 0.0 for time in times]
    figure, axes = pyplot.subplots(figsize=(10, 5), layout="constrained")
    width = 0.8 / len(series)
    for number, (label, times) in enumerate(series.items()):
        axes.bar([at + number * width for at in range(len(rows))], times, width, label=label)
    axes.set_xticks([at + 0.4 - width / 2 for at in range(len(rows))], [row["id"] for row in rows], rotation=15)
    axes.set_ylabel("milliseconds, median")
    axes.set_yscale("log")
    dry = ", dry run" if report["dry"] else ""
    axes.set_title(f"Standard request, {report['gpu']}, commit {report['commit']}{dry}")
    axes.legend()
    figure.savefig(target, dpi=150)
    pyplot.close(figure)
    return ""


def _both(row: dict[str, Any]) -> str:
    if not row:
        return ""
    if not row.get("ms_median"):
        return row["status"].split(":")[0]
    return f"{row['ms_median']:.3f} / {_number(row['cold_ms_median'], '.3f')}"


def _number(value: float | None, form: str, otherwise: str = "") -> str:
    return otherwise.split(":")[0].replace("ok", "") if value is None else format(value, form)
