"""What is measured: a network at one size, the standard request of a click, and the full network's own answer to it.

The request is the heads at the click on some levels plus the 32 x 32 square of P3 cells around it from the mask output:
float image in, logits out. The full network computes the heads of all five levels and the whole mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import tracenet
from bench.crop_pad import randomise_statistics
from tracenet.conventions import THETA
from tracenet.models import TraceNet
from tracenet.rft.trace import Plan
from tracenet.standard import Size, standard_request
from tracenet_kernels.window import Window

TOLERANCE = 1e-4
"""Largest ``max|output - full| / max|full|`` at which a time is printed."""
MASK_CELLS = 32
MASK_LEVEL_SIZE = 64.0
"""Size of interest of the mask's level; P3, so that the coordinates vary most over the mask."""
HEADS = ("logits", "reg", "ctr", "theta")
OUTPUTS = (*(f"{head}{level}" for level in range(3, 8) for head in HEADS), "mask")
"""Outputs that the full network has to compute."""

Click = tuple[float, float]
Levels = tuple[int, int]


def build_model(**overrides: Any) -> TraceNet:
    """R-50 with 80 classes, random weights and random BatchNorm statistics, the same on every run.

    The constant bias of the score is zeroed: it is a hundred times larger than what features add to it, and would hide
    errors.
    """
    torch.manual_seed(0)
    model = tracenet.create_model("tracenet_r50_fpn", **{"num_classes": 80, **overrides})
    randomise_statistics(model)
    assert model.heads.logits.bias is not None
    nn.init.zeros_(model.heads.logits.bias)
    return model


class FullNetwork(nn.Module):
    """The network's heads on all levels and its mask, and nothing that nobody asked for.

    ``TraceNet`` itself also returns feature planes and the upsampled mask; keeping them costs memory and time.
    """

    def __init__(self, model: TraceNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, theta: Tensor, origin: Tensor, size_of_interest: Tensor) -> dict[str, Tensor]:
        model = self.model
        assert model.mask_branch is not None and model.mask_head is not None
        p = model.fpn(*model.backbone(image)[1:])[1]
        out = {f"{name}{level}": x for level in range(3, 8) for name, x in model.heads(p[level], level).items()}
        out["mask"] = model.mask_head(model.mask_branch(p), theta, origin, size_of_interest)
        return out


@dataclass(frozen=True)
class Case:
    """One click on one range of levels.

    Attributes:
        kind: ``"centre"`` or ``"grid"``.
    """

    click: Click
    levels: Levels
    kind: str


class SizedNetwork:
    """The network captured at one image size, and the answers that clicks must get.

    Attributes:
        size: width and height.
        traced: the capture that every traced run uses.
    """

    def __init__(self, model: TraceNet, size: Size) -> None:
        self.model = model
        self.size = size
        width, height = size
        generator = torch.Generator().manual_seed(width * 10007 + height)
        self.image = torch.randn(1, 3, height, width, generator=generator)
        self.theta = torch.randn(1, THETA, generator=generator)
        self.size_of_interest = torch.tensor([MASK_LEVEL_SIZE])
        self.traced = tracenet.trace(model, self.inputs((width / 2, height / 2)))

    def inputs(self, click: Click) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image, mask parameters, origin of the mask's coordinates, size of interest."""
        return self.image, self.theta, torch.tensor([[float(click[0]), float(click[1])]]), self.size_of_interest

    def request(self, click: Click, levels: Levels) -> dict[int | str, Window]:
        return standard_request(self.model.config, self.size, click, levels, MASK_CELLS)

    def plan(self, case: Case) -> Plan:
        return self.traced.plan(self.request(case.click, case.levels))

    @cached_property
    def onnx(self) -> bytes:
        """The full network as an ONNX file."""
        from bench.peers.onnx_network import to_onnx  # machines that only measure a GPU have no onnx

        return to_onnx(self.traced.graph, OUTPUTS).SerializeToString()

    def stored_tensors(self, click: Click) -> list[Tensor]:
        """Weights, buffers and inputs: what is in memory whether or not a network runs."""
        constants = [node.value for node in self.traced.graph.nodes if node.value is not None]
        return [*self.model.parameters(), *self.model.buffers(), *constants, *self.inputs(click)]

    @cached_property
    def _planes(self) -> dict[str, Tensor]:
        width, height = self.size
        with torch.inference_mode():
            out = self.model(*self.inputs((width / 2, height / 2)))
        return {name: out[name] for name in (*OUTPUTS[:-1], "maskfeat")}

    def reference(self, click: Click) -> dict[str, Tensor]:
        """Every plane of the full network for one click; only the mask depends on it."""
        assert self.model.mask_head is not None
        with torch.inference_mode():
            mask = self.model.mask_head(self._planes["maskfeat"], *self.inputs(click)[1:])
        return {**{name: self._planes[name] for name in OUTPUTS[:-1]}, "mask": mask}

    def error(self, click: Click, outputs: Mapping[Any, Tensor], windows: Mapping[Any, Window] | None = None) -> float:
        """Largest ``max|output - full| / max|full|`` over the outputs; infinite if one is missing or not finite.

        Args:
            outputs: name -> tensor, whole planes or, with ``windows``, those windows of them.
        """
        full = self.reference(click)
        if set(outputs) != set(OUTPUTS if windows is None else windows):
            return math.inf
        worst = 0.0
        for name, tensor in outputs.items():
            plane = full[name]
            expected = plane if windows is None else plane[(..., *windows[name].slices)]
            if tensor.shape != expected.shape or not bool(torch.isfinite(tensor).all()):
                return math.inf
            difference, scale = float((expected - tensor).abs().max()), float(plane.abs().max())
            worst = max(worst, difference / scale if scale else math.inf if difference else 0.0)
        return worst


def grid_clicks(size: Size, side: int) -> list[Click]:
    """Centres of ``side x side`` equal parts of the image."""
    width, height = size
    return [((i + 0.5) * width / side, (j + 0.5) * height / side) for j in range(side) for i in range(side)]


def cases_of(size: Size, grid: int, level_ranges: tuple[Levels, ...] = ((3, 7), (3, 5))) -> list[Case]:
    """The centre click and ``grid x grid`` others, each on every range of levels."""
    width, height = size
    clicks = [((width / 2, height / 2), "centre"), *((click, "grid") for click in grid_clicks(size, grid))]
    return [Case(click, levels, kind) for click, kind in clicks for levels in level_ranges]
