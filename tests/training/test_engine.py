"""The loop: a killed run goes on to the same numbers, and files are whole or absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tracenet.distributed import Ranks
from tracenet.training.config import TrainConfig
from tracenet.training.engine import LOG, STATE, Engine, fit
from tracenet_kernels.errors import CheckpointError, InputError

Configured = Callable[..., TrainConfig]
ALONE = Ranks(0, 1, torch.device("cpu"))


class Line(nn.Module):
    """Stands in for the network: ``w * x + b``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(3, 3))
        self.b = nn.Parameter(torch.zeros(3))


class LineTask:
    """Draws by step alone; ``broken`` steps give NaN."""

    def __init__(self, model: Line, broken: int = -1, every: bool = False) -> None:
        self.model, self.broken, self.every, self.prepared = model, broken, every, 0

    def prepare(self) -> None:
        self.prepared += 1

    def gradients(self, step: int, scale: float) -> dict[str, float]:
        x = torch.randn(3, generator=torch.Generator().manual_seed(step))
        loss = (self.model.w @ x + self.model.b - x).square().sum()
        if step == self.broken or self.every:
            loss = loss * float("nan")
        (loss * scale).backward()
        return {"loss": float(loss.detach())}

    def after_step(self, step: int) -> None:
        pass


def engine(
    configured: Configured,
    steps: int = 12,
    broken: int = -1,
    run_precision: str = "fp32",
    **tables: dict[str, object],
) -> Engine:
    model = Line()
    config = configured("network", run={"steps": steps, "save_minutes": 0.0, "precision": run_precision}, **tables)
    return Engine(model, LineTask(model, broken), config, ALONE)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path, configured: Configured, name: str) -> None:
    whole = engine(configured, optimizer={"name": name})
    fit(whole, _folder(tmp_path / "a"))

    class KilledError(Exception):
        pass

    def kill(step: int) -> None:
        if step == 7:
            raise KilledError

    folder = _folder(tmp_path / "b")
    with pytest.raises(KilledError):
        fit(engine(configured, optimizer={"name": name}), folder, kill)
    with (folder / LOG).open("a") as file:
        file.write('{"loss": 1, "st')  # half a line, as a kill leaves it
    resumed = engine(configured, optimizer={"name": name})
    fit(resumed, folder)
    assert resumed.task.prepared == 0
    for (key, a), b in zip(whole.averaged_state().items(), resumed.averaged_state().values(), strict=True):
        assert torch.equal(a, b), key
    rows = [[json.loads(line) for line in (f / LOG).read_text().splitlines()] for f in (tmp_path / "a", folder)]
    assert [r["step"] for r in rows[1]] == list(range(1, 13))
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]]
    assert sorted(p.name for p in folder.iterdir()) == [LOG, STATE]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_half_precision_scales_its_losses_and_resumes(tmp_path: Path, configured: Configured) -> None:
    whole = engine(configured, run_precision="fp16")
    assert whole.scaler.is_enabled()
    fit(whole, _folder(tmp_path / "a"))
    half = engine(configured, 6, run_precision="fp16")
    fit(half, _folder(tmp_path / "b"))
    resumed = engine(configured, run_precision="fp16")
    fit(resumed, tmp_path / "b")
    assert resumed.scaler.get_scale() == whole.scaler.get_scale() == 65536
    assert resumed.step == whole.step == 12


def test_half_precision_that_always_overflows_stops(tmp_path: Path, configured: Configured) -> None:
    model = Line()
    config = configured("network", run={"steps": 200, "precision": "fp16"})
    run = Engine(model, LineTask(model, every=True), config, ALONE)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="half precision overflows whatever the scale"):
        fit(run, tmp_path)
    for line in (tmp_path / LOG).read_text().splitlines():
        assert "NaN" not in line and "Infinity" not in line


def test_a_log_without_a_state_is_begun_anew(tmp_path: Path, configured: Configured) -> None:
    (tmp_path / LOG).write_text('{"loss": 1.0, "step": 1}\n{"loss": 1.0, "st')  # killed before the first checkpoint
    fit(engine(configured, 2), tmp_path)
    assert [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()] == [1, 2]


def test_a_finished_run_has_nothing_to_do(tmp_path: Path, configured: Configured) -> None:
    fit(engine(configured, 3), tmp_path)
    again = engine(configured, 3)
    fit(again, tmp_path)
    assert again.step == 3 and again.task.prepared == 0


def test_a_run_can_be_made_longer(tmp_path: Path, configured: Configured) -> None:
    fit(engine(configured, 3), tmp_path)
    longer = engine(configured, 5)
    fit(longer, tmp_path)
    assert longer.step == 5


def test_losses_fall_and_gradients_are_clipped(configured: Configured) -> None:
    run = engine(configured, 60, optimizer={"name": "sgd", "lr": 0.05, "clip": 1.0}, schedule={"warmup": 0})
    logs = [run.advance() for _ in range(60)]
    assert sum(log["loss"] for log in logs[-5:]) < 0.1 * sum(log["loss"] for log in logs[:5])
    assert max(log["grad_norm"] for log in logs) > 1  # as it was before clipping


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path, configured: Configured) -> None:
    run = engine(configured, broken=2)
    with pytest.raises(InputError, match=r"step 2: the gradient is not finite.*lower the learning rate"):
        fit(run, tmp_path)
    assert (tmp_path / STATE).exists()


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine(configured)
    run.advance()
    run.save(tmp_path / STATE)
    before = (tmp_path / STATE).read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    run.advance()
    with pytest.raises(InputError, match="No space left"):
        run.save(tmp_path / STATE)
    assert (tmp_path / STATE).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [STATE]


def test_foreign_states_are_refused(tmp_path: Path, configured: Configured) -> None:
    run = engine(configured)
    run.save(tmp_path / STATE)
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read as the state of a run"):
        run.restore(tmp_path / STATE)
    torch.save({"state_dict": {}}, tmp_path / STATE)
    with pytest.raises(CheckpointError, match="is not the state of a run"):
        run.restore(tmp_path / STATE)
    (tmp_path / STATE).write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"of another model \(\[model\] num_classes\)"):
        engine(configured, model={"num_classes": 2, "channels": 16}, objective={"detection": "fcos"}).restore(
            tmp_path / STATE
        )
    frozen = engine(configured)
    frozen.trained.pop()
    with pytest.raises(CheckpointError, match="trained 2 parameters"):
        frozen.restore(tmp_path / STATE)


def test_nothing_to_train_is_refused(configured: Configured) -> None:
    model = Line()
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(InputError, match="nothing to train"):
        Engine(model, LineTask(model), configured("network"), ALONE)  # type: ignore[arg-type]
