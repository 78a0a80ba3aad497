"""Break-even of windows against whole planes: windows, interpolation, checks, the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from bench import break_even as bench
from tracenet_kernels import native, windowed
from tracenet_kernels.window import Window

SMALL = (bench.Layer("3x3, stride 2", 3, 2, 8, 16, (24, 32)), bench.Layer("1x1", 1, 1, 8, 16, (12, 16)))


def rows(*points: tuple[float, float | None]) -> list[dict[str, Any]]:
    return [{"share": share, "speed_up": {"torch": speed}} for share, speed in points]


def test_windows_lie_on_the_output_and_end_with_all_of_it() -> None:
    for layer in (*bench.LAYERS, *SMALL):
        whole = Window.full(*layer.output)
        assert layer.windows[-1] == whole
        assert all(whole.contains(window) for window in layer.windows)
        areas = [window.area for window in layer.windows]
        assert areas == sorted(set(areas))


def test_break_even_lies_between_the_windows_around_it() -> None:
    assert bench.break_even(rows((0.01, 4.0), (0.1, 2.0), (1.0, 0.5)), "torch") == pytest.approx(10**-0.5)
    assert bench.break_even(rows((0.01, 4.0), (1.0, 1.25)), "torch") == 1
    assert bench.break_even(rows((0.01, 0.9), (1.0, 0.5)), "torch") is None
    assert bench.break_even(rows((0.01, None), (1.0, None)), "torch") is None


@pytest.mark.skipif(not native.available(), reason=native.why_not())
class TestMeasured:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench, "LAYERS", SMALL)
        monkeypatch.setattr(bench, "EVICT_BYTES", 1 << 16)

    def measured(self) -> dict[str, Any]:
        with Progress(disable=True) as progress:
            return bench.measure(1, 2, progress, SMALL)

    def test_a_run_fills_every_field_and_draws(self, tmp_path: Path) -> None:
        report = self.measured()
        for layer, spec in zip(report["layers"], SMALL, strict=True):
            assert layer["plane"] == list(spec.output)
            assert max(layer["max_rel_error"].values()) <= bench.TOLERANCE
            assert len(layer["windows"]) == len(spec.windows)
            for row in layer["windows"]:
                for name in bench.PEERS:
                    assert row["speed_up"][name] == pytest.approx(layer["full_ms"][name] / row["ms"])
        bench.draw(report, tmp_path / "picture.png")
        with Image.open(tmp_path / "picture.png") as picture:
            assert picture.width > picture.height > 200
        bench.show(report, Console(quiet=True))
        assert json.loads(json.dumps(report)) == report

    def test_a_wrong_window_has_no_speed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        conv2d_jobs = windowed.conv2d_jobs

        def wrong(packed: Any, jobs: list[Any]) -> None:
            conv2d_jobs(packed, jobs)
            np.asarray(jobs[0].out)[jobs[0].window.y0, jobs[0].window.x0, 0] += 1

        monkeypatch.setattr(bench, "conv2d_jobs", wrong)
        report = self.measured()
        for layer in report["layers"]:
            assert all(row["ms"] is None for row in layer["windows"])
            assert layer["break_even_share"] == {"onnxruntime": None, "torch": None}
            assert layer["full_ms"]["torch"] > 0
        bench.show(report, Console(quiet=True))

    def test_an_unwritten_window_has_no_speed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench, "conv2d_jobs", lambda *_: None)
        for layer in self.measured()["layers"]:
            assert all(row["ms"] is None for row in layer["windows"])

    def test_a_wrong_peer_has_no_speed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = bench.OnnxPlane.run
        monkeypatch.setattr(bench.OnnxPlane, "run", lambda self: run(self) + torch.tensor(0.1))
        for layer in self.measured()["layers"]:
            assert layer["full_ms"]["onnxruntime"] is None
            assert all(row["speed_up"]["onnxruntime"] is None and row["ms"] > 0 for row in layer["windows"])
