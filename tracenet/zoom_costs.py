"""What one click costs at several scales of a photo; planned, nothing is computed.

python -m tracenet.zoom_costs --size 4032x3024 --factors 0.25,0.5,1,2
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tracenet.cli import parse_size, parse_zoom
from tracenet.conventions import LEVELS
from tracenet.inference import Canvas, PredictorSettings, check_factors, fit_canvas
from tracenet.standard import model_config, standard_request, trace_model
from tracenet.zoom import photo_scales


def click_costs(
    size: tuple[int, int],
    factors: Sequence[float | str],
    working_size: int,
    levels: tuple[int, int] = (3, 5),
    model: str = "tracenet_r50_fpn",
) -> dict[str, Any]:
    """Multiply-adds of one click at every scale; planned, nothing is computed.

    Clicks are the photo's centre and the centres of a 3 x 3 grid of equal parts.

    Args:
        size: width and height of the photo.
        factors: relative to the working size.
        working_size: longest side at factor 1.
        levels: asked at each scale.
        model: a registry name.

    Returns:
        ``scales``: per factor ``factor``, ``canvas`` and ``locate`` and ``segment`` (what a mask window of 32 x 32
        cells adds to that plan), each ``{"centre", "mean"}``; ``zoom``: the sum of locating and the costliest mask
        window; ``single``: levels 3-7 at factor 1, likewise; ``full_macs`` of the whole network at factor 1.
    """
    config = model_config(model)
    settings = PredictorSettings(working_size=working_size)
    clicks = [(size[0] / 2, size[1] / 2)] + [(size[0] * x / 6, size[1] * y / 6) for y in (1, 3, 5) for x in (1, 3, 5)]

    def costs(canvas: Canvas, asked: tuple[int, int]) -> tuple[list[int], list[int], int]:
        padded = (canvas.padded_width, canvas.padded_height)
        traced = trace_model(config, padded)
        locate, segment = [], []
        for x, y in clicks:
            at = (x * canvas.scale_x, y * canvas.scale_y)
            heads = traced.plan(standard_request(config, padded, at, asked))
            both = traced.plan(standard_request(config, padded, at, asked, 32))
            locate.append(heads.macs)
            segment.append(both.macs - heads.macs)
        return locate, segment, heads.full_macs

    scales = photo_scales(*size, factors, settings)
    rows: list[dict[str, Any]] = []
    for scale in scales:
        locate, segment, _ = costs(scale.canvas, levels)
        canvas = [scale.canvas.width, scale.canvas.height]
        rows.append(
            {"factor": scale.factor, "canvas": canvas, "locate": _summary(locate), "segment": _summary(segment)}
        )
    locate, segment, full = costs(fit_canvas(*size, working_size), (LEVELS[0], LEVELS[-1]))
    return {
        "size": list(size),
        "working_size": working_size,
        "levels": list(levels),
        "scales": rows,
        "zoom": {
            "locate": {kind: sum(row["locate"][kind] for row in rows) for kind in ("centre", "mean")},
            "segment": {kind: max(row["segment"][kind] for row in rows) for kind in ("centre", "mean")},
        },
        "single": {"locate": _summary(locate), "segment": _summary(segment)},
        "full_macs": full,
    }


def _summary(macs: list[int]) -> dict[str, float]:
    """Of the centre click, which comes first, and the mean of the others."""
    return {"centre": macs[0], "mean": sum(macs[1:]) / (len(macs) - 1)}


def costs_table(data: dict[str, Any]) -> Table:
    """:func:`click_costs` for people."""
    title = f"{data['size'][0]}x{data['size'][1]}, working size {data['working_size']}, GMACs at the centre / mean of 9"
    table = Table(title=title, title_justify="left")
    for name in ("scale", "canvas", "levels", "locate", "mask of 32x32 cells"):
        table.add_column(name, justify="left" if name == "scale" else "right")

    def pair(macs: dict[str, float]) -> str:
        return f"{macs['centre'] / 1e9:.1f} / {macs['mean'] / 1e9:.1f}"

    asked = "-".join(map(str, data["levels"]))
    for row in data["scales"]:
        canvas = "x".join(map(str, row["canvas"]))
        table.add_row(f"{row['factor']:g}", canvas, asked, pair(row["locate"]), pair(row["segment"]))
    table.add_section()
    table.add_row("all of them", "", asked, pair(data["zoom"]["locate"]), pair(data["zoom"]["segment"]))
    table.add_row("1 alone", "", "3-7", pair(data["single"]["locate"]), pair(data["single"]["segment"]))
    table.add_row("1, full network", "", "all", f"{data['full_macs'] / 1e9:.1f}", "")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="What one click costs at several scales; nothing is computed.")
    parser.add_argument("--size", default="4032x3024", help="WxH of the photo")
    parser.add_argument("--factors", default="0.25,0.5,1,2", help="relative to the working size; native is 1:1")
    parser.add_argument("--working-size", type=int, default=640, help="longest side in pixels at factor 1")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(arguments)
    data = click_costs(parse_size(args.size), check_factors(parse_zoom(args.factors)), args.working_size)
    if args.json:
        print(json.dumps(data))
    else:
        Console(highlight=False).print(costs_table(data))


if __name__ == "__main__":
    main()
