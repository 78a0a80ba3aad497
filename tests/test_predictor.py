"""The predictor returns what the whole network gives, computes less, and refuses what it cannot do."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import math
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import tracenet
from tests.networks import randomised
from tracenet import Predictor, PredictorSettings, Window, create_model, inference
from tracenet.click_plan import ClickPlan
from tracenet.inference import OUTSIDE_LOGIT, Canvas
from tracenet.models import TraceNet
from tracenet.models.weights import save_checkpoint
from tracenet.predictor import group_cells
from tracenet.sessions import torch_session
from tracenet.untraced import half_logits, planes_of
from tracenet_kernels.errors import (
    BackendError,
    CheckpointError,
    ClickError,
    ImageError,
    InputError,
    TraceNetError,
)
from tracenet_kernels.testing import assert_close
from tracenet_kernels.window import Border, hull

SETTINGS = PredictorSettings(working_size=128, mask_margin_pixels=2.0)
WIDTH, HEIGHT = 150, 97
CLICKS = [(0, 0), (149, 0), (0, 96), (149, 96), (75, 48), (20, 96), (149, 40), (0, 33), (63.4, 31.6)]
CENTRE = [[75, 48]]
CAPTURED: dict[int, OrderedDict[tuple[int, int], Any]] = {}
"""Captures by network, shared by all predictors of this file: they take longer than everything else."""


@pytest.fixture(scope="module")
def model() -> TraceNet:
    return randomised(level_head=True)


@pytest.fixture(scope="module")
def plain_model() -> TraceNet:
    """The paper's literal reading: mask features from P3 alone, sigmoid before upsampling; and no level head."""
    return randomised(mask_branch="p3", mask_order="upsample_probabilities", rel_to="cell", num_classes=3)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Smooth blobs over noise, so that features differ from place to place."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
    return np.clip(np.asarray(coarse) + rng.normal(0, 20, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)


def a_predictor(model: TraceNet, settings: PredictorSettings = SETTINGS, **options: Any) -> Predictor:
    if settings.level_choice == "level" and not model.config.level_head:
        settings = replace(settings, level_choice="score", score="score_centerness")
    predictor = Predictor(model, settings, backend="torch", **options)
    predictor.network.captured = CAPTURED.setdefault(id(model.backbone), OrderedDict())
    return predictor


@pytest.fixture
def predictor(model: TraceNet, photo: np.ndarray) -> Predictor:
    found = a_predictor(model)
    found.set_image(photo)
    return found


class FullNetwork:
    """The same answers from whole planes of the untraced network."""

    def __init__(self, model: TraceNet, image: NDArray[np.float32], canvas: Canvas) -> None:
        self.model, self.canvas = model, canvas
        self.planes = planes_of(model, image)

    def one(self, click: Iterable[float], rank: int, rule: str | float, settings: PredictorSettings) -> dict[str, Any]:
        model, canvas = self.model, self.canvas
        at = inference.to_working(np.array([tuple(click)], np.float64), canvas).astype(np.float32)
        found = inference.predictions_at(self.planes, at)
        level = int(inference.rank_levels(found, settings)[0, rank])
        box, theta = found["boxes"][0, level - 3], found["theta"][:, level - 3]
        half = half_logits(model, self.planes["maskfeat"], theta, at, level)[0]
        if isinstance(rule, str):
            window = inference.box_window(box, at[0], canvas, replace(settings, mask_window=rule))
        else:
            x, y = at[0].tolist()
            rx, ry = rule * canvas.scale_x, rule * canvas.scale_y
            window = Window(
                math.floor((y - ry) / 2), math.ceil((y + ry) / 2), math.floor((x - rx) / 2), math.ceil((x + rx) / 2)
            ).clip(math.ceil(canvas.height / 2), math.ceil(canvas.width / 2))
        plane = inference.half_plane(half[window.slices], window, canvas)
        scale = np.array([canvas.scale_x, canvas.scale_y] * 2)
        limit = [canvas.photo_width, canvas.photo_height] * 2
        return {
            "level": level,
            "score": inference.click_scores(found, settings.score)[0, level - 3],
            "box": np.clip(box / scale, 0, limit),
            "window": window,
            "logits": plane,
            "peak": float(np.abs(half).max()),
            "mask": inference.resample_plane(plane, canvas),
        }


FULL: dict[tuple[int, bytes], FullNetwork] = {}


def full_network(predictor: Predictor) -> FullNetwork:
    key = (id(predictor.model), predictor.image.tobytes())
    if key not in FULL:
        FULL[key] = FullNetwork(predictor.model, predictor.image, predictor.canvas)
    return FULL[key]


def check_against_full(
    predictor: Predictor,
    click: Iterable[float],
    *,
    levels: tuple[int, int] | None = None,
    mask_window: str | float | None = None,
    multimask: bool = False,
) -> None:
    """Every return value of one click equals the whole network's, to 1e-4 of its largest value."""
    click = list(click)
    masks, scores, logits = predictor.predict(
        [click], [1], multimask_output=multimask, levels=levels, mask_window=mask_window
    )
    settings = predictor.settings if levels is None else replace(predictor.settings, levels=levels)
    count = settings.levels[1] - settings.levels[0] + 1 if multimask else 1
    canvas = predictor.canvas
    assert masks.shape == (count, canvas.photo_height, canvas.photo_width)
    assert masks.dtype == np.bool_
    assert logits.shape == (count, math.ceil(canvas.height / 2), math.ceil(canvas.width / 2))
    assert (scores.shape, scores.dtype, logits.dtype) == ((count,), np.float32, np.float32)
    assert predictor.last_boxes is not None
    assert predictor.last_levels is not None
    assert predictor.last_plan is not None
    full = full_network(predictor)
    rule = settings.mask_window if mask_window is None else mask_window
    for rank in range(count):
        expected = full.one(click, rank, rule, settings)
        window: Window = expected["window"]
        assert predictor.last_levels[rank] == expected["level"]
        assert predictor.last_plan.segment[rank].request == {"mask_half": window}
        assert abs(float(scores[rank]) - float(expected["score"])) <= 1e-4  # a probability: its scale is 1
        assert_close(torch.tensor(predictor.last_boxes[rank]), torch.tensor(expected["box"]).float(), what="box")
        found, reference = logits[rank], expected["logits"]
        outside = np.ones_like(found, dtype=np.bool_)
        outside[window.slices] = False
        assert (found[outside] == OUTSIDE_LOGIT).all()
        if predictor.model.config.mask_order == "upsample_probabilities":
            # The logit of a probability near 0 or 1 enlarges rounding; what the network returns is the probability.
            found, reference, peak = inference.sigmoid(found), inference.sigmoid(reference), 1.0
        else:
            peak = expected["peak"]
        assert np.abs((found - reference)[window.slices]).max() <= 1e-4 * peak
        decided = np.abs(expected["mask"]) > 2e-3 * peak
        assert decided.mean() > 0.97
        np.testing.assert_array_equal(masks[rank][decided], (expected["mask"] > 0)[decided])


def test_the_networks_of_these_tests_are_not_trivial(predictor: Predictor) -> None:
    seen, areas, windows = set(), [], set()
    for click in CLICKS:
        masks, _, _ = predictor.predict([click])
        assert predictor.last_plan is not None
        assert predictor.last_levels is not None
        seen.add(int(predictor.last_levels[0]))
        areas.append(masks.mean())
        windows.add(predictor.last_plan.segment[0].request["mask_half"])
    assert len(seen) > 1
    assert min(areas) < 0.2 < max(areas) or 0.02 < np.mean(areas) < 0.98
    assert len(windows) > 5


@pytest.mark.parametrize("click", CLICKS)
def test_predictions_equal_the_full_network(predictor: Predictor, click: tuple[float, float]) -> None:
    check_against_full(predictor, click)


@pytest.mark.parametrize(
    "mask_window", ["box", "full", 1e-9, 20, 33.3, np.float32(7), 10**400, 1e300], ids=lambda rule: str(rule)[:6]
)
@pytest.mark.parametrize("levels", [(3, 5), (4, 4)])
def test_levels_and_mask_windows(predictor: Predictor, levels: tuple[int, int], mask_window: str | float) -> None:
    click = (40, 70) if levels == (4, 4) else (149, 96)
    if isinstance(mask_window, (int, float)) and mask_window > 1e6:
        predictor.predict([click], levels=levels, mask_window=mask_window)
        assert predictor.last_plan is not None
        canvas = predictor.canvas
        half = Window.full(math.ceil(canvas.height / 2), math.ceil(canvas.width / 2))
        assert predictor.last_plan.segment[0].request["mask_half"] == half
    else:
        check_against_full(predictor, click, levels=levels, mask_window=mask_window)


@pytest.mark.parametrize("rel_to", ["click", "cell"])
@pytest.mark.parametrize("branch", ["condinst", "p3"])
def test_mask_branches_orders_and_origins(
    model: TraceNet, plain_model: TraceNet, photo: np.ndarray, branch: str, rel_to: str
) -> None:
    twin = copy.copy(model if branch == "condinst" else plain_model)
    twin.config = replace(twin.config, rel_to=rel_to)
    predictor = a_predictor(twin)
    predictor.set_image(photo)
    for click, levels in (((30, 80), (3, 7)), ((148.7, 3), (3, 5))):
        check_against_full(predictor, click, levels=levels)


@pytest.mark.parametrize("levels", [(3, 7), (4, 6), (5, 5)])
def test_multimask_output_is_one_mask_per_level(predictor: Predictor, levels: tuple[int, int]) -> None:
    check_against_full(predictor, (100, 30), levels=levels, multimask=True)
    assert predictor.last_levels is not None
    assert sorted(predictor.last_levels) == list(range(levels[0], levels[1] + 1))
    one, score, _ = predictor.predict([[100, 30]], levels=levels)
    many, scores, _ = predictor.predict([[100, 30]], levels=levels, multimask_output=True)
    assert score[0] == scores[0]
    np.testing.assert_array_equal(one[0], many[0])


def test_multimask_output_is_sorted_by_what_chooses_the_level(plain_model: TraceNet, photo: np.ndarray) -> None:
    predictor = a_predictor(plain_model)
    predictor.set_image(photo)
    _, scores, _ = predictor.predict(CENTRE, multimask_output=True)
    assert (np.diff(scores) <= 0).all()
    check_against_full(predictor, CENTRE[0], multimask=True)


def test_several_clicks_on_one_object_give_the_union(predictor: Predictor) -> None:
    clicks = [[20, 20], [75, 48], [149, 96]]
    alone = [predictor.predict([click]) for click in clicks]
    masks, scores, logits = predictor.predict(clicks, [1, 1, 1])
    assert masks.shape == (1, HEIGHT, WIDTH)
    union = np.max([a[2][0] for a in alone], axis=0)
    assert_close(torch.from_numpy(logits[0]), torch.from_numpy(union))
    assert scores[0] == pytest.approx(max(float(a[1][0]) for a in alone), rel=1e-4)
    assert predictor.last_plan is not None
    assert len(predictor.last_plan.segment) == 3
    assert len(predictor.last_plan.locate) == 2
    # Bilinear interpolation of a maximum is never below the maximum of the interpolations.
    together = np.any([a[0][0] for a in alone], axis=0)
    assert not (together & ~masks[0]).any() or (together & ~masks[0]).mean() < 1e-3
    assert (masks[0] ^ together).mean() < 0.02


def test_batches_of_objects(predictor: Predictor) -> None:
    batch = [[[20, 20], [30, 25]], [[75, 48], [75, 48]], [[149, 96], [0, 0]]]
    masks, scores, logits = predictor.predict(batch, np.ones((3, 2), int), multimask_output=True, levels=(3, 5))
    assert masks.shape == (3, 3, HEIGHT, WIDTH)
    assert scores.shape == (3, 3)
    assert logits.shape == (3, 3, 42, 64)
    boxes, levels, plan = predictor.last_boxes, predictor.last_levels, predictor.last_plan
    assert boxes is not None
    assert levels is not None
    assert plan is not None
    assert boxes.shape == (3, 3, 4)
    assert levels.shape == (3, 3)
    assert (len(plan.locate), len(plan.segment)) == (2, 3 * 3 * 2)
    assert plan.macs == sum(part.macs for part in plan.plans)
    for i, clicks in enumerate(batch):
        alone = predictor.predict(clicks, multimask_output=True, levels=(3, 5))
        assert_close(torch.from_numpy(logits[i]), torch.from_numpy(alone[2]))
        np.testing.assert_array_equal(levels[i], predictor.last_levels)
    one = predictor.predict([CENTRE])
    assert one[0].shape == (1, 1, HEIGHT, WIDTH)


def test_clicks_far_apart_are_located_apart() -> None:
    one = np.array([[5, 5]])
    assert group_cells(one) == [(Window.of_cell(5, 5), [0])]
    assert group_cells(np.array([[5, 5], [9, 7], [5, 5]])) == [(Window(5, 10, 5, 8), [0, 2, 1])]
    apart = group_cells(np.array([[5, 5], [60, 90], [7, 5], [62, 88]]))
    assert apart == [(Window(5, 8, 5, 6), [0, 2]), (Window(60, 63, 88, 91), [1, 3])]
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 120, (60, 2))
    groups = group_cells(cells)
    assert sorted(i for _, members in groups for i in members) == list(range(60))
    for window, members in groups:
        rows, columns = cells[members].T
        assert window == Window(rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)

    def read(window: Window) -> int:
        return window.dilate(Border(5, 5, 5, 5)).area

    assert sum(read(window) for window, _ in groups) <= sum(read(Window.of_cell(*cell)) for cell in cells.tolist())
    for (a, _), (b, _) in itertools.combinations(groups, 2):
        assert read(hull((a, b))) > read(a) + read(b)


