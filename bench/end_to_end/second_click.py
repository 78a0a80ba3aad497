"""A second click near the first on one image, features kept: what share of the first click's time it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from bench.end_to_end.network import Click, Levels, SizedNetwork
from bench.end_to_end.timing import Contestant
from tracenet.standard import Size

LEVELS: Levels = (3, 5)
DISTANCE = 40.0
"""Pixels from the first click to the second."""


def pairs_of(size: Size, count: int, distance: float = DISTANCE) -> list[tuple[Click, Click]]:
    """Uniform first clicks, each with a second one ``distance`` away in a uniform direction; both inside the image."""
    width, height = size
    generator = torch.Generator().manual_seed(7)
    pairs: list[tuple[Click, Click]] = []
    while len(pairs) < count:
        u, v, turn = torch.rand(3, generator=generator).tolist()
        x, y, angle = u * width, v * height, 2 * math.pi * turn
        second = (x + distance * math.cos(angle), y + distance * math.sin(angle))
        if 0 <= second[0] < width and 0 <= second[1] < height:
            pairs.append(((x, y), second))
    return pairs


def measure_pairs(
    network: SizedNetwork, ours: Any, count: int, advance: Callable[[], None], distance: float = DISTANCE
) -> dict[str, Any]:
    """Time ``count`` pairs, nothing kept before each first click; both clicks of each are checked.

    Returns:
        ``pairs`` with both clicks' milliseconds and the kept bytes after each, median and largest ``share`` of the
        first click's time; no times where a result was wrong.
    """
    rows: list[dict[str, Any]] = []
    worst = 0.0
    for number, clicks in enumerate([pairs_of(network.size, 1, distance)[0], *pairs_of(network.size, count, distance)]):
        ours.forget()
        done, kept = [], []
        for click in clicks:
            windows = network.request(click, LEVELS)

            def error(out: Any, click: Click = click, windows: Any = windows) -> float:
                return network.error(click, out, windows)

            contestant = Contestant(ours.keeping(click, LEVELS), error)
            contestant.measure()
            worst = max(worst, contestant.worst)
            done.append(contestant)
            kept.append(ours.kept_bytes)
        if number == 0:
            continue  # warm-up
        first, second = done[0].median_ms, done[1].median_ms
        rows.append(
            {
                "clicks": [list(click) for click in clicks],
                "first_ms": first,
                "second_ms": second,
                "share": None if first is None or second is None else second / first,
                "kept_bytes": kept,
            }
        )
        advance()
    ours.forget()
    shares = [row["share"] for row in rows]
    exact = None not in shares
    return {
        "size": list(network.size),
        "levels": list(LEVELS),
        "distance": distance,
        "backend": ours.name,
        "max_rel_error": worst,
        "share_median": median(shares) if exact else None,
        "share_worst": max(shares) if exact else None,
        "first_ms_median": median(row["first_ms"] for row in rows) if exact else None,
        "second_ms_median": median(row["second_ms"] for row in rows) if exact else None,
        "kept_bytes_median": median(row["kept_bytes"][0] for row in rows),
        "pairs": rows,
    }
