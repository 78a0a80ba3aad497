"""``tracenet tune``: what it asks of a machine, and which layers it finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tracenet.engine.schedule import Plane, Schedule, Step
from tracenet.tune import layers_of, tune_network
from tracenet_kernels.errors import BackendError, InputError
from tracenet_kernels.triton.cases import Layer

KERNEL = {"kernel_y": 3, "kernel_x": 3, "pad_y": 1, "pad_x": 1}


def schedule() -> Schedule:
    planes = (
        Plane("image", 3, 32, 64),
        Plane("a", 8, 16, 32),
        Plane("b", 4, 16, 32),
        Plane("c", 4, 8, 16),
        Plane("d", 4, 16, 32),
        Plane("e", 8, 16, 32),
    )
    steps = (
        Step("conv2d", "first", (0,), 1, {**KERNEL, "stride_y": 2, "stride_x": 2, "activation": 1}),
        Step("conv2d", "fine", (1,), 2, dict(KERNEL), group=1),
        Step("conv2d", "coarse", (1,), 3, dict(KERNEL), group=1),
        Step("conv2d", "lateral", (1, 3), 4, {"residual_factor": 2}),
        Step("conv2d", "depthwise", (1,), 5, {**KERNEL, "groups": 8}),
    )
    return Schedule(planes, steps, (0,), {"d": 4})


def test_layers_come_from_steps_and_bounds() -> None:
    bounds = [(0, 0), (9, 11), (3, 3), (2, 4), (5, 5), (1, 1)]
    assert layers_of(schedule(), [bounds, bounds]) == [
        Layer("first", (16, 32), (9, 11), 3, 8, 3, 2),
        Layer("fine", (16, 32), (3, 4), 8, 4, 3, levels=2, relu=False),
        Layer("lateral", (16, 32), (5, 5), 8, 4, residual=2, relu=False),
    ]


def test_what_no_click_needs_is_left_out() -> None:
    assert [layer.name for layer in layers_of(schedule(), [[(0, 0), (4, 4), *[(0, 0)] * 4]])] == ["first"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="TRITON_INTERPRET is set"):
        tune_network(None, (64, 64), "fp16", tmp_path / "x.json", 1, None)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match="measured on a GPU: "):
        tune_network(None, (64, 64), "fp16", tmp_path / "x.json", 1, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("size", "dtype", "limit", "seconds", "problem"),
    [
        ((60, 64), "fp16", 1, None, "multiples of 32"),
        ((64, 64), "fp64", 1, None, "--dtype is 'fp64'"),
        ((64, 64), "fp16", 0, None, "--limit is 0"),
        ((64, 64), "fp16", 1, -1.0, "--seconds -1"),
    ],
)
def test_arguments_are_checked_first(
    size: tuple[int, int], dtype: str, limit: int, seconds: float | None, problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        tune_network(None, size, dtype, None, limit, seconds)