def test_many_objects_cost_less_than_one_after_another(model: TraceNet) -> None:
    """Windows of clicks nearby are computed once, and what the first has computed of the backbone is not repeated."""
    rng = np.random.default_rng(3)
    predictor = a_predictor(model, replace(SETTINGS, working_size=384))
    predictor.set_image(rng.integers(0, 256, (256, 384, 3), dtype=np.uint8))
    clicks = [(40, 40), (52, 44), (60, 40), (350, 220)]

    view, settings = predictor._base, replace(predictor.settings, levels=(3, 4))
    at = inference.to_working(np.array(clicks, np.float64), view.canvas).astype(np.float32)

    def located(clicks: NDArray[np.float32]) -> ClickPlan:
        done = ClickPlan()
        predictor._locate(view, clicks, settings, done)
        return done

    together = located(at)
    assert len(together.locate) == 2  # three clicks together, the fourth apart
    predictor.forget_features()
    in_turn = [located(click[None]) for click in at]
    alone = 0
    for click in at:
        predictor.forget_features()
        alone += located(click[None]).macs
    assert together.macs < sum(one.macs for one in in_turn) < 0.6 * alone

    def heads(done: ClickPlan) -> int:
        return sum(plan.macs_of("heads") for plan in done.locate)  # type: ignore[attr-defined]

    assert heads(together) < 0.75 * sum(heads(one) for one in in_turn)
    predictor.forget_features()
    predictor.predict([[click] for click in clicks], levels=(3, 4))
    assert predictor.last_plan is not None
    assert sum(plan.macs for plan in predictor.last_plan.locate) == together.macs


