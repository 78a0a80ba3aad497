"""``make demo``: one click on a bundled photo, its mask, what was computed, and how exact it is.

Writes the mask, the overlay, the traced windows and a JSON report; prints latency, multiply-adds, and the largest
difference from the full network.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from tracenet import pictures
from tracenet.cli import parse_click
from tracenet.exactness import full_network_error
from tracenet.files import save_json, save_picture
from tracenet.image_io import load_image
from tracenet.predictor import Predictor
from tracenet.segment import segment_photo
from tracenet_kernels.errors import TraceNetError

PHOTO, CLICK = "rocket", (322.0, 280.0)
REPEATS = 5


def photo_path(name: str) -> Path:
    """A bundled photo: ``astronaut``, ``chelsea``, ``coffee`` or ``rocket`` (public domain or CC0)."""
    return Path(str(resources.files("tracenet").joinpath(f"assets/photos/{name}.jpg")))


def measure(predictor: Predictor, click: tuple[float, float], advance: Callable[[], None]) -> dict[str, float]:
    """Median milliseconds of a first click, a second click 40 px away, and the full network, taken in turn."""
    times: dict[str, list[float]] = {"first_click": [], "second_click": [], "full_network": []}
    photo_width = predictor.canvas.photo_width
    beside = (click[0] + (40 if click[0] + 40 < photo_width else -40), click[1])
    image = torch.from_numpy(predictor.image)
    for _ in range(REPEATS):
        predictor.forget_features()
        for name, at in (("first_click", click), ("second_click", beside)):
            predictor.predict([list(at)], [1])
            times[name].append(predictor.timings_ms["predict"])
        start = time.perf_counter()
        with torch.inference_mode():
            predictor.model(image)
        times["full_network"].append((time.perf_counter() - start) * 1e3)
        advance()
    return {name: statistics.median(values) for name, values in times.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=photo_path(PHOTO), help="photo to segment")
    parser.add_argument("--click", default=f"{CLICK[0]:g},{CLICK[1]:g}", help="clicked pixel, X,Y")
    parser.add_argument("--checkpoint", type=Path, default=None, help="default: the bundled one")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder to write to")
    options = parser.parse_args(argv)
    try:
        report = run(options.image, parse_click(options.click), options.checkpoint, options.out)
    except TraceNetError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    show(report, options.out)
    return 0


def run(image: Path, click: tuple[float, float], checkpoint: Path | None, out: Path) -> dict[str, Any]:
    """Segment, check against the full network, measure, and write everything to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    predictor = Predictor.from_pretrained(checkpoint)
    with Progress(transient=True) as progress:
        task = progress.add_task("segment, check, measure", total=REPEATS + 2)
        overlay, windows = out / "overlay.png", out / "windows.png"
        report = segment_photo(
            image, click, out / "mask.png", predictor=predictor, overlay_path=overlay, windows_path=windows
        )
        save_picture(pictures.join([load_image(overlay), load_image(windows)]), out / "overview.png")
        progress.advance(task)
        error, peak = full_network_error(predictor, click)
        progress.advance(task)
        report["median_ms"] = measure(predictor, click, lambda: progress.advance(task))
    report.update(
        backend=predictor.backend,
        max_error=error,
        max_abs_full=peak,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    save_json(report, out / "report.json")
    return report


def show(report: dict[str, Any], out: Path) -> None:
    """Print the report."""
    times = report["median_ms"]
    console = Console(highlight=False)
    console.print(
        f"{report['width']}x{report['height']} photo, level P{report['level']}, score {report['score']:.2f}, "
        f"{report['mask_pixels']} mask pixels; medians of {REPEATS}, {report['threads']} threads, fp32, "
        f"{report['backend']} backend"
    )
    console.print(f"multiply-adds   traced {report['macs'] / 1e9:6.2f} G   full {report['full_macs'] / 1e9:6.2f} G")
    console.print(
        f"latency         first click {times['first_click']:.0f} ms   second click, 40 px away "
        f"{times['second_click']:.0f} ms   full network {times['full_network']:.0f} ms"
    )
    console.print(f"max error       {report['max_error']:.2e} of mask logits up to {report['max_abs_full']:.2f}")
    console.print(f"written         {', '.join(str(out / f) for f in ('mask.png', 'overlay.png', 'windows.png'))}")


if __name__ == "__main__":
    sys.exit(main())
