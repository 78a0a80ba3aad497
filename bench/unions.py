"""Several clicks in one request: windows apart against their hull, in multiply-adds and in time.

    python -m bench.unions --json bench/results/unions.json

A detector (ResNet-50 with a feature pyramid, heads of P3-P5) and a U-Net, with random weights, on a bundled photo. Each
is asked for cells in two opposite corners, for four clicks spread over the photo, and for two side by side, where
windows apart save nothing. Times are medians of interleaved runs; every value is compared with the full network.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tracenet
from bench.global_context import photo, prepared
from bench.report import environment
from tracenet import Window
from tracenet.files import save_json
from tracenet.rft.trace import Plan
from tracenet.traced import TracedModel
from tracenet_kernels.backends import BACKENDS

SIZE = (640, 480)  # columns, rows
TOLERANCE = 1e-4
CLICKS = {
    "opposite corners": ((0.04, 0.05), (0.96, 0.95)),
    "four clicks": ((0.15, 0.2), (0.85, 0.15), (0.5, 0.55), (0.2, 0.85)),
    "side by side": ((0.48, 0.5), (0.53, 0.5)),
}
"""Name of a request -> clicks as shares of the image's width and height."""


class UNet(nn.Module):
    """Four levels of two convolutions each, joined by concatenation; logits at full resolution."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        widths = [width << level for level in range(4)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(_double(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, layer in enumerate(self.down):
            x = layer(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for layer, skip in zip(self.up, kept[-2::-1], strict=True):
            x = layer(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], 1))
        return self.head(x)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def detector() -> nn.Module:
    """TraceNet without its mask branch: heads of five levels, of which P3-P5 are asked."""
    return tracenet.create_model("tracenet_r50_fpn", mask_branch="none")


def cells(traced: TracedModel, clicks: tuple[tuple[float, float], ...]) -> dict[int | str, list[Window]]:
    """One cell of every head of P3-P5 at each click."""
    request: dict[int | str, list[Window]] = {}
    for name, node in traced.graph.outputs.items():
        if name[-1] in "345":
            height, width = node.plane
            request[name] = [Window.of_cell(int(y * height), int(x * width)) for x, y in clicks]
    return request


def squares(traced: TracedModel, clicks: tuple[tuple[float, float], ...]) -> dict[int | str, list[Window]]:
    """A square of 32 pixels around each click, moved inside the image."""
    height, width = next(iter(traced.graph.outputs.values())).plane
    corners = [(int(min(max(y * height - 16, 0), height - 32)), int(min(max(x * width - 16, 0), width - 32)))
               for x, y in clicks]  # fmt: skip
    return {0: [Window(y, y + 32, x, x + 32) for y, x in corners]}


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[..., dict[int | str, list[Window]]]]] = {
    "R50-FPN, heads P3-P5": (detector, cells),
    "U-Net": (UNet, squares),
}


def measure(name: str, size: tuple[int, int], repeats: int, backends: list[str]) -> list[dict[str, Any]]:
    """One row per request."""
    make, ask = NETWORKS[name]
    image = photo(size)
    model = prepared(make, image)
    traced = tracenet.trace(model, image)
    with torch.inference_mode():
        result = model(image)
    full = result if isinstance(result, dict) else {"0": result}
    rows = []
    for what, clicks in CLICKS.items():
        request = ask(traced, clicks)
        plans = {"pieces": traced.plan(request), "hull": traced.plan(request, max_pieces=1)}
        error = max(_error(traced, image, plan, full, backend) for plan in plans.values() for backend in backends)
        if error > TOLERANCE:
            raise SystemExit(f"{name}, {what}: off by {error:.1e} of the largest value")
        calls = {
            f"{backend}_{kind}_ms": _call(traced, image, plan, backend)
            for backend in backends
            for kind, plan in plans.items()
        }
        calls["full_ms"] = lambda: model(image)
        pieces = plans["pieces"]
        rows.append(
            {
                "network": name,
                "request": what,
                "clicks": len(clicks),
                "most_pieces": max(map(len, pieces.pieces.values())),
                "full_macs": pieces.full_macs,
                "hull_macs": pieces.hull_macs,
                "macs": pieces.macs,
                "max_rel_error": error,
                **_medians(calls, repeats),
            }
        )
    return rows


def _call(traced: TracedModel, image: Tensor, plan: Plan, backend: str) -> Callable[[], Any]:
    return lambda: traced.run(image, plan, backend=backend)


def _error(traced: TracedModel, image: Tensor, plan: Plan, full: dict[str, Tensor], backend: str) -> float:
    worst = 0.0
    for key, parts in traced.run(image, plan, backend=backend).items():
        for part, window in zip(parts, plan.asked[key], strict=True):
            wanted = full[str(key)][(..., *window.slices)]
            worst = max(worst, float((part - wanted).abs().max() / full[str(key)].abs().max()))
    return worst


def _medians(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float | None]:
    """Medians in ms, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for repeat in range(repeats + 1 if repeats else 0):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if repeat:  # the first round warms up
                    times[name].append((time.perf_counter() - start) * 1e3)
    return {name: round(statistics.median(values), 2) if values else None for name, values in times.items()}


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    kinds = [f"{backend}_{kind}_ms" for backend in result["backends"] for kind in ("hull", "pieces")]
    table = Table(title=f"{result['size'][0]}x{result['size'][1]}, {result['device']}, commit {result['commit']}")
    for name in ("network", "request"):
        table.add_column(name)
    for name in ("pieces", "hull", "apart", "error", "full ms", *(kind.replace("_", " ") for kind in kinds)):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        shares = (f"{row[macs] / row['full_macs']:.1%}" for macs in ("hull_macs", "macs"))
        times = ("" if row[kind] is None else f"{row[kind]:.0f}" for kind in ("full_ms", *kinds))
        most = str(row["most_pieces"])
        table.add_row(row["network"], row["request"], most, *shares, f"{row['max_rel_error']:.0e}", *times)
    Console(width=150, highlight=False).print(table)


def main() -> None:
    """Parse arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--repeats", type=int, default=11, help="timed runs of each; 0 checks only")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backends = ["torch", *(["native"] if BACKENDS["native"].available else [])]
    rows = [row for name in NETWORKS for row in measure(name, SIZE, options.repeats, backends)]
    result = {**environment(), "size": list(SIZE), "repeats": options.repeats, "backends": backends, "rows": rows}
    show(result)
    if options.json is not None:
        save_json(result, options.json)


if __name__ == "__main__":
    main()
