"""Several evaluations of the same clicks side by side: a table (Markdown) and metrics by band (a picture).

python -m tracenet.evaluation.compare a.json b.json --out table.md --out bands.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracenet.data.clicks import BANDS
from tracenet.evaluation.report import SHOWN, shown
from tracenet.evaluation.results import SIZES
from tracenet.files import check_target, save_picture, save_text
from tracenet_kernels.errors import InputError, TraceNetError

Reports = Mapping[str, Mapping[str, Any]]
"""Name of a model -> its report."""

CATEGORIES = ("person", "car", "chair", "bottle", "cup", "dining table", "traffic light", "bowl")
PAPER = {
    "MobileSAM (paper)": (0.4877, 0.5129, 0.3530, 0.6043, 0.6405, 0.2571, 0.3425, 0.3675, 0.4331),
    "FocusCut-R-50 (paper)": (0.4128, 0.3734, 0.3703, 0.3705, 0.4715, 0.2206, 0.3652, 0.4631, 0.3774),
    "FocusCut-R-101 (paper)": (0.4759, 0.4150, 0.3961, 0.3079, 0.3610, 0.2735, 0.3122, 0.4411, 0.4217),
    "TraceNet-R-50-FPN (paper)": (0.4306, 0.4796, 0.3285, 0.090, 0.1631, 0.5010, 0.2925, 0.2541, 0.3977),
    "TraceNet-R-101-FPN (paper)": (0.4542, 0.5186, 0.3787, 0.0958, 0.1798, 0.5207, 0.4471, 0.2733, 0.4312),
}
"""Table II of the paper: mIoU-T on COCO of :data:`CATEGORIES` and of all; its images and clicks are others."""


def load_reports(paths: Sequence[Path], names: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Reports by name, the files' stems by default.

    Raises:
        InputError: a file is no report, names do not fit, or the files are not of the same annotations and clicks.
    """
    names = list(names or [path.stem for path in paths])
    if len(names) != len(paths) or len(set(names)) != len(names):
        raise InputError(f"{len(paths)} files are named {', '.join(names)}; give one name each, all different")
    reports = {name: _read(path) for name, path in zip(names, paths, strict=True)}
    asked = {path: _asked(report) for path, report in zip(paths, reports.values(), strict=True)}
    first, *others = asked
    for path in others:
        differing = sorted(key for key in asked[first] if asked[first][key] != asked[path][key])
        if differing:
            raise InputError(
                f"{path} and {first} differ in {', '.join(differing)}, so their numbers cannot be compared; evaluate "
                "both on the same annotations with the same clicks and seed"
            )
    return reports


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from error
    needed = {"by_band", "by_category", "by_size", "instances", *SHOWN}
    missing = sorted(needed - set(data)) if isinstance(data, dict) else sorted(needed)
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}; give files that tracenet evaluate --json wrote")
    return data


def _asked(report: Mapping[str, Any]) -> dict[str, Any]:
    """What two evaluations must share; files without an entry agree on None."""
    return {
        "annotations": (report.get("annotations") or {}).get("sha256"),
        "seed": report.get("seed"),
        "clicks": report.get("clicks"),
        "instances": report["instances"],
    }


def metric_table(reports: Reports) -> str:
    """Markdown: a row per metric, a column per model; headline numbers with their 95 % intervals, sizes, bands, AP."""

    def cells(value: Callable[[Mapping[str, Any]], float | None]) -> list[str]:
        return [shown(value(report)) for report in reports.values()]

    rows = [["objects", *(str(report["instances"]) for report in reports.values())]]
    rows += [[label, *(_with_interval(report, key) for report in reports.values())] for key, label in SHOWN.items()]
    for size in SIZES:
        for key in ("one_click_miou", "miou_t", "mta"):
            rows.append([f"{SHOWN[key]}, {size}", *cells(lambda r, s=size, k=key: r["by_size"][s][k])])  # type: ignore[misc]
    for band in range(BANDS):
        for key in ("miou_t", "mta"):
            rows.append([f"{SHOWN[key]}, band {band + 1}", *cells(lambda r, b=band, k=key: r["by_band"][b][k])])  # type: ignore[misc]
    rows.append(["mask AP of the clicks", *cells(lambda report: (report.get("ap") or {}).get("ap"))])
    for key, label in (("first_mask", "ms per image to its first mask"), ("further_mask", "ms per further mask")):
        times = [(report.get("timing_ms") or {}).get(key) for report in reports.values()]
        rows.append([label, *("-" if time is None else f"{time:.1f}" for time in times)])
    return _markdown(["", *reports], rows)


def _with_interval(report: Mapping[str, Any], key: str) -> str:
    interval = (report.get("confidence_95") or {}).get(key)
    return shown(report[key]) + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")


def category_table(reports: Reports, paper: bool = False) -> str:
    """Markdown in the layout of the paper's table II: mIoU-T of its eight categories and of all.

    A category without objects is a dash. ``paper`` adds the paper's own rows.
    """
    rows = [
        [
            name,
            *(shown((report["by_category"].get(category) or {}).get("miou_t")) for category in CATEGORIES),
            shown(report["miou_t"]),
        ]
        for name, report in reports.items()
    ]
    if paper:
        rows += [[name, *(shown(value) for value in values)] for name, values in PAPER.items()]
    return _markdown(["mIoU-T", *CATEGORIES, "all categories"], rows)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+", help="files that tracenet evaluate --json wrote")
    parser.add_argument("--names", nargs="+", help="of the models, in the files' order (default: the files' names)")
    parser.add_argument("--paper", action="store_true", help="also the rows of the paper's table II")
    parser.add_argument(
        "--out", type=Path, action="append", default=[], help="file.md: the tables; file.png: metrics by band"
    )
    options = parser.parse_args(arguments)
    try:
        for path in options.out:
            check_target(path)
        reports = load_reports(options.reports, options.names)
        text = metric_table(reports) + "\n\n" + category_table(reports, options.paper) + "\n"
        for path in options.out:
            if path.suffix == ".md":
                save_text(text, path)
            else:
                # Only pictures need matplotlib.
                from tracenet.evaluation.charts import band_chart

                save_picture(band_chart(reports), path)
    except TraceNetError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
