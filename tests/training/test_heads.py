"""The training loop on generated data: it learns, it agrees with inference, and it survives a kill."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tracenet.data import CocoDataset
from tracenet.models import TraceNet, TraceNetConfig
from tracenet.models.fpn import LEVELS
from tracenet.models.mask import MaskBranch
from tracenet.training import heads
from tracenet.training.heads import CONFIG, Recipe, Source, Trainer
from tracenet.training.variants import FeatureCache
from tracenet_kernels.errors import CheckpointError, InputError

TINY = replace(CONFIG, channels=16)
RECIPE = Recipe(steps=8, clicks=4, warmup=2, calibration_images=2, lr=2e-3, backbone_lr_factor=0.0)


def dataset(folder: Path, count: int = 3) -> CocoDataset:
    """Bright squares on dark noise, 64x64."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(count):
        pixels = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        x, y = (int(v) for v in rng.integers(4, 28, 2))
        pixels[y : y + 32, x : x + 32] += 150
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        polygon = [[x, y, x + 32, y, x + 32, y + 32, x, y + 32]]
        annotations.append({"id": i, "image_id": i, "category_id": 1, "area": 1024, "segmentation": polygon})
    (folder / "a.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return CocoDataset(folder, folder / "a.json")


def planes(image: Image.Image) -> dict[str, Tensor]:
    """Stands in for the backbone: brightness at strides 8 and 16, spread over its channels with fixed weights."""
    gray = torch.from_numpy(np.array(image.convert("L"))).float()[None, None] / 128 - 0.5
    gray = torch.nn.functional.pad(gray, (0, -gray.shape[-1] % 32, 0, -gray.shape[-2] % 32))
    out = {}
    for name, channels, stride in (("C3", 512, 8), ("C4", 1024, 16)):
        small = torch.nn.functional.avg_pool2d(gray, stride)
        out[name] = torch.cos(torch.arange(channels).view(1, -1, 1, 1) * 0.1) * small
    return out


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "b.safetensors"
    save_file(TraceNet(TINY).backbone.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def built(backbone_file: Path) -> TraceNet:
    return heads.build_model(backbone_file, 0, TINY)


def trainer(folder: Path, built: TraceNet, recipe: Recipe = RECIPE) -> Trainer:
    folder.mkdir(exist_ok=True)
    data = dataset(folder)
    cache = FeatureCache(folder / "cache", planes, 0, working_size=128, crop_probability=0.0)
    return Trainer(copy.deepcopy(built), recipe, [Source("d", data, 1.0, 2)], cache)


def test_loss_goes_down(tmp_path: Path, built: TraceNet) -> None:
    run = trainer(tmp_path, built, replace(RECIPE, steps=24))
    run.calibrate()
    losses = [run.advance()["loss"] for _ in range(24)]
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:3])


def test_killed_run_resumes_to_the_same_numbers(tmp_path: Path, built: TraceNet) -> None:
    whole = trainer(tmp_path / "a", built, replace(RECIPE, steps=6))
    whole.calibrate()
    expected = [whole.advance() for _ in range(6)]

    killed = trainer(tmp_path / "b", built, replace(RECIPE, steps=6))
    killed.calibrate()
    for _ in range(3):
        killed.advance()
    killed.save(tmp_path / "state.pt")
    killed.advance()  # lost with the process
    resumed = trainer(tmp_path / "b", built, replace(RECIPE, steps=6))
    resumed.restore(tmp_path / "state.pt")
    assert resumed.step == 3
    assert [resumed.advance() for _ in range(3)] == expected[3:]
    for a, b in zip(whole.average, resumed.average, strict=True):
        assert torch.equal(a, b)
    assert not list(tmp_path.glob("*.tmp"))


def test_training_path_equals_the_network(tmp_path: Path, built: TraceNet) -> None:
    """Folded convolutions and cached planes give what the whole network gives on the image."""
    run = trainer(tmp_path, built)
    run.calibrate()
    model = run.model
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    with torch.no_grad():
        full = model(heads.normalise(torch.from_numpy(np.array(image)), TINY))
        cached = heads.frozen_planes(model, bf16=False)(image)
        p = heads.pyramid(model, cached, torch.float32)
        assert isinstance(model.mask_branch, MaskBranch)
        features = heads.mask_features(model.mask_branch, p)
    for level in LEVELS:
        scale = float(full[f"P{level}"].abs().max())
        torch.testing.assert_close(p[level], full[f"P{level}"], rtol=1e-4, atol=1e-4 * scale)
    torch.testing.assert_close(features, full["maskfeat"], rtol=1e-3, atol=1e-4 * float(full["maskfeat"].abs().max()))


def test_frozen_layers_do_not_move(tmp_path: Path, built: TraceNet) -> None:
    run = trainer(tmp_path, built, replace(RECIPE, backbone_lr_factor=0.1, norm_frozen_from=0.0))
    run.calibrate()
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.advance()
    moved = {k for k, v in run.model.state_dict().items() if not torch.equal(v, before[k])}
    assert not any(k.startswith("backbone.") and not k.startswith("backbone.layer4") for k in moved)
    assert not any("running" in k for k in moved)
    assert any(k.startswith("backbone.layer4") for k in moved)
    assert any(k.startswith("heads.theta") for k in moved)


def test_run_writes_state_and_log_and_stops(tmp_path: Path, built: TraceNet) -> None:
    run = trainer(tmp_path, built, replace(RECIPE, steps=2))
    heads.run(run, tmp_path, save_minutes=0, log_every=1)
    assert (tmp_path / "state.pt").exists()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    heads.run(run, tmp_path, save_minutes=0, log_every=1)  # already finished: nothing to do
    assert run.step == 2


def test_held_back_images_leave_training(tmp_path: Path) -> None:
    data = dataset(tmp_path, 10)
    held = heads.hold_back(tmp_path / "a.json", 3, tmp_path / "held.json")
    assert len(held) == 3
    assert {r.id for r in CocoDataset(tmp_path, tmp_path / "held.json")} == held
    assert {r.id for r in CocoDataset(tmp_path, tmp_path / "a.json", without=held)} == {r.id for r in data} - held


def test_overflowed_variance_keeps_its_function_in_finite_numbers() -> None:
    norm = torch.nn.BatchNorm2d(3).eval()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    assert norm.running_var is not None
    norm.running_var[1] = float("inf")
    x = torch.randn(1, 3, 4, 4)
    expected = norm(x)
    norm.load_state_dict(heads.overflow_silenced(norm.state_dict()))
    assert bool(torch.isfinite(norm.running_var).all())
    torch.testing.assert_close(norm(x), expected)


def test_foreign_backbones_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        heads.build_model(tmp_path / "b.safetensors", 0, TINY)
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="does not fit ResNet-50"):
        heads.build_model(tmp_path / "c.safetensors", 0, TraceNetConfig(channels=16))


def test_datasets_without_instances_are_refused(tmp_path: Path, built: TraceNet) -> None:
    data = dataset(tmp_path)
    data.records.clear()
    model = copy.deepcopy(built)
    with pytest.raises(InputError, match="no dataset holds a usable instance"):
        Trainer(model, RECIPE, [Source("d", data, 1.0, 1)], FeatureCache(tmp_path / "cache", planes, 0))
