"""A pair of ONNX files answers clicks whatever its layout, and what is no such pair is refused by name."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.onnx_pairs import SIDE, Layout, write_decoder, write_encoder, write_pair
from tracenet.sam_onnx import SamOnnxPredictor, SamOptions, best_masks, stability_scores
from tracenet_kernels.errors import (
    BackendError,
    CheckpointError,
    ClickError,
    ExecutionError,
    ImageError,
    InputError,
)

PHOTO = np.full((48, 96, 3), 200, np.uint8)  # fitted to 32 x 64, below it padding
SCALE = SIDE / 96
LAYOUTS = {
    "export": Layout(),
    "multimask": Layout(count=4),
    "three": Layout(count=3),
    "batched": Layout(prompts="prompts"),
    "no mask input, no photo size": Layout(mask_input=False, photo_size=False),
    "own masks only": Layout(low_res=False),
    "low-res masks called masks": Layout(low_res=False, photo_size=False),
    "channels last": Layout(channels_last=True),
    "image without batch axis": Layout(channels_last=True, batch_axis=False),
    "uint8": Layout(uint8=True),
    "open size": Layout(open_size=True),
    "one point": Layout(points=1),
    "three points": Layout(points=3),
    "nested": Layout(nested=True, prompts="prompts", int_labels=True, mask_input=False, photo_size=False, count=3),
    "two features": Layout(two_features=True),
    "other names": Layout(names=("pixels", "anything")),
}


def predictor(folder: Path, layout: Layout | None = None, **options: object) -> SamOnnxPredictor:
    return SamOnnxPredictor(*write_pair(folder, layout), SamOptions(side=SIDE, threads=1, **options))  # type: ignore[arg-type]


def disc(click: tuple[float, float], radius: float) -> np.ndarray:
    """Photo pixels within ``radius`` of the click as the tiny decoder sees it: SAM adds half an image pixel to it."""
    ys, xs = np.mgrid[: PHOTO.shape[0], : PHOTO.shape[1]]
    x, y = (v + 0.5 / SCALE for v in click)
    return np.hypot(xs + 0.5 - x, ys + 0.5 - y) < radius / SCALE


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_disc_around_the_click(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    p = predictor(tmp_path, layout)
    p.set_image(PHOTO)
    clicks = [(30.0, 20.0), (70.0, 40.0), (2.0, 3.0)]
    found = p.predict(np.array(clicks)[:, None])
    assert found.masks.shape == (3, layout.count, 48, 96)
    assert found.masks.dtype == np.bool_
    np.testing.assert_allclose(found.scores, [layout.iou[: layout.count]] * 3)
    for own, click in zip(found.masks, clicks, strict=True):
        for rank, mask in enumerate(own):
            assert iou(mask, disc(click, layout.radius * 0.75**rank)) > 0.85  # a cone sampled every four pixels
    logits, scores = p.decode(np.array(clicks)[:, None])
    np.testing.assert_array_equal(scores, found.scores)
    np.testing.assert_array_equal(logits, found.logits)
    assert np.mean((p.resize(logits) > 0) != found.masks) < 2e-3
    assert set(p.timings_ms) == {"prepare", "encode", "decode", "resize"}


@pytest.mark.parametrize("name", ["export", "own masks only", "low-res masks called masks"])
def test_stretched_photos(tmp_path: Path, name: str) -> None:
    p = predictor(tmp_path, LAYOUTS[name], fit="stretch")
    p.set_image(PHOTO)
    mask = p.predict([[30, 20]]).masks[0, 0]
    ys, xs = np.nonzero(mask)
    # A disc of radius 12 on the square image is 18 photo pixels wide and 9 high to each side of the click.
    assert (xs.min(), xs.max()) == (pytest.approx(12.5, abs=1.5), pytest.approx(48, abs=1.5))
    assert (ys.min(), ys.max()) == (pytest.approx(11.5, abs=1.5), pytest.approx(29, abs=1.5))


@given(st.integers(12, 90), st.integers(12, 90), st.data())
def test_masks_have_the_photo_size_and_hold_their_click(
    shared: SamOnnxPredictor, width: int, height: int, data: st.DataObject
) -> None:
    shared.set_image(np.zeros((height, width, 3), np.uint8))
    click = data.draw(st.tuples(st.integers(0, width - 1), st.integers(0, height - 1)))
    found = shared.predict([[click]])
    assert found.masks.shape == (1, 1, height, width)
    assert found.masks[0, 0, click[1], click[0]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SamOnnxPredictor:
    return predictor(tmp_path_factory.mktemp("pair"), Layout(photo_size=False))


@pytest.mark.parametrize(
    ("layout", "normalisation", "fed"),
    [
        (Layout(gain=1.0), "auto", (200 - 123.675) / 58.395),
        (Layout(gain=0.1, channels_last=True), "auto", 20.0),
        (Layout(gain=0.1, uint8=True), "auto", 20.0),
        (Layout(gain=1.0), "unit", 200 / 255),
        (Layout(gain=0.1), "raw", 20.0),
        (Layout(gain=0.1, two_features=True), "raw", 40.0),  # x - (-x)
    ],
)
def test_pixels_are_normalised_as_the_encoder_expects(
    tmp_path: Path, layout: Layout, normalisation: str, fed: float
) -> None:
    plain, shifted = predictor(tmp_path / "a"), predictor(tmp_path / "b", layout, normalisation=normalisation)
    for p in (plain, shifted):
        p.set_image(PHOTO)
    difference = shifted.decode([[30, 20]])[0] - plain.decode([[30, 20]])[0]
    np.testing.assert_allclose(difference, fed, atol=1e-4)


def test_a_prompt_in_a_batch_gets_the_answer_it_gets_alone(tmp_path: Path) -> None:
    layout = Layout(prompts="prompts", count=3)
    together, alone = predictor(tmp_path / "a", layout, batch=4), predictor(tmp_path / "b", layout, batch=1)
    clicks = np.random.default_rng(0).uniform(0, [96, 48], (9, 1, 2)).round()
    clicks = np.minimum(clicks, [95, 47])
    for p in (together, alone):
        p.set_image(PHOTO)
    assert (together.prompts_at_once, alone.prompts_at_once) == (4, 1)
    np.testing.assert_allclose(together.predict(clicks).logits, alone.predict(clicks).logits, atol=1e-4)


def test_a_decoder_that_only_claims_to_take_batches_is_asked_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = predictor(tmp_path, Layout(prompts="prompts"))
    p.set_image(PHOTO)
    clicks = np.array([[[10, 10]], [[80, 40]]])
    wanted = p.predict(clicks).logits
    again = predictor(tmp_path, Layout(prompts="prompts"))
    again.set_image(PHOTO)
    run, calls = again._run, []

    def first_answer_for_all(points: np.ndarray, labels: np.ndarray, full: bool) -> tuple[np.ndarray, ...]:
        calls.append(len(points))
        return run(np.repeat(points[:1], len(points), 0), labels, full)

    monkeypatch.setattr(again, "_run", first_answer_for_all)
    np.testing.assert_array_equal(again.predict(clicks).logits, wanted)
    assert calls == [1, 1, 2, 1, 1]


def test_several_clicks_and_labels_on_one_object(tmp_path: Path) -> None:
    p = predictor(tmp_path)
    p.set_image(PHOTO)
    found = p.predict([[30, 20], [40, 20]], [1, 0])
    assert found.masks.shape == (1, 1, 48, 96)
    one = predictor(tmp_path / "one", Layout(points=1))
    one.set_image(PHOTO)
    with pytest.raises(InputError, match="this decoder takes 1"):
        one.predict([[30, 20], [40, 20]])


def test_stability_is_the_iou_of_the_masks_at_both_thresholds() -> None:
    logits = np.array([[[3.0, 0.5], [-0.5, -3.0]], [[-9.0] * 2] * 2, [[9.0] * 2] * 2], np.float32)
    np.testing.assert_allclose(stability_scores(logits), [1 / 3, 0, 1])
    np.testing.assert_allclose(stability_scores(logits, offset=0.1), [1, 0, 1])


def test_which_mask_is_taken() -> None:
    four = np.array([[0.9, 0.2, 0.8, 0.1], [0.1, 0.9, 0.2, 0.3]], np.float32)
    assert best_masks(four).tolist() == [2, 1]  # the first of four is left out
    assert best_masks(four, single=True).tolist() == [0, 0]
    assert best_masks(four[:, :3]).tolist() == [0, 1]
    assert best_masks(four[:, :1]).tolist() == [0, 0]
    with pytest.raises(InputError, match="3 masks"):
        best_masks(four[:, :3], single=True)


def test_bad_clicks_and_images(tmp_path: Path) -> None:
    p = predictor(tmp_path)
    with pytest.raises(InputError, match="no image is set"):
        p.predict([[1, 1]])
    with pytest.raises(ImageError, match="float64"):
        p.set_image(PHOTO / 255)
    p.set_image(PHOTO)
    for points in ([[96, 0]], [[0, -1]], [[np.nan, 0]], [1, 2], [[1, 2, 3]], [], "ab", None):
        with pytest.raises(ClickError):
            p.predict(points)
    for labels in ([2], [1, 1], [-1], [0.5]):
        with pytest.raises(ClickError, match="point_labels"):
            p.predict([[1, 1]], labels)


def test_files_that_are_no_pair(tmp_path: Path) -> None:
    encoder, decoder = write_pair(tmp_path)
    with pytest.raises(CheckpointError, match=r"absent\.onnx does not exist"):
        SamOnnxPredictor(tmp_path / "absent.onnx", decoder)
    with pytest.raises(CheckpointError, match="is a folder"):
        SamOnnxPredictor(encoder, tmp_path)
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(CheckpointError, match=r"text\.onnx is not an ONNX file"):
        SamOnnxPredictor(tmp_path / "text.onnx", decoder)
    (tmp_path / "cut.onnx").write_bytes(decoder.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"cut\.onnx is not an ONNX file"):
        SamOnnxPredictor(encoder, tmp_path / "cut.onnx")
    with pytest.raises(CheckpointError, match=r"not the encoder .* found inputs image_embeddings .* expected one RGB"):
        SamOnnxPredictor(decoder, encoder)
    with pytest.raises(CheckpointError, match=r"not the decoder .* found no points with their labels"):
        SamOnnxPredictor(encoder, encoder)


def test_features_must_fit(tmp_path: Path) -> None:
    encoder, decoder = write_pair(tmp_path)
    with pytest.raises(CheckpointError, match="takes exactly 2 prompts"):
        SamOnnxPredictor(encoder, write_decoder(tmp_path / "two.onnx", Layout(prompts=2)))
    other = write_encoder(tmp_path / "other.onnx", replace(Layout(), batch_axis=True, names=("a", "b")))
    SamOnnxPredictor(other, decoder)  # one embedding: its name does not matter
    two = write_decoder(tmp_path / "features.onnx", Layout(two_features=True))
    with pytest.raises(CheckpointError, match=r"inputs \['high_res_feats'\] are not among the encoder's outputs"):
        SamOnnxPredictor(encoder, two)


def test_what_onnx_runtime_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = predictor(tmp_path)
    p.set_image(PHOTO)
    feeds = p._feeds
    monkeypatch.setattr(p, "_feeds", lambda *given: {**feeds(*given), "point_coords": np.zeros((1, 2, 3), np.float32)})
    with pytest.raises(ExecutionError, match=r"decoder\.onnx failed on .*point_coords float32\[1, 2, 3\]"):
        p.predict([[1, 1]])


def test_options_are_checked() -> None:
    for options in ({"normalisation": "caffe"}, {"fit": "crop"}, {"threads": 0}, {"batch": 0}, {"side": -1}):
        with pytest.raises(InputError):
            SamOptions(**options)  # type: ignore[arg-type]


def test_without_onnxruntime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = write_pair(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"tracenet\[bench\]"):
        SamOnnxPredictor(*pair)


def test_fingerprint_changes_with_what_changes_the_answers(tmp_path: Path) -> None:
    plain = predictor(tmp_path / "a")
    assert plain.fingerprint == predictor(tmp_path / "b", batch=3).fingerprint
    others = [predictor(tmp_path / "c", Layout(radius=9.0)), predictor(tmp_path / "d", fit="stretch")]
    assert len({plain.fingerprint, *(o.fingerprint for o in others)}) == 3


def test_pillow_photos(tmp_path: Path) -> None:
    p = predictor(tmp_path)
    p.set_image(Image.fromarray(PHOTO))
    assert p.predict([[30, 20]]).masks.shape == (1, 1, 48, 96)
