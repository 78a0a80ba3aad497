"""Programs on disk: found again, built once, built anew when they do not fit, and never needed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tracenet import PredictorSettings, create_model, program_cache
from tracenet.checkpoint import Checkpoint
from tracenet.engine.program import Program
from tracenet.models import TraceNet
from tracenet.models.weights import save_checkpoint
from tracenet.program_cache import cache_folder, cached_program
from tracenet.sessions import native_program
from tracenet_kernels import backends, native

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not() or "-")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    model = create_model("tracenet_r50_fpn", channels=16, mask_branch="p3")
    save_checkpoint(model, path, predictor=PredictorSettings(level_choice="score"))
    return path


@pytest.fixture(scope="module")
def program(checkpoint: Path) -> Program:
    return native_program.build_program(Checkpoint(checkpoint).model)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, program: Program) -> list[TraceNet]:
    """Models that were captured; capturing itself is done once for all tests."""
    models: list[TraceNet] = []

    def build(model: TraceNet) -> Program:
        models.append(model)
        time.sleep(0.05)
        return program

    monkeypatch.setattr(native_program, "build_program", build)
    monkeypatch.setattr(backends, "_said", set())
    return models


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    found = tmp_path / "cache" / "of" / "programs"
    monkeypatch.setenv("TRACENET_CACHE", str(found))
    return found


def programs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.program"))


def test_the_second_process_finds_it(checkpoint: Path, folder: Path, built: list[TraceNet], program: Program) -> None:
    first = cached_program(Checkpoint(checkpoint))
    assert len(programs(folder)) == len(built) == 1
    opened = Checkpoint(checkpoint)
    again = cached_program(opened)
    assert len(built) == 1
    assert opened._model is None  # no weights were loaded
    assert first.isa == again.isa == program.isa
    assert bytes(again.native.schedule) == bytes(program.native.schedule)
    assert bytes(again.native.packed) == bytes(program.native.packed)
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def test_the_content_counts_not_the_path(checkpoint: Path, folder: Path, built: list[TraceNet], tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    for path in (checkpoint, copy):
        cached_program(Checkpoint(path))
    os.utime(copy, ns=(1, 1))
    cached_program(Checkpoint(copy))
    assert len(built) == 1
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    os.utime(copy, ns=(2, 2))
    cached_program(Checkpoint(copy))
    assert len(built) == len(programs(folder)) == 2


def test_a_known_checkpoint_is_not_read_again(
    checkpoint: Path, folder: Path, built: list[TraceNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_program(Checkpoint(checkpoint))
    monkeypatch.setattr(program_cache, "_digest", lambda path: pytest.fail(f"{path} was read"))
    cached_program(Checkpoint(checkpoint))
    assert len(built) == 1


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "schedule"])
def test_damaged_programs_are_built_again(
    checkpoint: Path, folder: Path, built: list[TraceNet], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cached_program(Checkpoint(checkpoint))
    path = programs(folder)[0]
    data = bytearray(path.read_bytes())
    if damage == "schedule":
        data[2000] ^= 0xFF
    new = {"truncated": data[: len(data) // 2], "foreign": b"hello, this is text" * 99, "empty": b""}.get(damage, data)
    path.unlink()  # the old one is still mapped
    path.write_bytes(new)
    cached_program(Checkpoint(checkpoint))
    assert len(built) == 2
    assert caplog.text.count("a cached program is built again") == 1
    cached_program(Checkpoint(checkpoint))
    assert len(built) == 2


@pytest.mark.parametrize("damage", ["", "0" * 63, "g" * 64])
def test_damaged_hashes_are_made_again(checkpoint: Path, folder: Path, built: list[TraceNet], damage: str) -> None:
    cached_program(Checkpoint(checkpoint))
    (note,) = folder.glob("*.checkpoint")
    whole = note.read_text()
    note.write_text(damage)
    cached_program(Checkpoint(checkpoint))
    assert len(built) == 1
    assert note.read_text() == whole


def test_without_a_folder_it_works_and_says_so_once(
    checkpoint: Path,
    built: list[TraceNet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TRACENET_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        assert isinstance(cached_program(Checkpoint(checkpoint)), Program)
    assert len(built) == 2
    assert caplog.text.count("programs are not kept") == 1


def test_a_full_disk_is_no_error(
    checkpoint: Path,
    folder: Path,
    built: list[TraceNet],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert isinstance(cached_program(Checkpoint(checkpoint)), Program)
    assert "programs are not kept" in caplog.text
    assert not [file for file in folder.iterdir() if file.suffix != ".lock"]


def test_several_at_once_build_once(checkpoint: Path, folder: Path, built: list[TraceNet]) -> None:
    found: list[Program] = []
    threads = [threading.Thread(target=lambda: found.append(cached_program(Checkpoint(checkpoint)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(built) == 1


def test_a_lock_that_is_never_released_is_not_waited_for(
    checkpoint: Path, folder: Path, built: list[TraceNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    cached_program(Checkpoint(checkpoint))
    (path,) = programs(folder)
    path.unlink()
    monkeypatch.setattr(program_cache, "LOCK_SECONDS", 0.01)
    with FileLock(f"{path}.lock"):
        cached_program(Checkpoint(checkpoint))
    assert len(built) == 2
    assert programs(folder) == []


def test_the_oldest_go(checkpoint: Path, folder: Path, built: list[TraceNet], monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    for i in range(4):
        (folder / f"{i}.program").write_bytes(b"x")
        (folder / f"{i}.program.lock").write_bytes(b"")
        os.utime(folder / f"{i}.program", (100 + i, 100 + i))
    monkeypatch.setattr(program_cache, "MAX_PROGRAMS", 3)
    cached_program(Checkpoint(checkpoint))
    left = [file.name for file in programs(folder)]
    assert len(left) == 3
    assert {"2.program", "3.program"} < set(left)
    assert not (folder / "0.program.lock").exists()


def test_another_release_or_instruction_set_has_its_own(
    checkpoint: Path, folder: Path, built: list[TraceNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_program(Checkpoint(checkpoint))
    monkeypatch.setattr(program_cache, "__version__", "99")
    cached_program(Checkpoint(checkpoint))
    assert len(built) == len(programs(folder)) == 2
    assert all(path.stem.endswith(native.require().cpu_features()["isa"]) for path in programs(folder))


def test_the_usual_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACENET_CACHE", "")
    assert cache_folder().name == "tracenet"
    assert cache_folder().is_absolute()
