"""The command line: what it prints, what it writes, and one line and exit code 2 for everything that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tracenet import PredictorSettings, create_model
from tracenet.cli import main, parse_click, parse_levels, parse_mask_cells, parse_mask_window, parse_size, parse_zoom
from tracenet.models import TraceNet
from tracenet.models.weights import CheckpointInfo, load_checkpoint, save_checkpoint
from tracenet.traced import TracedModel
from tracenet.traced import trace as capture
from tracenet_kernels.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a photo and the checkpoint of a tiny network."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    model = create_model("tracenet_r50_fpn", channels=32, level_head=True, mask_branch="p3")
    save_checkpoint(model, folder / "tiny.safetensors", predictor=PredictorSettings(working_size=64, levels=(3, 5)))
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    (folder / "text.jpg").write_text("hello, this is text")
    (folder / "half.safetensors").write_bytes((folder / "tiny.safetensors").read_bytes()[:1000])
    return folder


CAPTURED: dict[tuple[int, ...], TracedModel] = {}
LOADED: dict[str, tuple[TraceNet, CheckpointInfo]] = {}


@pytest.fixture(autouse=True)
def loaded_and_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command loads and captures its network anew; the tests share what the first of them made."""

    def load(path: Path) -> tuple[TraceNet, CheckpointInfo]:
        if path.name not in LOADED:
            LOADED[path.name] = load_checkpoint(path)
        return LOADED[path.name]

    def trace(model: TraceNet, inputs: tuple[torch.Tensor, ...]) -> TracedModel:
        size = tuple(inputs[0].shape)
        if size not in CAPTURED:
            CAPTURED[size] = capture(model, inputs)
        return CAPTURED[size]

    monkeypatch.setattr("tracenet.models.weights.load_checkpoint", load)
    monkeypatch.setattr("tracenet.sessions.torch_session.trace", trace)


