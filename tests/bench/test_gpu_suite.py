"""The GPU suite without a GPU: stages in Triton's interpreter on a clock that does not tick, and the bookkeeping."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from bench.gpu import __main__ as program
from bench.gpu import checks, end_to_end, kernels, timing
from bench.gpu.children import Ended, run_child
from bench.gpu.entrants import Entrant, attempt, compete
from bench.gpu.journal import AGAIN, DONE, FAILED, REFUSED, Journal, OutOfTime
from bench.gpu.layer_peers import Convolution
from bench.gpu.layers import TAILS, Layers
from bench.gpu.machine import Machine
from bench.gpu.network import PRECISIONS, WRONG, DeviceNetwork, Errors, compare, tiny_model
from bench.gpu.options import Options
from bench.gpu.show import picture, show
from tracenet.engine.gpu import program as gpu_program
from tracenet_kernels.errors import InputError
from tracenet_kernels.window import Window

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "bench" / "gpu_suite.sh"
FLOAT32 = PRECISIONS["float32"]


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float, **row: Any) -> Callable[[], dict[str, Any]]:
        """A case of so many seconds."""

        def case() -> dict[str, Any]:
            self.now += seconds
            return {"status": "ok", **row}

        return case


def journal(path: Path, seconds: float = 100.0, clock: Clock | None = None, key: str = "key") -> Journal:
    return Journal(path, "kernels", key, {"commit": "abc", "dry": True}, seconds, clock or Clock())


def fails() -> dict[str, Any]:
    raise ValueError("it broke")


def written(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_a_stage_goes_on_where_its_time_was_spent(tmp_path: Path) -> None:
    path, clock = tmp_path / "stage.json", Clock()
    cases = {name: clock.takes(30, value=name) for name in "abcd"}
    assert journal(path, 65, clock).run(cases) == AGAIN
    assert [row["id"] for row in written(path)["cases"]] == ["a", "b"]
    assert not written(path)["complete"]
    assert journal(path, 65, clock).run(cases) == DONE
    found = written(path)
    assert found["complete"] and [row["value"] for row in found["cases"]] == ["a", "b", "c", "d"]
    assert journal(path).complete


def test_one_case_is_measured_even_when_there_is_little_time(tmp_path: Path) -> None:
    clock = Clock()
    assert journal(tmp_path / "stage.json", 1, clock).run({"a": clock.takes(30), "b": clock.takes(30)}) == AGAIN
    assert journal(tmp_path / "stage.json", 1, clock).run({"a": fails, "b": clock.takes(30)}) == DONE


def test_a_failed_case_is_written_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    assert journal(path).run({"a": fails, "b": lambda: {"status": "ok", "x": math.inf}}) == FAILED
    rows = written(path)["cases"]
    assert rows[0]["status"] == "failed: ValueError: it broke" and rows[1]["x"] is None
    assert written(path)["complete"]


def test_a_broken_device_ends_the_process_but_not_the_stage(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    cases = {"a": fails, "b": lambda: {"status": "ok"}}
    assert journal(path).run(cases, broken=lambda: True) == AGAIN
    assert journal(path).run(cases) == FAILED
    assert [row["status"].split(":")[0] for row in written(path)["cases"]] == ["failed", "ok"]


def test_a_case_that_ends_its_process_twice_has_failed(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"

    def dies() -> dict[str, Any]:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            journal(path).run({"a": dies})
    assert journal(path).run({"a": dies, "b": lambda: {"status": "skipped: why"}}) == FAILED
    assert written(path)["cases"][0]["status"].startswith("failed: the process ended 2 times")


def test_a_case_out_of_time_is_measured_by_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"

    def late() -> dict[str, Any]:
        raise OutOfTime(progress=True)

    for _ in range(4):
        assert journal(path).run({"a": late}) == AGAIN
    assert journal(path).run({"a": lambda: {"status": "ok"}}) == DONE


def test_results_of_other_sources_are_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    journal(path).run({"a": lambda: {"status": "ok"}})
    other = journal(path, key="other")
    assert not other.complete and not other.rows
    assert written(tmp_path / "stage.abc.json")["complete"]
    path.write_text("{ not json")
    assert not journal(path).rows


def test_several_cases_at_a_time(tmp_path: Path) -> None:
    cases = {str(n): lambda n=n: {"status": "ok", "n": n} for n in range(9)}
    assert journal(tmp_path / "stage.json").run(cases, jobs=3) == DONE
    assert sorted(row["n"] for row in written(tmp_path / "stage.json")["cases"]) == [*range(9)]


def test_everybody_runs_in_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    runs = {name: lambda n=name: order.append(n) or float(len(order)) for name in "ab"}
    assert timing.in_turns(runs, 2) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert order == [*"ababab"]
    assert timing.spread([4.0, 1.0, 2.0, 3.0, 9.0]) == {"median": 3.0, "min": 1.0, "spread": pytest.approx(1 / 3)}
    assert timing.spread([2.0]) == {"median": 2.0, "min": 2.0, "spread": 0.0}


class FakeDevice:
    """What :class:`timing.CudaTimer` asks of ``torch.cuda``; everything is logged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        log = self.log

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                log.append("event")

            def synchronize(self) -> None: ...

            def elapsed_time(self, other: Event) -> float:
                return 2.5

        class Properties:
            L2_cache_size = 8

        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: log.append("wait"))
        monkeypatch.setattr(torch.cuda, "_sleep", lambda _: log.append("busy"))


