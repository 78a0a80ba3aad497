"""What a click costs and how far it is off when global vectors are exact, cached, or taken from the window.

    python -m bench.global_context --json bench/results/global_context.json

Two networks with squeeze-and-excitation in every block, an SE-ResNet and a MobileNetV3 cut at stride 16, on a bundled
photo. Their weights are random: gates are drawn so that they spread over (0, 1) and BatchNorm has this photo's
statistics, so multiply-adds are those of trained networks, errors are not. The request is 4 x 4 cells of the last
feature map, at three places.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tracenet
from bench.report import environment
from tracenet.files import save_json
from tracenet.image_io import load_image, to_rgb
from tracenet.rft.context import global_vectors

CELLS = 4
SIZE = (1024, 768)  # columns, rows
SCALES = (0.5, 0.25)
TOLERANCE = 1e-4


class Gate(nn.Module):
    """Squeeze and excitation: a factor per channel, from the mean of the whole plane."""

    def __init__(self, channels: int, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scale = scale
        self.squeeze, self.excite = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)
        for layer in (self.squeeze, self.excite):
            nn.init.normal_(layer.weight, std=2 / layer.in_channels**0.5)

    def forward(self, x: Tensor) -> Tensor:
        vector = F.adaptive_avg_pool2d(x, 1)
        return x * self.scale(self.excite(F.relu(self.squeeze(vector))))


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and BatchNorm."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class SEBlock(nn.Module):
    """Bottleneck of an SE-ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = outputs // 4
        layers = [conv(inputs, middle, 1), nn.ReLU(), conv(middle, middle, 3, stride), nn.ReLU()]
        self.body = nn.Sequential(*layers, conv(middle, outputs, 1), Gate(outputs, torch.sigmoid))
        self.shortcut = nn.Identity() if (inputs, stride) == (outputs, 1) else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """Block of a MobileNetV3: expansion, depthwise convolution, gate, projection."""

    def __init__(self, inputs: int, middle: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        layers = [conv(inputs, middle, 1), nn.Hardswish(), conv(middle, middle, kernel, stride, middle), nn.Hardswish()]
        self.body = nn.Sequential(*layers, Gate(middle, F.hardsigmoid), conv(middle, outputs, 1))
        self.same = (inputs, stride) == (outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


def se_resnet() -> nn.Module:
    """SE-ResNet-50 up to stride 16, at half its depth and half its width."""
    layers: list[nn.Module] = [conv(3, 32, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 32
    for outputs, stride, count in ((128, 1, 2), (256, 2, 2), (512, 2, 3)):
        for i in range(count):
            layers.append(SEBlock(inputs, outputs, stride if i == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers)


def mobilenet_v3() -> nn.Module:
    """MobileNetV3-Large up to stride 16, with a gate in every block."""
    rows = ((16, 16, 3, 1), (64, 24, 3, 2), (72, 24, 3, 1), (72, 40, 5, 2), (120, 40, 5, 1), (240, 80, 3, 2))
    rows += ((200, 80, 3, 1), (184, 80, 3, 1), (480, 112, 3, 1), (672, 112, 3, 1))
    layers: list[nn.Module] = [conv(3, 16, 3, 2), nn.Hardswish()]
    inputs = 16
    for middle, outputs, kernel, stride in rows:
        layers.append(InvertedResidual(inputs, middle, outputs, kernel, stride))
        inputs = outputs
    return nn.Sequential(*layers)


NETS = {"SE-ResNet": se_resnet, "MobileNetV3": mobilenet_v3}


def photo(size: tuple[int, int]) -> Tensor:
    """A bundled photo, stretched to (columns, rows), as ``[1, 3, rows, columns]`` of mean 0."""
    with (files("tracenet") / "assets" / "photos" / "astronaut.jpg").open("rb") as file:
        image = to_rgb(load_image(file.read())).resize(size)
    pixels = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1).unsqueeze(0)
    return (pixels - 120) / 60


def prepared(make: Callable[[], nn.Module], image: Tensor) -> nn.Module:
    """A network whose BatchNorms hold the statistics of an image."""
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average over the passes
    with torch.no_grad():
        model(image)
    return model.eval()


def requests(plane: tuple[int, int]) -> list[tracenet.Window]:
    """Squares of cells in the middle, in a corner and at an edge."""
    height, width = plane
    corners = [((height - CELLS) // 2, (width - CELLS) // 2), (0, 0), ((height - CELLS) // 3, width - CELLS)]
    return [tracenet.Window(y, y + CELLS, x, x + CELLS) for y, x in corners]


def measure(name: str, size: tuple[int, int] = SIZE) -> list[dict[str, Any]]:
    """One row per mode: multiply-adds and errors, the mean and the largest over the requests."""
    image = photo(size)
    model = prepared(NETS[name], image)
    traced = tracenet.trace(model, image)
    with torch.no_grad():
        full = model(image)
    (plane,) = [node.plane for node in traced.graph.outputs.values()]
    backbone = traced.plan({node.name: None for node in global_vectors(traced.graph.nodes)})
    modes: list[tuple[str, str, Any, float]] = [
        ("exact", "exact", None, 0.0),
        ("cached, of the whole image", "cached", traced.global_vectors(image), backbone.macs / backbone.full_macs),
    ]
    for scale in SCALES:
        vectors = traced.global_vectors(image, scale=scale)
        modes.append((f"cached, at scale {scale:g}", "cached", vectors, scale**2 * backbone.macs / backbone.full_macs))
    modes.append(("window", "window", None, 0.0))
    rows: list[dict[str, Any]] = []
    for label, mode, vectors, once in modes:
        shares, errors = [], []
        for window in requests(plane):
            plan = traced.plan({0: window}, global_context=mode, vectors=vectors)
            part = full[(..., *window.slices)]
            got = traced.run(image, plan)[0]
            errors.append((float((got - part).abs().max()), float((got - part).abs().max() / part.abs().max())))
            shares.append(plan.macs / plan.full_macs)
            if plan.exact and errors[-1][1] > TOLERANCE:
                raise SystemExit(f"{name}, {label}: {window} is off by {errors[-1][1]:.1e} in an exact plan")
        rows.append(
            {
                "network": name,
                "mode": label,
                "exact": plan.exact,
                "mac_share": sum(shares) / len(shares),
                "mac_share_once": once,
                "max_error": max(error for error, _ in errors),
                "max_rel_error": max(relative for _, relative in errors),
            }
        )
    return rows


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    table = Table(title=f"{result['size'][0]}x{result['size'][1]}, {CELLS} x {CELLS} cells, commit {result['commit']}")
    for name in ("network", "mode"):
        table.add_column(name)
    for name in ("MACs per click", "MACs once per image", "max error", "max error / max"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        table.add_row(
            row["network"],
            row["mode"],
            f"{row['mac_share']:.1%}",
            f"{row['mac_share_once']:.0%}" if row["mac_share_once"] else "",
            f"{row['max_error']:.1e}",
            f"{row['max_rel_error']:.1e}",
        )
    Console(width=120, highlight=False).print(table)


def main() -> None:
    """Parse arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="file to write")
    options = parser.parse_args()
    rows = [row for name in NETS for row in measure(name)]
    result = {**environment(), "size": list(SIZE), "cells": CELLS, "rows": rows}
    show(result)
    if options.json is not None:
        save_json(result, options.json)


if __name__ == "__main__":
    main()
