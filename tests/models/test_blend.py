"""Averages of checkpoints, tensor by tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tracenet.inference import PredictorSettings
from tracenet.models import TraceNet, TraceNetConfig
from tracenet.models.blend import blend, blend_files
from tracenet.models.weights import load_checkpoint, save_checkpoint
from tracenet_kernels.errors import CheckpointError, InputError


def test_tensors_are_averaged_and_integers_kept() -> None:
    a = {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(3)}
    b = {"w": torch.tensor([4.0, 0.0]), "n": torch.tensor(7)}
    out = blend(a, b, 0.25)
    assert out["w"].tolist() == [3.0, 1.0] and out["n"].item() == 7
    assert blend(a, b, 0.0)["w"].tolist() == [4.0, 0.0] and blend(a, b, 1.0)["w"].tolist() == [0.0, 4.0]


def test_what_cannot_be_averaged_is_refused() -> None:
    a = {"w": torch.zeros(2)}
    with pytest.raises(InputError, match=r"a share of 1\.5"):
        blend(a, a, 1.5)
    with pytest.raises(InputError, match="one architecture"):
        blend(a, {"w": torch.zeros(3)}, 0.5)


def test_files_keep_the_seconds_settings(tmp_path: Path) -> None:
    config = TraceNetConfig(channels=16)
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"{seed}.safetensors")
        settings = PredictorSettings(working_size=100 + seed, level_choice="score")
        save_checkpoint(TraceNet(config).eval(), paths[-1], predictor=settings)
    blend_files(paths[0], paths[1], 0.5, tmp_path / "out.safetensors", int8=False)
    model, info = load_checkpoint(tmp_path / "out.safetensors")
    assert info.predictor.working_size == 101
    first, second = (load_checkpoint(p)[0].state_dict() for p in paths)
    key = "heads.theta.weight"
    torch.testing.assert_close(model.state_dict()[key], (first[key] + second[key]) / 2)
    other = tmp_path / "other.safetensors"
    save_checkpoint(TraceNet(replace(config, level_head=True)).eval(), other, predictor=PredictorSettings())
    with pytest.raises(CheckpointError, match="two architectures"):
        blend_files(paths[0], other, 0.5, tmp_path / "x.safetensors")
