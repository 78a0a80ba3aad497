"""Optimisers, learning rates and the average of the weights."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tracenet.models import TraceNet
from tracenet.training.config import OptimizerTable, ScheduleTable

STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
"""The backbone's parts in order: the stem, then its stages."""
AVERAGE_EVERY = 5
"""Steps between two updates of the average."""


def freeze(model: TraceNet, table: OptimizerTable) -> None:
    """Set ``requires_grad`` of every parameter: frozen stages, and all of the backbone's BatchNorm, do not learn."""
    frozen = {name for part in STAGES[: table.frozen_stages] for name in part}
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            parameter.requires_grad_(True)
            continue
        stage = name.split(".")[1]
        parameter.requires_grad_(table.backbone_factor > 0 and stage not in frozen and parameter.ndim > 1)


def make_optimizer(model: TraceNet, table: OptimizerTable) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that learn; each group has a ``factor`` of the learning rate.

    Weights with two or more axes decay by ``weight_decay``, all others by ``norm_decay``.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("backbone."), parameter.ndim > 1), []).append(parameter)
    parts = [
        {
            "params": parameters,
            "factor": table.backbone_factor if in_backbone else 1.0,
            "weight_decay": table.weight_decay if decays else table.norm_decay,
        }
        for (in_backbone, decays), parameters in groups.items()
    ]
    if table.name == "sgd":
        return torch.optim.SGD(parts, lr=table.lr, momentum=table.momentum)
    return torch.optim.AdamW(parts, lr=table.lr, fused=True)


def rate_at(step: int, steps: int, peak: float, table: ScheduleTable) -> float:
    """Learning rate of step ``step`` (from 0) of ``steps``."""
    if step < table.warmup:
        return peak * (table.warmup_start + (1 - table.warmup_start) * (step + 1) / table.warmup)
    if table.shape == "step":
        return peak * table.gamma ** bisect_right([round(m * steps) for m in table.milestones], step)
    done = min(1.0, (step - table.warmup) / max(1, steps - table.warmup))
    return peak * (table.final + (1 - table.final) * 0.5 * (1 + math.cos(math.pi * done)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


class Average:
    """Exponential moving average of parameters: ``a <- d a + (1 - d) p``, every few steps.

    Early averages follow quickly (``d <= step / (step + 10)``), so that the random start is forgotten.

    Args:
        parameters: those that learn.
        decay: per step; 0 keeps the parameters themselves.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int, last: bool = False) -> None:
        """Call after every optimiser step with the number of steps done; ``last`` brings it up to date."""
        if self.decay == 0 or last or step % AVERAGE_EVERY == 0:
            since = step % AVERAGE_EVERY or AVERAGE_EVERY
            decay = min(self.decay, step / (step + 10)) ** since
            torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    def state_of(self, model: nn.Module) -> dict[str, Tensor]:
        """State dict of ``model`` with averages in place of the parameters that learn."""
        replaced = {id(p): a for p, a in zip(self.parameters, self.values, strict=True)}
        state = dict(model.state_dict())
        for name, parameter in model.named_parameters():
            state[name] = replaced.get(id(parameter), parameter.detach())
        return state

    def load(self, values: Sequence[Tensor]) -> None:
        """Continue from saved ``values``."""
        for own, saved in zip(self.values, values, strict=True):
            own.copy_(saved)