def test_repetition_is_bit_identical(model: TraceNet, photo: np.ndarray) -> None:
    for keep in (True, False):
        results = []
        predictor = a_predictor(model, keep_features=keep)
        for _ in range(2):
            predictor.set_image(photo)
            results.append([predictor.predict([[30, 40]]), predictor.predict([[90, 60]], multimask_output=True)])
            results.append([predictor.predict([[30, 40]]), predictor.predict([[90, 60]], multimask_output=True)])
        for first, second in zip(results[0], results[2], strict=True):
            for a, b in zip(first, second, strict=True):
                np.testing.assert_array_equal(a, b)
        if not keep:
            for first, second in zip(results[0], results[1], strict=True):
                for a, b in zip(first, second, strict=True):
                    np.testing.assert_array_equal(a, b)


def test_kept_features_save_work_and_change_nothing(predictor: Predictor) -> None:
    plans = []
    for click in ((20, 20), (20, 20), (28, 24), (149, 96), (70, 20), (5, 90), (140, 2)):
        check_against_full(predictor, click, levels=(3, 5), mask_window=16)
        assert predictor.last_plan is not None
        plans.append(predictor.last_plan)
    first, again, near = plans[:3]
    assert 0 < again.macs < 0.5 * first.macs
    predictor.forget_features()
    check_against_full(predictor, (28, 24), levels=(3, 5), mask_window=16)
    assert predictor.last_plan is not None
    assert near.macs < predictor.last_plan.macs < predictor.last_plan.full_macs
    assert first.full_macs == near.full_macs


