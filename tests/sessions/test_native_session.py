"""The predictor on the native backend gives what it gives on PyTorch, for the same multiply-adds, and without it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.networks import randomised
from tracenet import Predictor, PredictorSettings, Window, create_model
from tracenet.checkpoint import BUNDLED
from tracenet.models import TraceNet
from tracenet.models.weights import save_checkpoint
from tracenet.segment import segment_photo
from tracenet.sessions.native_session import NativeNetwork
from tracenet_kernels import backends, native
from tracenet_kernels.errors import BackendError, InputError
from tracenet_kernels.testing import assert_close

ASSETS = Path(str(files("tracenet") / "assets"))
SETTINGS = PredictorSettings(working_size=128, mask_margin_pixels=2.0)
WIDTH, HEIGHT = 150, 97
VARIANTS: dict[str, dict[str, Any]] = {
    "condinst": {"level_head": True},
    "literal": {"mask_branch": "p3", "mask_order": "upsample_probabilities", "rel_to": "cell", "num_classes": 3},
    "bgr": {"channel_order": "bgr", "std": (57.0, 58.0, 59.0), "tower_norm": "bn_per_level", "anchor_offset": "zero"},
}

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not() or "-")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
    return np.clip(np.asarray(coarse) + rng.normal(0, 20, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest) -> tuple[Predictor, Predictor]:
    """The same network on both backends."""
    model = randomised(**VARIANTS[request.param])
    choice = "level" if model.config.level_head else "score"
    settings = replace(SETTINGS, level_choice=choice, zoom_choice="score", zoom_factors=(0.5, 1, 2), zoom_enlarge=4)
    return Predictor(model, settings, "native"), Predictor(model, settings, "torch")


@pytest.fixture(scope="module")
def model() -> TraceNet:
    return randomised(level_head=True)


@pytest.fixture
def predictor(model: TraceNet, photo: np.ndarray) -> Predictor:
    found = Predictor(model, SETTINGS, "native")
    found.set_image(photo)
    return found


def check_same(pair: tuple[Predictor, Predictor], points: Any, **options: Any) -> None:
    ours, reference = pair
    masks, scores, logits = ours.predict(points, **options)
    expected_masks, expected_scores, expected_logits = reference.predict(points, **options)
    assert masks.shape == expected_masks.shape
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
    assert ours.last_boxes is not None
    np.testing.assert_array_equal(ours.last_levels, reference.last_levels)
    np.testing.assert_array_equal(ours.last_zoom, reference.last_zoom)
    assert_close(torch.from_numpy(ours.last_boxes), torch.from_numpy(reference.last_boxes))
    peak = np.abs(expected_logits).max()
    if ours.config.mask_order == "upsample_probabilities":  # the logit of a probability enlarges rounding
        logits, expected_logits, peak = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-expected_logits)), 1.0
    assert np.abs(logits - expected_logits).max() <= 2e-4 * peak
    assert np.mean(masks != expected_masks) < 2e-3


@pytest.mark.parametrize("click", [(0, 0), (149, 96), (75, 48), (20, 96), (63.4, 31.6)])
def test_native_masks_are_the_reference_masks(
    pair: tuple[Predictor, Predictor], photo: np.ndarray, click: tuple[float, float]
) -> None:
    for predictor in pair:
        predictor.set_image(photo)
    assert [predictor.backend for predictor in pair] == ["native", "torch"]
    check_same(pair, [click])
    check_same(pair, [click], multimask_output=True, levels=(3, 5), mask_window=20)
    check_same(pair, [[click], [(30, 20)]], mask_window="full")


@pytest.mark.parametrize("pair", ["condinst"], indirect=True)
def test_native_masks_at_several_scales(pair: tuple[Predictor, Predictor], photo: np.ndarray) -> None:
    for predictor in pair:
        predictor.set_image(photo)
    check_same(pair, [(70, 40)], zoom="auto")
    check_same(pair, [(70, 40), (20, 80)], zoom=(0.5, "native", 3), multimask_output=True)
    plans = [predictor.last_plan for predictor in pair]
    assert plans[0] is not None
    assert plans[1] is not None
    assert [len(plan.locate) for plan in plans if plan] == [len(plans[1].locate)] * 2


def test_plans_are_those_of_the_tracer(pair: tuple[Predictor, Predictor], photo: np.ndarray) -> None:
    for predictor in pair:
        predictor.set_image(photo)
        predictor.predict([(75, 48)], levels=(3, 5))
    ours, reference = (predictor.last_plan for predictor in pair)
    assert ours is not None
    assert reference is not None
    assert ours.locate[0].macs == reference.locate[0].macs
    # What lies inside fused steps is not kept apart, so that the second phase may differ a little.
    assert ours.macs == pytest.approx(reference.macs, rel=0.02)
    assert ours.full_macs == pytest.approx(reference.full_macs, rel=1e-3)
    assert ours.locate[0].request == reference.locate[0].request
    shared = set(ours.windows) & set(reference.windows)
    assert {"image", "C2", "C5", "P3", "theta3", "maskfeat", "mask_half"} <= shared
    for name in shared:
        assert ours.windows[name] == reference.windows[name], name
    for part, traced in zip(ours.plans, reference.plans, strict=True):
        for name in set(part.planes) & set(traced.planes):
            assert part.planes[name] == traced.planes[name], name
        assert set(part.planes) == set(part.windows)
        assert list(part.barriers) == list(traced.barriers) == []
    assert 0 < ours.planning_ms < reference.planning_ms
    text, full = ours.table(), ours.table(full=True)
    assert text.count("GMACs (") == 2
    assert "heads.theta" in text
    assert len(full.splitlines()) > len(text.splitlines())


def test_kept_features_save_work_and_change_no_bit(predictor: Predictor, photo: np.ndarray) -> None:
    first = predictor.predict([(20, 20)], levels=(3, 5))
    plan, held = predictor.last_plan, predictor.kept_bytes
    again = predictor.predict([(20, 20)], levels=(3, 5))
    assert plan is not None
    assert predictor.last_plan is not None
    assert held > 0
    assert predictor.last_plan.macs < 0.5 * plan.macs
    near = predictor.predict([(28, 24)], levels=(3, 5))
    assert predictor.last_plan.macs < plan.macs
    predictor.forget_features()
    assert predictor.kept_bytes == 0
    fresh = predictor.predict([(28, 24)], levels=(3, 5))
    for a, b in (*zip(first, again, strict=True), *zip(near, fresh, strict=True)):
        np.testing.assert_array_equal(a, b)
    for options in ({"keep_features": False}, {"max_kept_bytes": 1}):
        other = Predictor(predictor.model, SETTINGS, "native", **options)  # type: ignore[arg-type]
        other.set_image(photo)
        np.testing.assert_array_equal(other.predict([(28, 24)], levels=(3, 5))[2], fresh[2])
        assert other.kept_bytes == 0


def test_objects_together_are_the_objects_alone(predictor: Predictor) -> None:
    """A pixel's value does not depend on the window it is computed in."""
    clicks = [(20, 20), (28, 24), (140, 90), (30, 20)]
    masks, scores, logits = predictor.predict([[click] for click in clicks], multimask_output=True)
    for i, click in enumerate(clicks):
        predictor.forget_features()
        for together, alone in zip(
            (masks[i], scores[i], logits[i]), predictor.predict([click], multimask_output=True), strict=True
        ):
            np.testing.assert_array_equal(together, alone)


