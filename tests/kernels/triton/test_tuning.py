"""Tuning in the interpreter: only what is right counts, the fastest by a clock of the test's own is kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tracenet_kernels.triton import tuning
from tracenet_kernels.triton.cases import Layer
from tracenet_kernels.triton.configs import ConvConfig, ConvKey, Table, Target
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.planes import interpreted
from tracenet_kernels.triton.tuning import best_config, keys_of, problem, tune

DEVICE = "cpu" if interpreted() else "cuda"
GPU = Target("NVIDIA A100", 80, 108)
PLAIN = Layer("plain", (5, 6), (3, 4), 8, 8, residual=1)
LEVELS = Layer("levels", (6, 6), (2, 2), 8, 4, 3, levels=2, relu=False)
SMALL = [ConvConfig(16, 16, 16, 1, 4, 2), ConvConfig(32, 16, 16, 1, 4, 2)]


def by_tile(launches: Sequence[Launch]) -> float:
    """Large tiles are fast."""
    return 1.0 / launches[0].meta["BLOCK_M"]


def test_the_fastest_that_is_right_wins() -> None:
    of = problem(PLAIN, "conv2d", torch.float32, DEVICE)
    assert best_config(PLAIN.key("float32"), of, SMALL, by_tile) == (SMALL[1], 1 / 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
@pytest.mark.parametrize("layer", [PLAIN, LEVELS, Layer("up", (4, 6), (3, 3), 8, 8, 3, 2, residual=2)])
def test_every_kind_of_layer_agrees_with_its_twin(layer: Layer, dtype: torch.dtype) -> None:
    of = problem(layer, "conv2d", dtype, DEVICE)
    for launch in of.build(ConvConfig(16, 16, 32, 1, 4, 2)):
        launch()
    assert of.is_right()
    assert not of.is_right()  # poisoned again


def test_what_is_wrong_or_refused_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    of = problem(PLAIN, "conv2d", torch.float32, DEVICE)

    def lying(config: ConvConfig) -> list[Launch]:
        return [] if config.block_m == 32 else of.build(config)

    key = PLAIN.key("float32")
    cheated = replace(of, build=lying)
    with caplog.at_level(logging.WARNING):
        assert best_config(key, cheated, [ConvConfig(48), *reversed(SMALL)], by_tile) == (SMALL[0], 1 / 16)
    assert "is wrong" in caplog.text
    assert best_config(key, cheated, [ConvConfig(48)], by_tile) is None


def test_a_run_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "ranked", lambda key, on: SMALL)
    keys = keys_of([PLAIN, replace(PLAIN, name="again"), LEVELS], torch.float32, 80)
    assert [key.family for key in keys] == ["conv2d", "conv2d_levels"]
    kept: list[Table] = []
    ticks = iter([0.0, 1.0, 9.0])
    first = tune(
        keys, GPU, torch.float32, DEVICE, by_tile, limit=1, seconds=5, clock=lambda: next(ticks), keep=kept.append
    )
    assert list(first.configs.values()) == [SMALL[0]]
    assert kept == [first] and first.origin == "measured"
    known = PLAIN.key("float32")
    marked = replace(first, configs={known: ConvConfig(256)})
    second = tune(keys, GPU, torch.float32, DEVICE, by_tile, known=marked, limit=2)
    assert second.configs[known] == ConvConfig(256)
    assert second.configs[LEVELS.key("float32")] == SMALL[1]
    assert second.micros[LEVELS.key("float32")] == pytest.approx(1e6 / 32)


def test_descriptors_are_tried_where_there_are_any() -> None:
    assert [key.family for key in keys_of([PLAIN, LEVELS], torch.float16, 90)] == [
        "conv2d",
        "conv2d_tma",
        "conv2d_levels",
    ]
    assert ConvKey("conv2d_tma", "int8", 16, 8, 8, 1) not in keys_of([PLAIN], torch.int8, 90)
