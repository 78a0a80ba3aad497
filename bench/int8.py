"""8-bit convolutions against the fp32 ones: speed of single layers, and what they cost in masks.

    python -m bench.int8 layers --json bench/results/int8_layers.json
    python -m bench.int8 network --json bench/results/int8_network.json
    python -m bench.int8 masks --photos DIR --annotations FILE \\
        --calibration-photos DIR --calibration-annotations FILE --json bench/results/int8_masks.json

``layers``: whole planes, uint8 in and out against fp32 in and out, both through the Python API with bias and ReLU, runs
interleaved. The fp32 result is held against torch, the 8-bit one against the integer sums it must equal bit for bit; a
layer that fails either reports no time.

``network``: windows of a whole network in one call, the standard request (heads at the click, 32 x 32 cells of the
mask) and everything, float image in and logits out, one session each, runs interleaved. The fp32 result is held against
torch within 1e-4; windows in 8 bits must equal the full run in 8 bits bit for bit, and their distance from fp32 is
reported. Ranges come from the image itself: they decide no time.

``masks``: the protocol of :mod:`tracenet.evaluation` on the network in fp32 and in 8 bits, both as full planes of the
native runtime; boxes, choice of level and mask head are the same code, in fp32, and so are the clicks. Ranges are
calibrated on other photos.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.report import environment
from tracenet.checkpoint import bundled_checkpoint
from tracenet.conventions import THETA
from tracenet.data import CocoDataset
from tracenet.demo import photo_path
from tracenet.engine.lower import lower
from tracenet.engine.program import Program
from tracenet.engine.quantise import Calibration, Range, calibrate, quantise, save_ranges
from tracenet.engine.schedule import Schedule
from tracenet.engine.session import Session
from tracenet.evaluation.protocol import ClickProtocol
from tracenet.evaluation.run import evaluate_dataset, file_hash, full_network_segment
from tracenet.files import save_json
from tracenet.inference import PredictorSettings, fit_canvas, prepare_image
from tracenet.models import TraceNet
from tracenet.models.weights import load_checkpoint
from tracenet.standard import standard_request
from tracenet.traced import trace
from tracenet_kernels import native
from tracenet_kernels.threads import set_threads
from tracenet_kernels.window import Window
from tracenet_kernels.windowed import ConvJob, PackedConv, conv2d_jobs
from tracenet_kernels.windowed_int8 import (
    Int8ConvJob,
    PackedInt8Conv,
    Quantisation,
    conv2d_int8_jobs,
    quantise_weight,
)

TOLERANCE = 1e-4
METRICS = ("one_click_miou", "one_click_pooled", "hit_rate_70", "miou_t", "mta", "score_error")


class Layer(NamedTuple):
    """A convolution of a ResNet-50-FPN at 1024 x 768 or of its heads; ``side`` is the input's."""

    kernel: int
    stride: int
    inputs: int
    outputs: int
    side: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.kernel}x{self.kernel}/{self.stride} {self.inputs}->{self.outputs} {self.side[0]}x{self.side[1]}"


LAYERS = (
    Layer(3, 1, 256, 256, (64, 64)),
    Layer(3, 1, 256, 256, (8, 8)),
    Layer(3, 1, 128, 128, (96, 128)),
    Layer(3, 1, 512, 512, (24, 32)),
    Layer(3, 2, 256, 256, (64, 64)),
    Layer(1, 1, 64, 64, (192, 256)),
    Layer(1, 1, 64, 256, (192, 256)),
    Layer(1, 1, 256, 64, (192, 256)),
    Layer(1, 1, 256, 256, (64, 64)),
    Layer(1, 1, 512, 128, (96, 128)),
    Layer(1, 1, 1024, 256, (48, 64)),
    Layer(1, 1, 2048, 512, (24, 32)),
)


