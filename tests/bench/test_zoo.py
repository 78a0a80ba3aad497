"""The model zoo's benchmark: own models, judgement, resuming, processes that die. No other package is needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.zoo.build import build, randomise
from bench.zoo.measure import TOLERANCE, Row, judge, measure
from bench.zoo.models import LARGE, MODELS, Entry
from bench.zoo.picture import draw, points
from bench.zoo.report import load, page, summary
from bench.zoo.sweep import Settings, sweep
from tracenet_kernels.errors import InputError

SIZE = (64, 96)
ABOUT = {"device": "here", "threads": 1, "torch": "2", "commit": "abc", "versions": {"timm": "1"}}
KEYS = {
    "name", "nodes", "barriers", "max_rel_error", "mac_share", "full_ms", "crop_pad_ms", "native_ms", "status", "reason"
}  # fmt: skip


def entry_of(name: str) -> Entry:
    return next(entry for entry in MODELS if entry.name == name)


def row_of(model: nn.Module, repeats: int = 0) -> Row:
    row = Row("model")
    measure(row, model.eval(), SIZE, repeats)
    return row


def test_the_list_is_long_and_its_names_are_unique() -> None:
    assert len(MODELS) >= 70
    assert len({entry.name for entry in MODELS}) == len(MODELS)


@pytest.mark.parametrize("name", ["retinanet", "yolo_csp_pan", "shufflenet_v2"])
def test_own_models_trace_exactly(name: str) -> None:
    row = row_of(build(entry_of(name), SIZE))
    assert row.status == "exact", row.reason
    assert row.max_rel_error is not None and row.max_rel_error < TOLERANCE
    assert row.mac_share is not None and 0 < row.mac_share <= 1
    assert row.errors is not None and {"corner", "edge", "centre", "patch", "all at the centre"} <= row.errors.keys()


def test_times_are_taken_where_asked_for() -> None:
    row = row_of(build(entry_of("squeezenet"), SIZE), repeats=1)
    assert row.full_ms and row.crop_pad_ms
    assert bool(row.native_ms) == (not row.native_reason)
    assert row.shallow == "1" and row.crop_pad_shallow_ms
    assert row.mac_share_shallow is not None and row.mac_share is not None and row.mac_share_shallow < row.mac_share


def test_one_map_is_deepest_and_shallow_and_requests_that_are_the_same_run_once() -> None:
    row = row_of(nn.Conv2d(3, 4, 3, 4, 1), repeats=1)
    assert row.shallow == "output"
    assert row.mac_share_shallow == row.mac_share
    assert (row.crop_pad_shallow_ms, row.native_shallow_ms) == (row.crop_pad_ms, row.native_ms)
    assert row.errors is not None and row.errors["all at the centre"] == row.errors["centre"]


def test_no_map_is_shallow_where_all_are_deep_or_flat() -> None:
    assert row_of(nn.Conv2d(3, 4, 16, 16)).shallow is None
    assert row_of(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())).shallow is None


class Gated(nn.Module):
    """A convolution scaled by the mean of its plane."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * x.mean((2, 3), keepdim=True).sigmoid()


def test_barriers_are_named_and_confirmed() -> None:
    row = row_of(Gated())
    assert (row.status, row.reason, row.far_pixels_matter) == ("barriers", "mean (reduces over the plane)", True)


class Branching(nn.Module):
    """Control flow that depends on a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


def test_a_refusal_says_which_error() -> None:
    row = row_of(Branching())
    assert row.status == "refused" and row.reason.startswith("CaptureError: ")


def test_errors_above_the_tolerance_are_wrong_on_either_backend() -> None:
    row = Row("model", max_rel_error=2e-3, barrier_ops={})
    judge(row)
    assert (row.status, row.reason) == ("wrong", "relative error: torch backend 2.0e-03")
    row = Row("model", max_rel_error=1e-6, native_max_rel_error=float("inf"), barrier_ops={})
    judge(row)
    assert row.status == "wrong"


class Amplifying(nn.Module):
    """A sine of large values: float32 keeps few of its digits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.conv(x) * 3e4)


def test_rounding_that_the_network_amplifies_is_judged_in_double() -> None:
    torch.manual_seed(0)
    row = row_of(Amplifying())
    if max(row.max_rel_error or 0, row.native_max_rel_error or 0) <= TOLERANCE:
        pytest.skip("every backend here rounds as PyTorch does on whole planes")
    assert row.status == "exact", row.reason
    assert row.max_rel_error_double is not None and row.max_rel_error_double < 1e-9
    assert row.rounding is not None and row.rounding > TOLERANCE


def test_a_network_without_values_is_no_evidence() -> None:
    model = nn.Conv2d(3, 2, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)  # type: ignore[arg-type]
    assert row_of(model).status == "failed"


def test_every_parameter_gets_a_value_of_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
    randomise(model, SIZE)
    norm = model[1]
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert isinstance(values, Tensor) and len(values.unique()) == 8
    assert not model.training and not norm.training