def test_the_device_is_busy_until_everything_is_enqueued(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDevice(monkeypatch)
    timer = timing.CudaTimer(torch.device("cpu"))
    assert timer._flush.numel() == 16
    timer._flush.fill_(1)
    assert timer.device(lambda: fake.log.append("run"), cold=True) == 2.5
    assert fake.log == ["wait", "busy", "event", "run", "event"] and not timer._flush.any()
    fake.log.clear()
    ms, result = timer.wall(lambda: fake.log.append("run") or 7, cold=False)
    assert fake.log == ["wait", "run", "wait"] and ms >= 0 and result == 7


def test_errors_of_small_windows_are_shares_of_the_plane() -> None:
    plane = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]], dtype=torch.float64)
    near_zero = plane[:, 1:, :1]
    found = compare(near_zero + 0.01, near_zero, plane)
    assert found.max_relative == pytest.approx(0.01 / 4) and found.frobenius == pytest.approx(0.01 / 2.5)
    assert compare(torch.full((1, 1, 1), math.nan), near_zero, plane) == WRONG
    assert compare(plane, near_zero, plane) == WRONG
    assert compare(near_zero, near_zero, torch.zeros_like(plane)) == Errors()
    assert not Errors(0.0, 0.02).within(PRECISIONS["tf32"].tolerance)
    assert Errors(1.0, 0.005).within(PRECISIONS["float16"].tolerance)
    assert not Errors(1.1e-4, 0.0).within(FLOAT32.tolerance)


def entrant(error: float, run: Callable[[], Any] = dict) -> Entrant:
    return Entrant(run, lambda _: Errors(error, error))


def test_who_is_wrong_gets_no_time() -> None:
    def breaks() -> Any:
        raise RuntimeError("no such kernel")

    def absent() -> Entrant:
        raise ValueError("cannot be captured")

    found = {
        "right": entrant(1e-6),
        "wrong": entrant(1e-2),
        "broken": entrant(0.0, breaks),
        "absent": attempt(absent),
    }
    compete(found, FLOAT32, Machine(dry=True), 2)
    rows = {name: one.row() for name, one in found.items()}
    assert rows["right"]["ms_median"] == 1.0 and rows["right"]["cold_ms_median"] == 2.0
    assert rows["wrong"]["status"] == "wrong" and rows["wrong"]["ms_median"] is None
    assert rows["broken"]["status"] == "skipped: RuntimeError: no such kernel"
    assert rows["absent"]["status"] == "skipped: ValueError: cannot be captured"
    assert rows["absent"]["cold_ms_median"] is None


def test_who_becomes_wrong_loses_its_time() -> None:
    answers = iter([1e-6, 1.0])
    late = Entrant(dict, lambda _: Errors(next(answers)))
    compete({"late": late}, FLOAT32, Machine(dry=True), 1)
    assert late.row()["status"] == "wrong" and late.row()["ms_median"] is None


