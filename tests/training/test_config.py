"""Configurations: what a file says is what runs, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracenet.training.config import TrainConfig, load_config
from tracenet_kernels.errors import InputError

DATA = '[[data]]\nimages = "i"\nannotations = "a.json"\n'


def read(tmp_path: Path, text: str, *overrides: str) -> TrainConfig:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return load_config(path, overrides)


def test_tables_become_values(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "ema = 0.5\n[run]\nsteps = 7\nprecision = 'bf16'\n[model]\nlevel_head = true\nmean = [1, 2.5, 3]\n"
        "[objective]\ndetection = 'fcos'\n[objective.clicks]\nlevels = 2\nmask_levels = [3, 5]\n"
        "[objective.dense]\nsize_limits = [32, 64, 128, 256]\n[schedule]\nmilestones = [0.5]\n" + DATA,
    )
    assert (config.run.steps, config.run.precision, config.ema) == (7, "bf16", 0.5)
    assert config.model.level_head and config.model.mean == (1.0, 2.5, 3.0)
    assert config.objective.clicks.mask_levels == (3, 5)
    assert config.objective.dense.size_limits == (32.0, 64.0, 128.0, 256.0)
    assert config.schedule.milestones == (0.5,)
    assert config.data[0].images == "i"


def test_values_are_replaced_from_the_command_line(tmp_path: Path) -> None:
    config = read(
        tmp_path, DATA, "run.steps=3", "data.0.images=/x/y", "optimizer.name='adamw'", "predictor.levels=[3, 5]"
    )
    assert config.run.steps == 3
    assert config.data[0].images == "/x/y"
    assert config.optimizer.name == "adamw"
    assert config.predictor.levels == (3, 5)


def test_strings_take_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "/data")
    text = '[[data]]\nimages = "${HERE}/train"\nannotations = "${HERE}/a.json"\n'
    assert read(tmp_path, text).data[0].images == "/data/train"
    monkeypatch.delenv("HERE")
    with pytest.raises(InputError, match="needs the environment variable HERE"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nstep = 3\n" + DATA, r"\[run\] has no step; known are .*steps"),
        ("[run]\nsteps = 'many'\n" + DATA, r"run.steps = 'many' must be an integer"),
        ("[run]\nsteps = 0\n" + DATA, "must be at least 1"),
        ("[run]\ntask = 'magic'\n" + DATA, "task = 'magic' is not known"),
        ("[model]\nlevel_head = 1\n" + DATA, "model.level_head = 1 must be true or false"),
        ("[schedule]\nmilestones = [0.9, 0.5]\n" + DATA, "growing shares"),
        ("[objective]\nmasks = 'assigned'\n" + DATA, "needs detection = 'fcos'"),
        ("[model]\nnum_classes = 80\n" + DATA, "num_classes = 80 needs"),
        ("[clicks]\nzoom_pairs = 0.5\n" + DATA, "level_head = true"),
        ("[[data]]\nimages = 'i'\n", "data.0.* lacks annotations"),
        (DATA + DATA, "names .* must differ"),
        ("", "no \\[\\[data\\]\\]|lacks data"),
        ("[data]\nimages = 'i'\n", "double brackets"),
        ("[run\n", "is not TOML"),
        ("[norm]\nmomentum = 0\n" + DATA, "a share of 1"),
        ("[teacher]\nenabled = true\n" + DATA, "needs encoder and decoder, or proposals"),
        ("[teacher]\nencoder = 'e.onnx'\n" + DATA, "give both or neither"),
        ("[optimizer]\nlr = 0\n" + DATA, "must be positive"),
        ("[predictor]\nlevels = [3]\n" + DATA, "list of 2 values"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, text)
    assert "c.toml" in str(error.value)


def test_bad_overrides_are_named(tmp_path: Path) -> None:
    for override, message in (
        ("steps", "write table.key=value"),
        ("data.3.images=x", "1 entries"),
        ("data.0=x", "name a key of entry"),
        ("ema.x=1", "is a value, not a table|must be"),
    ):
        with pytest.raises(InputError, match=message):
            read(tmp_path, "ema = 0.5\n" + DATA, override)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the configuration"):
        load_config(tmp_path / "none.toml")
