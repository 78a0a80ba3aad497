"""Time every layer beside SGEMM and memory bandwidth, interleaved in one run.

A network runs a layer on inputs that the layer before has just written and on weights that have left the caches since
the last image, and its threads are awake. So do these measurements: rounds over all layers, each with its own weights,
every input rewritten just before its layer runs, and a small convolution in between that wakes the threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kernels.layers import Layer
from tracenet_kernels.testing import errors
from tracenet_kernels.window import Window
from tracenet_kernels.windowed import ConvJob, PackedConv, prepare

TOLERANCE = 1e-4
SGEMM_SIDE = 2048
STREAM_BYTES = 1 << 28
FEW_PIXELS = 64
"""Windows below this are judged by time, not by rate: their weights stream through once for a handful of pixels."""


@dataclass
class Case:
    """A layer with its arrays.

    Attributes:
        run: computes it.
        sources: (array, fresh values) of each input's demand, copied over before a timed run.
        max_rel_error: against torch, on all windows.
        seconds: of every timed run.
    """

    layer: Layer
    run: Callable[[], None]
    sources: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]
    max_rel_error: float
    seconds: list[float]

    def refresh(self) -> None:
        """Rewrite the inputs, as the layer before would."""
        for array, fresh in self.sources:
            np.copyto(array, fresh)


def make_case(layer: Layer, seed: int) -> Case:
    """Random arrays for a layer; runs it once and compares with torch."""
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs, _, _ = layer.shape
    weight = torch.randn(layer.shape, generator=generator) / (inputs * layer.shape[2] * layer.shape[3]) ** 0.5
    packed = PackedConv(
        weight, stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups
    )
    jobs, sources, worst = [], [], 0.0
    for job in layer.jobs:
        x = torch.full((*job.input, inputs * layer.groups), torch.nan)
        part = x[layer.demand(job).clip(*job.input).slices]
        part.copy_(torch.randn(part.shape, generator=generator))
        sources.append((part.numpy(), part.numpy().copy()))
        residual = None if job.residual is None else torch.randn(*job.residual, outputs, generator=generator)
        jobs.append(
            ConvJob(
                x,
                torch.full((*job.output, outputs), torch.nan),
                job.window,
                scale=torch.rand(outputs, generator=generator) + 0.5 if layer.scaled else None,
                bias=torch.randn(outputs, generator=generator),
                residual=residual,
                residual_factor=layer.residual_factor,
                activation=layer.activation,
            )
        )
    run = prepare(packed, jobs)
    run()
    for conv_job, job in zip(jobs, layer.jobs, strict=True):
        actual = torch.as_tensor(conv_job.out)[job.window.slices]
        worst = max(worst, errors(actual, reference(layer, conv_job, weight)).max_relative)
    return Case(layer, run, sources, worst, [])


def reference(layer: Layer, job: ConvJob, weight: Tensor) -> Tensor:
    """What torch computes for one window, [rows, columns, out]."""
    x = torch.as_tensor(job.x)
    height, width, _ = x.shape
    y0, y1, x0, x1 = layer.demand(next(j for j in layer.jobs if j.window == job.window and j.input == (height, width)))
    top, left = max(-y0, 0), max(-x0, 0)
    crop = x[max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
    below, right = (y1 - y0) - top - crop.shape[0], (x1 - x0) - left - crop.shape[1]
    padded = F.pad(crop.permute(2, 0, 1)[None], (left, right, top, below))
    y = F.conv2d(padded, weight, stride=layer.stride, dilation=layer.dilation, groups=layer.groups)
    y = y[0].permute(1, 2, 0)
    if job.scale is not None:
        y = y * torch.as_tensor(job.scale)
    y = y + torch.as_tensor(job.bias)
    if job.residual is not None:
        f = job.residual_factor
        rows = torch.arange(job.window.y0, job.window.y1) // f
        columns = torch.arange(job.window.x0, job.window.x1) // f
        y = y + torch.as_tensor(job.residual)[rows][:, columns]
    return y.relu() if job.activation == "relu" else y


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def waker() -> Callable[[], None]:
    """A convolution of about 0.1 ms that occupies every thread."""
    packed = PackedConv(torch.zeros(64, 64, 3, 3), padding=1)
    window = Window(0, 16, 0, 16)
    return prepare(packed, [ConvJob(torch.zeros(16, 16, 64), torch.zeros(16, 16, 64), window)])


@dataclass
class Peers:
    """What the layers are compared with: seconds of every run of SGEMM and of a memory stream."""

    sgemm: list[float]
    stream: list[float]

    @property
    def sgemm_gflops(self) -> float:
        """Of ``torch.mm`` on 2048 x 2048 matrices, its best run."""
        return 2 * SGEMM_SIDE**3 / min(self.sgemm) / 1e9

    @property
    def bandwidth_gbs(self) -> float:
        """Bytes read and written per second by a copy far larger than the caches, its best run."""
        return 2 * STREAM_BYTES / min(self.stream) / 1e9


def measure(
    layers: Iterable[Layer], rounds: int, progress: Callable[[], None] = lambda: None
) -> tuple[list[Case], Peers]:
    """Check every layer, then time all of them in rounds, SGEMM and the stream in between.

    Args:
        layers: what to measure.
        rounds: how often.
        progress: called after every round.
    """
    cases = [make_case(layer, seed) for seed, layer in enumerate(layers)]
    a, b = torch.randn(2, SGEMM_SIDE, SGEMM_SIDE)
    product = torch.empty(SGEMM_SIDE, SGEMM_SIDE)
    source = torch.zeros(STREAM_BYTES // 4)
    target = torch.zeros(STREAM_BYTES // 4)
    peers = Peers([], [])
    wake = waker()
    torch.mm(a, b, out=product)
    for _ in range(rounds):
        for position, case in enumerate(cases):
            if position % 8 == 0:
                peers.sgemm.append(timed(lambda: torch.mm(a, b, out=product)))
            case.refresh()
            wake()
            case.seconds.append(timed(case.run))
        peers.stream.append(timed(lambda: target.copy_(source)))
        progress()
    return cases, peers


def summary(names: dict[Layer, list[str]], cases: list[Case], peers: Peers) -> dict[str, Any]:
    """Rates of each layer and of all together, weighted by their multiply-adds.

    ``share`` is of the SGEMM rate, ``roof_share`` of ``min(SGEMM, bandwidth * FLOP per byte)``. A layer further from
    torch than 1e-4 of the largest value has no rate, and then there is no weighted share either.
    """
    sgemm, bandwidth = peers.sgemm_gflops, peers.bandwidth_gbs
    rows = []
    for case in cases:
        layer = case.layer
        exact = case.max_rel_error <= TOLERANCE
        gflops = 2 * layer.macs / min(case.seconds) / 1e9
        intensity = 2 * layer.macs / layer.bytes
        roof = min(sgemm, bandwidth * intensity)
        rows.append(
            {
                "name": names[layer][0],
                "names": names[layer],
                "weight": list(layer.shape),
                "stride": list(layer.stride),
                "window": [list(job.window) for job in layer.jobs],
                "pixels": layer.pixels,
                "macs": layer.macs,
                "bytes": layer.bytes,
                "flop_per_byte": intensity,
                "max_rel_error": case.max_rel_error,
                "us_min": min(case.seconds) * 1e6 if exact else None,
                "us_median": float(np.median(case.seconds)) * 1e6 if exact else None,
                "gflops": gflops if exact else None,
                "share": gflops / sgemm if exact else None,
                "roof_gflops": roof,
                "roof_share": gflops / roof if exact else None,
            }
        )
    total = {"macs": 0, "seconds": 0.0}
    for case in cases:
        count = len(names[case.layer])
        total["macs"] += count * case.layer.macs
        total["seconds"] += count * min(case.seconds)
    all_exact = all(row["gflops"] is not None for row in rows)
    large = [row for row in rows if row["pixels"] >= FEW_PIXELS]
    return {
        "sgemm_gflops": sgemm,
        "bandwidth_gbs": bandwidth,
        "macs": total["macs"],
        "ms": total["seconds"] * 1e3 if all_exact else None,
        "weighted_share": 2 * total["macs"] / total["seconds"] / 1e9 / sgemm if all_exact else None,
        "worst_share": min(row["share"] for row in large) if all_exact else None,
        "worst_roof_share": min(row["roof_share"] for row in large) if all_exact else None,
        "layers": rows,
    }