def test_segmenting_reuses_what_locating_computed(predictor: Predictor) -> None:
    predictor.predict([[75, 48]], levels=(3, 7))  # P7 reads the whole image, so the backbone is complete
    plan = predictor.last_plan
    assert plan is not None
    assert plan.segment[0].macs_of("backbone") == 0
    assert plan.segment[0].macs_of("fpn") < plan.locate[0].macs_of("fpn")
    assert plan.locate[0].macs_of("backbone") == plan.locate[0].full_macs_of("backbone")


@pytest.mark.parametrize("options", [{"keep_features": False}, {"max_kept_bytes": 1}, {"max_kept_bytes": 40_000}])
def test_without_keeping_every_click_costs_the_same(
    model: TraceNet, photo: np.ndarray, options: dict[str, Any]
) -> None:
    predictor = a_predictor(model, **options)
    predictor.set_image(photo)
    macs = []
    for _ in range(2):
        check_against_full(predictor, (28, 24), levels=(3, 5), mask_window=16)
        assert predictor.last_plan is not None
        macs.append(predictor.last_plan.macs)
        assert predictor.kept_bytes <= options.get("max_kept_bytes", 0)
    if options.get("max_kept_bytes") != 40_000:
        assert macs[0] == macs[1]


def test_a_new_image_forgets_the_old_one(predictor: Predictor, photo: np.ndarray) -> None:
    predictor.predict(CENTRE)
    predictor.set_image(photo[::-1, ::-1])
    assert predictor.last_plan is None
    assert predictor.last_boxes is None
    assert predictor.last_levels is None
    for click in CLICKS[3:6]:
        check_against_full(predictor, click)
    predictor.reset_image()
    with pytest.raises(InputError, match="no image is set"):
        predictor.predict(CENTRE)


