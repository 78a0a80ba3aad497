"""Training from cached planes: it learns, it agrees with inference, it repeats."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tracenet.conventions import LEVELS
from tracenet.data import CocoDataset
from tracenet.data.augment import Augmentation
from tracenet.data.mixture import Source
from tracenet.distributed import Ranks
from tracenet.inference import normalise
from tracenet.models.mask import MaskBranch
from tracenet.training.build import build_model
from tracenet.training.cached_task import CachedTask, cached_task, frozen_planes, mask_features, pyramid
from tracenet.training.config import TrainConfig
from tracenet.training.engine import Engine
from tracenet.training.feature_cache import FeatureCache
from tracenet.training.optim import freeze
from tracenet_kernels.errors import InputError

Configured = Callable[..., TrainConfig]
ALONE = Ranks(0, 1, torch.device("cpu"))


def engine_of(config: TrainConfig, out: Path) -> Engine:
    entry = config.data[0]
    source = Source("d", CocoDataset(entry.images, entry.annotations), entry.weight)
    model = build_model(config.model, config.run.seed, config.init.backbone)
    freeze(model, config.optimizer)
    return Engine(model, cached_task(model, config, [source], out, ALONE), config, ALONE)


def test_loss_goes_down(tmp_path: Path, configured: Configured) -> None:
    config = configured("cached", run={"steps": 30})
    engine = engine_of(config, tmp_path)
    engine.task.prepare()
    losses = [engine.advance()["loss"] for _ in range(30)]
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:3])


def test_pairs_of_scales_are_chosen_among_together(tmp_path: Path, configured: Configured) -> None:
    config = configured("cached", clicks={"zoom_pairs": 1.0}, run={"steps": 2})
    engine = engine_of(config, tmp_path)
    task = engine.task
    assert isinstance(task, CachedTask)
    first, second = task.draw(np.random.default_rng(0))
    assert second.sample.scale == pytest.approx(first.sample.scale / 2)
    assert len(first.sample) == len(second.sample) > 0
    torch.testing.assert_close(second.sample.boxes, first.sample.boxes / 2)
    log = engine.advance()
    assert 0 <= log["choice"] <= 1
    assert len(list((tmp_path / "cache").glob("*/*_x0.5_1.safetensors"))) > 0


def test_training_path_equals_the_network(tmp_path: Path, configured: Configured) -> None:
    """Folded convolutions and cached planes give what the whole network gives on the image."""
    engine = engine_of(configured("cached"), tmp_path)
    engine.task.prepare()
    model = engine.model
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    with torch.no_grad():
        full = model(torch.from_numpy(normalise(image.numpy(), model.config)))
        p = pyramid(model, frozen_planes(model, bf16=False)(image), torch.float32)
        assert isinstance(model.mask_branch, MaskBranch)
        features = mask_features(model.mask_branch, p)
    for level in LEVELS:
        scale = float(full[f"P{level}"].abs().max())
        torch.testing.assert_close(p[level], full[f"P{level}"], rtol=1e-4, atol=1e-4 * scale)
    torch.testing.assert_close(features, full["maskfeat"], rtol=1e-3, atol=1e-4 * float(full["maskfeat"].abs().max()))


def test_the_plain_mask_branch_is_trained_too(tmp_path: Path, configured: Configured) -> None:
    engine = engine_of(configured("cached", model={"mask_branch": "p3"}), tmp_path)
    before = engine.model.mask_branch.out.weight.clone()
    assert 0 <= engine.advance()["dice"] <= 1
    assert not torch.equal(engine.model.mask_branch.out.weight, before)


def test_frozen_layers_do_not_move(tmp_path: Path, configured: Configured) -> None:
    config = configured("cached", optimizer={"backbone_factor": 0.1}, norm={"frozen_from": 0.0})
    engine = engine_of(config, tmp_path)
    engine.task.prepare()
    before = {k: v.clone() for k, v in engine.model.state_dict().items()}
    engine.advance()
    moved = {k for k, v in engine.model.state_dict().items() if not torch.equal(v, before[k])}
    assert not any(k.startswith("backbone.") and not k.startswith("backbone.layer4") for k in moved)
    assert not any("running" in k or ".bn" in k for k in moved)
    assert any(k.startswith("backbone.layer4") for k in moved)
    assert any(k.startswith("heads.theta") for k in moved)


def test_statistics_move_alike_in_all_processes(tmp_path: Path, configured: Configured) -> None:
    """Two processes, one after the other here: what each met is applied by both, in the same order."""
    gathered: list[object] = []

    @dataclass(frozen=True)
    class Two(Ranks):
        def gather(self, item: object) -> list[object]:  # type: ignore[override]
            return [item, *gathered] if self.rank == 0 else [*gathered, item]

    config = configured("cached", run={"images_per_step": 1})
    engines = [engine_of(config, tmp_path) for _ in range(2)]
    for rank, engine in enumerate(engines):
        task = engine.task
        assert isinstance(task, CachedTask)
        task.gradients(rank, 1.0)  # different steps stand in for different samples
        task.ranks = Two(rank, 2)
    seen = [[[(t.norms[id(n)], m, v) for n, m, v in one.seen] for one in t.moments] for t in (e.task for e in engines)]
    for engine, other in zip(engines, (1, 0), strict=True):
        gathered[:] = [seen[other]]
        engine.task.after_step(1)
    first, second = (e.model.state_dict() for e in engines)
    moved = [k for k in first if k.endswith("running_var") and "heads" in k]
    assert all(torch.equal(first[k], second[k]) for k in moved)


def test_cached_views_are_read_back_bit_for_bit(tmp_path: Path, photos: Path) -> None:
    dataset = CocoDataset(photos, photos / "a.json")
    made: list[int] = []

    def planes(image: torch.Tensor) -> dict[str, torch.Tensor]:
        made.append(1)
        return {"C3": image.float().mean(2)[None, None]}

    cache = FeatureCache(tmp_path, planes, 5, Augmentation(working_sizes=(96,), copy_paste=1.0))
    fresh = cache.get("d", dataset, dataset.records[0], 1, (1.0, 0.5))
    kept = cache.get("d", dataset, dataset.records[0], 1, (1.0, 0.5))
    assert len(made) == 2
    for a, b in zip(fresh, kept, strict=True):
        assert torch.equal(a.planes["C3"], b.planes["C3"])
        for name in ("masks", "depth", "boxes", "categories", "proposal", "weight"):
            assert torch.equal(getattr(a.sample, name), getattr(b.sample, name))
        assert a.sample.scale == b.sample.scale
    again = FeatureCache(tmp_path / "other", planes, 5, Augmentation(working_sizes=(96,), copy_paste=1.0))
    rebuilt = again.get("d", dataset, dataset.records[0], 1, (1.0, 0.5))
    assert torch.equal(rebuilt[0].planes["C3"], fresh[0].planes["C3"])


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = CocoDataset(photos, photos / "a.json")
    cache = FeatureCache(tmp_path, lambda image: {"C3": image.float()}, 0, Augmentation())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"No space left.*lower \[\[data\]\] views"):
        cache.get("d", dataset, dataset.records[0], 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("table", "values", "message"),
    [
        ("optimizer", {"frozen_stages": 3}, "frozen_stages = 3, at least 4"),
        ("objective", {"detection": "fcos"}, "both 'clicks'"),
        ("norm", {"kind": "batch"}, "'renorm' or 'frozen'"),
        ("run", {"precision": "fp16"}, "'fp32' or 'bf16'"),
        ("model", {"tower_norm": "gn", "channels": 32}, "tower_norm and mask_norm, BatchNorm"),
    ],
)
def test_what_planes_cannot_give_is_refused(
    tmp_path: Path, configured: Configured, table: str, values: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        engine_of(configured("cached", **{table: values}), tmp_path)