def test_fused_tails_and_levels_are_checked_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_program, "MIN_TAIL_TILES", 0)
    machine = Machine(dry=True)
    layers = Layers(DeviceNetwork(tiny_model(), (64, 64), machine.device), (3, 4), FLOAT32, TAILS)
    kinds = {unit.kind: name for name, unit in layers.units.items()}
    assert kinds.keys() == {"step", "tail", "levels"}
    for kind in ("tail", "levels"):
        layer = layers.layer(layers.units[kinds[kind]])
        assert layer.errors().within(FLOAT32.tolerance) and len(layer.steps) > 1 and layer.macs > 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_ways_to_convolve_a_window_agree(stride: int, dilation: int) -> None:
    x, weight = torch.randn(1, 4, 13, 11, dtype=torch.float64), torch.randn(6, 4, 3, 3, dtype=torch.float64)
    geometry = ((3, 3), (stride, stride), (1, 1), (dilation, dilation))
    whole = F.conv2d(x, weight, None, stride, 1, dilation)
    rows, columns = whole.shape[2:]
    for window in (
        Window(0, rows, 0, columns),
        Window(0, 1, columns - 1, columns),
        Window(1, rows, 2, 4),
        Window(2, 3, 1, 3),
        Window(rows - 1, rows, 0, columns),
    ):
        conv = Convolution(x, weight, geometry, 1, (rows, columns), window)
        for way in (conv.full, conv.view, conv.crop):
            torch.testing.assert_close(way(), whole[(..., *window.slices)])


def test_precisions_are_checked() -> None:
    assert [one.name for one in Options().with_precisions(["bfloat16", "tf32"]).precisions] == ["bfloat16", "tf32"]
    with pytest.raises(InputError, match="choose among"):
        Options().with_precisions(["float8"])


def test_a_child_and_its_children_end_with_its_time(tmp_path: Path) -> None:
    ended = run_child(["bash", "-c", "echo begun; sleep 60 & wait"], 1, tmp_path / "logs" / "child.log")
    assert ended == Ended(None, "begun")
    assert run_child(["bash", "-c", "exit 9"], 5, tmp_path / "child.log").code == 9


JUNIT = """<testsuites><testsuite tests="3" failures="1" errors="1" skipped="0">
<testcase name="right"/><testcase name="bad"><failure message="1 != 2&#10;more"/></testcase>
<testcase name="worse"><error message="no device"/></testcase></testsuite></testsuites>"""


def test_test_results_are_read_from_junit(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    row = checks.junit_row(tmp_path / "junit.xml")
    assert row["status"] == "failed: 2 of 3 tests" and row["failed"] == {"bad": "1 != 2", "worse": "no device"}


def stub_child(monkeypatch: pytest.MonkeyPatch, code: int | None, output: str = "") -> list[Sequence[str]]:
    """Processes of the checks end at once, like this."""
    commands: list[Sequence[str]] = []

    def run(command: Sequence[str], seconds: float, log: Path, env: Any = None) -> Ended:
        commands.append(command)
        return Ended(code, output)

    monkeypatch.setattr(checks, "run_child", run)
    return commands


@pytest.mark.parametrize(
    ("code", "status"),
    [(0, "ok"), (checks.FOUND_ERRORS, "failed: 2 errors"), (1, "skipped: racecheck ended with 1: 2 errors")],
)
def test_checkers_that_cannot_run_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, status: str
) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda *_, **__: "/opt/compute-sanitizer")
    commands = stub_child(monkeypatch, code, "2 errors")
    cases = checks.sanitizer_cases(Machine(dry=True), journal(tmp_path / "sanitizer.json"))
    assert cases["racecheck"]()["status"] == status
    assert list(commands[0][:5]) == ["/opt/compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9"]


