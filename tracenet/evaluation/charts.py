"""Charts of evaluation reports, as pictures: metrics by band (the paper's figure 5) and IoU by object size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from tracenet.evaluation.metrics import HIT
from tracenet.evaluation.report import SHOWN
from tracenet.evaluation.results import SIZES, ObjectResult

COLOURS = ("#1e6fd9", "#e07b00", "#2a9d5c", "#b23a8f", "#7a5c3e", "#555555")
"""Of models in one chart, in order, over and over."""
DPI = 110


def picture(figure: Figure) -> Image.Image:
    """A drawn figure as an RGB picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def band_chart(reports: Mapping[str, Mapping[str, Any]]) -> Image.Image:
    """mIoU-T and mTA over the five bands, one line per report (name -> report)."""
    figure = Figure(figsize=(9, 3.6), dpi=DPI, layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), ("miou_t", "mta"), strict=True):
        for number, (name, report) in enumerate(reports.items()):
            rows = [row for row in report["by_band"] if row[key] is not None]
            bands, values = [row["band"] for row in rows], [row[key] for row in rows]
            label = name if report[key] is None else f"{name} ({report[key]:.3f})"
            axes.plot(bands, values, "o-", color=COLOURS[number % len(COLOURS)], label=label)
            if len(reports) == 1:
                for band, value in zip(bands, values, strict=True):
                    axes.annotate(f"{value:.2f}", (band, value), (0, 7), textcoords="offset points", ha="center")
        axes.set(title=SHOWN[key], xlabel="band of the click, innermost first", xticks=range(1, 6), xlim=(0.7, 5.3))
        axes.set_ylim(0, max(axes.get_ylim()[1] * 1.12, 0.05))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower left")
    return picture(figure)


def size_chart(results: Sequence[ObjectResult]) -> Image.Image:
    """Histograms of the deepest interior click's IoU, one per object size, with mean and hit threshold."""
    figure = Figure(figsize=(10, 3.2), dpi=DPI, layout="constrained")
    ends = {"small": "area < 32²", "medium": "32² to 96²", "large": "area >= 96²"}
    for axes, size in zip(figure.subplots(1, 3, sharex=True), SIZES, strict=True):
        ious = np.array([one.iou for one in results if one.size == size])
        axes.hist(ious, bins=np.linspace(0, 1, 21), color=COLOURS[0], edgecolor="white", linewidth=0.5)
        axes.axvline(HIT, color="#999999", linestyle=":", label=f"IoU {HIT}")
        if len(ious):
            axes.axvline(float(ious.mean()), color=COLOURS[1], label=f"mean {ious.mean():.3f}")
        axes.set(title=f"{size} ({ends[size]}), {len(ious)} objects", xlabel="IoU of one click", xlim=(0, 1))
        axes.set_ylim(0, max(axes.get_ylim()[1] * 1.35, 1))
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left")
    return picture(figure)
