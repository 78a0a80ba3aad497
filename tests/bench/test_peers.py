"""The peers' comparison: the same clicks and masks for both, times in turns, multiply-adds counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from bench.peers.__main__ import main
from bench.peers.onnx_macs import count_macs
from bench.peers.segment import SamSegment
from bench.peers.times import medians
from tests.onnx_pairs import Layout, write_pair
from tracenet import PredictorSettings, create_model
from tracenet.models import TraceNet
from tracenet.models.weights import load_checkpoint, save_checkpoint
from tracenet.sam_onnx import SamOnnxPredictor, SamOptions
from tracenet.traced import TracedModel
from tracenet.traced import trace as capture

RADIUS = 12.0


@pytest.fixture
def loaded_and_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation and the timed predictor load and capture the network anew; that takes longer than all the rest."""
    loaded: dict[Path, Any] = {}
    captured: dict[tuple[int, ...], TracedModel] = {}

    def load(path: Path) -> Any:
        if path not in loaded:
            loaded[path] = load_checkpoint(path)
        return loaded[path]

    def trace(model: TraceNet, inputs: tuple[torch.Tensor, ...]) -> TracedModel:
        if inputs[0].shape not in captured:
            captured[inputs[0].shape] = capture(model, inputs)
        return captured[inputs[0].shape]

    monkeypatch.setattr("tracenet.evaluation.run.load_checkpoint", load)
    monkeypatch.setattr("tracenet.models.weights.load_checkpoint", load)
    monkeypatch.setattr("tracenet.sessions.torch_session.trace", trace)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos of 64 x 64, each with one disc of the radius that the tiny pair always answers with; a checkpoint."""
    tmp_path = tmp_path_factory.mktemp("peers")
    torch.manual_seed(0)
    model = create_model("tracenet_r50_fpn", channels=16, level_head=True)
    save_checkpoint(model, tmp_path / "tiny.safetensors", predictor=PredictorSettings(working_size=64))
    (tmp_path / "photos").mkdir()
    images, annotations = [], []
    for number, (x, y) in enumerate(((20, 30), (40, 24)), 1):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        polygon = np.stack([x + 0.5 + RADIUS * np.cos(turn), y + 0.5 + RADIUS * np.sin(turn)], 1).ravel().tolist()
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": [polygon]})
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "disc"}]}
    (tmp_path / "a.json").write_text(json.dumps(data))
    write_pair(tmp_path, Layout(radius=RADIUS, count=4, iou=(0.99, 0.9, 0.8, 0.7)))
    return tmp_path


def arguments(files: Path, *more: str) -> list[str]:
    words = {"images": "photos", "annotations": "a.json", "encoder": "encoder.onnx", "decoder": "decoder.onnx"}
    words |= {"checkpoint": "tiny.safetensors", "json": "out.json"}
    return [part for name, file in words.items() for part in (f"--{name}", str(files / file))] + list(more)


@pytest.mark.usefixtures("loaded_and_captured_once")
def test_both_models_answer_the_same_clicks(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(files, "--clicks", "5", "--single-mask", "--interleave", "2", "--threads", "1"))
    report = json.loads((files / "out.json").read_text())
    ours, peer = report["ours"], report["peer"]
    for key in ("instances", "images", "clicks", "annotations", "protocol", "seed"):
        assert ours[key] == peer[key], key
    assert (peer["instances"], peer["clicks"]) == (2, 10)
    assert set(ours) - set(peer) == {"checkpoint", "settings", "rft_checked", "rft_max_error"}
    # The deepest point of a disc is its centre, and the pair answers with that very disc.
    assert peer["one_click_miou"] > 0.9
    assert peer["hit_rate_70"] == 1.0
    # A click further out gives the same disc around itself, which covers less and less.
    bands = [band["miou_t"] for band in peer["by_band"] if band["miou_t"] is not None]
    assert bands[0] > 0.75
    assert bands[-1] < 0.6
    assert peer["mask"] == "single"
    times = report["times"]
    assert len(times["photos"]) == 2
    assert set(times["peer"]["first"]["phases"]) == {"prepare", "encode", "decode", "resize"}
    assert set(times["peer"]["second"]["phases"]) == {"decode", "resize"}
    assert "set_image" in times["ours"]["first"]["phases"] and "set_image" not in times["ours"]["second"]["phases"]
    assert 0 < times["ours"]["second"]["macs"] <= times["ours"]["first"]["macs"]
    assert times["exact"] and times["macs"]["peer_encoder"] == 0  # an average pool is no product
    printed = capsys.readouterr().out
    assert "mIoU-T" in printed and "of SGEMM rate" in printed and "wrong" not in printed
    assert sorted(path.name for path in files.glob("out*")) == ["out.json"]


def test_the_mask_of_the_highest_predicted_iou_is_taken(files: Path) -> None:
    pair = SamOnnxPredictor(files / "encoder.onnx", files / "decoder.onnx", SamOptions(threads=1))
    photo, points = Image.new("RGB", (64, 64)), np.array([[20, 30], [40, 24]], np.float32)
    best, single = (list(SamSegment(pair, single)(photo, points)) for single in (False, True))
    assert [score for _, _, score in best] == pytest.approx([0.9, 0.9])
    assert [score for _, _, score in single] == pytest.approx([0.99, 0.99])
    assert best[0][0].sum() < single[0][0].sum()


def test_errors_are_one_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "text.onnx").write_text("no graph")
    with pytest.raises(SystemExit) as ended:
        main(arguments(files, "--decoder", str(files / "text.onnx"), "--json", str(files / "none.json")))
    assert ended.value.code == 2
    assert "text.onnx is not an ONNX file" in capsys.readouterr().err
    assert not (files / "none.json").exists()


def test_medians() -> None:
    def clicks(ms: float, macs: int | None, capture: float = 0.0) -> dict[str, object]:
        return {"ms": ms, "phases": {"a": ms / 2}, "capture_ms": capture, "macs": macs}

    rows = [
        {"ours": [clicks(n, 10 * n, 7.0 * n), clicks(n / 10, n)], "peer": [clicks(2 * n, None), clicks(n, None)]}
        for n in (1, 5, 3)
    ]
    report = medians(rows)
    assert report["ours"]["first"] == {"ms": 3, "phases": {"a": 1.5}, "macs": 30}
    assert report["ours"]["capture_ms"] == 21
    assert report["peer"]["second"] == {"ms": 3, "phases": {"a": 1.5}, "macs": None}


def test_macs_of_a_graph_with_open_sizes(tmp_path: Path) -> None:
    info, node, floats = helper.make_tensor_value_info, helper.make_node, TensorProto.FLOAT
    nodes = [
        node("Conv", ["x", "w"], ["conv"], strides=[2, 2], pads=[1, 1, 1, 1], group=2),
        node("ConvTranspose", ["conv", "v"], ["up"], strides=[2, 2]),
        node("Flatten", ["conv"], ["flat"], axis=2),
        node("Transpose", ["flat"], ["flat_t"]),
        node("MatMul", ["flat", "flat_t"], ["product"]),
        node("Gemm", ["product", "b"], ["y"], transA=1),
        node("Relu", ["up"], ["z"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        for name, shape in (("w", (6, 2, 3, 3)), ("v", (6, 5, 2, 2)), ("b", (6, 7)))
    ]
    inputs = [info("x", floats, [1, 4, "h", "w_"])]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", floats, None), info("z", floats, None)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    cells = 5 * 7  # 9 x 13 pixels, stride 2
    conv, up = 6 * cells * 2 * 9, 6 * cells * 5 * 4
    product, gemm = 6 * 6 * cells, 6 * 7 * 6
    assert count_macs(tmp_path / "g.onnx", {"x": np.zeros((1, 4, 9, 13), np.float32)}) == conv + up + product + gemm
