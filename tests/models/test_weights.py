"""Checkpoint files: round trips, int8 error bounds, and every way a file can be wrong."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tracenet.inference import PredictorSettings
from tracenet.models import TraceNet, create_model
from tracenet.models.weights import bundled_checkpoint, load_checkpoint, quantise, restore, save_checkpoint
from tracenet_kernels.errors import CheckpointError, InputError

SETTINGS = PredictorSettings(working_size=512, mask_margin=0.25)


@pytest.fixture(scope="module")
def model() -> TraceNet:
    torch.manual_seed(0)
    # Narrow, so that a file is small; the backbone cannot be made smaller.
    return create_model("tracenet_r50_fpn", channels=32, level_head=True, stride_in_1x1=True)


@pytest.fixture(scope="module")
def saved(model: TraceNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "m.safetensors"
    save_checkpoint(model, path, predictor=SETTINGS, quantize=True)
    return path


def rewrite(source: Path, target: Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor | None) -> Path:
    """Copy of a checkpoint with some metadata or tensors replaced (None removes)."""
    from safetensors import safe_open

    with safe_open(source, "pt") as opened:
        meta = {**opened.metadata(), **(metadata or {})}
    state: dict[str, Any] = {**load_file(source), **tensors}
    save_file({k: v for k, v in state.items() if v is not None}, target, {k: v for k, v in meta.items() if v != "-"})
    return target


def test_quantisation_error_is_at_most_half_a_step() -> None:
    weight = torch.randn(7, 5, 3, 3) * torch.logspace(-4, 2, 7).view(7, 1, 1, 1)
    weight[3] = 0
    q, scale = quantise(weight)
    assert q.dtype == torch.int8
    assert scale.shape == (7,)
    error = (restore(q, scale) - weight).abs().flatten(1).amax(1)
    assert bool((error <= 0.5001 * scale).all())
    assert not restore(q, scale)[3].any()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_full_precision_round_trip_is_exact(model: TraceNet, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    save_checkpoint(model, path, predictor=SETTINGS.to_dict())
    loaded, info = load_checkpoint(path)
    assert not loaded.training
    assert info.config == model.config
    assert info.predictor == SETTINGS
    assert info.quantisation == "none"
    assert info.model == "tracenet_r50_fpn"
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no temporary file left behind


def test_int8_round_trip(model: TraceNet, saved: Path) -> None:
    loaded, info = load_checkpoint(saved)
    assert info.quantisation == "int8_per_channel"
    assert saved.stat().st_size < 1.1 * sum(p.numel() for p in model.parameters())
    own = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float32
        if tensor.ndim < 2:
            assert torch.equal(tensor, own[name]), name
        else:
            step = own[name].flatten(1).abs().amax(1) / 127
            assert bool(((tensor - own[name]).abs().flatten(1).amax(1) <= 0.51 * step).all()), name


def test_saving_refuses_what_it_cannot_keep(model: TraceNet, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="ends in"):
        save_checkpoint(model, tmp_path / "m.bin", predictor=SETTINGS)
    with pytest.raises(CheckpointError, match=r"\.safetensors files only"):
        save_checkpoint(model, tmp_path / "m.pth", predictor=SETTINGS, quantize=True)
    scales = model.heads.scales
    before = scales.detach().clone()
    with torch.no_grad():
        scales[0] = float("nan")
    try:
        with pytest.raises(CheckpointError, match=r"heads\.scales"):
            save_checkpoint(model, tmp_path / "m.safetensors", predictor=SETTINGS)
    finally:
        with torch.no_grad():
            scales.copy_(before)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file(model: TraceNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")

    def full_disk(file: int, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint(model, path, predictor=SETTINGS)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_unreadable_files(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        load_checkpoint(tmp_path / "absent.safetensors")
    whole = saved.read_bytes()
    for name, content in (
        ("empty.safetensors", b""),
        ("text.safetensors", b"hello, this is no checkpoint"),
        ("half.safetensors", whole[: len(whole) // 2]),
        ("head.safetensors", whole[:100]),
        ("empty.pt", b""),
        ("text.pth", b"hello"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read as"):
            load_checkpoint(tmp_path / name)


def test_pickles_that_run_code_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "x": Path}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a torch checkpoint"):
        load_checkpoint(tmp_path / "m.pt")


def test_foreign_files(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(2, 2)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="not a TraceNet checkpoint"):
        load_checkpoint(tmp_path / "m.safetensors")
    torch.save({"conv.weight": torch.zeros(2, 2)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="no 'state_dict'"):
        load_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"version": "99"}, "version '99'"),
        ({"predictor": "-"}, "lacks the metadata predictor"),
        ({"model": "unheard_of"}, "unheard_of"),
        ({"quantisation": "int3"}, "int3"),
        ({"config": "{"}, "metadata that cannot be read"),
        ({"config": json.dumps({"depht": 50})}, "depht"),
        ({"predictor": json.dumps({"working_size": 0})}, "working_size"),
    ],
)
def test_wrong_metadata(saved: Path, tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    path = rewrite(saved, tmp_path / "m.safetensors", metadata)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_wrong_keys_and_shapes_are_all_listed(saved: Path, tmp_path: Path) -> None:
    path = rewrite(
        saved,
        tmp_path / "m.safetensors",
        **{
            "heads.ctr.bias": None,
            "heads.surplus": torch.zeros(1),
            "heads.scales": torch.zeros(4),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert "missing heads.ctr.bias" in text
    assert "unexpected heads.surplus" in text
    assert "heads.scales (4,) instead of (5,)" in text


def test_int8_without_its_scale(saved: Path, tmp_path: Path) -> None:
    path = rewrite(saved, tmp_path / "m.safetensors", **{"heads.ctr.weight.scale": None})
    with pytest.raises(CheckpointError, match=r"heads\.ctr\.weight is int8"):
        load_checkpoint(path)


def test_bundled_checkpoint_is_in_the_package() -> None:
    path = bundled_checkpoint()
    assert path.name == "tracenet_r50_fpn.safetensors"
    assert path.stat().st_size < 40e6
    model, info = load_checkpoint(path)
    assert model.config.level_head
    assert info.model == "tracenet_r50_fpn"
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_installation_without_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracenet.checkpoint.BUNDLED", "absent.safetensors")
    with pytest.raises(CheckpointError, match="ships no checkpoint"):
        bundled_checkpoint()
