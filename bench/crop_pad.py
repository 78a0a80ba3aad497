"""The crop-and-pad path against the full network, both in eager PyTorch.

    python -m bench.crop_pad --json bench/results/crop_pad.json

The request is the heads at the click on some levels plus the 32 x 32 square of P3 cells around it from the mask
output: float image in, logits out, on both sides. Traced and full runs are interleaved; medians are reported; a case
whose traced output differs from the full network's by more than 1e-4 x max|full| reports no time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

import tracenet
from bench.report import environment
from tracenet.conventions import THETA
from tracenet.files import save_json
from tracenet.standard import standard_request

TOLERANCE = 1e-4
SIZES = ((640, 480), (1024, 768))
LEVELS = ((3, 7), (3, 5))


def relative_error(full: dict[str, Tensor], traced: dict[Any, Tensor], request: dict[Any, Any]) -> float:
    """Largest ``max|traced - full| / max|full|`` over the requested outputs."""
    worst = 0.0
    for name, window in request.items():
        rows, columns = window.slices
        plane = full[name]
        worst = max(worst, float((plane[..., rows, columns] - traced[name]).abs().max() / plane.abs().max()))
    return worst


def timed(call: Any) -> tuple[float, Any]:
    """Milliseconds of one call, and its result."""
    start = time.perf_counter()
    result = call()
    return (time.perf_counter() - start) * 1e3, result


def randomise_statistics(model: torch.nn.Module) -> None:
    """Give BatchNorm random stored statistics, so that padding and borders matter."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]


def run(repeats: int) -> dict[str, Any]:
    """Measure every size and level range."""
    torch.manual_seed(0)
    model = tracenet.create_model("tracenet_r50_fpn", num_classes=80)
    randomise_statistics(model)
    cases: list[dict[str, Any]] = []
    with Progress(transient=True) as progress, torch.inference_mode():
        task = progress.add_task("crop-and-pad against full", total=len(SIZES) * (1 + repeats))
        for width, height in SIZES:
            click = (width // 2, height // 2)
            inputs = (
                torch.randn(1, 3, height, width),
                torch.randn(1, THETA),
                torch.tensor([[float(click[0]), float(click[1])]]),
                torch.tensor([64.0]),
            )
            traced = tracenet.trace(model, inputs)
            plans = {
                levels: traced.plan(standard_request(model.config, (width, height), click, levels, 32))
                for levels in LEVELS
            }
            full = model(*inputs)
            errors = {
                levels: relative_error(full, traced.run(inputs, plan), plan.request) for levels, plan in plans.items()
            }
            progress.advance(task)
            times: dict[Any, list[float]] = {levels: [] for levels in (*LEVELS, "full")}
            for _ in range(repeats):
                times["full"].append(timed(lambda i=inputs: model(*i))[0])
                for levels, plan in plans.items():
                    times[levels].append(timed(lambda t=traced, i=inputs, p=plan: t.run(i, p))[0])
                progress.advance(task)
            for levels, plan in plans.items():
                exact = errors[levels] <= TOLERANCE
                traced_ms, full_ms = statistics.median(times[levels]), statistics.median(times["full"])
                cases.append(
                    {
                        "size": [width, height],
                        "click": list(click),
                        "levels": list(levels),
                        "dtype": "float32",
                        "backend": "torch",
                        "macs": plan.macs,
                        "full_macs": plan.full_macs,
                        "max_rel_error": errors[levels],
                        "ms_median": traced_ms if exact else None,
                        "ms_min": min(times[levels]) if exact else None,
                        "planning_ms": plan.planning_ms,
                        "peers": {"torch_full_ms": full_ms, "torch_full_ms_min": min(times["full"])},
                        "speed_up": full_ms / traced_ms if exact else None,
                        "realised_saving": (full_ms / traced_ms) / (plan.full_macs / plan.macs) if exact else None,
                    }
                )
    return {**environment(), "repeats": repeats, "cases": cases}


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    table = Table(title=f"{result['device']}, {result['threads']} threads, fp32, commit {result['commit']}")
    for name in ("size", "levels", "GMACs", "full", "ms", "full ms", "speed-up", "realised", "max rel. error"):
        table.add_column(name, justify="right")
    for case in result["cases"]:
        exact = case["ms_median"] is not None
        table.add_row(
            "x".join(map(str, case["size"])),
            "-".join(map(str, case["levels"])),
            f"{case['macs'] / 1e9:.1f}",
            f"{case['full_macs'] / 1e9:.1f}",
            f"{case['ms_median']:.0f}" if exact else "wrong",
            f"{case['peers']['torch_full_ms']:.0f}",
            f"{case['speed_up']:.2f}" if exact else "",
            f"{case['realised_saving']:.2f}" if exact else "",
            f"{case['max_rel_error']:.1e}",
        )
    Console(width=130, highlight=False).print(table)


def main() -> None:
    """Parse arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="file to write")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved runs per case")
    options = parser.parse_args()
    result = run(options.repeats)
    show(result)
    if options.json is not None:
        save_json(result, options.json)


if __name__ == "__main__":
    main()