def test_a_refused_image_leaves_the_current_one(predictor: Predictor) -> None:
    before = predictor.predict(CENTRE)
    with pytest.raises(ImageError):
        predictor.set_image(np.zeros((0, 5, 3), np.uint8))
    after = predictor.predict(CENTRE)
    np.testing.assert_array_equal(before[0], after[0])


@pytest.mark.parametrize("size", [(300, 194), (61, 39), (1, 1), (3, 500), (500, 2), (2, 3)])
def test_photos_of_any_size(model: TraceNet, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    predictor = a_predictor(model)
    predictor.set_image(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    for click in {(0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, size[1] // 2)}:
        check_against_full(predictor, click)
    check_against_full(predictor, (size[0] - 0.5000001, size[1] - 0.5000001), mask_window=1)


def test_photos_of_any_mode_and_paths(predictor: Predictor, photo: np.ndarray, tmp_path: Path) -> None:
    expected = predictor.predict(CENTRE)[2]
    alpha = np.concatenate([photo, np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], 2)
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    for image in (Image.fromarray(photo), alpha, path, str(path)):
        predictor.set_image(image)
        np.testing.assert_array_equal(predictor.predict(CENTRE)[2], expected)
    grey = photo[:, :, 0]
    predictor.set_image(np.repeat(grey[:, :, None], 3, 2))
    expected = predictor.predict(CENTRE)[2]
    for image in (grey, grey[:, :, None], Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)):
        predictor.set_image(image)
        np.testing.assert_array_equal(predictor.predict(CENTRE)[2], expected)


def test_turned_photos_are_clicked_upright(predictor: Predictor, photo: np.ndarray) -> None:
    """Orientation 6: stored turned left, to be seen turned right. Clicks and masks are those of the upright photo."""
    expected = predictor.predict([[20, 90]])
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(photo, 1)).save(buffer, "PNG", exif=exif)
    predictor.set_image(Image.open(buffer))
    found = predictor.predict([[20, 90]])
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[2], expected[2])


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ([[149.6, 5]], "outside the photo of 150x97"),
        ([[150, 5]], "x runs from 0 to 149, y from 0 to 96"),
        ([[5, 97]], "outside"),
        ([[-1, 5]], "outside"),
        ([[5, -0.6]], "outside"),
        ([[math.nan, 5]], "nan.*outside"),
        ([[5, math.inf]], "inf.*outside"),
        ([[1e300, 5]], "outside"),
        ([[10**400, 5]], "inf.*outside"),
        ([[-(10**5000), 5]], "inf.*outside"),
        ([[5, 5], [150, 5]], "outside"),
        ([["5", "5"]], "not numbers"),
        ("5,5", "not numbers"),
        ([[5, None]], "not numbers"),
        ([[5, 5], [5]], "not numbers"),
        ([["x", 10**5000]], "not numbers"),
        (np.array([[5 + 2j, 5]]), "not numbers"),
        ([[True, False]], "not numbers"),
        (torch.ones(1, 2, requires_grad=True), "not numbers"),
        (None, "not numbers"),
        ({}, "not numbers"),
        ([5, 5], r"shape \(2,\)"),
        (5, r"shape \(\)"),
        ([[5, 5, 5]], r"shape \(1, 3\)"),
        ([[[[5, 5]]]], r"shape \(1, 1, 1, 2\)"),
        ([], "at least one click"),
        ([[]], "at least one click"),
        (np.zeros((0, 2)), "at least one click"),
        (np.zeros((2, 0, 2)), "at least one click"),
    ],
)
def test_wrong_clicks(predictor: Predictor, coords: Any, message: str) -> None:
    with pytest.raises(ClickError, match=message) as caught:
        predictor.predict(coords)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("coords", [[[5, 5]], ((5.0, 5),), np.array([[5, 5]], np.uint8), torch.tensor([[5.0, 5.0]])])
