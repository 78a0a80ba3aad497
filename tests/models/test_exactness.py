"""A traced TraceNet equals the full network inside the request, at every kind of click."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import tracenet
from tracenet.conventions import SIZES_OF_INTEREST
from tracenet.models import TraceNet, TraceNetConfig
from tracenet.standard import standard_request
from tracenet.traced import TracedModel

TOLERANCE = 1e-4


def randomise(model: TraceNet) -> TraceNet:
    """Weights that keep planes of order one, and statistics that make a zero border differ from a zero activation."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.2)
            nn.init.normal_(module.bias, std=0.3)
    nn.init.uniform_(model.heads.scales, 0.5, 1.5)
    return model.eval()


@dataclass
class Subject:
    """One network at one size, with its full output."""

    config: TraceNetConfig
    size: tuple[int, int]
    traced: TracedModel
    inputs: tuple[Tensor, ...]
    full: dict[str, Tensor]


CONFIGS = {
    "r50 256x192": (TraceNetConfig(num_classes=3), (256, 192)),
    "r50 160x128, stride in the 1x1, norms per level": (
        TraceNetConfig(stride_in_1x1=True, tower_norm="bn_per_level", level_head=True),
        (160, 128),
    ),
    "r101 160x128": (TraceNetConfig(depth=101, num_classes=2), (160, 128)),
    "r50 128x96, plain mask branch": (TraceNetConfig(mask_branch="p3", mask_order="upsample_probabilities"), (128, 96)),
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def subject(request) -> Subject:
    torch.manual_seed(0)
    config, (width, height) = request.param
    model = randomise(TraceNet(config))
    origin = torch.tensor([[0.4 * width, 0.7 * height]])
    inputs = (torch.randn(1, 3, height, width), torch.randn(1, 169), origin, torch.tensor([SIZES_OF_INTEREST[5]]))
    with torch.no_grad():
        full = model(*inputs)
    return Subject(config, (width, height), tracenet.trace(model, inputs), inputs, full)


def check(subject: Subject, request: dict) -> None:
    plan = subject.traced.plan(request)
    outputs = subject.traced.run(subject.inputs, plan)
    assert outputs.keys() == request.keys()
    for name, window in request.items():
        full = subject.full[name]
        part = full[..., window.y0 : window.y1, window.x0 : window.x1]
        assert outputs[name].shape == part.shape
        assert (outputs[name] - part).abs().max() <= TOLERANCE * full.abs().max(), name
    assert 0 < plan.macs <= plan.full_macs
    assert not plan.barriers


@pytest.mark.parametrize(
    ("x", "y"),
    [(0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0), (1, 0.5), (0.37, 0.61)],
    ids=["top left", "top right", "bottom left", "bottom right", "top", "right", "inside"],
)
def test_click_on_all_levels_with_mask(subject: Subject, x: float, y: float) -> None:
    width, height = subject.size
    click = (min(x * width, width - 1), min(y * height, height - 1))
    check(subject, standard_request(subject.config, subject.size, click, (3, 7), 5))


def test_one_level(subject: Subject) -> None:
    check(subject, standard_request(subject.config, subject.size, (9, 70), (3, 3)))


def test_half_resolution_window(subject: Subject) -> None:
    height, width = subject.full["mask_half"].shape[-2:]
    check(subject, {"mask_half": tracenet.Window(3, height // 3, width // 2, width)})


def test_everything(subject: Subject) -> None:
    check(subject, {name: tracenet.Window.full(*plane.shape[-2:]) for name, plane in subject.full.items()})


def test_planes_are_not_trivial(subject: Subject) -> None:
    assert all(plane.isfinite().all() for plane in subject.full.values())
    for name in ("C2", "C5", "P3", "P7", "logits3", "reg3", "ctr3", "theta3", "maskfeat", "mask", "mask_half"):
        assert subject.full[name].std() > 1e-2, name
