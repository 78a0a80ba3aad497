"""The loop of a training run: steps, the average of the weights, log, and checkpoints that survive a kill."""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from tracenet.distributed import Ranks
from tracenet.files import save_text, write_whole
from tracenet.models import TraceNet
from tracenet.training.config import TrainConfig
from tracenet.training.optim import Average, make_optimizer, rate_at, set_rate
from tracenet_kernels.errors import CheckpointError, InputError

STATE = "state.pt"
LOG = "log.jsonl"
LEAST_SCALE = 2.0**-10
"""Of half precision's losses: halved at every overflow, it only gets here when every step overflows."""


class Task(Protocol):
    """What one step computes."""

    def prepare(self) -> None:
        """Before the first step of a new run."""

    def gradients(self, step: int, scale: float) -> dict[str, float]:
        """Set ``grad`` of every parameter that learns to ``scale`` times the mean gradient over all processes.

        Returns the step's mean losses and figures, ``loss`` among them.
        """

    def after_step(self, step: int) -> None:
        """After the optimiser moved the weights."""


class Engine:
    """State of one run: model, average, optimiser and step; saved and restored as a whole.

    Args:
        model: its parameters that require gradients are trained.
        task: gives the gradients.
        config: of the run.
        ranks: this process among all.
    """

    def __init__(self, model: TraceNet, task: Task, config: TrainConfig, ranks: Ranks) -> None:
        self.model, self.task, self.config, self.ranks = model, task, config, ranks
        self.trained: list[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
        if not self.trained:
            raise InputError("[optimizer] leaves nothing to train; lower frozen_stages or raise backbone_factor")
        self.optimizer = make_optimizer(model, config.optimizer)
        self.average = Average(self.trained, config.ema)
        # Half precision's gradients underflow without a scale; other precisions keep 1.
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.run.precision == "fp16")
        self.step = 0

    def advance(self) -> dict[str, float]:
        """One optimiser step. Returns the step's mean losses, the gradient's norm and the learning rate.

        Raises:
            InputError: the gradient is not finite (in ``fp16`` such a step is left out and the scale lowered).
        """
        config = self.config
        rate = rate_at(self.step, config.run.steps, config.optimizer.lr, config.schedule)
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        # scale(), unlike get_scale(), also makes the scaler's state; without half precision it gives 1.
        scale = float(self.scaler.scale(torch.ones((), device=self.ranks.device)))
        if scale < LEAST_SCALE:
            raise InputError(
                f"step {self.step}: half precision overflows whatever the scale ({scale:g}); lower the learning rate "
                f"{rate:g} or use [run] precision = 'bf16'"
            )
        log = self.task.gradients(self.step, scale)
        self.scaler.unscale_(self.optimizer)
        with_gradient = [p for p in self.trained if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(with_gradient, config.optimizer.clip or float("inf"))
        if not self.scaler.is_enabled() and not bool(torch.isfinite(norm)):
            raise InputError(
                f"step {self.step}: the gradient is not finite (losses {log}); lower the learning rate {rate:g} or set "
                "[optimizer] clip"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self.average.update(self.step, last=self.step == config.run.steps)
        self.task.after_step(self.step)
        return {**log, "grad_norm": float(norm), "lr": rate}

    def averaged_state(self) -> dict[str, Tensor]:
        """State dict of the model with averaged weights."""
        return self.average.state_of(self.model)

    def save(self, path: Path) -> None:
        """Write everything to ``path``; a kill at any moment leaves the old or the new file, never half of one."""
        state = {
            "config": self.config.to_dict(),
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        write_whole(path, lambda file: torch.save(state, file))

    def restore(self, path: Path) -> None:
        """Continue where :meth:`save` left off.

        Raises:
            CheckpointError: the file is truncated or foreign, or its run had another model or other trained layers.
        """
        state = read_state(path)
        own = self.config.to_dict()
        if state["config"]["model"] != own["model"]:
            changed = sorted(k for k, v in own["model"].items() if state["config"]["model"].get(k) != v)
            raise CheckpointError(f"{path} is of another model ([model] {', '.join(changed)}); use a new --out folder")
        if len(state["average"]) != len(self.trained):
            raise CheckpointError(
                f"{path} trained {len(state['average'])} parameters, this configuration trains {len(self.trained)}; "
                "keep [optimizer] frozen_stages and backbone_factor, or start anew from it with [init] checkpoint"
            )
        self.model.load_state_dict(state["model"])
        self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        # Groups come with the file's values; those of the configuration count.
        for group, fresh in zip(
            self.optimizer.param_groups, make_optimizer(self.model, self.config.optimizer).param_groups, strict=True
        ):
            group.update({k: v for k, v in fresh.items() if k != "params"})
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


def read_state(path: Path) -> dict[str, Any]:
    """What :meth:`Engine.save` wrote.

    Raises:
        CheckpointError: the file is truncated or foreign.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be read as the state of a run: {reason}") from error
    expected = {"config", "step", "model", "average", "optimizer", "scaler"}
    if not isinstance(state, dict) or not expected <= set(state):
        raise CheckpointError(f"{path} is not the state of a run; expected {sorted(expected)}")
    return state


def fit(engine: Engine, out: Path, each_step: Callable[[int], None] = lambda step: None) -> None:
    """Train to ``run.steps``, writing ``state.pt`` and ``log.jsonl`` in ``out``; continues a run that is there.

    Args:
        engine: at step 0, or restored.
        out: folder of the run.
        each_step: called after every step with the number of steps done, by all processes.
    """
    run, first = engine.config.run, engine.ranks.first
    state = out / STATE
    if state.exists():
        engine.restore(state)
    else:
        engine.task.prepare()
    if first:
        _cut_log(out / LOG, engine.step)
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    recent: list[dict[str, float]] = []
    saved = started = time.monotonic()
    with Progress(*columns, TimeRemainingColumn(), disable=not first) as progress:
        bar = progress.add_task("", total=run.steps, completed=engine.step)
        while engine.step < run.steps:
            recent.append(engine.advance())
            if first and (engine.step % run.log_every == 0 or engine.step == run.steps):
                mean = _means(recent)
                mean["step"], mean["seconds_per_step"] = engine.step, (time.monotonic() - started) / len(recent)
                _append(out / LOG, json.dumps({k: round(v, 6) for k, v in mean.items()}) + "\n")
                recent, started = [], time.monotonic()
                progress.update(bar, description=f"loss {mean.get('loss', math.nan):.3f}")
            progress.update(bar, completed=engine.step)
            each_step(engine.step)
            if first and time.monotonic() - saved > run.save_minutes * 60:
                engine.save(state)
                saved = time.monotonic()
    if first:
        engine.save(state)


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every figure over the rows in which it is finite: half precision's first steps may overflow."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if math.isfinite(value):
                values.setdefault(name, []).append(value)
    return {name: sum(some) / len(some) for name, some in values.items()}


def _append(path: Path, line: str) -> None:
    try:
        with path.open("a") as file:
            file.write(line)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); the last checkpoint beside it is whole, "
            "make room and run the same command again"
        ) from error


def _cut_log(path: Path, step: int) -> None:
    """Drop lines of steps after ``step``: they were lost with the process and will be made again."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text().splitlines():
        try:
            keep = json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            keep = False  # half a line, from a kill while it was written
        if keep:
            lines.append(line + "\n")
    save_text("".join(lines), path)
