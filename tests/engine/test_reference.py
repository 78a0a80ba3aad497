"""Lowering keeps the values: schedules in plain torch against the networks they were made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracenet
from tests.engine.networks import NETWORKS, randomised, tracenet_inputs, tracenet_model
from tracenet.engine.lower import lower
from tracenet.engine.reference import graph_runner, run_schedule
from tracenet.engine.schedule import Plane, Schedule, Step
from tracenet_kernels.errors import ExecutionError
from tracenet_kernels.testing import errors

CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "bundled kind": {"tower_norm": "bn_per_level", "level_head": True},
    "strides in 1x1, the paper's masks": {
        "stride_in_1x1": True,
        "mask_branch": "p3",
        "mask_order": "upsample_probabilities",
    },
    "no masks": {"mask_branch": "none", "num_classes": 80},
    "no norms": {"tower_norm": "none", "mask_norm": "none"},
    "group norms": {"tower_norm": "gn", "mask_norm": "gn", "channels": 64},
}


def assert_same(model: nn.Module, inputs: tuple[Tensor, ...], *, fold_bn: bool = True) -> Schedule:
    """Every output of the schedule against the network's own."""
    traced = tracenet.trace(model, inputs, fold_bn=fold_bn)
    schedule = lower(traced.graph)
    with torch.no_grad():
        wanted = model(*inputs)
    if not isinstance(wanted, dict):
        wanted = dict(zip(traced.output_names, wanted if isinstance(wanted, tuple) else (wanted,), strict=True))
    got = run_schedule(schedule, inputs, graph_runner(traced.graph))
    assert set(got) == {name for name, tensor in wanted.items() if not any(tensor is given for given in inputs)}
    for name, tensor in got.items():
        measured = errors(tensor, wanted[name])
        assert measured.max_relative <= 1e-5, f"{name}: {measured}"
    return schedule


@pytest.mark.parametrize("name", CONFIGS)
def test_tracenet(name: str) -> None:
    model = tracenet_model(**CONFIGS[name])
    schedule = assert_same(model, tracenet_inputs(model), fold_bn=name != "default")
    assert not any(step.op == "external" for step in schedule.steps)
    assert any(step.op == "group_norm" for step in schedule.steps) == (name == "group norms")


@pytest.mark.parametrize("fold_bn", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks(name: str, fold_bn: bool) -> None:
    assert_same(randomised(NETWORKS[name]()), (torch.randn(1, 3, 40, 56),), fold_bn=fold_bn)


@pytest.mark.parametrize("shape", [(2, 3, 8, 10), (3, 8, 10)])
def test_batches_and_images_without_a_batch_axis_are_left_to_torch(shape: tuple[int, ...]) -> None:
    schedule = assert_same(randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), (torch.randn(shape),))
    assert [step.op for step in schedule.steps] == ["external", "external"]


def test_double_precision_is_left_to_torch() -> None:
    schedule = assert_same(randomised(nn.Conv2d(3, 4, 3)).double(), (torch.randn(1, 3, 8, 10).double(),))
    assert [step.op for step in schedule.steps] == ["external"]


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize(
    "options",
    [
        {"size": (13, 30)},
        {"size": (9, 20)},
        {"size": (7, 11)},
        {"scale_factor": 2.1},
        {"scale_factor": (2, 3)},
        {"scale_factor": (1.05, 1.5)},  # rows stay as many as they are
    ],
)
def test_resizes_of_every_kind(mode: str, options: dict[str, Any]) -> None:
    class Resize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.interpolate(x, mode=mode, **options)

    schedule = assert_same(Resize().eval(), (torch.randn(1, 3, 7, 15),))
    assert [step.op for step in schedule.steps] == ["resize" if mode in ("nearest", "bilinear") else "external"]


def test_a_step_must_give_its_plane_and_external_ones_need_a_runner() -> None:
    planes = (Plane("x", 2, 4, 4), Plane("y", 3, 4, 4))
    with pytest.raises(ExecutionError, match=r"'y' \(add\) gave \(1, 2, 4, 4\)"):
        run_schedule(Schedule(planes, (Step("add", "y", (0,), 1),), (0,), {"y": 1}), [torch.zeros(1, 2, 4, 4)])
    with pytest.raises(ExecutionError, match="'y' is external"):
        run_schedule(Schedule(planes, (Step("external", "y", (0,), 1),), (0,), {"y": 1}), [torch.zeros(1, 2, 4, 4)])
