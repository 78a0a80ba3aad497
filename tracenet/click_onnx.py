"""One click of a checkpoint as an ONNX model: what ``tracenet export-onnx`` runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tracenet.checkpoint import bundled_checkpoint
from tracenet.conventions import LEVELS, SIZES_OF_INTEREST, THETA
from tracenet.files import check_target, write_whole
from tracenet.models import TraceNet
from tracenet.models.weights import load_checkpoint
from tracenet.onnx_export import INPUTS, input_values, onnx_model, onnx_runner
from tracenet.rft.trace import Plan
from tracenet.standard import Size, check_size, example_inputs, standard_request
from tracenet.traced import TracedModel, trace
from tracenet_kernels.errors import ExecutionError, InputError

TOLERANCE = 1e-4
"""Largest ``max|output - full| / max|full|`` with which a checked model is written."""
ROUNDS = 5


def export_click(
    checkpoint: str | Path | None,
    size: Size,
    click: tuple[float, float],
    out: str | Path,
    *,
    levels: tuple[int, int] = (3, 7),
    mask_cells: int | str = "none",
    inputs: str = "window",
    check: bool = False,
) -> dict[str, Any]:
    """Write the heads at a click and the mask around it as an ONNX model, whole or not at all.

    Args:
        checkpoint: file, or None for the bundled one.
        size: width and height of the padded image.
        click, levels, mask_cells: as in :func:`tracenet.standard.standard_request`.
        inputs: ``"window"`` or ``"whole"``, as in :func:`tracenet.export_onnx`.
        check: compare with the full network on a random image and measure both in ONNX Runtime before writing.

    Returns:
        plain data: ``output``, ``bytes``, ``nodes``, ``inputs`` and ``outputs`` (name -> shape), ``macs``,
        ``full_macs``; with ``check`` also ``max_error`` (relative to ``max|full|``), ``traced_ms`` and ``full_ms``.

    Raises:
        CheckpointError, ClickError, InputError: each says what came and what is allowed.
        ExecutionError: the check found a difference; nothing is written.
    """
    check_size(size)
    check_target(out)
    if inputs not in INPUTS:
        raise InputError(f"inputs is {inputs!r}; choose one of {INPUTS}")
    model, _ = load_checkpoint(checkpoint or bundled_checkpoint())
    request = standard_request(model.config, size, click, levels, mask_cells)
    traced = trace(model, example_inputs(model.config, size))
    plan = traced.plan(request)
    written = onnx_model(traced, plan, inputs)
    data = written.SerializeToString()
    result: dict[str, Any] = {
        "output": str(out),
        "bytes": len(data),
        "nodes": len(written.graph.node),
        "inputs": _shapes(written.graph.input),
        "outputs": _shapes(written.graph.output),
        "macs": plan.macs,
        "full_macs": plan.full_macs,
    }
    if check:
        result.update(_checked(model, traced, plan, written, inputs, click))

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_whole(out, write)
    return result


def _shapes(ports: Sequence[Any]) -> dict[str, list[int]]:
    return {port.name: [axis.dim_value for axis in port.type.tensor_type.shape.dim] for port in ports}


def _checked(
    model: TraceNet, traced: TracedModel, plan: Plan, written: Any, inputs: str, click: tuple[float, float]
) -> dict[str, Any]:
    """Error and times of a written model beside the full network, all heads and the whole mask, in ONNX Runtime."""
    values = _random_inputs(traced, click)
    heads = [name for name in traced.output_names if name.rstrip("34567") in ("logits", "reg", "ctr", "theta")]
    masks = ["mask"] if "mask" in traced.output_names else []
    whole = traced.plan(dict.fromkeys((*heads, *masks)))
    full_model = onnx_model(traced, whole)
    run_part = onnx_runner(written, input_values(plan, values, inputs))
    run_full = onnx_runner(full_model, input_values(whole, values))
    with torch.inference_mode():
        torch_full = model(*values)
    part = run_part()
    error = max(_error(plan, part, full) for full in (torch_full, run_full()))
    if not error <= TOLERANCE:
        raise ExecutionError(
            f"the model differs from the full network by {error:.1e} of the largest value, more than {TOLERANCE:.0e}; "
            "nothing was written"
        )
    traced_ms, full_ms = _times(run_part, run_full)
    return {"max_error": error, "traced_ms": traced_ms, "full_ms": full_ms}


def _random_inputs(traced: TracedModel, click: tuple[float, float]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    known = {
        "theta": torch.randn(1, THETA, generator=generator),
        "origin": torch.tensor([click], dtype=torch.float32),
        "size_of_interest": torch.tensor([float(SIZES_OF_INTEREST[LEVELS[0]])]),
    }
    return [
        known[node.name] if node.name in known else torch.randn(node.shape, generator=generator)
        for node in traced.graph.inputs
    ]


def _error(plan: Plan, part: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> float:
    errors = []
    for key, window in plan.request.items():
        plane = full[str(key)]
        difference = part[str(key)] - plane[(..., *window.slices)]
        errors.append(float(difference.abs().max() / plane.abs().max().clamp(min=1e-12)))
    return max(errors)


def _times(*runs: Callable[[], Any]) -> list[float]:
    """Median milliseconds of each, run in turns."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, found in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            found.append((time.perf_counter() - start) * 1e3)
    return [median(found) for found in times]
