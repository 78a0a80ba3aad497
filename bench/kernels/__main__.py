"""Every convolution of ResNet-50-FPN at its traced window, beside SGEMM.

    python -m bench.kernels --json bench/results/kernels.json

The request: heads at a click in the centre of a 1024 x 768 image on levels 3-5 and on 3-7, and 32 x 32 mask cells.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.kernels.layers import SIZE, Layer, standard_layers
from bench.kernels.measure import measure, summary
from bench.report import environment
from tracenet.files import save_json
from tracenet_kernels import native
from tracenet_kernels.threads import set_threads

REQUESTS = ((3, 7), (3, 5))


def run(rounds: int, threads: int) -> dict[str, Any]:
    """Measure both requests in one run; a layer that both have is timed once."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    set_threads(threads)
    requests = {levels: standard_layers(levels) for levels in REQUESTS}
    merged: dict[Layer, list[str]] = {layer: names for layers in requests.values() for layer, names in layers.items()}
    with Progress(transient=True) as progress, torch.inference_mode():
        task = progress.add_task("layers and SGEMM", total=rounds)
        cases, peers = measure(merged, rounds, lambda: progress.advance(task))
    results = []
    for levels, names in requests.items():
        part = summary(names, [case for case in cases if case.layer in names], peers)
        results.append({"levels": list(levels), **part})
    first = results[0]
    return {
        **environment(),
        "isa": native.require().active_isa(),
        "dtype": "float32",
        "size": list(SIZE),
        "click": [SIZE[0] // 2, SIZE[1] // 2],
        "rounds": rounds,
        "sgemm_gflops": peers.sgemm_gflops,
        "bandwidth_gbs": peers.bandwidth_gbs,
        "weighted_share": first["weighted_share"],
        "worst_share": first["worst_share"],
        "worst_roof_share": first["worst_roof_share"],
        "layers": first["layers"],
        "requests": results,
    }


def show(result: dict[str, Any]) -> None:
    """Print one table per request."""
    console = Console(width=150, highlight=False)
    for request in result["requests"]:
        table = Table(
            title=f"{result['device']}, {result['threads']} threads, {result['isa']}, fp32, commit {result['commit']}; "
            f"levels {request['levels'][0]}-{request['levels'][1]}"
        )
        table.add_column("layer")
        for name in ("times", "weight", "stride", "pixels", "MMACs", "FLOP/B", "us", "GFLOP/s", "of SGEMM", "of roof"):
            table.add_column(name, justify="right")
        for row in request["layers"]:
            exact = row["gflops"] is not None
            table.add_row(
                row["name"],
                str(len(row["names"])),
                "x".join(map(str, row["weight"])),
                str(row["stride"][0]),
                str(row["pixels"]),
                f"{row['macs'] / 1e6:.1f}",
                f"{row['flop_per_byte']:.1f}",
                f"{row['us_min']:.0f}" if exact else f"wrong by {row['max_rel_error']:.1e}",
                f"{row['gflops']:.1f}" if exact else "",
                f"{row['share']:.2f}" if exact else "",
                f"{row['roof_share']:.2f}" if exact else "",
            )
        console.print(table)
        if request["weighted_share"] is not None:
            large = f"windows of 64 pixels or more: at least {request['worst_roof_share']:.2f}"
            console.print(
                f"{request['macs'] / 1e9:.2f} GMACs in {request['ms']:.1f} ms: "
                f"{request['weighted_share']:.3f} of SGEMM ({result['sgemm_gflops']:.0f} GFLOP/s); {large} of "
                f"min(SGEMM, {result['bandwidth_gbs']:.0f} GB/s x FLOP/byte)\n"
            )


def main() -> None:
    """Parse arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="file to write")
    parser.add_argument("--rounds", type=int, default=20, help="runs of every layer")
    parser.add_argument("--threads", type=int, default=2, help="of the kernels and of torch")
    options = parser.parse_args()
    result = run(options.rounds, options.threads)
    show(result)
    if options.json is not None:
        save_json(result, options.json)


if __name__ == "__main__":
    main()
