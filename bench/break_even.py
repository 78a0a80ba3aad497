"""When a windowed layer beats the whole plane in another library: speed-up against the window's size, losses included.

    python -m bench.break_even --json bench/results/break_even.json --picture docs/break_even.png

Layers of a ResNet-50-FPN at 1024 x 768, each with bias and ReLU, on square windows in the middle of the plane up to the
whole of it. The peers compute the whole plane: ONNX Runtime as its own profiler times the convolution, between layouts
it prefers, and PyTorch in the better of its two layouts. Runs are interleaved, each after the caches were overwritten,
and medians reported; a layer whose windows differ from PyTorch's plane by more than 1e-4 of the largest value has no
speed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from bench.figure import new_figure
from bench.report import environment
from tracenet.files import check_target, save_json, write_whole
from tracenet_kernels import native
from tracenet_kernels.threads import set_threads
from tracenet_kernels.window import Window
from tracenet_kernels.windowed import ConvJob, PackedConv, conv2d_jobs

TOLERANCE = 1e-4
SIDES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
PEERS = ("onnxruntime", "torch")
EVICT_BYTES = 1 << 26
"""Written before each run: in a network a layer's weights have left the caches since the image before."""


class Layer(NamedTuple):
    """One convolution; ``plane`` is its input's height and width."""

    kind: str
    kernel: int
    stride: int
    inputs: int
    outputs: int
    plane: tuple[int, int]

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of its output."""
        return self.plane[0] // self.stride, self.plane[1] // self.stride

    @property
    def windows(self) -> list[Window]:
        """Squares in the middle of the output, the last one all of it."""
        height, width = self.output
        squares = [
            Window(y, y + side, x, x + side)
            for side in SIDES
            if side < min(height, width)
            for y, x in [((height - side) // 2, (width - side) // 2)]
        ]
        return [*squares, Window.full(height, width)]


LAYERS = (
    Layer("1x1", 1, 1, 512, 256, (96, 128)),
    Layer("3x3", 3, 1, 256, 256, (96, 128)),
    Layer("3x3, stride 2", 3, 2, 256, 256, (96, 128)),
    Layer("stem, 7x7, stride 2", 7, 2, 3, 64, (768, 1024)),
)


@dataclass(frozen=True)
class Arrays:
    """A layer's values: ``x`` [1, in, H, W], ``weight`` [out, in, k, k], ``bias`` [out], ``y`` = relu(conv(x))."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    y: Tensor

    @classmethod
    def of(cls, layer: Layer) -> Arrays:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(layer.outputs, layer.inputs, layer.kernel, layer.kernel, generator=generator)
        weight /= (layer.inputs * layer.kernel**2) ** 0.5
        x = torch.randn(1, layer.inputs, *layer.plane, generator=generator)
        bias = torch.randn(layer.outputs, generator=generator)
        return cls(x, weight, bias, torch_plane(layer, x, weight, bias))