def test_clicks_of_any_number_type(predictor: Predictor, coords: Any) -> None:
    expected = predictor.predict([[5, 5]])[2]
    for labels in (None, [1], [True], np.array([1], np.uint8), torch.ones(1, dtype=torch.long)):
        np.testing.assert_array_equal(predictor.predict(coords, labels)[2], expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0], r"\[0\]; only 1 .*negative clicks are not yet"),
        ([2], r"\[2\]"),
        ([-1], r"\[-1\]"),
        ([False], r"\[0\]"),
        ([1, 1], r"shape \(2,\); the clicks ask for \(1,\)"),
        ([[1]], r"shape \(1, 1\)"),
        (1, r"shape \(\)"),
        ([], "not integers|shape"),
        ([1.0], "not integers"),
        ([math.nan], "not integers"),
        (["1"], "not integers"),
        ([[1], [1, 1]], "not integers"),
        ([10**400], "not integers"),
    ],
)
def test_wrong_labels(predictor: Predictor, labels: Any, message: str) -> None:
    with pytest.raises(ClickError, match=message):
        predictor.predict([[5, 5]], labels)
    with pytest.raises(ClickError):
        predictor.predict([[[5, 5], [6, 6]]], labels)


@pytest.mark.parametrize(
    "levels", [(2, 7), (5, 3), (3, 8), (3.0, 5.0), (3,), (3, 4, 5), 4, "3-7", (None, 5), [[3, 4], [5, 6]], (True, 9)]
)
def test_unknown_levels(predictor: Predictor, levels: Any) -> None:
    with pytest.raises(InputError, match="3 <= first <= last <= 7"):
        predictor.predict(CENTRE, levels=levels)


