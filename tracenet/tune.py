"""``tracenet tune``: measure kernel configurations for this GPU, for the convolutions of a network.

What is found is written to the user's file of this GPU after every layer, whole or not at all; a run that was cut off
goes on where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from tracenet.checkpoint import Checkpoint
from tracenet.conventions import MASK_STRIDE
from tracenet.engine.click_class import ClickClass, RequestForm
from tracenet.engine.lower import lower
from tracenet.engine.schedule import ACTIVATIONS, Schedule, Step
from tracenet.files import check_target, save_text
from tracenet.standard import Size, check_size, example_inputs
from tracenet.traced import trace
from tracenet_kernels import gpu
from tracenet_kernels.errors import BackendError, ConfigError, InputError
from tracenet_kernels.triton.cases import Layer
from tracenet_kernels.triton.configs import Table, current_target, read_table, table_text, user_file

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.int8}
HEADS = ("logits", "reg", "ctr", "theta")
LEVELS = ((3, 5), (3, 7))
MASK_CELLS = 32


def layers_of(schedule: Schedule, bounds: Iterable[list[tuple[int, int]]]) -> list[Layer]:
    """The convolutions of a schedule as layers, once per list of bounds (rows and columns of every plane's window).

    Steps of one group are one layer of several levels. Grouped, dilated and oddly padded ones are left out: they take
    what the model gives.
    """
    found: dict[Layer, None] = {}
    for sides in bounds:
        groups: dict[int, list[Step]] = {}
        for position, step in enumerate(schedule.steps):
            if step.op == "conv2d" and min(sides[step.output]) > 0 and _is_plain(step):
                groups.setdefault(step.group or -position - 1, []).append(step)
        for steps in groups.values():
            layer = _layer(schedule, steps, sides)
            found.setdefault(layer)
    return list(found)


def _is_plain(step: Step) -> bool:
    ints = step.ints
    kernel = ints.get("kernel_y", 1)
    square = kernel == ints.get("kernel_x", 1) and ints.get("stride_y", 1) == ints.get("stride_x", 1)
    padded = ints.get("pad_y", 0) == ints.get("pad_x", 0) == kernel // 2
    dense = ints.get("groups", 1) == ints.get("dilation_y", 1) == ints.get("dilation_x", 1) == 1
    return square and padded and dense


def _layer(schedule: Schedule, steps: list[Step], sides: list[tuple[int, int]]) -> Layer:
    first = steps[0]
    out = schedule.planes[first.output]
    windows = [sides[step.output] for step in steps]
    return Layer(
        first.name,
        (out.height, out.width),
        (max(rows for rows, _ in windows), max(columns for _, columns in windows)),
        schedule.planes[first.inputs[0]].channels,
        out.channels,
        first.ints.get("kernel_y", 1),
        first.ints.get("stride_y", 1),
        first.ints.get("residual_factor", 1) if len(first.inputs) > 1 else 0,
        len(steps),
        relu=ACTIVATIONS[first.ints.get("activation", 0)] == "relu",
    )


def network_layers(checkpoint: Path | None, size: Size) -> list[Layer]:
    """The layers of a checkpoint's network (default: the bundled one) for clicks anywhere on an image of that size."""
    from tracenet.models.weights import bundled_checkpoint

    model = Checkpoint(checkpoint or bundled_checkpoint()).model
    schedule = lower(trace(model, example_inputs(model.config, size)).graph)
    bounds = []
    for levels in LEVELS:
        heads = [head for head in HEADS if f"{head}{levels[0]}" in schedule.outputs]
        form = RequestForm.locate(schedule, heads, levels)
        bounds.append(ClickClass.of(schedule, form).bounds)
        if "mask" in schedule.outputs:
            square = form.with_square(schedule, "mask", MASK_STRIDE, MASK_CELLS)
            bounds.append(ClickClass.of(schedule, square).bounds)
    return layers_of(schedule, bounds)


def tune_network(
    checkpoint: Path | None,
    size: Size,
    dtype: str,
    out: Path | None,
    limit: int,
    seconds: float | None,
) -> dict[str, Any]:
    """Measure on the current CUDA device.

    Args:
        checkpoint: whose network; None: the bundled one.
        size: width and height of the working image.
        dtype: one of :data:`DTYPES`.
        out: file to write; None: the user's file of this GPU.
        limit: configurations tried per layer.
        seconds: begin no further layer after this long.

    Returns:
        ``file``, ``gpu``, ``keys`` that are known, ``new`` ones among them and ``left`` ones that are not known.

    Raises:
        BackendError: there is no CUDA device, or kernels run in Triton's interpreter.
        ConfigError: the file is there and is not one of this GPU.
        InputError: the size is not possible, the dtype not known, or the file cannot be written.
    """
    check_size(size)
    if dtype not in DTYPES:
        raise InputError(f"--dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    if limit < 1 or (seconds is not None and seconds <= 0):
        raise InputError(f"--limit is {limit} and --seconds {seconds}; both must be positive")
    if reason := gpu.why_not():
        raise BackendError(f"configurations are measured on a GPU: {reason}")
    target = current_target()
    if target is None:
        raise BackendError("configurations are measured on a GPU, and TRITON_INTERPRET is set; unset it and tune again")
    path = out or user_file(target.name)
    if out is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    check_target(path)
    known = read_table(path) if path.is_file() else None
    if known is not None and (known.gpu, known.origin) != (target.name, "measured"):
        raise ConfigError(f"{path} holds configurations of {known.gpu!r} ({known.origin}); give another --out")

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tracenet_kernels.triton.tuning import CudaTimer, keys_of, tune

    keys = keys_of(network_layers(checkpoint, size), DTYPES[dtype], target.arch)
    columns = (TextColumn("tuning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=len(keys))
        table = tune(
            keys,
            target,
            DTYPES[dtype],
            "cuda",
            CudaTimer(),
            known=known,
            limit=limit,
            seconds=seconds,
            keep=lambda now: _keep(now, path),
            progress=lambda: progress.advance(task),
        )
    before = 0 if known is None else len(known.configs)
    left = sum(key not in table.configs for key in keys)
    return {
        "file": str(path),
        "gpu": target.name,
        "keys": len(table.configs),
        "new": len(table.configs) - before,
        "left": left,
    }


def _keep(table: Table, path: Path) -> None:
    save_text(table_text(table), path)
