"""A click against the full network on this processor.

    python -m bench.end_to_end --json bench/results/end_to_end.json

The standard request is the heads at the click on some levels plus the 32 x 32 square of P3 cells around it from the
mask output: float image in, logits out. Full networks (ONNX Runtime, PyTorch), the crop-and-pad path and our clicks are
run in turns; medians are reported. Everybody's output is checked on every run, and who differs from the full network by
more than 1e-4 x max|full| gets no time. Multiply-adds are the tracer's.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bench.end_to_end.ours import BACKENDS
from bench.end_to_end.run import Options, measure, quick
from bench.end_to_end.show import show
from tracenet.files import check_target, save_json


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="file to write")
    parser.add_argument("--quick", action="store_true", help="one size, its centre, few repeats")
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="native", help="our side")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of everybody")
    options = parser.parse_args(arguments)
    if options.json is not None:
        check_target(options.json)
    chosen = (
        quick(options.backend, options.threads) if options.quick else Options(options.backend, threads=options.threads)
    )
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        report = measure(chosen, progress)
    show(report, Console(width=150, highlight=False))
    if options.json is not None:
        save_json(report, options.json)


if __name__ == "__main__":
    main()
