"""Programs of TraceNet: captured and lowered by PyTorch once, then run at any size without it."""

from __future__ import annotations

import torch

from tracenet.conventions import THETA
from tracenet.engine.lower import lower
from tracenet.engine.program import Program
from tracenet.engine.schedule import Schedule
from tracenet.models import TraceNet
from tracenet.traced import trace

SIZE = (256, 320)
"""Rows and columns of the capture. Sizes of all planes differ, so that no rule of one axis passes for the other's."""


def lower_model(model: TraceNet, size: tuple[int, int] = SIZE) -> Schedule:
    """Capture a model at a padded size, rows and columns, and lower it.

    Raises:
        CaptureError, ScheduleError: the model cannot be captured, or does not fit a schedule.
    """
    inputs = (torch.empty(1, 3, *size), torch.zeros(1, THETA), torch.zeros(1, 2), torch.ones(1))
    return lower(trace(model, inputs).graph)


def build_program(model: TraceNet) -> Program:
    """A model's program for the CPU. Raises as :func:`lower_model`."""
    return Program(lower_model(model))


def model_obstacle(model: TraceNet) -> str:
    """Why the native backend does not run a model, as a clause; an empty string where nothing speaks against it."""
    for name, weight in model.named_parameters():
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            return f"{name} is {weight.dtype} on {weight.device}, kernels take float32 on the CPU"
    return ""
