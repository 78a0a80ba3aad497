"""``tracenet train`` as a whole: files, selection, data parallel processes, and the shipped configurations."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tracenet.data import CocoDataset
from tracenet.distributed import Ranks
from tracenet.models.weights import load_checkpoint
from tracenet.training.config import TrainConfig, load_config
from tracenet.training.curves import draw_curves, smoothed
from tracenet.training.run import FINAL, describe, open_data, train
from tracenet.training.selection import BEST, ROWS, held_out
from tracenet_kernels.errors import InputError

Configured = Callable[..., TrainConfig]
ALONE = Ranks(0, 1, torch.device("cpu"))
CONFIGS = sorted(p for p in (Path(__file__).parents[2] / "configs").glob("*.toml") if not p.stem.endswith("_rows"))


def test_a_run_leaves_a_checkpoint_that_predicts(tmp_path: Path, configured: Configured) -> None:
    config = configured("cached", run={"steps": 2}, data={"hold_out": 1}, selection={"every": 1}, export={"int8": True})
    path = train(config, tmp_path, ALONE)
    model, info = load_checkpoint(path)
    assert info.quantisation == "int8_per_channel" and info.predictor == config.predictor
    assert model.config == config.model
    rows = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert (tmp_path / BEST).exists()
    with Image.open(tmp_path / "curves.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    assert json.loads((tmp_path / "config.json").read_text())["run"]["steps"] == 2

    for tables, changed in (
        ({"data": {"weight": 2.0}}, r"\[data\]"),
        ({"optimizer": {"name": "sgd"}}, r"\[optimizer\] name"),
        ({"run": {"steps": 2, "seed": 9}}, r"\[run\] seed"),
    ):
        with pytest.raises(InputError, match=f"holds a run with other {changed}"):
            train(configured("cached", **{"data": {"hold_out": 1}, "run": {"steps": 2}, **tables}), tmp_path, ALONE)


def test_held_back_photos_leave_training(tmp_path: Path, configured: Configured) -> None:
    data = open_data(configured("cached", data={"hold_out": 2}), tmp_path, ALONE)
    (source,), (held,) = data.train, data.held
    assert {r.id for r in held} == {0, 2}
    assert {r.id for r in source.dataset} == {1, 3}
    assert "2 photos, 2 objects, 0 proposals, weight 1" in describe(data.train)
    assert held_out([3, 5, 8, 9, 11], 2) == {3, 8}
    with pytest.raises(InputError, match="hold_out = 4 of 4 photos leaves none"):
        open_data(configured("cached", data={"hold_out": 4}), tmp_path, ALONE)


def test_held_back_photos_do_not_come_in_through_another_entry(
    tmp_path: Path, photos: Path, configured: Configured
) -> None:
    config = configured("cached", data={"hold_out": 2})
    both = replace(config, data=(*config.data, replace(config.data[0], name="again", hold_out=0)))
    data = open_data(both, tmp_path, ALONE)
    assert [{r.id for r in source.dataset} for source in data.train] == [{1, 3}, {1, 3}]


def test_bad_photos_are_left_out_and_listed(tmp_path: Path, photos: Path, configured: Configured) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    for name in ("0.png", "1.png"):  # of those held back, and of the others
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
    table = {"images": str(folder), "annotations": str(folder / "a.json"), "hold_out": 2, "skip_bad": True}
    out = tmp_path / "out"
    train(configured("cached", run={"steps": 2}, data=table), out, ALONE)
    problems = (out / "problems.txt").read_text()
    assert "0.png" in problems and "1.png" in problems


def test_proposals_join_the_photos_they_are_on(tmp_path: Path, photos: Path, configured: Configured) -> None:
    data = json.loads((photos / "a.json").read_text())
    square = [[40, 40, 60, 40, 60, 60, 40, 60]]
    data["annotations"] = [{"id": 1, "image_id": 1, "segmentation": square, "area": 400, "score": 0.9}]
    (tmp_path / "p.json").write_text(json.dumps(data))
    on = open_data(
        configured("network", teacher={"enabled": True}, data={"proposals": str(tmp_path / "p.json")}), tmp_path, ALONE
    )
    assert "4 photos, 4 objects, 1 proposals" in describe(on.train)
    off = open_data(configured("network", data={"proposals": str(tmp_path / "p.json")}), tmp_path, ALONE)
    assert "0 proposals" in describe(off.train)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _toml(tables: dict[str, Any]) -> str:
    lines = []
    for name, table in tables.items():
        lines.append(f"[[{name}]]" if name == "data" else f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(lines)


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path, photos: Path, backbone: Path) -> None:
    """Frozen images of one size, norms over both processes: the same batch, however it is shared out."""
    config = tmp_path / "c.toml"
    config.write_text(
        _toml(
            {
                "run": {"steps": 2, "images_per_step": 2, "workers": 0, "log_every": 1, "device": "cpu"},
                "model": {"channels": 16, "level_head": True},
                "init": {"backbone": str(backbone)},
                "data": {"images": str(photos), "annotations": str(photos / "a.json")},
                "augmentation": {"working_sizes": [128], "crop": 0.0, "whole_scale": [1.0, 1.0]},
                "clicks": {"per_image": 4, "level_only": 2},
                "objective": {"detection": "fcos"},
                "optimizer": {"lr": 1e-3, "frozen_stages": 4},
                "schedule": {"warmup": 0},
                "norm": {"kind": "sync"},
                "predictor": {"working_size": 128},
            }
        )
    )
    base = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start(out: Path, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tracenet.cli", "train", str(config), "--out", str(out)]
        return subprocess.Popen(command, env={**base, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    both = [start(tmp_path / "two", RANK=str(r), LOCAL_RANK=str(r), **shared) for r in range(2)]
    running = [*both, start(tmp_path / "one")]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-2000:]
    one, two = (load_checkpoint(tmp_path / name / FINAL)[0].state_dict() for name in ("one", "two"))
    moved = [v for k, v in two.items() if k.startswith("heads.") and k.endswith("running_mean")]
    assert moved and not any(torch.equal(v, torch.zeros_like(v)) for v in moved)
    for key, value in one.items():
        if key.endswith("num_batches_tracked"):
            continue  # counted by one process's BatchNorm, not by the synchronised one
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
    logs = [json.loads((tmp_path / n / "log.jsonl").read_text().splitlines()[0]) for n in ("one", "two")]
    assert logs[0]["grad_norm"] == pytest.approx(logs[1]["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configurations_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COCO", "LVIS", "OBJECTS", "WEIGHTS"):
        monkeypatch.setenv(name, "/x")
    assert load_config(path).data[0].images.startswith("/x")


def test_there_are_configurations() -> None:
    assert {"r50_cpu", "r50_coco", "r101_coco", "r50_lvis", "r50_oneclick"} <= {p.stem for p in CONFIGS}


def test_curves_need_a_log(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the log"):
        draw_curves(tmp_path / "none.jsonl", tmp_path / "c.png")
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(InputError, match="is empty"):
        draw_curves(tmp_path / "log.jsonl", tmp_path / "c.png")
    (tmp_path / "log.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(InputError, match="every line needs a step"):
        draw_curves(tmp_path / "log.jsonl", tmp_path / "c.png")
    assert smoothed([1.0, 3.0, 5.0, 7.0], 2) == [1, 2, 4, 6]


def test_datasets_without_objects_are_refused(tmp_path: Path, photos: Path, configured: Configured) -> None:
    data = json.loads((photos / "a.json").read_text())
    data["annotations"] = []
    (tmp_path / "empty.json").write_text(json.dumps(data))
    assert len(CocoDataset(photos, tmp_path / "empty.json")) == 0
    with pytest.raises(InputError, match="no photo with a usable object"):
        open_data(configured("cached", data={"annotations": str(tmp_path / "empty.json")}), tmp_path, ALONE)