def command(script: str) -> Any:
    """A command that runs Python in place of a measurement; ``{name}`` and ``{target}`` are filled in."""

    def of(entry: Entry, target: Path) -> list[str]:
        return [sys.executable, "-c", script.replace("{name}", entry.name).replace("{target}", str(target))]

    return of


MEASURED = Row("x", nodes=3, barriers=0, max_rel_error=1e-6, mac_share=0.5, status="exact").plain()
WRITES = f"""
import json, sys
json.dump(dict({MEASURED!r}, name="{{name}}"), open("{{target}}", "w"))
"""
FAKE = (Entry("a", "A", "own"), Entry("dies", "B", "own"), Entry("c", "C", "own", (32, 32)))


def test_a_process_that_dies_is_recorded_and_ends_nothing_else(tmp_path: Path) -> None:
    script = WRITES.replace("import json, sys", "import json, os\nif '{name}' == 'dies': os.kill(os.getpid(), 11)")
    report = sweep(FAKE, Settings(), tmp_path / "out.json", ABOUT, command(script))
    assert json.loads((tmp_path / "out.json").read_text()) == report
    assert [m["status"] for m in report["models"]] == ["exact", "failed", "exact"]
    assert "SIGSEGV" in report["models"][1]["reason"]
    assert all(m.keys() >= KEYS for m in report["models"])
    assert report["models"][2]["size"] == [32, 32]
    text = page(report)
    assert "| a | A | exact | 3 | 0 |" in text and "SIGSEGV" in text
    assert summary(report["models"])["failed"] == 1


TIMED = dict(MEASURED, mac_share_shallow=0.1, full_ms=8.0, native_ms=2.0, crop_pad_ms=10.0, native_shallow_ms=0.5)


def test_the_page_says_how_often_windows_are_faster_and_has_a_part_for_large_images(tmp_path: Path) -> None:
    report = {**ABOUT, "settings": Settings().plain(), "models": [dict(TIMED, name="a", commit="abc")]}
    large = {**report, "settings": Settings((768, 1024), seconds=600).plain()}
    text = page(report, large, "dots.png")
    assert "native is faster than the full network in 1 of 1 models (median 4.0 times)" in text.replace("\n", " ")
    assert "## On images of 1024x768" in text and "--large --size 1024x768 --seconds 600" in text.replace("\n", " ")
    assert "](dots.png)" in text and "--with-large" in text
    assert "On images of" not in page(report)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="run it with --json"):
        load(tmp_path / "other.json")


def test_the_picture_has_a_dot_per_model_that_was_timed(tmp_path: Path) -> None:
    models = [dict(TIMED, name="a"), dict(MEASURED, name="untimed")]
    assert points(models, "native", "mac_share", "") == [(0.5, 4.0)]
    assert points(models, "native", "mac_share_shallow", "_shallow") == [(0.1, 16.0)]
    assert points(models, "crop_pad", "mac_share_shallow", "_shallow") == []
    draw({**ABOUT, "settings": Settings().plain(), "models": models}, tmp_path / "dots.png")
    assert (tmp_path / "dots.png").read_bytes().startswith(b"\x89PNG")


def test_the_models_for_large_images_are_on_the_list() -> None:
    assert len(set(LARGE)) == len(LARGE) >= 20
    assert set(LARGE) <= {entry.name for entry in MODELS}


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    settings = Settings(seconds=0.3)
    report = sweep(FAKE[:1], settings, tmp_path / "out.json", ABOUT, command("import time; time.sleep(60)"))
    assert "longer than" in report["models"][0]["reason"]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    sweep(FAKE[:1], Settings(), output, ABOUT, command(WRITES))
    measured: list[str] = []

    def counted(entry: Entry, target: Path) -> list[str]:
        measured.append(entry.name)
        return command(WRITES)(entry, target)

    seen: list[Any] = []
    report = sweep(FAKE, Settings(), output, ABOUT, counted, seen.append)
    assert measured == ["dies", "c"]
    assert [m["name"] for m in report["models"]] == ["a", "dies", "c"]
    assert [row is None for row in seen] == [True, False, False]


def test_models_can_be_measured_again_at_another_commit(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    sweep(FAKE, Settings(), output, ABOUT, command(WRITES))
    report = sweep(FAKE[1:2], Settings(), output, {**ABOUT, "commit": "def"}, command(WRITES), again=True)
    assert [(m["name"], m["commit"]) for m in report["models"]] == [("a", "abc"), ("dies", "def"), ("c", "abc")]
    assert "commits `abc` (2), `def` (1)" in page(report)


def test_a_file_of_another_run_is_not_continued(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    sweep(FAKE[:1], Settings(), output, ABOUT, command(WRITES))
    with pytest.raises(InputError, match="another settings"):
        sweep(FAKE, Settings(repeats=1), output, ABOUT, command(WRITES))
    with pytest.raises(InputError, match="another versions"):
        sweep(FAKE, Settings(), output, {**ABOUT, "versions": {}}, command(WRITES))
    output.write_text("[1]")
    with pytest.raises(InputError, match="no results"):
        sweep(FAKE, Settings(), output, ABOUT, command(WRITES))