class Ran:
    """Exit code, standard output and standard error of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["tracenet", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Ran(left.value.code, out, err)

    return call


def check_refused(ran: Ran, *words: str) -> None:
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("tracenet: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err


def test_zoom_is_parsed() -> None:
    assert [parse_zoom(text) for text in (None, "auto", "off")] == [None, "auto", "off"]
    assert parse_zoom("0.5, 1,native") == (0.5, 1.0, "native")
    for text in ("", "1,", "Auto", "1;2"):
        with pytest.raises(InputError, match="pass auto, off, or factors"):
            parse_zoom(text)


def test_segment_writes_everything_and_reports(run: Run, files: Path, tmp_path: Path) -> None:
    mask, overlay, windows = tmp_path / "mask.png", tmp_path / "overlay.jpg", tmp_path / "windows.png"
    common = ["segment", files / "photo.png", "--click", "40,20", "--checkpoint", files / "tiny.safetensors"]
    ran = run(*common, "-o", mask, "--overlay", overlay, "--windows", windows, "--json")
    assert ran.code == 0
    assert ran.err == ""
    report = json.loads(ran.out)
    assert set(report) == {
        *("output", "score", "level", "zoom", "box", "mask_pixels", "width", "height"),
        *("predict_ms", "capture_ms", "macs", "full_macs"),
    }
    assert report["output"] == str(mask)
    assert (report["width"], report["height"]) == (64, 48)
    assert 3 <= report["level"] <= 5
    assert 0 <= report["score"] <= 1
    assert 0 < report["macs"] < report["full_macs"]
    assert len(report["box"]) == 4
    with Image.open(mask) as found:
        assert (found.mode, found.size, found.format) == ("L", (64, 48), "PNG")
        values = np.asarray(found)
    assert set(np.unique(values)) <= {0, 255}
    assert (values == 255).sum() == report["mask_pixels"]
    with Image.open(overlay) as found:
        assert (found.size, found.format) == ((64, 48), "JPEG")
    with Image.open(windows) as found:
        assert found.width > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.png", "overlay.jpg", "windows.png"]

    text = run(*common, "-o", tmp_path / "[bold]mask[x].png", "--backend", "torch")
    assert text.code == 0
    assert text.out.startswith(f"{tmp_path}/[bold]mask[x].png: {report['mask_pixels']} pixels, score 0.")
    assert text.out.count("\n") == 1
    assert (tmp_path / "[bold]mask[x].png").read_bytes() == mask.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ["--levels", "3-7"],
        ["--levels", "4"],
        ["--mask-window", "full"],
        ["--mask-window", "12.5"],
        ["--zoom", "auto"],
        ["--zoom", "2, 3"],
        ["--zoom", "off"],
    ],
)
def test_segment_options(run: Run, files: Path, tmp_path: Path, options: list[str]) -> None:
    checkpoint = ["--checkpoint", files / "tiny.safetensors"]
    ran = run(
        "segment", files / "photo.png", "--click", "0,47", "-o", tmp_path / "m.png", "--json", *checkpoint, *options
    )
    assert ran.code == 0
    report = json.loads(ran.out)
    if "4" in options:
        assert report["level"] == 4
    assert report["zoom"] in {"auto": (1, 2), "2, 3": (2, 3)}.get(options[1], (1,))


def test_segment_draws_the_scale_that_answered(run: Run, files: Path, tmp_path: Path) -> None:
    given = ["segment", files / "photo.png", "--click", "40,20", "--checkpoint", files / "tiny.safetensors"]
    ran = run(*given, "-o", tmp_path / "m.png", "--windows", tmp_path / "w.png", "--zoom", "2")
    assert ran.code == 0
    assert " at 2x, " in ran.out
    with Image.open(tmp_path / "w.png") as found:
        assert found.width > 1000


BAD_SEGMENT: dict[str, tuple[list[str], str]] = {
    "click outside": (["--click", "64,20"], "outside the photo of 64x48"),
    "click outside by a fraction": (["--click", "63.6,20"], "outside the photo"),
    "click negative": (["--click", "-5,20"], "outside the photo"),
    "click not finite": (["--click", "nan,20"], "outside the photo"),
    "click overflowing": (["--click", "1e999,20"], "outside the photo"),
    "click of words": (["--click", "a,b"], "write X,Y in pixels"),
    "click of one number": (["--click", "5"], "write X,Y in pixels"),
    "click of three numbers": (["--click", "5,5,5"], "write X,Y in pixels"),
    "zoom of words": (["--zoom", "far"], "pass auto, off, or factors"),
    "zoom too small": (["--zoom", "0.1"], "both sides must keep 32 pixels"),
    "zoom of nothing": (["--zoom", "0"], "pass positive numbers"),
    "levels too low": (["--levels", "2-7"], "3 <= first <= last <= 7"),
    "levels turned": (["--levels", "5-3"], "3 <= first <= last <= 7"),
    "levels too high": (["--levels", "3-8"], "3 <= first <= last <= 7"),
    "levels of fractions": (["--levels", "3.5-5"], "write first-last within 3-7"),
    "levels superscript": (["--levels", "\u00b3-5"], "write first-last within 3-7"),
    "levels enormous": (["--levels", "9" * 5000], "write first-last within 3-7"),
    "radius zero": (["--mask-window", "0"], "greater than 0"),
    "radius negative": (["--mask-window", "-1"], "greater than 0"),
    "radius not finite": (["--mask-window", "nan"], "greater than 0"),
    "unknown window": (["--mask-window", "foo"], "pass box, full, or a radius"),
    "unknown backend": (["--backend", "abacus"], "backend 'abacus' is not available"),
    "no checkpoint": (["--checkpoint", "absent.safetensors"], "absent.safetensors is not a file"),
    "truncated checkpoint": (["--checkpoint", "half.safetensors"], "truncated or of another kind"),
    "foreign checkpoint": (["--checkpoint", "text.jpg"], "cannot be read as safetensors"),
    "no photo": (["IMAGE", "absent.png"], "absent.png does not exist"),
    "text as photo": (["IMAGE", "text.jpg"], "is not an image Pillow can read"),
    "folder as photo": (["IMAGE", "."], "is a folder"),
    "no folder": (["-o", "absent/mask.png"], "does not exist; create it"),
    "unknown suffix": (["-o", "mask.xyz"], "pictures cannot be written as '.xyz'"),
    "folder as output": (["-o", "."], "is a folder"),
    "photo as output": (["-o", "photo.png"], "is the photo or another output"),
    "overlay without folder": (["--overlay", "absent/o.png"], "does not exist"),
    "overlay of unknown suffix": (["--overlay", "o.xyz"], "cannot be written as '.xyz'"),
    "overlay over mask": (["--overlay", "mask.png"], "is the photo or another output"),
    "windows of unknown suffix": (["--windows", "w.xyz"], "cannot be written as '.xyz'"),
    "overlay that cannot be encoded": (["--overlay", "o.xbm"], "cannot be written as XBM"),
    "unknown option": (["--colour", "red"], "No such option"),
    "option without value": (["--backend"], "requires an argument"),
    "one word too many": (["IMAGE", "photo.png", "photo.png"], "see tracenet segment --help"),
}


@pytest.mark.parametrize("name", BAD_SEGMENT)
@pytest.mark.parametrize("old", [None, b"old"], ids=["fresh", "over an old file"])
def test_segment_refuses_and_leaves_no_trace(
    run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, old: bytes | None
) -> None:
    options, message = BAD_SEGMENT[name]
    for file in files.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    if old is not None:
        (tmp_path / "mask.png").write_bytes(old)
    before = sorted(path.name for path in tmp_path.iterdir())
    photo = (files / "photo.png").read_bytes()
    defaults = {"--click": "40,20", "-o": "mask.png", "--checkpoint": "tiny.safetensors"}
    images = options[1:] if options[0] == "IMAGE" else ["photo.png"]
    given = [] if options[0] == "IMAGE" else options
    rest = [part for key, value in defaults.items() if key not in given for part in (key, value)]
    check_refused(run("segment", *images, *rest, *given), message)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (files / "photo.png").read_bytes() == photo
    if old is not None:
        assert (tmp_path / "mask.png").read_bytes() == old


def test_trace_draws_its_windows(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "windows.png"
    ran = run("trace", "--size", "96x64", "--click", "50,30", "--levels", "3-3", "--picture", target)
    assert ran.code == 0, ran.err
    with Image.open(target) as drawn:
        assert drawn.width > 5 * 300


def test_trace_json(run: Run) -> None:
    options = ["trace", "--model", "tracenet_r50_fpn", "--size", "96x64", "--click", "50,30", "--levels", "3-7"]
    ran = run(*options, "--mask-cells", "4", "--classes", "80", "--json")
    assert ran.code == 0
    assert ran.err == ""
    report = json.loads(ran.out)
    assert set(report) == {"windows", "macs", "full_macs"}
    for key in ("macs", "full_macs"):
        parts = report[key]
        assert list(parts) == ["backbone", "fpn", "heads", "mask", "total"]
        assert all(isinstance(value, int) for value in parts.values())
        assert parts["total"] == sum(parts.values()) - parts["total"]
    assert 0 < report["macs"]["mask"] < report["full_macs"]["mask"]
    names = "image conv1 maxpool C2 C3 C4 C5 inner3 inner4 inner5 P3 P4 P5 P6 P7".split()
    assert set(names) <= set(report["windows"])
    assert all(len(window) == 4 for window in report["windows"].values())
    assert report["windows"]["image"] == [0, 64, 0, 96]
    assert report["windows"]["theta3"] == [3, 4, 6, 7]
    assert report["windows"]["mask"] == [1, 5, 4, 8]

    heads = json.loads(run(*options, "--json").out)
    assert heads["macs"]["mask"] == 0
    assert "mask" not in heads["windows"]
    whole = json.loads(run(*options, "--mask-cells", "all", "--json").out)
    assert whole["windows"]["mask"] == [0, 8, 0, 12]
    few = json.loads(run(*options[:-1], "3-3", "--json").out)
    assert few["macs"]["total"] < heads["macs"]["total"]
    assert "P7" not in few["windows"]

    table = run(*options)
    assert table.code == 0
    assert "backbone.conv1" in table.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "resnet"], "no model is named 'resnet'"),
        (["--size", "1000x768"], "multiples of 32"),
        (["--size", "0x0"], "multiples of 32"),
        (["--size", "96"], "write WIDTHxHEIGHT"),
        (["--size", "-96x64"], "write WIDTHxHEIGHT"),
        (["--size", "96x6\u00b2"], "write WIDTHxHEIGHT"),
        (["--size", "9" * 30 + "x64"], "write WIDTHxHEIGHT"),
        (["--click", "96,3"], "outside the image"),
        (["--click", "3,-1"], "outside the image"),
        (["--click", "nan,3"], "outside the image"),
        (["--click", "1e300,3"], "outside the image"),
        (["--levels", "2-3"], "3 <= first <= last <= 7"),
        (["--levels", "x"], "write first-last"),
        (["--mask-cells", "0"], "positive number of P3 cells"),
        (["--mask-cells", "-2"], "a number of P3 cells, all or none"),
        (["--mask-cells", "some"], "a number of P3 cells, all or none"),
        (["--mask-cells", "\u00b2"], "a number of P3 cells, all or none"),
        (["--mask-cells", "3", "--mask-branch", "none"], "needs a mask branch"),
        (["--mask-branch", "p9"], "mask_branch='p9' is not known"),
        (["--classes", "0"], "at least 1"),
        (["--classes", "many"], "see tracenet trace --help"),
    ],
)
def test_trace_refuses(run: Run, options: list[str], message: str) -> None:
    defaults = {"--size": "96x64", "--click": "50,30"}
    rest = [part for key, value in defaults.items() if key not in options for part in (key, value)]
    check_refused(run("trace", *rest, *options), message)


def test_export_onnx(run: Run, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "click.onnx"
    options = ["--size", "64x64", "--click", "30,20", "--levels", "3-4", "--mask-cells", "4", "--out", str(out)]
    ran = run("export-onnx", files / "tiny.safetensors", *options, "--check", "--json")
    assert (ran.err, ran.code) == ("", 0)
    result = json.loads(ran.out)
    assert result["bytes"] == out.stat().st_size
    assert result["outputs"]["mask"] == [1, 1, 4, 4]
    assert result["outputs"]["theta4"] == [1, 169, 1, 1]
    assert list(result["inputs"]) == ["image", "theta", "origin", "size_of_interest"]
    assert result["max_error"] < 1e-4
    assert 0 < result["macs"] <= result["full_macs"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "60x64"], "multiples of 32"),
        (["--click", "99,9"], "outside the image"),
        (["--inputs", "part"], "choose one of"),
        (["--out", "none/click.onnx"], "does not exist"),
    ],
)
def test_export_onnx_refuses(run: Run, files: Path, tmp_path: Path, options: list[str], message: str) -> None:
    usual = ["--size", "64x64", "--click", "30,20", "--out", str(tmp_path / "click.onnx")]
    check_refused(run("export-onnx", files / "tiny.safetensors", *usual, *options), message)
    assert list(tmp_path.iterdir()) == []


def test_costs(run: Run) -> None:
    ran = run("costs", "--size", "640x480", "--json")
    assert ran.code == 0
    data = json.loads(ran.out)
    assert data["size"] == [640, 480]
    assert {(row["network"], row["depth"]) for row in data["rows"]} == {
        (network, depth) for network in ("FullNet", "TraceNet") for depth in (50, 101)
    }
    text = run("costs", "--size", "640x480")
    assert text.code == 0
    for word in ("FullNet-R-50-FPN", "TraceNet-R-101-FPN", "800x528", "86.67", "118.28", "34.47", "66.67"):
        assert word in text.out
    for row in data["rows"] + data["nearest"]["rows"]:
        assert f"{row['gmacs']:.2f}" in text.out


def test_costs_refuses(run: Run) -> None:
    check_refused(run("costs", "--size", "640"), "write WIDTHxHEIGHT")
    check_refused(run("costs", "--size", "641x480"), "multiples of 32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "No such command 'bogus'; see tracenet --help"),
        (["--bogus"], "No such option"),
        (["segment"], "see tracenet segment --help"),
        (["segment", "photo.png"], "see tracenet segment --help"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], message: str) -> None:
    check_refused(run(*arguments), message)


def test_help(run: Run) -> None:
    for arguments in ([], ["--help"]):
        ran = run(*arguments)
        assert ran.code == 0
        for command in ("segment", "trace", "costs"):
            assert command in ran.out
    assert "--mask-window" in run("segment", "--help").out


def test_starting_does_not_wait_for_torch() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = "import sys, tracenet, tracenet.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=60)
    ran = subprocess.run(
        [sys.executable, "-m", "tracenet.cli", "--help"], check=True, env=environment, timeout=60, capture_output=True
    )
    assert b"segment" in ran.stdout
    assert ran.stderr == b""


def test_parsing() -> None:
    assert parse_click("3.5,-4") == (3.5, -4.0)
    assert parse_levels("3-7") == (3, 7)
    assert parse_levels(" 4 ") == (4, 4)
    assert parse_size("1024X768") == (1024, 768)
    assert parse_mask_window(None) is None
    assert parse_mask_window("box") == "box"
    assert parse_mask_window("7") == 7.0
    assert parse_mask_cells("all") == "all"
    assert parse_mask_cells("32") == 32
    for parse, text in ((parse_click, ""), (parse_levels, "-"), (parse_size, "x"), (parse_mask_window, "")):
        with pytest.raises(InputError):
            parse(text)