def torch_plane(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The whole plane in PyTorch."""
    return F.conv2d(x, weight, bias, layer.stride, layer.kernel // 2).relu_()


class OnnxPlane:
    """The whole plane in ONNX Runtime, timed by its profiler: copies between layouts around the node do not count."""

    def __init__(self, layer: Layer, arrays: Arrays, threads: int, folder: Path) -> None:
        import onnxruntime

        info = helper.make_tensor_value_info
        padding = layer.kernel // 2
        nodes = [
            helper.make_node("Conv", ["x", "weight", "bias"], ["sum"], strides=[layer.stride] * 2, pads=[padding] * 4),
            helper.make_node("Relu", ["sum"], ["y"]),
        ]
        x, y = (info(name, TensorProto.FLOAT, list(value.shape)) for name, value in (("x", arrays.x), ("y", arrays.y)))
        constants = [numpy_helper.from_array(getattr(arrays, name).numpy(), name) for name in ("weight", "bias")]
        graph = helper.make_graph(nodes, "layer", [x], [y], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._feed = {"x": arrays.x.numpy()}

    def run(self) -> Tensor:
        return torch.from_numpy(self._session.run(None, self._feed)[0])

    def milliseconds(self) -> list[float]:
        """Of the convolution in each run so far; ends the session's profile."""
        events = json.loads(Path(self._session.end_profiling()).read_text())
        nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
        return [event["dur"] / 1e3 for event in nodes if "Conv" in event["args"]["op_name"]]


def measure_layer(layer: Layer, threads: int, rounds: int, advance: Callable[[], None]) -> dict[str, Any]:
    """Every window and both peers, ``rounds`` times in turns after one checked run of each."""
    arrays = Arrays.of(layer)
    last = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    layouts = {
        name: (
            arrays.x.contiguous(memory_format=layout),
            arrays.weight.contiguous(memory_format=layout),
        )
        for name, layout in last.items()
    }
    packed = PackedConv(arrays.weight, stride=layer.stride, padding=layer.kernel // 2)
    x = arrays.x[0].permute(1, 2, 0).contiguous().numpy()
    expected = arrays.y[0].permute(1, 2, 0).numpy()
    out = np.full(expected.shape, np.nan, np.float32)
    bias = arrays.bias.numpy()
    jobs = [ConvJob(x, out, window, bias=bias, activation="relu") for window in layer.windows]
    errors = dict.fromkeys((*PEERS, "ours"), 0.0)

    def compare(who: str, found: Any, right: Any) -> None:
        difference = float(np.abs(np.asarray(found) - np.asarray(right)).max()) / float(np.abs(expected).max())
        errors[who] = max(errors[who], difference if np.isfinite(difference) else np.inf)

    ours: list[list[float]] = [[] for _ in jobs]
    torch_ms: dict[str, list[float]] = {name: [] for name in layouts}
    others = np.zeros(EVICT_BYTES // 4, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        onnx = OnnxPlane(layer, arrays, threads, Path(folder))
        for number in range(rounds + 1):
            others += 1
            found = onnx.run()
            compare("onnxruntime", found, arrays.y)
            for name, (plane, weight) in layouts.items():
                others += 1
                ms, found = _timed(partial(torch_plane, layer, plane, weight, arrays.bias))
                compare("torch", found, arrays.y)
                if number:
                    torch_ms[name].append(ms)
            for job, times in zip(jobs, ours, strict=True):
                out[job.window.slices] = np.nan
                others += 1
                ms, _ = _timed(partial(conv2d_jobs, packed, [job]))
                compare("ours", out[job.window.slices], expected[job.window.slices])
                if number:
                    times.append(ms)
            advance()
        onnx_ms = onnx.milliseconds()[1:]
    medians = {name: median(times) for name, times in torch_ms.items()}
    layout = min(medians, key=medians.__getitem__)
    whole = {"onnxruntime": median(onnx_ms), "torch": medians[layout]}
    full_macs = layer.output[0] * layer.output[1] * layer.inputs * layer.outputs * layer.kernel**2
    known = {who: error <= TOLERANCE for who, error in errors.items()}
    peers = {name: ms if known[name] else None for name, ms in whole.items()}
    rows = [
        _row(layer, window, median(times) if known["ours"] else None, peers)
        for window, times in zip(layer.windows, ours, strict=True)
    ]
    return {
        "kind": layer.kind,
        "weight": [layer.outputs, layer.inputs, layer.kernel, layer.kernel],
        "stride": layer.stride,
        "plane": list(layer.output),
        "full_macs": full_macs,
        "full_ms": peers,
        "torch_layout": layout,
        "max_rel_error": errors,
        "windows": rows,
        "break_even_share": {name: break_even(rows, name) for name in PEERS},
    }


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return (time.perf_counter() - start) * 1e3, result


def _row(layer: Layer, window: Window, ms: float | None, peers: Mapping[str, float | None]) -> dict[str, Any]:
    return {
        "height": window.height,
        "width": window.width,
        "share": window.area / (layer.output[0] * layer.output[1]),
        "ms": ms,
        "speed_up": {name: None if ms is None or full is None else full / ms for name, full in peers.items()},
    }


def break_even(rows: list[dict[str, Any]], peer: str) -> float | None:
    """Share of the plane at which a window costs what the peer's whole plane does, between two measured windows.

    1 where even the whole plane is no slower; None where a speed is missing or no window is faster.
    """
    points = [(row["share"], row["speed_up"][peer]) for row in rows]
    if any(speed is None for _, speed in points) or points[0][1] < 1:
        return None
    below = next((i for i, (_, speed) in enumerate(points) if speed < 1), None)
    if below is None:
        return 1.0
    (share_a, a), (share_b, b) = points[below - 1], points[below]
    part = np.log(a) / np.log(a / b)
    return float(share_a * (share_b / share_a) ** part)


def measure(threads: int, rounds: int, progress: Progress, layers: tuple[Layer, ...] = LAYERS) -> dict[str, Any]:
    """All layers, one after the other."""
    torch.set_num_threads(threads)
    set_threads(threads)
    task = progress.add_task("break-even", total=len(layers) * (rounds + 1))
    with torch.inference_mode():
        found = [measure_layer(layer, threads, rounds, lambda: progress.advance(task)) for layer in layers]
    return {**environment(), "isa": native.require().active_isa(), "rounds": rounds, "layers": found}


def draw(report: Mapping[str, Any], picture: Path) -> None:
    """One panel per layer: speed-up over the share of the plane, what the saved work alone would give, and 1.

    Raises:
        InputError: matplotlib is not installed, or the picture cannot be written.
    """
    figure = new_figure(3.3 * len(report["layers"]), 3.2)
    shown = (("onnxruntime", "against ONNX Runtime", "#1e6fd0", "o"), ("torch", "against PyTorch", "#d0671e", "s"))
    axes = None
    for i, layer in enumerate(report["layers"]):
        axes = figure.add_subplot(1, len(report["layers"]), i + 1, sharey=axes)
        shares = [row["share"] for row in layer["windows"]]
        for name, label, colour, marker in shown:
            speeds = [row["speed_up"][name] for row in layer["windows"]]
            if None not in speeds:
                axes.plot(shares, speeds, color=colour, marker=marker, markersize=3, linewidth=1.4, label=label)
        axes.plot(shares, [1 / share for share in shares], color="0.6", linestyle=":", label="work saved")
        axes.axhline(1, color="0.3", linewidth=0.8)
        axes.set(xscale="log", yscale="log")
        outputs, inputs, _, _ = layer["weight"]
        plane = f"{layer['plane'][1]} x {layer['plane'][0]}"
        axes.set_title(f"{layer['kind']}\n{inputs} -> {outputs} channels, {plane}", fontsize=9)
        axes.set_xlabel("window's share of the plane", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(color="0.93")
        if i == 0:
            axes.set_ylabel("speed-up over the whole plane", fontsize=8)
            axes.legend(fontsize=7)
    figure.suptitle(f"{report['device']}, {report['threads']} threads, fp32", fontsize=8)
    write_whole(picture, lambda file: figure.savefig(file, format=picture.suffix.lstrip(".") or "png", dpi=110))


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the report as a table."""
    for layer in report["layers"]:
        table = Table(title=f"{layer['kind']}, plane {layer['plane'][1]} x {layer['plane'][0]}", title_justify="left")
        for name in ("window", "share", "ms", *(f"x {name}" for name in PEERS)):
            table.add_column(name, justify="right")
        for row in layer["windows"]:
            speeds = [row["speed_up"][name] for name in PEERS]
            table.add_row(
                f"{row['width']} x {row['height']}",
                f"{row['share']:.2%}",
                "wrong" if row["ms"] is None else f"{row['ms']:.3f}",
                *("wrong" if speed is None else f"{speed:.2f}" for speed in speeds),
            )
        points = {name: share for name, share in layer["break_even_share"].items() if share is not None}
        table.caption = "; ".join(f"even with {name} at {share:.0%} of the plane" for name, share in points.items())
        console.print(table)


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="file to write")
    parser.add_argument("--picture", type=Path, default=None, help="picture to draw")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of everybody")
    options = parser.parse_args(arguments)
    for target in (options.json, options.picture):
        if target is not None:
            check_target(target)
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        report = measure(options.threads, options.rounds, progress)
    show(report, Console(width=110, highlight=False))
    if options.json is not None:
        save_json(report, options.json)
    if options.picture is not None:
        draw(report, options.picture)


if __name__ == "__main__":
    main()
