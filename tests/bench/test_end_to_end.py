"""The end-to-end benchmark on a network of 16 channels: its fields, its checks, and its peers' own correctness."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from bench.end_to_end import __main__ as program
from bench.end_to_end import cold_start, ours, run, sgemm
from bench.end_to_end.full import ORT_SETTINGS, TORCH_SETTINGS, OnnxFull, TorchFull, fold_batch_norms
from bench.end_to_end.memory import peak_live_bytes
from bench.end_to_end.network import OUTPUTS, TOLERANCE, FullNetwork, SizedNetwork, build_model, cases_of
from bench.end_to_end.second_click import pairs_of
from bench.end_to_end.show import show
from bench.end_to_end.standard import FullSettings
from bench.end_to_end.timing import Contestant
from bench.peers.onnx_macs import count_macs
from bench.peers.onnx_network import to_onnx
from tracenet import trace
from tracenet.models import TraceNet
from tracenet_kernels import native
from tracenet_kernels.errors import InputError

SIZE = (128, 96)
CENTRE = (64.0, 48.0)
TINY = run.Options(
    "torch",
    (run.SizeRun(SIZE, 1, 2),),
    threads=1,
    model={"channels": 16, "num_classes": 3},
    setting_rounds=1,
    pairs=2,
    cold_starts=0,
    photo_repeats=0,
    kernel_rounds=0,
)


@pytest.fixture(scope="module")
def model() -> TraceNet:
    return build_model(**TINY.model)


@pytest.fixture(scope="module")
def network(model: TraceNet) -> SizedNetwork:
    return SizedNetwork(model, SIZE)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch, model: TraceNet, network: SizedNetwork) -> None:
    """The benchmark builds and captures its network anew; that takes longer than all the rest."""
    monkeypatch.setattr(run, "build_model", lambda **_: model)
    monkeypatch.setattr(run, "SizedNetwork", lambda *_: network)
    monkeypatch.setattr(sgemm, "SIDE", 128)
    monkeypatch.setattr(run, "choose_settings", lambda *_: FullSettings("arena, no spinning", "eager", {}))


def measured(backend: str = "torch") -> dict[str, Any]:
    """One click only."""
    with Progress(disable=True) as progress:
        return run.measure(replace(TINY, backend=backend, sizes=(run.SizeRun(SIZE, 0, 1),), pairs=1), progress)


@pytest.mark.usefixtures("captured")
def test_a_run_fills_every_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "Options", lambda *_, **__: TINY)
    program.main(["--backend", "torch", "--json", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    assert {"device", "threads", "commit", "torch", "python", "onnxruntime", "load"} <= set(report)
    assert [case["levels"] for case in report["cases"]] == [[3, 7], [3, 5]] * 2
    for case in report["cases"]:
        assert case["status"] == "ok" and case["backend"] == "torch" and case["dtype"] == "float32"
        assert case["size"] == list(SIZE)
        assert 0 < case["ms_min"] <= case["ms_median"]
        assert 0 < case["macs"] <= case["full_macs"]
        assert 0 < case["max_rel_error"] <= TOLERANCE
        assert case["peers"]["onnxruntime_full_ms"] > 0 and case["peers"]["torch_full_ms"] > 0
        seldom = case["kind"] == "grid" and case["levels"] == [3, 7]
        assert (case["peers"]["crop_pad_ms"] is None) == seldom == case["crop_pad_status"].startswith("not available")
        speed_up = case["peers"]["onnxruntime_full_ms"] / case["ms_median"]
        assert case["realised_saving"] == pytest.approx(speed_up * case["macs"] / case["full_macs"])
        assert case["peak_activation_bytes"] > 0
    assert {"onnxruntime", "torch"} == set(report["sizes"][0]["peers"])
    assert report["second_click"]["share_worst"] >= report["second_click"]["share_median"] > 0
    assert len(report["second_click"]["pairs"]) == 2
    assert report["second_click"]["kept_bytes_median"] > 0
    assert report["memory"]["torch_full_bytes"] > report["memory"]["crop_pad_bytes"] > 0


@pytest.mark.usefixtures("captured")
def test_a_wrong_output_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    first, keeping = ours.TorchClicks.first, ours.TorchClicks.keeping
    monkeypatch.setattr(ours.TorchClicks, "first", lambda *a: nudged(first(*a), "mask"))
    monkeypatch.setattr(ours.TorchClicks, "keeping", lambda *a: nudged(keeping(*a), "theta4"))
    report = measured()
    for case in report["cases"]:
        assert case["status"] == "wrong" and case["max_rel_error"] > TOLERANCE
        assert case["ms_median"] is case["ms_min"] is case["speed_up"] is case["realised_saving"] is None
        assert case["peak_activation_bytes"] is case["sgemm_share"] is None
        assert case["peers"]["crop_pad_ms"] > 0  # the peer was right
    second = report["second_click"]
    assert second["max_rel_error"] > TOLERANCE
    assert second["share_median"] is second["share_worst"] is second["first_ms_median"] is None
    assert all(pair["second_ms"] is None for pair in second["pairs"])
    printed = io.StringIO()
    show(report, Console(width=150, file=printed))
    assert "wrong" in printed.getvalue() and "not available" not in printed.getvalue()


@pytest.mark.usefixtures("captured")
def test_a_wrong_peer_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = OnnxFull.runner
    monkeypatch.setattr(OnnxFull, "runner", lambda *a: nudged(runner(*a), "ctr6"))
    report = measured()
    assert report["sizes"][0]["peers"]["onnxruntime"]["ms_median"] is None
    for case in report["cases"]:
        assert case["status"] == "ok" and case["ms_median"] > 0
        assert case["peers"]["onnxruntime_full_ms"] is case["speed_up"] is case["realised_saving"] is None


@pytest.mark.usefixtures("captured")
def test_an_absent_backend_leaves_its_slot_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "make_ours", lambda *_: "no compiler")
    report = measured()
    assert {case["status"] for case in report["cases"]} == {"not available: no compiler"}
    assert all(case["ms_median"] is None and case["peers"]["onnxruntime_full_ms"] > 0 for case in report["cases"])
    assert report["second_click"] == {"status": "not available: no compiler"}
    show(report, Console(quiet=True))


@pytest.mark.skipif(not native.available(), reason=native.why_not())
@pytest.mark.usefixtures("captured")
def test_the_native_backend_is_measured() -> None:
    report = measured("native")
    assert {case["status"] for case in report["cases"]} == {"ok"}
    for case in report["cases"]:
        assert case["backend"] == "native" and case["ms_median"] > 0 and case["max_rel_error"] <= TOLERANCE
        assert case["peak_activation_bytes"] > 0
    assert report["second_click"]["share_median"] > 0 and report["second_click"]["kept_bytes_median"] > 0
    assert report["overhead"]["planning_us"] > 0 and report["overhead"]["launches"] > 0
    show(report, Console(quiet=True))


def nudged(call: Callable[[], Mapping[Any, Tensor]], name: str) -> Callable[[], dict[Any, Tensor]]:
    """``call`` with one value of one output off by a thousandth of the largest."""

    def wrong() -> dict[Any, Tensor]:
        out = {key: value.clone() for key, value in call().items()}
        out[name].flatten()[0] += 1e-3 * max(1.0, float(out[name].abs().max()))
        return out

    return wrong


def test_the_onnx_network_is_the_torch_network(network: SizedNetwork, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(to_onnx(network.traced.graph, [*OUTPUTS, "mask_half", "C3"]).SerializeToString())
    inputs = {n.name: t.numpy() for n, t in zip(network.traced.graph.inputs, network.inputs(CENTRE), strict=True)}
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        full = network.model(*network.inputs(CENTRE))
    for name in (*OUTPUTS, "mask_half", "C3"):
        found = session.run([name], inputs)[0]
        assert np.abs(found - full[name].numpy()).max() <= 1e-5 * full[name].abs().max().item(), name
    assert count_macs(path, inputs) == network.plan(cases_of(SIZE, 0)[0]).full_macs


@pytest.mark.parametrize("setting", ORT_SETTINGS)
def test_every_onnxruntime_setting_is_right(network: SizedNetwork, setting: str) -> None:
    assert network.error(CENTRE, OnnxFull(network, 1, setting).runner(network, CENTRE)()) <= TOLERANCE


@pytest.mark.parametrize("setting", TORCH_SETTINGS)
def test_every_torch_setting_is_right(model: TraceNet, network: SizedNetwork, setting: str) -> None:
    assert network.error(CENTRE, TorchFull(model, setting).runner(network, CENTRE)()) <= TOLERANCE


def test_folding_leaves_no_batch_norm_and_the_original_alone(model: TraceNet) -> None:
    folded = TorchFull(model, "folded BatchNorm").network
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    alone = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2)).eval()
    fold_batch_norms(alone)
    assert isinstance(alone[1], nn.BatchNorm2d)  # no convolution before it


def test_an_operator_without_counterpart_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.erf(x)

    graph = trace(Odd().eval(), torch.zeros(1, 1, 4, 4)).graph
    with pytest.raises(InputError, match=r"aten\.erf"):
        to_onnx(graph, graph.outputs)
    with pytest.raises(InputError, match="'nothing'"):
        to_onnx(graph, ["nothing"])


def test_errors_are_measured_on_every_output(network: SizedNetwork) -> None:
    right = network.reference(CENTRE)
    assert network.error(CENTRE, right) == 0
    for name in ("logits3", "reg7", "mask"):
        off = {**right, name: right[name] + 0.5 * right[name].abs().max()}
        assert network.error(CENTRE, off) == pytest.approx(0.5, rel=1e-3)
        assert network.error(CENTRE, {**right, name: torch.full_like(right[name], math.nan)}) == math.inf
        assert network.error(CENTRE, {key: x for key, x in right.items() if key != name}) == math.inf
        assert network.error(CENTRE, {**right, name: right[name][..., :0]}) == math.inf
    windows = network.request(CENTRE, (3, 4))
    cut = {name: right[str(name)][(..., *window.slices)] for name, window in windows.items()}
    assert network.error(CENTRE, cut, windows) == 0
    assert network.error(CENTRE, {**cut, "ctr3": cut["ctr3"] + 1}, windows) > TOLERANCE


def test_the_reference_is_the_network_for_any_click(network: SizedNetwork) -> None:
    click = (100.0, 20.0)
    with torch.inference_mode():
        full = network.model(*network.inputs(click))
        lean = FullNetwork(network.model)(*network.inputs(click))
    assert set(lean) == set(OUTPUTS)
    assert all(torch.equal(lean[name], full[name]) for name in OUTPUTS)
    assert network.error(click, {name: full[name] for name in OUTPUTS}) == 0
    assert network.error(CENTRE, {name: full[name] for name in OUTPUTS}) > TOLERANCE  # the mask belongs to its click


def test_a_late_wrong_result_takes_earlier_times_back() -> None:
    errors: Iterator[float] = iter([0.0, 0.0, 0.0, 1.0])
    contestant = Contestant(lambda: None, lambda _: next(errors))
    assert contestant.check()
    contestant.measure()
    contestant.measure()
    assert contestant.median_ms is not None
    contestant.measure()
    assert [contestant.status, contestant.median_ms, contestant.min_ms] == ["wrong", None, None]
    contestant.measure()  # asks nobody any more
    assert len(contestant.times) == 3


def test_a_busy_machine_is_noticed() -> None:
    samples = sgemm.Sgemm(1, [1.0], [0.95, 0.99, 0.2])
    assert samples.idle
    samples.cpu_shares += [0.5, 0.4]
    assert not samples.idle


def test_a_product_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgemm, "SIDE", 128)
    samples = sgemm.Sgemm(1)
    samples.sample()
    samples.sample()
    assert samples.rate > 0 and len(samples.cpu_shares) == 2


def test_live_bytes_of_a_chain() -> None:
    x = torch.ones(1024)

    def chain() -> Tensor:
        a = x + 1  # one vector
        b = a * 2  # two
        view = b.view(32, 32)  # still two
        del a  # one
        c = view.flatten() + 1  # two: flatten is a view
        del b, view
        return c.add_(x.view(32, 32).view(-1))  # in place

    assert peak_live_bytes(chain, [x]) == 2 * 4096
    assert peak_live_bytes(lambda: [x + 1, x + 2, x + 3], [x]) == 3 * 4096
    assert peak_live_bytes(lambda: x.view(2, 512), [x]) == 0


def test_pairs_lie_40_pixels_apart_inside_the_image() -> None:
    pairs = pairs_of((320, 240), 20)
    assert len(pairs) == 20
    for first, second in pairs:
        assert math.dist(first, second) == pytest.approx(40)
        assert all(0 <= x < 320 and 0 <= y < 240 for x, y in (first, second))


def test_clicks_of_a_size() -> None:
    full = run.SizeRun((1024, 768), 4, 5)
    assert len(full.cases) == 34 and [case.kind for case in full.cases[:3]] == ["centre", "centre", "grid"]
    assert {case.click for case in full.cases[2:4]} == {(128.0, 96.0)}
    assert len(run.SizeRun((1024, 768), 2, 5, every=2).cases) == 6


def test_a_failed_cold_start_says_why(tmp_path: Path) -> None:
    found = cold_start.segment_once("torch", tmp_path / "mask.png", tmp_path / "missing.jpg", (1, 1))
    assert "missing.jpg" in found["error"] and found["ms"] > 0