def test_tuning_goes_on_until_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, path = Machine(dry=True), tmp_path / "tune.json"
    assert checks.tune_cases(machine, journal(path))["tune"]()["status"].startswith("skipped: not asked for")
    monkeypatch.setenv("TRACENET_SUITE_TUNE", "1")
    machine.dry = False
    stub_child(monkeypatch, 0, json.dumps({"file": "f", "keys": 3, "new": 3, "left": 2}))
    cases = checks.tune_cases(machine, journal(path))
    assert [journal(path).run(cases) for _ in range(4)] == [AGAIN] * 4
    commands = stub_child(monkeypatch, 0, json.dumps({"file": "f", "keys": 5, "new": 2, "left": 0}))
    assert journal(path).run(cases) == DONE and written(path)["cases"][0]["keys"] == 5
    assert "--seconds" in commands[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRACENET_SUITE_DRY", raising=False)
    assert program.main(["kernels", "--json", str(tmp_path / "kernels.json")]) == REFUSED
    assert "needs an NVIDIA GPU" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert program.main(["kernels", "--dry-run"]) == REFUSED
    assert "--json" in capsys.readouterr().err


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stages that measure, run dry in this process; the compiled peer, a process of its own, runs in it too."""
    folder = tmp_path_factory.mktemp("results")

    def child(command: Sequence[str], seconds: float, log: Path, env: Any = None) -> Ended:
        log.parent.mkdir(parents=True, exist_ok=True)
        return Ended(program.main([*command[3:]]), "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(end_to_end, "run_child", child)
        patch.setattr(kernels, "DRY_LAYERS", 3)
        for stage in ("kernels", "end_to_end", "predictor"):
            assert program.main([stage, "--json", str(folder / f"{stage}.json"), "--dry-run"]) == DONE, stage
    return folder


def test_kernels_are_checked_timed_and_predicted(results: Path) -> None:
    report = written(results / "kernels.json")
    layers = [row for row in report["cases"] if "kernels" in row]
    assert report["complete"] and report["dry"] and report["timer_floor_us"] == 1000.0
    assert {"gpu", "cuda", "torch", "triton", "python", "commit"} <= report.keys()
    assert len(layers) == 3 and all(row["status"] == "ok" for row in report["cases"])
    for row in layers:
        assert row["warm_us"] == 1000.0 and row["cold_us"] == 2000.0 and row["macs"] > 0
        assert 0 < row["predicted_warm_us"] < 100 and row["max_rel_error"] < 1e-5
        assert row["tflops"] == pytest.approx(2e-12 * row["macs"] / 1e-3)
    assert layers[0]["peers"] == {}  # the stem
    assert {way: peer["warm_us"] for way, peer in layers[1]["peers"].items()} == dict.fromkeys(
        ("view", "crop", "full"), 1000.0
    )
    assert any(row.get("launches") for row in report["cases"])


def test_the_standard_request_stands_beside_its_peers(results: Path) -> None:
    report = written(results / "end_to_end.json")
    rows = {row["id"]: row for row in report["cases"]}
    row = rows["64x32/float32/P3-P3"]
    assert report["complete"] and len(report["kernels"]["layers"]) == 3
    assert row["speed_up"] == 1.0 and row["realised_saving"] == pytest.approx(row["macs"] / row["full_macs"])
    assert {name: peer["status"] for name, peer in row["peers"].items()} == dict.fromkeys(
        ("ours_planned_on_device", "full_eager", "crop_pad_eager", "full_graph", "crop_pad_graph"), "ok"
    )
    assert row["max_rel_error"] < 1e-5 and row["peak_activation_bytes"] > 0 and row["planning_us"] > 0
    assert rows["64x32/float32/P3-P3/clicks"]["captures"] == 1
    assert rows["64x32/float32/second_click"]["status"].split(":")[0] in ("ok", "skipped")
    assert rows["64x32/float32/compiled"]["peers"]["full_compiled"]["ms_median"] == 1.0


def test_the_predictor_gives_the_same_masks(results: Path) -> None:
    rows = {row["id"]: row for row in written(results / "predictor.json")["cases"]}
    assert rows["triton/float32"]["min_iou"] >= 0.999 and rows["triton/float32"]["first_click_ms"] > 0
    assert rows["torch"]["status"] == "ok" and rows["torch"]["on"] == "processor"


def test_a_complete_stage_is_not_measured_again(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "kernels.json"
    before = path.stat().st_mtime_ns, written(path)["cases"]
    assert program.main(["kernels", "--json", str(path), "--dry-run"]) == DONE
    assert written(path)["cases"] == before[1]
    assert "DRY RUN" in capsys.readouterr().out


def test_a_wrong_layer_prints_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        launches: tuple[Any, ...] = ()
        steps: tuple[Any, ...] = ()
        macs = bytes = 1

        def errors(self) -> Errors:
            return WRONG

    class Bench:
        part = None

        def layers(self, *_: Any) -> Any:
            return type("Layers", (), {"units": {"conv": None}, "layer": staticmethod(lambda _: Wrong())})

    row = kernels.layer_case(Bench(), (3, 5), FLOAT32, kernels.POINTERS, "conv")  # type: ignore[arg-type]
    assert row["status"] == "wrong" and "warm_us" not in row and "peers" not in row


def test_tables_and_picture(results: Path, tmp_path: Path) -> None:
    stream = io.StringIO()
    show(results, Console(file=stream, width=240, highlight=False))
    text = stream.getvalue()
    assert "64x32/float32/P3-P3" in text and "backbone.layer1.0" in text and "triton/float32" in text
    assert text.count("DRY RUN") == 3
    reason = picture(results, tmp_path / "times.png")
    assert reason == "matplotlib is not installed" or (tmp_path / "times.png").stat().st_size > 1000
    assert picture(tmp_path, tmp_path / "none.png") in ("matplotlib is not installed", "there are no end-to-end times")


def test_a_stage_that_cannot_begin_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "cases", lambda *_: fails())
    assert program.main(["kernels", "--json", str(tmp_path / "kernels.json"), "--dry-run"]) == FAILED
    assert written(tmp_path / "kernels.json")["failure"] == "ValueError: it broke"


STUB = """#!/usr/bin/env bash
# Stands in for Python: notes the stage, and ends with the next code that the stage's file holds.
stage=$3
echo "$stage $TRACENET_SUITE_DRY" >>"$STUB/log"
echo "table of $stage"
if [[ -s "$STUB/$stage" ]]; then
    code=$(head -n 1 "$STUB/$stage")
    sed -i 1d "$STUB/$stage"
    exit "$code"
fi
"""


def suite(folder: Path, *words: str, codes: dict[str, str] | None = None, **env: str) -> tuple[int, str, list[str]]:
    """Run the script on a stub. Returns exit code, output and the stages in the order in which they ran."""
    stub = folder / "stub"
    stub.mkdir(exist_ok=True)
    (stub / "python").write_text(STUB)
    (stub / "python").chmod(0o755)
    (stub / "log").write_text("")
    for stage, lines in (codes or {}).items():
        (stub / stage).write_text(lines)
    done = subprocess.run(
        ["bash", str(SCRIPT), *words],
        cwd=folder,
        env={**os.environ, "PYTHON": str(stub / "python"), "STUB": str(stub), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return (
        done.returncode,
        done.stdout + done.stderr,
        [line.split()[0] for line in (stub / "log").read_text().splitlines()],
    )


ALL = ["env", "build", "tests", "sanitizer", "tune", "kernels", "end_to_end", "predictor"]


def test_the_script_runs_all_stages_in_order(tmp_path: Path) -> None:
    code, output, stages = suite(tmp_path, "out", "--dry-run")
    assert code == 0 and stages == ALL, output
    assert (tmp_path / "out" / "kernels.txt").read_text() == "table of kernels\n"
    assert (tmp_path / "out" / "summary.txt").read_text().count(" ok\n") == 8
    assert suite(tmp_path, "out", "all", "--dry-run")[2] == ALL


def test_the_script_says_which_stages_failed_and_runs_the_others(tmp_path: Path) -> None:
    code, output, stages = suite(tmp_path, "out", "--dry-run", codes={"tests": "1\n", "end_to_end": "2\n"})
    assert code == 4 + 64 and stages == ALL
    assert "failed (1)" in output and "refused" in output


def test_the_script_begins_a_stage_again_when_its_process_ended(tmp_path: Path) -> None:
    code, _, stages = suite(tmp_path, "out", "kernels", "predictor", "--dry-run", codes={"kernels": "75\n139\n0\n"})
    assert code == 0 and stages == ["kernels"] * 3 + ["predictor"]
    code, output, stages = suite(tmp_path, "out", "kernels", "--dry-run", codes={"kernels": "75\n" * 9})
    assert code == 32 and stages == ["kernels"] * 5 and "call again" in output


def test_the_script_leaves_what_does_not_fit_for_the_next_call(tmp_path: Path) -> None:
    code, output, stages = suite(tmp_path, "out", "env", "kernels", "--dry-run", TRACENET_SUITE_SECONDS="5")
    assert code == 1 + 32 and not stages and output.count("call again") == 2


@pytest.mark.parametrize("words", [(), ("out", "kernel"), ("out", "--fast")])
def test_the_script_refuses_what_it_does_not_know(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, output, stages = suite(tmp_path, *words)
    assert code == 2 and not stages and "kernels" in output


def test_the_script_really_runs(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out"), "env", "--dry-run"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = written(tmp_path / "out" / "env.json")
    assert found["complete"] and {row["id"] for row in found["cases"]} == {"device", "packages", "ceilings"}
