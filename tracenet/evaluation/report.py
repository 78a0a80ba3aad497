"""From clicked objects to numbers: every metric overall, per band, per object size and per category."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from tracenet.data.clicks import BANDS
from tracenet.evaluation.average_precision import average_precision
from tracenet.evaluation.metrics import HIT, bootstrap_interval, miou_t, mta, overlap_sums, tap_areas
from tracenet.evaluation.results import SIZES, ObjectResult

CONFIDENCE, RESAMPLINGS = 0.95, 1000
SKIPPED_SHOWN = 10

_RATIOS: dict[str, Callable[[Sequence[ObjectResult]], tuple[float, float]]] = {
    "one_click_miou": lambda some: (sum(one.iou for one in some), len(some)),
    "one_click_pooled": lambda some: (sum(one.intersection for one in some), sum(one.union for one in some)),
    "hit_rate_70": lambda some: (sum(one.iou >= HIT for one in some), len(some)),
    "miou_t": lambda some: overlap_sums([one.clicks for one in some]),
    "mta": lambda some: tap_areas([one.clicks for one in some]),
}
"""Headline metrics, all ratios of sums over objects: mean and pooled IoU of the deepest interior click, the share of
such clicks of IoU >= 0.7, and the paper's two."""

SHOWN = {
    "one_click_miou": "1-click IoU",
    "one_click_pooled": "pooled",
    "hit_rate_70": "IoU >= 0.7",
    "miou_t": "mIoU-T",
    "mta": "mTA",
}
"""Headline metrics -> how tables call them."""


def summarise(results: Sequence[ObjectResult], categories: Mapping[int, str], seed: int = 0) -> dict[str, Any]:
    """All metrics as plain data.

    Args:
        categories: id -> name; a category without a name is called by its id.
        seed: of the confidence intervals, which resample images.

    Returns:
        ``one_click_miou``, ``one_click_pooled``, ``hit_rate_70``, ``miou_t``, ``mta`` (None without objects),
        ``clicks`` (simulated ones), ``instances``, ``images``; ``confidence_95`` (metric -> low, high);
        ``by_band`` (list: ``band`` 1..5, ``miou_t``, ``mta``), ``by_size`` and ``by_category`` (name -> the first
        seven); ``ap``, see :func:`tracenet.evaluation.average_precision.average_precision`; ``full_mta``, see
        :func:`full_mta`; ``levels`` (of the deepest interior clicks); ``score_error``, the mean difference between a
        mask's score and its IoU.
    """
    objects = [one.clicks for one in results]
    images: dict[int, list[ObjectResult]] = defaultdict(list)
    by_category: dict[int | None, list[ObjectResult]] = defaultdict(list)
    for one in results:
        images[one.image].append(one)
        by_category[one.category].append(one)
    levels = sorted({one.level for one in results if one.level is not None})
    return {
        **_metrics(results),
        "images": len(images),
        "confidence_95": {
            name: bootstrap_interval([parts(some) for some in images.values()], RESAMPLINGS, seed, CONFIDENCE)
            for name, parts in _RATIOS.items()
        },
        "by_band": [
            {"band": band + 1, "miou_t": miou_t(objects, band), "mta": mta(objects, band)} for band in range(BANDS)
        ],
        "by_size": {name: _metrics([one for one in results if one.size == name]) for name in SIZES},
        "by_category": {
            categories.get(number, str(number)): _metrics(by_category[number])
            for number in sorted(number for number in by_category if number is not None)
        },
        "ap": average_precision(results),
        "full_mta": full_mta(results),
        "levels": {f"P{level}": sum(one.level == level for one in results) for level in levels},
        "score_error": float(np.mean([abs(one.score - one.iou) for one in results])) if results else None,
    }


def _metrics(results: Sequence[ObjectResult]) -> dict[str, Any]:
    ratios = {name: parts(results) for name, parts in _RATIOS.items()}
    return {
        **{name: float(above / below) if below else None for name, (above, below) in ratios.items()},
        "clicks": sum(len(one.clicks.bands) for one in results),
        "instances": len(results),
    }


def full_mta(results: Sequence[ObjectResult]) -> dict[str, Any] | None:
    """Equation 2 by its definition on the densely clicked objects, beside the bands' estimate of the same objects.

    Returns:
        None without such objects. ``objects``, ``every_pixel`` (how many of them were clicked at every pixel, not on a
        grid), ``clicks``; ``mta``, ``mta_from_bands``; ``mean_difference``, of the two on each object, absolute.
    """
    dense = [(one, one.dense) for one in results if one.dense is not None]
    if not dense:
        return None
    shares = np.array([clicks.hits / clicks.clicks for _, clicks in dense])
    estimates = np.array([mta([one.clicks]) for one, _ in dense])
    areas = np.array([one.pixels for one, _ in dense])
    return {
        "objects": len(dense),
        "every_pixel": sum(clicks.step == 1 for _, clicks in dense),
        "clicks": sum(clicks.clicks for _, clicks in dense),
        "mta": float(shares @ areas / areas.sum()),
        "mta_from_bands": mta([one.clicks for one, _ in dense]),
        "mean_difference": float(np.abs(shares - estimates).mean()),
    }


def shown(value: float | None) -> str:
    """A metric as tables print it."""
    return "-" if value is None else f"{value:.3f}"


def tables(report: Mapping[str, Any], categories: int = 10) -> Group:
    """The report for a terminal: headline numbers, sizes, bands, and the ``categories`` most frequent categories."""
    main = Table(title=f"{report['instances']} objects on {report['images']} images", title_justify="left")
    main.add_column("")
    for name in ("objects", *SHOWN.values()):
        main.add_column(name, justify="right")
    frequent = sorted(report["by_category"].items(), key=lambda item: -item[1]["instances"])[:categories]
    groups = [("all", report), *report["by_size"].items()]
    for name, row in [*groups, *frequent]:
        main.add_row(name, str(row["instances"]), *(shown(row[key]) for key in SHOWN), end_section=name == "large")
        if name == "all":
            intervals = report["confidence_95"]
            main.add_row("95 %", "", *(_interval(intervals[key]) for key in SHOWN), end_section=True, style="dim")
    bands = Table(title=f"{report['clicks']} simulated clicks, innermost band first", title_justify="left")
    bands.add_column("")
    for row in report["by_band"]:
        bands.add_column(f"band {row['band']}", justify="right")
    for key in ("miou_t", "mta"):
        bands.add_row(SHOWN[key], *(shown(row[key]) for row in report["by_band"]))
    lines = ["mask AP of the deepest interior clicks: " + ", ".join(f"{k} {shown(v)}" for k, v in report["ap"].items())]
    if report["full_mta"] is not None:
        full = report["full_mta"]
        lines.append(
            f"mTA over every pixel of {full['every_pixel']} and a grid of {full['objects'] - full['every_pixel']} "
            f"objects: {shown(full['mta'])}; from their bands: {shown(full['mta_from_bands'])}"
        )
    if report["levels"]:
        lines.append("levels: " + ", ".join(f"{name} {count}" for name, count in report["levels"].items()))
    if report.get("rft_checked"):
        lines.append(f"traced again: {report['rft_checked']} clicks, max error {report['rft_max_error']:.1e}")
    if report.get("skipped"):
        lines += [f"left out: {len(report['skipped'])}", *report["skipped"][:SKIPPED_SHOWN]]
    return Group(main, bands, *lines)


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.2f}-{interval[1]:.2f}"