def test_predictors_in_threads_give_the_same_bits(model: TraceNet, photo: np.ndarray) -> None:
    clicks = [(20, 20), (75, 48), (140, 90), (5, 90)]
    one = Predictor(model, SETTINGS, "native")
    one.set_image(photo)
    expected = [one.predict([click]) for click in clicks]
    predictors = [Predictor(model, SETTINGS, "native") for _ in range(2)]
    predictors += [one, one]  # threads that share a predictor's network and session
    for predictor in predictors[:2]:
        predictor.set_image(photo)
    found: list[Any] = [None] * len(predictors)

    def work(i: int) -> None:
        found[i] = [predictors[i].predict([click]) for click in clicks for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(predictors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results in found:
        assert results is not None
        for i, result in enumerate(results):
            for a, b in zip(result, expected[i // 3], strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def files_of_a_command(tmp_path_factory: pytest.TempPathFactory, model: TraceNet, photo: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("native")
    save_checkpoint(model, folder / "tiny.safetensors", predictor=SETTINGS)
    Image.fromarray(photo).save(folder / "photo.png")
    Predictor.from_pretrained(folder / "tiny.safetensors", "native")  # captures; all others find its program
    return folder


@pytest.fixture(scope="module")
def click(model: TraceNet, photo: np.ndarray) -> tuple[int, int]:
    """One under which something lies."""
    predictor = Predictor(model, SETTINGS, "native")
    predictor.set_image(photo)
    clicks = [(x, y) for x in range(10, WIDTH, 35) for y in range(10, HEIGHT, 25)]
    areas = [int(predictor.predict([click])[0].sum()) for click in clicks]
    assert max(areas) > 100
    return clicks[int(np.argmax(areas))]


def run_python(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=os.getcwd()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SEGMENT = """
import sys
from tracenet.cli import main
try:
    main()
except SystemExit as left:
    assert left.code == 0, left.code
heavy = [name for name in ("torch", "tracenet.models", "tracenet.graph", "rich.console") if name in sys.modules]
assert not heavy, heavy
"""


@pytest.mark.parametrize("backend", ["native", "auto"])
def test_segment_never_imports_torch(
    files_of_a_command: Path, click: tuple[int, int], tmp_path: Path, backend: str
) -> None:
    folder, mask = files_of_a_command, tmp_path / "mask.png"
    given = ["segment", folder / "photo.png", "--checkpoint", folder / "tiny.safetensors"]
    given += ["--click", f"{click[0]},{click[1]}"]
    run_python(SEGMENT, *given, "-o", mask, "--backend", backend)
    expected = segment_photo(
        folder / "photo.png",
        click,
        tmp_path / "torch.png",
        checkpoint=folder / "tiny.safetensors",
        backend="torch",
        windows_path=tmp_path / "windows.png",
    )
    with Image.open(mask) as found, Image.open(tmp_path / "torch.png") as reference:
        assert np.mean(np.asarray(found) != np.asarray(reference)) < 1e-3
    assert expected["mask_pixels"] > 0


def test_the_picture_of_windows(files_of_a_command: Path, tmp_path: Path) -> None:
    folder = files_of_a_command
    for backend in ("native", "torch"):
        segment_photo(
            folder / "photo.png",
            (40, 20),
            tmp_path / f"{backend}.png",
            checkpoint=folder / "tiny.safetensors",
            backend=backend,
            windows_path=tmp_path / f"{backend}_windows.png",
        )
    with Image.open(tmp_path / "native_windows.png") as found:
        assert found.width > 500


FORK = """
import os, sys
import numpy as np
from tracenet import Predictor
predictor = Predictor.from_pretrained(sys.argv[1], "native")
predictor.set_image(sys.argv[2])
before = predictor.predict([(40, 20)])
child = os.fork()
if child == 0:
    predictor.forget_features()
    again = predictor.predict([(40, 20)])
    same = all(np.array_equal(a, b) for a, b in zip(before, again))
    predictor.set_image(sys.argv[2])
    predictor.predict([(100, 50)])
    os._exit(0 if same else 1)
predictor.forget_features()
again = predictor.predict([(40, 20)])
assert all(np.array_equal(a, b) for a, b in zip(before, again))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_fork_goes_on(files_of_a_command: Path) -> None:
    run_python(FORK, files_of_a_command / "tiny.safetensors", files_of_a_command / "photo.png")


@pytest.mark.skipif(not (ASSETS / BUNDLED).is_file(), reason=f"the checkpoint tracenet/assets/{BUNDLED} is absent")
def test_the_bundled_checkpoint_on_the_demo_photo() -> None:
    pair = [Predictor.from_pretrained(backend=backend) for backend in ("native", "torch")]
    found = []
    for predictor in pair:
        predictor.set_image(ASSETS / "photos" / "rocket.jpg")
        found.append(predictor.predict([(322, 280)]))
    (masks, scores, logits), (expected, expected_scores, expected_logits) = found
    assert (masks & expected).sum() / (masks | expected).sum() > 0.999
    assert scores[0] == pytest.approx(float(expected_scores[0]), abs=1e-5)
    assert np.abs(logits - expected_logits).max() <= 1e-4 * np.abs(expected_logits).max()
    ours, reference = (predictor.last_plan for predictor in pair)
    assert ours is not None
    assert reference is not None
    assert ours.macs == reference.macs


class TestChoice:
    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backends, "_said", set())

    @pytest.fixture
    def not_built(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "_load", lambda: (None, "the C++ extension is not built"))

    @pytest.mark.usefixtures("not_built")
    def test_without_the_extension(self, model: TraceNet, caplog: pytest.LogCaptureFixture) -> None:
        for call in (Predictor.from_pretrained, lambda backend: Predictor(model, SETTINGS, backend)):
            with pytest.raises(BackendError, match="is not built; install a C"):
                call(backend="native")
        for _ in range(2):
            assert Predictor(model, SETTINGS).backend == "torch"
        assert caplog.text.count("not using backend 'native': the C++ extension is not built") == 1

    def test_automatic_is_native(self, model: TraceNet, caplog: pytest.LogCaptureFixture) -> None:
        assert isinstance(Predictor(model, SETTINGS).network, NativeNetwork)
        assert "not using" not in caplog.text

    def test_what_has_no_kernel(self, caplog: pytest.LogCaptureFixture) -> None:
        grouped = create_model("tracenet_r50_fpn", channels=32, tower_norm="gn")
        half = create_model("tracenet_r50_fpn", channels=16).half()
        for model, reason in ((grouped, "GroupNorm reads whole planes"), (half, "torch.float16 on cpu")):
            with pytest.raises(BackendError, match=reason):
                Predictor(model, backend="native")
            assert Predictor(model).backend == "torch"
            assert reason in caplog.text

    def test_steps_of_python_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Odd(TraceNet):
            def upsample_mask(self, logits: torch.Tensor) -> torch.Tensor:
                return super().upsample_mask(torch.sin(logits))

        model = Odd(randomised().config).eval()
        with pytest.raises(BackendError, match=r"no kernel computes .*sin"):
            Predictor(model, backend="native")
        assert Predictor(model).backend == "torch"


def test_requests_are_checked(predictor: Predictor) -> None:
    session = predictor._base.session
    with pytest.raises(InputError):
        session.run(
            {"mask_half": Window(0, 4, 0, 4)},
            {name: np.zeros(3, np.float32) for name in ("theta",)}
            | {"origin": np.zeros((1, 2), np.float32), "size_of_interest": np.ones(1, np.float32)},
        )
