"""Whole evaluations: resumed, shared by processes, and by the command line; always the same numbers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.evaluation.objects import Square
from tracenet.cli import main
from tracenet.data import CocoDataset
from tracenet.evaluation.protocol import ClickProtocol
from tracenet.evaluation.run import Evaluation, evaluate_checkpoint, evaluate_dataset, finish
from tracenet.inference import PredictorSettings
from tracenet.models import TraceNet
from tracenet.models.weights import save_checkpoint
from tracenet_kernels.errors import InputError

SETTINGS = PredictorSettings(working_size=96, mask_margin=0.3)
KEYS = (
    "one_click_miou one_click_pooled miou_t mta by_band by_size by_category clicks instances rft_checked rft_max_error "
    "ap full_mta hit_rate_70 levels settings checkpoint seed device threads seconds"
)
RUN_KEYS = {"seconds", "timing_ms", "processes"}
"""What differs between two runs of the same evaluation."""


class Killed(BaseException):
    pass


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in RUN_KEYS}


def evaluated(dataset: CocoDataset, output: Path | None, segment: Any = None, **options: Any) -> Evaluation:
    protocol = ClickProtocol(clicks=5, full_mta=2, full_mta_clicks=50)
    return evaluate_dataset(segment or Square(), dataset, protocol, {"name": "square"}, output, **options)


def killed_after(images: int) -> Callable[..., Iterator[Any]]:
    """The square model, until it is asked for one photo more than ``images``."""
    model = Square()

    def segment(photo: Image.Image, points: NDArray[np.float32]) -> Iterator[Any]:
        if model.calls == images:
            raise Killed
        yield from model(photo, points)

    return segment


def test_a_killed_run_resumes_to_the_same_numbers(dataset: CocoDataset, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    with pytest.raises(Killed):
        evaluated(dataset, output, killed_after(1))
    assert len((tmp_path / "out.json.partial.jsonl").read_text().splitlines()) == 2  # the fingerprint and one image
    rest = Square()
    resumed = evaluated(dataset, output, rest)
    assert rest.calls == 1
    assert numbers(resumed.report) == numbers(evaluated(dataset, None).report)
    finish(resumed, output)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.json"]
    assert json.loads(output.read_text()) == json.loads(json.dumps(resumed.report))


def test_a_partial_file_of_other_clicks_is_refused(dataset: CocoDataset, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        evaluated(dataset, tmp_path / "out.json", killed_after(1))
    with pytest.raises(InputError, match="another protocol; delete it"):
        evaluate_dataset(Square(), dataset, ClickProtocol(seed=1), {"name": "square"}, tmp_path / "out.json")
    protocol = ClickProtocol(clicks=5, full_mta=2, full_mta_clicks=50)
    with pytest.raises(InputError, match="another model"):
        evaluate_dataset(Square(), dataset, protocol, {"name": "disc"}, tmp_path / "out.json")


def test_limit(dataset: CocoDataset) -> None:
    assert evaluated(dataset, None, limit=1).report["instances"] == 1
    assert evaluated(dataset, None, limit=99).report["instances"] == 2
    with pytest.raises(InputError, match="limit of 0"):
        evaluated(dataset, None, limit=0)


def test_problems_are_reported(dataset: CocoDataset) -> None:
    dataset.on_error = "skip"
    dataset.records[0].path.unlink()
    report = evaluated(dataset, None).report
    assert report["instances"] == 1
    assert len(report["skipped"]) == 1
    assert "a.png" in report["skipped"][0]


def test_settings_can_be_changed(model: TraceNet, dataset: CocoDataset, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "m.safetensors", predictor=SETTINGS)
    protocol = ClickProtocol(clicks=5)
    done = evaluate_checkpoint(tmp_path / "m.safetensors", dataset, protocol, limit=1, changes={"working_size": 64})
    assert done.report["settings"]["working_size"] == 64
    assert (done.report["rft_checked"], done.report["rft_max_error"]) == (0, 0.0)
    with pytest.raises(InputError, match="-1 clicks to trace"):
        evaluate_checkpoint(tmp_path / "m.safetensors", dataset, protocol, rft=-1)


@pytest.fixture
def command(model: TraceNet, dataset: CocoDataset, tmp_path: Path) -> list[str]:
    """``tracenet evaluate`` on the tiny dataset, all but the output."""
    save_checkpoint(model, tmp_path / "m.safetensors", predictor=SETTINGS)
    words = ["evaluate", "--images", dataset.annotations.parent, "--annotations", dataset.annotations, "--clicks", 5]
    return [*map(str, [*words, "--checkpoint", tmp_path / "m.safetensors", "--full-mta", 1])]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["tracenet", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_command(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figures = tmp_path / "out.json", tmp_path / "new" / "figures"
    assert run([*command, "--rft", "3", "--json", str(out), "--figures", str(figures)], monkeypatch) == 0
    data = json.loads(out.read_text())
    assert set(KEYS.split()) <= set(data)
    assert data["rft_checked"] == 3
    assert data["rft_max_error"] <= 1e-4
    assert "mIoU-T" in capsys.readouterr().out
    assert sorted(path.name for path in figures.iterdir()) == sorted(
        ["bands.png", "by_band.png", "clicks.png", "iou_by_size.png", "table_2.md", "tolerance.png"]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clicks", "7"], "multiple of 5"),
        (["--json", "/absent/out.json"], "does not exist"),
        (["--tolerance", "77"], "give the id of an annotation"),
        (["--zoom", "far"], "pass auto, off"),
        (["--limit", "0"], "limit of 0"),
    ],
)
def test_command_refuses(
    command: list[str],
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*command, *words], monkeypatch) == 2
    assert message in capsys.readouterr().err


def test_two_processes_give_the_same_numbers_as_one(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun starts them: gloo, one image each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    alone, shared = tmp_path / "alone.json", tmp_path / "shared.json"
    command += ["--rft", "0", "--json"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tracenet.cli", *command, str(shared)],
            env={**os.environ, **group, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    assert run([*command, str(alone)], monkeypatch) == 0
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    one, two = json.loads(alone.read_text()), json.loads(shared.read_text())
    assert (one["processes"], two["processes"]) == (1, 2)
    assert numbers(one) == numbers(two)
    assert "mIoU-T" in outputs[0]
    assert "mIoU-T" not in outputs[1]
    assert not list(tmp_path.glob("*.jsonl"))
