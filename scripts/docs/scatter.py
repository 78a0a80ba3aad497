"""A drawing for the pages, made from bench/results when the site is built; its lines take the page's colours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from results import load

WIDTH, HEIGHT, LEFT, TOP, RIGHT = 660, 330, 52, 12, 24
SHARES, SPEEDS = (0.001, 0.01, 0.1, 1), (0.25, 1, 10, 100, 1000)
SMALLEST = 0.0003
"""The least share of multiply-adds on the axis; smaller ones lie on its edge."""
BACKENDS = (("native", "C++ kernels", "#1e88e5"), ("crop_pad", "crop-and-pad in PyTorch", "#fb8c00"))


def break_even() -> str:
    """Speed-up of the zoo's requests against the share of multiply-adds that they need, as a figure with axes."""
    data = load("zoo.json")
    label = "Speed-up of models of the zoo against the share of multiply-adds that a request needs"
    box = f'viewBox="0 0 {WIDTH} {TOP + HEIGHT + 24}" role="img" aria-label="{label}"'
    drawn = "".join([*_axes(), *_dots(data["models"]), *_legend()])
    svg = f'<svg {box} font-size="12" fill="currentColor">{drawn}</svg>'
    return f"<figure>{svg}<figcaption>{_caption(data)}</figcaption></figure>"


def _axes() -> Iterator[str]:
    for share in SHARES:
        yield _line(share, SPEEDS[0], share, SPEEDS[-1], 0.12)
        yield _text(*_place(share, SPEEDS[0]), f"{share:.1%}".replace(".0%", "%"), "middle", down=16)
    for speed in SPEEDS:
        yield _line(SMALLEST, speed, 1, speed, 0.8 if speed == 1 else 0.12)
        yield _text(*_place(SMALLEST, speed), f"{speed:g}x", "end", down=4, right=-6)
    yield _line(1 / SPEEDS[-1], SPEEDS[-1], 1, 1, 0.6, 'stroke-dasharray="4 4"')


def _dots(models: list[dict[str, Any]]) -> Iterator[str]:
    for backend, _, colour in BACKENDS:
        for model in models:
            for share, time in (("mac_share", f"{backend}_ms"), ("mac_share_shallow", f"{backend}_shallow_ms")):
                if model.get(share) and model.get(time):
                    speed = model["full_ms"] / model[time]
                    x, y = _place(model[share], speed)
                    title = f"<title>{model['name']}: {model[share]:.1%}, {speed:.2f}x</title>"
                    yield f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}" opacity="0.7">{title}</circle>'


def _legend() -> Iterator[str]:
    left = WIDTH - 190
    for number, (_, name, colour) in enumerate(BACKENDS):
        y = TOP + 16 + 18 * number
        yield f'<circle cx="{left}" cy="{y - 4}" r="4" fill="{colour}"/>'
        yield _text(left + 10, y, name, "start")
    yield _text(left - 6, TOP + 52, "- - -  the work that is saved", "start")


def _caption(data: dict[str, Any]) -> str:
    threads = "1 thread" if data["threads"] == 1 else f"{data['threads']} threads"
    return (
        f"{data['device']}, {threads}, fp32, commit <code>{data['commit']}</code>: speed-up over the full network in "
        "PyTorch, upwards, against the share of its multiply-adds. A dot is a model and a request; hover for its name."
    )


def _place(share: float, speed: float) -> tuple[float, float]:
    """Where a point lies; what is beyond the axes lies on them."""
    x = math.log(max(share, SMALLEST) / SMALLEST) / math.log(1 / SMALLEST)
    y = math.log(min(max(speed, SPEEDS[0]), SPEEDS[-1]) / SPEEDS[0]) / math.log(SPEEDS[-1] / SPEEDS[0])
    return round(LEFT + x * (WIDTH - LEFT - RIGHT), 1), round(TOP + (1 - y) * HEIGHT, 1)


def _line(x0: float, y0: float, x1: float, y1: float, opacity: float, more: str = "") -> str:
    a, b = _place(x0, y0), _place(x1, y1)
    return f'<path d="M{a[0]} {a[1]}L{b[0]} {b[1]}" stroke="currentColor" opacity="{opacity}" {more}/>'


def _text(x: float, y: float, text: str, anchor: str, *, down: float = 0, right: float = 0) -> str:
    return f'<text x="{x + right}" y="{y + down}" text-anchor="{anchor}">{text}</text>'
