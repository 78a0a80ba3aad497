"""Scales of a photo, the choice among scales and levels, and the predictor that makes it, against the full network."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tracenet import Predictor, PredictorSettings, create_model, inference, zoom_costs
from tracenet.exactness import full_network_error
from tracenet.inference import Canvas, Floats
from tracenet.models import TraceNet
from tracenet.untraced import half_logits, planes_of
from tracenet.zoom import Scale, candidate_ratings, expected_iou, lend, octaves, photo_scales, rank_candidates, settle
from tracenet_kernels.errors import InputError
from tracenet_kernels.testing import assert_close

SETTINGS = PredictorSettings(working_size=128, zoom_factors=(0.25, 0.5, 1, 2), zoom_enlarge=1.5, level_smoothing=0.5)
FACTORS = (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("photo", "given", "expected"),
    [
        ((256, 128), "off", [(1.0, 128, 64)]),
        ((256, 128), "auto", [(0.5, 64, 32), (1.0, 128, 64), (2.0, 256, 128)]),
        ((90, 45), "auto", [(0.5, 64, 32), (1.0, 128, 64)]),  # 2 would enlarge it 2.8 times
        ((2, 400), "auto", [(1.0, 1, 128)]),  # every other scale is too narrow
        ((256, 128), (2, 1, 1), [(1.0, 128, 64), (2.0, 256, 128)]),
        ((90, 45), ("native", 4), [(90 / 128, 90, 45), (4.0, 512, 256)]),
        ((128, 64), ("native",), [(1.0, 128, 64)]),
        ((256, 128), (1.001, 1), [(1.0, 128, 64)]),
        ((256, 128), np.array([0.5]), [(0.5, 64, 32)]),
    ],
)
def test_scales(photo: tuple[int, int], given: Any, expected: list[tuple[float, int, int]]) -> None:
    found = photo_scales(*photo, given, SETTINGS)
    assert [(scale.factor, scale.canvas.width, scale.canvas.height) for scale in found] == expected
    assert all((scale.canvas.photo_width, scale.canvas.photo_height) == photo for scale in found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("on", "pass 'off', 'auto', or a sequence"),
        ("native", "pass 'off', 'auto', or a sequence"),
        (2, "pass a sequence"),
        (None, "pass a sequence"),
        ((), "no zoom factors"),
        ((1,) * 9, "pass 1 to 8"),
        ((1, 0), "positive numbers"),
        ((1, math.nan), "positive numbers"),
        ((1, math.inf), "positive numbers"),
        ((1, "far"), "positive numbers"),
        ((1, None), "positive numbers"),
        ((10**400,), "positive numbers"),
        ((1, 0.4), r"0.4 makes the photo of 256x128 51x26; both sides must keep 32 pixels, pass a larger"),
        ((1, 1e-300), "both sides must keep 32 pixels"),
        ((1, 200), r"25600x12800; at most 67108864 pixels are looked at, pass a smaller"),
    ],
)
def test_impossible_scales(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        photo_scales(256, 128, given, SETTINGS)


def close(found: Floats, expected: Floats) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_octaves_and_lending() -> None:
    octave = octaves((0.5, 1.0, 2.0), (3, 4))
    assert octave.tolist() == [4, 5, 3, 4, 2, 3]
    probability = np.array([[0.5, 0.1, 0.2, 0.1, 0.05, 0.05]])
    found = lend(probability, octave, 0.5)
    expected = [0.5 + 0.5 * (0.1 + 0.2 + 0.1 + 0.05), 0.1 + 0.5 * (0.5 + 0.1), 0.2 + 0.5 * (0.5 + 0.1 + 0.05 + 0.05)]
    close(found[0, :3], np.array(expected))
    assert lend(probability, octave, 0.0) is probability
    half = octaves((1.0, 2**0.5), (3, 3))  # half an octave apart lends all, one and a half lends half
    close(lend(np.array([[1.0, 0.0]]), half, 0.4), np.array([[1.0, 0.4]]))
    far = octaves((1.0, 2**1.5), (3, 3))
    close(lend(np.array([[1.0, 0.0]]), far, 0.4), np.array([[1.0, 0.2]]))


def predictions(scales: int, clicks: int = 4, seed: int = 0) -> list[dict[str, Floats]]:
    rng = np.random.default_rng(seed)
    names = ("logits", "ctr", "level")
    return [{name: rng.standard_normal((clicks, 5)).astype(np.float32) for name in names} for _ in range(scales)]


@pytest.mark.parametrize("choice", ["score", "level", "product", "level_score"])
def test_ratings_are_their_formulas(choice: str) -> None:
    seen, settings = predictions(3), replace(SETTINGS, levels=(3, 5), level_smoothing=0.0)
    found = candidate_ratings(seen, FACTORS, settings, choice)
    quality = np.concatenate([inference.sigmoid(at["logits"][:, :3]) for at in seen], 1)
    apart = np.concatenate(
        [np.exp(at["level"][:, :3]) / np.exp(at["level"][:, :3]).sum(1, keepdims=True) for at in seen], 1
    )
    joint = np.concatenate([np.exp(at["level"][:, :3]) for at in seen], 1)
    joint = joint / joint.sum(1, keepdims=True)
    expected = {"score": quality, "level": joint, "product": quality * apart, "level_score": quality * joint}[choice]
    close(found, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
@pytest.mark.parametrize("choice", ["level", "score"])
def test_one_scale_is_ranked_as_without_zoom(choice: str, smoothing: float) -> None:
    settings = PredictorSettings(level_choice=choice, zoom_choice=choice, levels=(3, 7), level_smoothing=smoothing)
    seen = predictions(1, clicks=50)
    order, ratings = rank_candidates(seen, (1.0,), settings, zoomed=False)
    np.testing.assert_array_equal(order, inference.rank_levels(seen[0], settings) - 3)
    zoomed, same = rank_candidates(seen, (1.0,), settings, zoomed=True)
    np.testing.assert_array_equal(zoomed, order)
    np.testing.assert_array_equal(ratings, same)
    assert (np.diff(ratings, axis=1) <= 0).all()


def test_the_level_softmax_is_one_over_all_scales() -> None:
    """The logit of one scale outvotes those of another only in the joint choice."""
    seen = predictions(2, clicks=1)
    seen[0]["level"][:] = np.array([[5.0, 4.0, 4.0, 0, 0]])
    seen[1]["level"][:] = np.array([[3.0, -9.0, -9.0, 0, 0]])
    seen[0]["logits"][:] = seen[1]["logits"][:] = 0.0
    settings = PredictorSettings(zoom_choice="level", levels=(3, 5))
    assert rank_candidates(seen, (0.5, 1.0), settings, zoomed=True)[0][0, 0] == 0
    apart = replace(settings, zoom_choice="product")
    assert rank_candidates(seen, (0.5, 1.0), apart, zoomed=True)[0][0, 0] == 3


def test_choices_that_need_a_level_head() -> None:
    seen = [{"logits": np.zeros((1, 5)), "ctr": np.zeros((1, 5))}]
    for choice in ("level", "product", "level_score"):
        with pytest.raises(InputError, match="level_head=True; use 'score'"):
            candidate_ratings(seen, (1.0,), SETTINGS, choice)
    assert (candidate_ratings(seen, (1.0,), SETTINGS, "score") == 0.5).all()


def test_expected_iou() -> None:
    masks = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).astype(bool)
    found = expected_iou(masks, np.array([0.4, 0.4, 0.1, 0.1]))
    close(found, np.array([0.4 + 0.4 * 2 / 3, 0.4 + 0.4 * 2 / 3, 0.2, 0.2]))
    close(expected_iou(masks[:1], np.array([3.0])), np.ones(1))


def test_agreement_prefers_the_mask_between_likely_ones() -> None:
    """Nested squares of sides 4, 6 and 8: the middle one is closest to both others."""
    canvas = inference.fit_canvas(16, 16, 16)

    def plane_of(candidate: int) -> tuple[Floats, Canvas]:
        made.append(candidate)
        plane = np.full((8, 8), -10.0)
        side = {5: 2, 6: 3, 7: 4}[candidate]
        plane[:side, :side] = 10
        return plane, canvas

    made: list[int] = []
    order, ratings = np.array([7, 5, 6, 1]), np.array([0.35, 0.34, 0.31, 0.0])
    settings = replace(SETTINGS, working_size=16)
    assert settle(order, ratings, plane_of, settings) == [7, 5, 6, 1]
    assert made == []
    assert settle(order, ratings, plane_of, replace(settings, agreement=3)) == [6, 7, 5, 1]
    assert made == [7, 5, 6]
    assert settle(order[:1], ratings[:1], plane_of, replace(settings, agreement=3)) == [7]


def spread_network() -> TraceNet:
    """A small network whose heads differ from place to place and from scale to scale."""
    torch.manual_seed(0)
    model = create_model("tracenet_r50_fpn", channels=16, level_head=True)
    for block in model.modules():
        if isinstance(block, nn.BatchNorm2d):
            nn.init.uniform_(block.weight, 0.7, 1.3)
            nn.init.normal_(block.bias, std=0.2)
    with torch.no_grad():
        model.train()
        for _ in range(3):  # stored statistics near the real ones keep activations in range
            model(torch.randn(2, 3, 96, 128) * 60)
        model.eval()
        features = model(torch.randn(1, 3, 96, 128) * 60)
        for name, scale in {"logits": 1.5, "reg": 0.3, "ctr": 1.0, "theta": 1.0, "level": 2.0}.items():
            head = getattr(model.heads, name)
            head.weight *= scale / features[f"{name}3"].std()
        model.heads.reg.bias.fill_(2.0)
        assert model.mask_branch is not None
        out: Any = model.mask_branch.out
        out.weight *= 1 / features["maskfeat"].std()
    return model.eval()


@pytest.fixture(scope="module")
def model() -> TraceNet:
    return spread_network()


WIDTH, HEIGHT = 300, 210
CAPTURED: OrderedDict[tuple[int, int], Any] = OrderedDict()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 20, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8))


def a_predictor(
    model: TraceNet, photo: Image.Image, settings: PredictorSettings = SETTINGS, **options: Any
) -> Predictor:
    predictor = Predictor(model, settings, backend="torch", **options)
    predictor.network.captured = CAPTURED
    predictor.set_image(photo)
    return predictor


def full_answer(predictor: Predictor, click: tuple[float, float], factor: float, level: int) -> Floats:
    """Half-resolution logits of one click, scale and level from whole planes of the untraced network."""
    scale = next(s for s in photo_scales(WIDTH, HEIGHT, (factor,), predictor.settings))
    canvas = scale.canvas
    planes = planes_of(predictor.model, predictor.input_at(scale))
    at = inference.to_working(np.array([click], np.float64), canvas).astype(np.float32)
    found = inference.predictions_at(planes, at)
    theta, box = found["theta"][:, level - 3], found["boxes"][0, level - 3]
    half = half_logits(predictor.model, planes["maskfeat"], theta, at, level)[0]
    window = inference.box_window(box, at[0], canvas, predictor.settings)
    return inference.half_plane(half[window.slices], window, canvas)


@pytest.mark.parametrize("choice", ["score", "level", "product", "level_score"])
def test_every_scale_and_level_is_the_full_network(model: TraceNet, photo: Image.Image, choice: str) -> None:
    predictor = a_predictor(model, photo, replace(SETTINGS, zoom_choice=choice))
    click, factors = (140.0, 90.0), (0.5, 1, 2.5)
    masks, scores, logits = predictor.predict([click], multimask_output=True, zoom=factors)
    assert predictor.last_zoom is not None
    assert predictor.last_levels is not None
    pairs = list(zip(predictor.last_zoom.tolist(), predictor.last_levels.tolist(), strict=True))
    assert sorted(pairs) == [(f, level) for f in factors for level in (3, 4, 5)]
    assert masks.shape == (9, HEIGHT, WIDTH)
    assert logits.shape == (9, 112, 160)  # half of the finest scale: 320 x 224
    fine = photo_scales(WIDTH, HEIGHT, (2.5,), SETTINGS)[0].canvas
    for rank, (factor, level) in enumerate(pairs):
        expected = full_answer(predictor, click, factor, level)
        canvas = photo_scales(WIDTH, HEIGHT, (factor,), SETTINGS)[0].canvas
        assert_close(torch.from_numpy(logits[rank]), torch.from_numpy(inference.move_plane(expected, canvas, fine)))
        mask = inference.resample_plane(expected, canvas)
        decided = np.abs(mask) > 1e-2
        np.testing.assert_array_equal(masks[rank][decided], (mask > 0)[decided])
    one, score, half = predictor.predict([click], zoom=factors)
    np.testing.assert_array_equal(one[0], masks[0])
    assert score[0] == scores[0]
    canvas = photo_scales(WIDTH, HEIGHT, (pairs[0][0],), SETTINGS)[0].canvas
    assert half.shape == (1, math.ceil(canvas.height / 2), math.ceil(canvas.width / 2))
    if choice == "score":
        assert (np.diff(scores) <= 0).all()


def test_only_what_is_needed_is_computed_and_counted(model: TraceNet, photo: Image.Image) -> None:
    predictor = a_predictor(model, photo, keep_features=False)
    click, factors = [[140, 90]], (0.5, 1, 2.5)
    predictor.predict(click, zoom=factors)
    plan, scale = predictor.last_plan, predictor.last_scale
    assert plan is not None
    assert (len(plan.locate), len(plan.segment), plan.masks) == (3, 1, plan.segment)
    assert [plan.factors[part] for part in plan.locate] == [0.5, 1, 2.5]
    assert plan.macs == sum(part.macs for part in plan.plans)
    assert plan.factor == plan.factors[plan.segment[0]] == scale.factor
    assert plan.windows == plan.windows_at(scale.factor)
    assert plan.table().count("locate at 2.5") == 1
    apart = 0
    for factor in factors:
        predictor.predict(click, zoom=(factor,))
        assert predictor.last_plan is not None
        apart += predictor.last_plan.locate[0].macs
    assert apart == plan.macs - plan.segment[0].macs
    predictor.predict(click)
    assert predictor.last_plan is not None
    assert predictor.last_plan.full_macs == plan.full_macs == predictor.last_plan.locate[0].full_macs


def test_off_and_one_factor(model: TraceNet, photo: Image.Image) -> None:
    """Without zoom nothing changes; factor 1 alone gives what its levels give without zoom."""
    usual = a_predictor(model, photo).predict([[140, 90]], multimask_output=True)
    predictor = a_predictor(model, photo, replace(SETTINGS, zoom="auto", zoom_choice="level"))
    off = predictor.predict([[140, 90]], multimask_output=True, zoom="off")
    for a, b in zip(usual, off, strict=True):
        np.testing.assert_array_equal(a, b)
    assert predictor.last_zoom is not None
    assert predictor.last_zoom.tolist() == [1] * 5
    predictor.forget_features()
    levels = predictor.predict([[140, 90]], multimask_output=True, zoom="off", levels=(3, 5))
    predictor.forget_features()
    one = predictor.predict([[140, 90]], multimask_output=True, zoom=(1,))
    for a, b in zip(levels, one, strict=True):
        np.testing.assert_array_equal(a, b)


def test_auto_is_the_settings_factors(model: TraceNet, photo: Image.Image) -> None:
    settings = replace(SETTINGS, zoom="auto", zoom_factors=(0.5, "native"), zoom_levels=(4, 5))
    predictor = a_predictor(model, photo, settings)
    predictor.predict([[20, 90]], multimask_output=True)
    assert predictor.last_zoom is not None
    assert sorted(set(predictor.last_zoom.tolist())) == [0.5, WIDTH / 128]
    assert len(predictor.last_zoom) == 4
    predictor.predict([[20, 90]], multimask_output=True, zoom=(0.5, "native"), levels=(3, 3))
    assert len(predictor.last_zoom) == 2


def test_only_the_window_of_a_scale_is_resized(
    model: TraceNet, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    prepare = inference.prepare_window

    def counted(*given: Any) -> Floats:
        found = prepare(*given)
        asked.append(found.shape[2:])
        return found

    monkeypatch.setattr(inference, "prepare_window", counted)
    predictor = a_predictor(model, photo)
    predictor.predict([[5, 5]], zoom=(8,), levels=(3, 3), mask_window=10)
    scale = predictor.last_scale.canvas
    assert (scale.width, scale.height) == (1024, 717)
    assert all(height < scale.height / 2 and width < scale.width / 2 for height, width in asked)
    again = len(asked)
    predictor.predict([[5, 5]], zoom=(8,), levels=(3, 3), mask_window=10)
    assert asked[again:][0][0] <= asked[0][0]


def test_kept_features_of_all_scales_share_one_bound(model: TraceNet, photo: Image.Image) -> None:
    predictor = a_predictor(model, photo)
    factors = (0.5, 1, 2.5)
    first = predictor.predict([[140, 90]], zoom=factors)
    held, plan = predictor.kept_bytes, predictor.last_plan
    again = predictor.predict([[140, 90]], zoom=factors)
    assert plan is not None
    assert predictor.last_plan is not None
    assert predictor.last_plan.macs < 0.6 * plan.macs
    np.testing.assert_array_equal(first[0], again[0])
    predictor.forget_features()
    assert predictor.kept_bytes == 0
    for bound in (held // 2, held // 20, 1):
        small = a_predictor(model, photo, max_kept_bytes=bound)
        for _ in range(2):
            found = small.predict([[140, 90]], zoom=factors)
            assert small.kept_bytes <= bound
            np.testing.assert_array_equal(found[0], first[0])
    free = a_predictor(model, photo, keep_features=False)
    np.testing.assert_array_equal(free.predict([[140, 90]], zoom=factors)[0], first[0])
    assert free.kept_bytes == 0


def test_agreement_computes_the_masks_it_compares(model: TraceNet, photo: Image.Image) -> None:
    factors, settings = (0.5, 1, 2.5), replace(SETTINGS, zoom_choice="score")
    click = [[20, 20]]
    usual = a_predictor(model, photo, settings)
    masks, _, _ = usual.predict(click, multimask_output=True, zoom=factors)
    assert usual.last_zoom is not None
    assert usual.last_levels is not None
    order = list(zip(usual.last_zoom.tolist(), usual.last_levels.tolist(), strict=True))
    changed = 0
    for top in (2, 4, 9, 50):
        predictor = a_predictor(model, photo, replace(settings, agreement=top))
        one, _, _ = predictor.predict(click, zoom=factors)
        plan = predictor.last_plan
        assert plan is not None
        assert len(plan.segment) == min(top, 9)
        assert len(plan.masks) == 1
        assert predictor.last_zoom is not None
        assert predictor.last_levels is not None
        chosen = order.index((predictor.last_zoom[0], predictor.last_levels[0]))
        assert chosen < top
        np.testing.assert_array_equal(one[0], masks[chosen])
        many, _, _ = predictor.predict(click, multimask_output=True, zoom=factors)
        np.testing.assert_array_equal(many[0], one[0])
        changed += chosen > 0
    assert changed
    single = a_predictor(model, photo, replace(SETTINGS, agreement=3))
    single.predict(click)
    assert single.last_plan is not None
    assert len(single.last_plan.segment) == 3


def test_several_clicks_and_objects(model: TraceNet, photo: Image.Image) -> None:
    predictor = a_predictor(model, photo)
    factors = (0.5, 1, 2.5)
    clicks = [(20, 20), (140, 90), (290, 200)]
    alone = []
    for click in clicks:
        masks, scores, logits = predictor.predict([click], zoom=factors)
        alone.append((masks[0], float(scores[0]), logits[0], predictor.last_scale, predictor.last_boxes))
    assert len({scale.factor for *_, scale, _ in alone}) > 1
    masks, scores, logits = predictor.predict(clicks, zoom=factors)
    best = int(np.argmax([score for _, score, *_ in alone]))
    assert scores[0] == pytest.approx(alone[best][1], abs=1e-5)
    assert predictor.last_zoom is not None
    assert predictor.last_zoom[0] == alone[best][3].factor
    on = max((scale.canvas for *_, scale, _ in alone), key=lambda canvas: canvas.width)
    union = np.max([inference.move_plane(part, scale.canvas, on) for _, _, part, scale, _ in alone], axis=0)
    assert_close(torch.from_numpy(logits[0]), torch.from_numpy(union))
    together = np.any([mask for mask, *_ in alone], axis=0)
    assert (masks[0] ^ together).mean() < 0.03

    masks, scores, logits = predictor.predict([[click] for click in clicks], multimask_output=True, zoom=factors)
    assert masks.shape == (3, 9, HEIGHT, WIDTH)
    assert logits.shape == (3, 9, 112, 160)
    assert predictor.last_boxes is not None
    assert predictor.last_boxes.shape == (3, 9, 4)
    assert predictor.last_zoom.shape == (3, 9)
    for i, (mask, score, _, scale, box) in enumerate(alone):
        np.testing.assert_array_equal(masks[i, 0], mask)
        assert scores[i, 0] == pytest.approx(score, abs=1e-5)
        assert predictor.last_zoom[i, 0] == scale.factor
        np.testing.assert_allclose(predictor.last_boxes[i, 0], box[0], rtol=1e-3, atol=1e-2)


def test_the_full_network_check_looks_at_the_scale_that_answered(model: TraceNet, photo: Image.Image) -> None:
    predictor = a_predictor(model, photo, replace(SETTINGS, zoom="auto", zoom_factors=(0.5, 2.5), zoom_enlarge=4))
    for click in ((20.0, 20.0), (140.0, 90.0)):
        error, peak = full_network_error(predictor, click)
        assert error <= 1e-4 * peak
        assert predictor.last_scale.factor in (0.5, 2.5)


def test_wrong_zoom_is_refused_before_anything_is_computed(model: TraceNet, photo: Image.Image) -> None:
    predictor = a_predictor(model, photo)
    for given in ("on", 2, (), (1, -1), (0.01,), (1e9,), [None]):
        with pytest.raises(InputError):
            predictor.predict([[5, 5]], zoom=given)
    assert predictor.last_plan is None
    with pytest.raises(InputError, match="call predict first"):
        _ = predictor.last_scale
    with torch.device("meta"):
        headless = create_model("tracenet_r50_fpn", channels=16)
    with pytest.raises(InputError, match="zoom_choice='level_score' needs a model with level_head"):
        Predictor(headless, PredictorSettings(level_choice="score", zoom="auto"))
    blank = Predictor(headless, PredictorSettings(level_choice="score"))
    with pytest.raises(InputError, match="call set_image"):
        blank.input_at(Scale(1.0, Canvas(1, 1, 1, 1)))


def test_costs_are_those_of_the_plans(capsys: pytest.CaptureFixture[str]) -> None:
    zoom_costs.main(["--size", "400x300", "--factors", "0.5,1", "--working-size", "128", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["canvas"] for row in found["scales"]] == [[64, 48], [128, 96]]
    for kind in ("centre", "mean"):
        assert found["zoom"]["locate"][kind] == sum(row["locate"][kind] for row in found["scales"])
        assert 0 < found["scales"][0]["locate"][kind] < found["scales"][1]["locate"][kind] < found["full_macs"]
        assert found["scales"][1]["locate"][kind] < found["single"]["locate"][kind] < found["full_macs"]
    zoom_costs.main(["--size", "400x300", "--factors", "0.5,1", "--working-size", "128"])
    assert "full network" in capsys.readouterr().out
