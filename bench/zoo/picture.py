"""The zoo's break-even picture: speed-up over the full network against the share of its multiply-adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.figure import new_figure
from tracenet.files import write_whole

REQUESTS = (
    ("centre cell of the deepest map", "mac_share", ""),
    ("centre cell of the shallow map", "mac_share_shallow", "_shallow"),
)
"""Title of a panel, key of its share, and what the names of its times hold."""
BACKENDS = (("native", "native", "#1e6fd0", "o"), ("crop_pad", "crop-and-pad", "#d0671e", "s"))


def points(models: list[dict[str, Any]], backend: str, share: str, kind: str) -> list[tuple[float, float]]:
    """Share of the multiply-adds and speed-up over the full network, one per model that has both."""
    found = ((m.get(share), m.get("full_ms"), m.get(f"{backend}{kind}_ms")) for m in models)
    return [(part, full / own) for part, full, own in found if part and full and own]


def draw(report: dict[str, Any], picture: Path) -> None:
    """Write the picture: one dot per model and backend, a panel per request, and the line of the work that is saved.

    Raises:
        InputError: matplotlib is not installed, or the picture cannot be written.
    """
    figure = new_figure(9.5, 4.2)
    for position, (title, share, kind) in enumerate(REQUESTS, start=1):
        axes = figure.add_subplot(1, 2, position)
        smallest = 1.0
        for backend, label, colour, marker in BACKENDS:
            dots = points(report["models"], backend, share, kind)
            smallest = min([smallest, *(part for part, _ in dots)])
            shares, speeds = [part for part, _ in dots], [speed for _, speed in dots]
            axes.plot(shares, speeds, marker, color=colour, markersize=3.5, alpha=0.7, label=label)
        axes.plot((smallest, 1), (1 / smallest, 1), ":", color="0.5", label="work saved (1 / share)")
        axes.axhline(1, color="0.3", linewidth=0.8)
        axes.set(xscale="log", yscale="log")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("share of the full network's multiply-adds", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(color="0.93")
        if position == 1:
            axes.set_ylabel("speed-up over the full network in PyTorch", fontsize=8)
            axes.legend(fontsize=7)
    height, width = report["settings"]["size"]
    figure.suptitle(f"{report['device']}, {report['threads']} threads, fp32, image {width}x{height}", fontsize=8)
    write_whole(picture, lambda file: figure.savefig(file, format=picture.suffix.lstrip(".") or "png", dpi=110))