class Pair:
    """One layer in both precisions, with its inputs and outputs."""

    def __init__(self, layer: Layer) -> None:
        rng = np.random.default_rng(0)
        padding = layer.kernel // 2
        rows, columns = ((side - 1) // layer.stride + 1 for side in layer.side)
        shape = (layer.outputs, layer.inputs, layer.kernel, layer.kernel)
        self.layer = layer
        self.window = Window.full(rows, columns)
        self.macs = rows * columns * int(np.prod(shape))
        self.weight = rng.normal(size=shape).astype(np.float32)
        self.bias = rng.normal(size=layer.outputs).astype(np.float32)
        self.grid = Quantisation(0.02, 0)
        self.x8 = rng.integers(0, 256, (*layer.side, layer.inputs)).astype(np.uint8)
        self.x = self.x8.astype(np.float32) * np.float32(self.grid.scale)
        self.y = np.full((rows, columns, layer.outputs), np.nan, np.float32)
        self.y8 = np.zeros(self.y.shape, np.uint8)
        self.weight8, self.weight_scale = quantise_weight(self.weight)
        self.packed = PackedConv(self.weight, stride=layer.stride, padding=padding)
        self.packed8 = PackedInt8Conv(self.weight8, self.weight_scale, stride=layer.stride, padding=padding)
        self.out_grid = Quantisation(float(self.expected().max()) / 255, 0)

    def run(self) -> None:
        """In fp32."""
        job = ConvJob(self.x, self.y, self.window, bias=self.bias, activation="relu")
        conv2d_jobs(self.packed, [job])

    def run8(self) -> None:
        """In 8 bits."""
        job = Int8ConvJob(self.x8, self.grid, self.y8, self.window, self.out_grid, bias=self.bias, activation="relu")
        conv2d_int8_jobs(self.packed8, [job])

    def expected(self) -> torch.Tensor:
        """fp32 by torch, [rows, columns, out]."""
        return self._torch(torch.from_numpy(self.x), torch.from_numpy(self.weight), torch.from_numpy(self.bias)).relu()

    def expected8(self) -> torch.Tensor:
        """The integers."""
        sums = self._torch(torch.from_numpy(self.x8).double(), torch.from_numpy(self.weight8).double(), None).float()
        real = sums * torch.from_numpy(np.float32(self.grid.scale) * self.weight_scale) + torch.from_numpy(self.bias)
        inverse = np.float32(1) / np.float32(self.out_grid.scale)
        return (real.relu() * float(inverse)).round().clamp(0, 255).to(torch.uint8)

    def _torch(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        layer = self.layer
        y = torch.nn.functional.conv2d(x.permute(2, 0, 1)[None], weight, bias, layer.stride, layer.kernel // 2)
        return y[0].permute(1, 2, 0)

    def errors(self) -> tuple[float, int]:
        """Relative error in fp32, and how many integers are wrong."""
        reference = self.expected()
        relative = float((torch.from_numpy(self.y) - reference).abs().max() / reference.abs().max())
        return relative, int((torch.from_numpy(self.y8) != self.expected8()).sum())


def timed(call: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(layer: Layer, seconds: float) -> dict[str, Any]:
    """Interleaved runs of both for ``seconds``."""
    pair = Pair(layer)
    pair.run()
    pair.run8()
    relative, wrong = pair.errors()
    case: dict[str, Any] = {
        "layer": str(layer),
        "kernel": layer.kernel,
        "stride": layer.stride,
        "channels": [layer.inputs, layer.outputs],
        "size": list(layer.side),
        "macs": pair.macs,
        "fp32_max_rel_error": relative,
        "int8_wrong": wrong,
    }
    if relative > TOLERANCE or wrong:
        return case
    times: dict[str, list[float]] = {"fp32": [], "int8": []}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["int8"]) < 5:
        times["fp32"].append(timed(pair.run))
        times["int8"].append(timed(pair.run8))
    for name, all_times in times.items():
        best, median = min(all_times), statistics.median(all_times)
        case[name] = {"ms_min": best * 1e3, "ms_median": median * 1e3, "gops": 2 * pair.macs / best / 1e9}
    case["runs"] = len(times["int8"])
    case["speed_up"] = case["fp32"]["ms_min"] / case["int8"]["ms_min"]
    case["speed_up_median"] = case["fp32"]["ms_median"] / case["int8"]["ms_median"]
    return case


def layers(seconds: float, threads: int) -> dict[str, Any]:
    """Measure every layer."""
    set_threads(threads)
    extension = native.require()
    return {
        **environment(),
        "threads": threads,
        "isa": extension.active_isa(),
        "int8_kernel": extension.active_int8_kernel(),
        "layers": [measure(layer, seconds) for layer in LAYERS],
    }


def show_layers(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    kernels = f"{result['isa']} / {result['int8_kernel']}"
    table = Table(title=f"{result['device']}, {result['threads']} threads, {kernels}, {result['commit']}")
    for name in ("layer", "fp32 ms", "int8 ms", "fp32 GFLOP/s", "int8 GOP/s", "speed-up", "(medians)"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for case in result["layers"]:
        if "int8" not in case:
            table.add_row(case["layer"], "wrong")
            continue
        table.add_row(
            case["layer"],
            f"{case['fp32']['ms_min']:.3f}",
            f"{case['int8']['ms_min']:.3f}",
            f"{case['fp32']['gops']:.0f}",
            f"{case['int8']['gops']:.0f}",
            f"{case['speed_up']:.2f}",
            f"{case['speed_up_median']:.2f}",
        )
    Console(width=130, highlight=False).print(table)


LEVELS = ((3, 5), (3, 7))
Request = dict[int | str, Window]


class Both:
    """One network in both precisions, with an image set."""

    def __init__(self, size: tuple[int, int], threads: int) -> None:
        width, height = size
        self.model, _ = load_checkpoint(bundled_checkpoint())
        photo = Image.open(photo_path("coffee")).convert("RGB").resize(size)
        canvas = fit_canvas(width, height, max(size))
        image = torch.from_numpy(prepare_image(photo, canvas, self.model.config))
        self.inputs = (
            image,
            0.1 * torch.randn(1, THETA),
            torch.tensor([[width / 2, height / 2]]),
            torch.tensor([64.0]),
        )
        self.traced = trace(self.model, self.inputs)
        schedule = lower(self.traced.graph)
        eight_bits = quantise(schedule, calibrate(schedule, [self.inputs]))
        self.sessions = {
            name: Session(Program(one), threads) for name, one in (("fp32", schedule), ("int8", eight_bits))
        }
        for session in self.sessions.values():
            session.set_planar(0, image)
        self.parameters = {i: value.numpy().reshape(-1) for i, value in enumerate(self.inputs) if i}

    def run(self, name: str, request: Request) -> Any:
        """Windows by name, and what the run reports."""
        return self.sessions[name].run(request, self.parameters)

    def errors(self, request: Request, full8: dict[Any, Any]) -> dict[str, Any]:
        """fp32 against torch, 8-bit windows against the full run, and 8 bits against fp32 per kind of output."""
        reference = self.traced.run(self.inputs, self.traced.plan(request), backend="torch")
        real, eight = (self.run(name, request).outputs for name in ("fp32", "int8"))
        worst = max(
            float((torch.from_numpy(real[name]) - value).abs().max() / value.abs().max().clamp(min=1e-6))
            for name, value in reference.items()
        )
        same = all(
            np.array_equal(eight[name], full8[name][..., window.y0 : window.y1, window.x0 : window.x1])
            for name, window in request.items()
        )
        kinds: dict[str, list[float]] = {}
        for name in request:
            distance = float(np.linalg.norm(eight[name] - real[name])) / max(float(np.linalg.norm(real[name])), 1e-6)
            kinds.setdefault(str(name).rstrip("34567"), []).append(distance)
        distances = {kind: max(values) for kind, values in kinds.items()}
        return {"fp32_max_rel_error": worst, "int8_windows_exact": same, "int8_relative_distance": distances}


def network(seconds: float, threads: int, size: tuple[int, int]) -> dict[str, Any]:
    """Measure the standard requests and the whole network."""
    set_threads(threads)
    torch.manual_seed(0)
    both = Both(size, threads)
    click = (size[0] / 2, size[1] / 2)
    requests: dict[str, Request] = {
        f"P{first}-P{last} at the click": standard_request(both.model.config, size, click, (first, last), 32)
        for first, last in LEVELS
    }
    planes = both.sessions["fp32"].program.schedule
    named = {name for request in requests.values() for name in request}
    requests["everything"] = {
        name: Window.full(planes.planes[number].height, planes.planes[number].width)
        for name, number in planes.outputs.items()
        if name in named
    }
    full8 = both.run("int8", requests["everything"]).outputs
    cases = []
    for label, request in requests.items():
        case: dict[str, Any] = {"request": label, **both.errors(request, full8)}
        cases.append(case)
        if case["fp32_max_rel_error"] > TOLERANCE or not case["int8_windows_exact"]:
            continue
        times: dict[str, list[float]] = {"fp32": [], "int8": []}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times["int8"]) < 5:
            for name, all_times in times.items():
                all_times.append(timed(partial(both.run, name, request)))
        for name, all_times in times.items():
            report = both.run(name, request)
            case["macs"] = report.macs
            case[name] = {
                "ms_min": min(all_times) * 1e3,
                "ms_median": statistics.median(all_times) * 1e3,
                "gops": 2 * report.macs / min(all_times) / 1e9,
                "peak_mib": report.peak_bytes / 2**20,
            }
        case["runs"] = len(times["int8"])
        case["speed_up"] = case["fp32"]["ms_min"] / case["int8"]["ms_min"]
        case["speed_up_median"] = case["fp32"]["ms_median"] / case["int8"]["ms_median"]
    extension = native.require()
    return {
        **environment(),
        "threads": threads,
        "isa": extension.active_isa(),
        "int8_kernel": extension.active_int8_kernel(),
        "size": list(size),
        "cases": cases,
    }


def show_network(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    size = "x".join(map(str, result["size"]))
    table = Table(title=f"{result['device']}, {result['threads']} threads, {size}, {result['commit']}")
    for name in ("request", "GMACs", "fp32 ms", "int8 ms", "GFLOP/s", "GOP/s", "speed-up", "(medians)", "MiB", "MiB"):
        table.add_column(name, justify="left" if name == "request" else "right")
    for case in result["cases"]:
        if "int8" not in case:
            table.add_row(case["request"], "wrong")
            continue
        real, eight = case["fp32"], case["int8"]
        numbers = (case["macs"] / 1e9, real["ms_min"], eight["ms_min"])
        rest = (real["gops"], eight["gops"])
        ratios = (case["speed_up"], case["speed_up_median"])
        table.add_row(
            case["request"],
            *(f"{value:.1f}" for value in numbers),
            *(f"{value:.0f}" for value in rest),
            *(f"{value:.2f}" for value in ratios),
            f"{real['peak_mib']:.0f}",
            f"{eight['peak_mib']:.0f}",
        )
    Console(width=130, highlight=False).print(table)


class FullPlanes:
    """A network whose full planes the native runtime computes; in all else the model itself."""

    def __init__(self, model: TraceNet, program: Program) -> None:
        self._model, self._program = model, program
        heads = ("logits", "ctr", "level", "theta", "reg", "maskfeat")
        self._request: dict[int | str, Window | Sequence[int] | None] = {
            name: None for name in program.schedule.outputs if name.startswith(heads)
        }
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        session = Session(self._program.at_size(*image.shape[2:]))
        session.set_planar(0, image)
        start = time.perf_counter()
        outputs = session.run(self._request).outputs
        self.seconds += time.perf_counter() - start
        return {str(name): torch.from_numpy(value) for name, value in outputs.items()}


def calibrated(
    schedule: Schedule, model: TraceNet, settings: PredictorSettings, photos: CocoDataset, count: int
) -> tuple[dict[str, Range], list[str]]:
    """Ranges of the first ``count`` photos that have objects, and the photos' file names."""
    program = Program(schedule)
    calibration = Calibration()
    names = []
    records = [record for record in photos.records if record.instances][:count]
    for record in track(records, "calibration", console=Console(stderr=True)):
        photo = photos.image(record)
        canvas = fit_canvas(photo.width, photo.height, settings.working_size)
        image = torch.from_numpy(prepare_image(photo, canvas, model.config))
        sized = replace(program.at_size(*image.shape[2:]).schedule, tensors=schedule.tensors)
        calibration.add(sized, (image,))
        names.append(record.path.name)
    return calibration.ranges(), names


def masks(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate both networks on the same clicks."""
    model, info = load_checkpoint(options.checkpoint or bundled_checkpoint())
    settings = replace(info.predictor, zoom="off")
    schedule = lower(trace(model, (torch.zeros(1, 3, 480, 640),)).graph)
    training = CocoDataset(options.calibration_photos, options.calibration_annotations, on_error="skip")
    ranges, names = calibrated(schedule, model, settings, training, options.calibration_count)
    if options.ranges is not None:
        save_ranges(ranges, options.ranges)
    eight_bits = quantise(schedule, ranges)
    protocol = ClickProtocol(clicks=options.clicks)
    result: dict[str, Any] = {
        **environment(),
        "checkpoint": {
            "file": (options.checkpoint or bundled_checkpoint()).name,
            "sha256": file_hash(options.checkpoint or bundled_checkpoint()),
        },
        "settings": settings.to_dict(),
        "calibration": names,
        "steps_in_8_bits": sum(
            step.op == "conv2d" and eight_bits.planes[step.inputs[0]].dtype == "uint8" for step in eight_bits.steps
        ),
        "convolutions": sum(step.op in ("conv2d", "stem") for step in eight_bits.steps),
        "uint8_planes": sum(plane.dtype == "uint8" for plane in eight_bits.planes),
        "planes": len(eight_bits.planes),
    }
    for name, one in (("fp32", schedule), ("int8", eight_bits)):
        dataset = CocoDataset(options.photos, options.annotations, on_error="skip")
        network = FullPlanes(model, Program(one))
        segment = full_network_segment(network, settings)  # type: ignore[arg-type]
        report = evaluate_dataset(segment, dataset, protocol, {}, None, options.limit).report
        result[name] = {**report, "network_seconds_per_image": network.seconds / max(report["images"], 1)}
    result["difference"] = {name: result["int8"][name] - result["fp32"][name] for name in METRICS}
    return result


def show_masks(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    title = (
        f"{result['fp32']['images']} images, {result['fp32']['instances']} objects, {result['fp32']['clicks']} clicks"
    )
    table = Table(title=title)
    for name in ("", "fp32", "int8", "difference"):
        table.add_column(name, justify="left" if not name else "right")
    for name in METRICS:
        row = (result["fp32"][name], result["int8"][name], result["difference"][name])
        table.add_row(name, *(f"{value:.4f}" for value in row))
    Console(width=130, highlight=False).print(table)


def main() -> None:
    """Parse arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("layers", help="speed of single layers")
    command.add_argument("--json", type=Path, default=None, help="file to write")
    command.add_argument("--seconds", type=float, default=1.0, help="per layer")
    command.add_argument("--threads", type=int, default=1)
    command = commands.add_parser("network", help="speed of a whole network on windows")
    command.add_argument("--json", type=Path, default=None, help="file to write")
    command.add_argument("--seconds", type=float, default=10.0, help="per request")
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--size", type=int, nargs=2, default=(1024, 768), metavar=("WIDTH", "HEIGHT"))
    command = commands.add_parser("masks", help="what 8 bits cost in masks")
    command.add_argument("--json", type=Path, default=None, help="file to write")
    command.add_argument("--photos", type=Path, required=True, help="folder to evaluate on")
    command.add_argument("--annotations", type=Path, required=True)
    command.add_argument("--calibration-photos", type=Path, required=True, help="folder of other photos")
    command.add_argument("--calibration-annotations", type=Path, required=True)
    command.add_argument("--calibration-count", type=int, default=32)
    command.add_argument("--ranges", type=Path, default=None, help="file to write the calibrated ranges to")
    command.add_argument("--checkpoint", type=Path, default=None, help="default: the bundled one")
    command.add_argument("--clicks", type=int, default=25, help="simulated clicks per object")
    command.add_argument("--limit", type=int, default=None, help="only the first so many images")
    options = parser.parse_args()
    if options.command == "layers":
        result = layers(options.seconds, options.threads)
        show_layers(result)
    elif options.command == "network":
        result = network(options.seconds, options.threads, tuple(options.size))
        show_network(result)
    else:
        result = masks(options)
        show_masks(result)
    if options.json is not None:
        save_json(result, options.json)


if __name__ == "__main__":
    main()