@pytest.mark.parametrize("mask_window", [0, -1, math.nan, math.inf, -math.inf, "foo", "", "20", True, [20], (1, 2)])
def test_unknown_mask_windows(predictor: Predictor, mask_window: Any) -> None:
    with pytest.raises(InputError, match="pass 'box', 'full', or a radius in photo pixels greater than 0"):
        predictor.predict(CENTRE, mask_window=mask_window)


def test_predicting_before_an_image_is_set(model: TraceNet) -> None:
    predictor = a_predictor(model)
    for attempt in (lambda: predictor.predict(CENTRE), lambda: predictor.canvas, lambda: predictor.image):
        with pytest.raises(InputError, match=r"call set_image\(image\) before predict"):
            attempt()


def test_models_and_backends_that_do_not_fit(model: TraceNet, plain_model: TraceNet) -> None:
    for backend in ("cuda", "", None):
        with pytest.raises(BackendError, match="choose one of"):
            Predictor(model, backend=backend)  # type: ignore[arg-type]
    assert Predictor(model, backend="torch").backend == "torch"
    with torch.device("meta"), pytest.raises(InputError, match="mask_branch='none' and predicts no masks"):
        Predictor(create_model("tracenet_r50_fpn", mask_branch="none"))
    with pytest.raises(InputError, match="level_head=True"):
        Predictor(plain_model, PredictorSettings())
    assert Predictor(plain_model).settings.level_choice == "score"
    assert Predictor(model).settings.level_choice == "level"
    model.train()
    try:
        with pytest.raises(InputError, match=r"training mode; call model\.eval\(\)"):
            Predictor(model)
    finally:
        model.eval()


def test_only_so_many_sizes_stay_captured(model: TraceNet, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []

    class Stub:
        def __init__(self, model: TraceNet, inputs: tuple[Tensor, ...]) -> None:
            self.size = tuple(inputs[0].shape[2:])
            calls.append(self.size)

        def share_weights(self, other: Stub) -> None:
            assert other.size != self.size

    monkeypatch.setattr(torch_session, "trace", Stub)
    monkeypatch.setattr(torch_session, "MAX_SIZES", 4)
    network = torch_session.TorchNetwork(model)
    canvases = [Canvas(32 * i, 32, 32 * i, 32) for i in range(1, 7)]
    for canvas in (*canvases[:4], canvases[0], *canvases[4:]):
        assert network.traced(canvas).size == (32, canvas.width)  # type: ignore[attr-defined]
    assert len(calls) == 6
    assert list(network.captured) == [(32, 128), (32, 32), (32, 160), (32, 192)]


def test_checkpoints(model: TraceNet, photo: np.ndarray, predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path, predictor=SETTINGS)
    loaded = Predictor.from_pretrained(path, backend="torch", keep_features=False)
    assert loaded.settings == SETTINGS
    assert not loaded.keep_features
    loaded.network.captured = CAPTURED[id(model.backbone)]  # the same weights
    loaded.set_image(photo)
    np.testing.assert_array_equal(loaded.predict(CENTRE)[0], predictor.predict(CENTRE)[0])
    whole = path.read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.safetensors").write_text("hello")
    for name, message in (
        ("half.safetensors", "truncated or of another kind"),
        ("text.safetensors", "truncated or of another kind"),
        ("absent.safetensors", "is not a file"),
        ("", "is not a file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Predictor.from_pretrained(tmp_path / name)
    with pytest.raises(CheckpointError, match="is not a file"):
        Predictor.from_pretrained("tracenet_r101_fpn")
    with pytest.raises(BackendError):
        Predictor.from_pretrained(path, backend="foo")
    for wrong in (5, 1.5, [path]):
        with pytest.raises(InputError, match="pass a name or the path of a file"):
            Predictor.from_pretrained(wrong)  # type: ignore[arg-type]


def test_the_bundled_checkpoint_has_a_name(monkeypatch: pytest.MonkeyPatch, model: TraceNet, tmp_path: Path) -> None:
    bundled, other = tmp_path / "bundled.safetensors", tmp_path / "tracenet_r50_fpn"
    save_checkpoint(model, bundled, predictor=SETTINGS)
    other.mkdir()
    monkeypatch.setattr("tracenet.predictor.bundled_checkpoint", lambda: bundled)
    for name in (None, "tracenet_r50_fpn"):
        assert Predictor.from_pretrained(name, backend="torch").settings == SETTINGS
    for name in ("other.safetensors", other):
        with pytest.raises(CheckpointError, match="is not a file"):
            Predictor.from_pretrained(name)


def test_the_plan_can_be_read(predictor: Predictor) -> None:
    predictor.predict(CENTRE, levels=(3, 5))
    plan = predictor.last_plan
    assert plan is not None
    assert plan.windows["maskfeat"].area > 0
    assert Window.of_cell(5, 8) == plan.windows["theta3"]
    assert plan.planning_ms > 0
    text = plan.table()
    assert text.count("locate") >= 1
    assert text.count("segment") >= 1
    assert predictor.timings_ms["predict"] > 0
    assert predictor.timings_ms["set_image"] > 0


def test_names_of_the_package() -> None:
    assert tracenet.Predictor is Predictor
    assert set(tracenet.__all__) <= set(dir(tracenet))
    for name in tracenet.__all__:
        assert getattr(tracenet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'predictoor'"):
        _ = tracenet.predictoor  # type: ignore[attr-defined]
    assert issubclass(ClickError, InputError)
    assert issubclass(CheckpointError, TraceNetError)


def test_another_predictor_shares_the_network_and_nothing_else(predictor: Predictor, photo: np.ndarray) -> None:
    expected = predictor.predict(CENTRE)
    other = predictor.another()
    assert other.network is predictor.network
    assert other.kept_bytes == 0
    with pytest.raises(InputError, match="no image is set"):
        other.predict(CENTRE)
    other.set_image(photo[:, ::-1].copy())
    mirrored = other.predict(CENTRE)
    assert not np.array_equal(mirrored[2], expected[2])
    kept = predictor.kept_bytes
    other.forget_features()
    assert predictor.kept_bytes == kept > 0
    for again, before in zip(predictor.predict(CENTRE), expected, strict=True):
        np.testing.assert_array_equal(again, before)


def test_a_predictor_that_nobody_holds_is_gone_at_once_with_its_features(
    predictor: Predictor, photo: np.ndarray
) -> None:
    other = predictor.another()
    other.set_image(photo)
    other.predict(CENTRE, zoom=(0.5, 1), multimask_output=True)
    gone = [weakref.ref(other), *(weakref.ref(view.session) for view in other._views.values())]
    gc.disable()
    try:
        del other
        assert [one() for one in gone] == [None] * 3
    finally:
        gc.enable()


def test_between_phases_can_end_a_call_and_the_next_one_goes_on(predictor: Predictor) -> None:
    class StoppedError(Exception):
        pass

    calls: list[int] = []

    def stop_at(phase: int) -> None:
        def stop() -> None:
            calls.append(len(calls))
            if len(calls) > phase:
                raise StoppedError

        calls.clear()
        predictor.between_phases = stop

    expected = predictor.predict(CENTRE)
    predictor.forget_features()
    for phase in (0, 1):
        stop_at(phase)
        with pytest.raises(StoppedError):
            predictor.predict(CENTRE)
        assert len(calls) == phase + 1
    stop_at(99)
    for again, before in zip(predictor.predict(CENTRE), expected, strict=True):
        np.testing.assert_allclose(again, before, atol=1e-5)
    assert len(calls) == 2
