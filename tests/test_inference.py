"""The small functions between a photo with a click and the network, against answers known by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from tracenet import inference
from tracenet.config import TraceNetConfig
from tracenet.inference import (
    OUTSIDE_LOGIT,
    Canvas,
    Floats,
    PredictorSettings,
    box_window,
    cells_of,
    click_scores,
    decode_boxes,
    fit_canvas,
    half_plane,
    mask_origin,
    normalise,
    photo_logits,
    predictions_at,
    prepare_image,
    prepare_window,
    rank_levels,
    to_working,
)
from tracenet.resize import ResizedPhoto, resize_whole
from tracenet_kernels.errors import ClickError, InputError
from tracenet_kernels.window import Window

LEVELS = (3, 4, 5, 6, 7)


@pytest.mark.parametrize(
    ("photo", "working", "expected", "padded"),
    [
        ((1024, 768), 640, (640, 480), (640, 480)),
        ((100, 50), 640, (640, 320), (640, 320)),
        ((97, 150), 128, (83, 128), (96, 128)),
        ((1, 1), 128, (128, 128), (128, 128)),
        ((3, 500), 128, (1, 128), (32, 128)),
        ((500, 1), 64, (64, 1), (64, 32)),
        ((1, 268435456), 64, (1, 64), (32, 64)),
        ((5, 5), 1, (1, 1), (32, 32)),
    ],
)
def test_canvas(photo: tuple[int, int], working: int, expected: tuple[int, int], padded: tuple[int, int]) -> None:
    canvas = fit_canvas(*photo, working)
    assert (canvas.width, canvas.height) == expected
    assert (canvas.padded_width, canvas.padded_height) == padded


@pytest.mark.parametrize("arguments", [(0, 5, 64), (5, 0, 64), (5, 5, 0), (-1, 5, 64)])
def test_canvas_errors(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="must be positive"):
        fit_canvas(*arguments)


def test_normalise_pads_after_subtracting_the_mean() -> None:
    config = TraceNetConfig(mean=(1, 2, 3), std=(1, 2, 4), channel_order="rgb")
    pixels = np.array([[[11, 12, 13], [1, 2, 3]]], np.uint8)
    found = normalise(pixels, config)
    assert found.shape == (1, 3, 32, 32)
    assert found[0, :, 0, 0].tolist() == [10, 5, 2.5]
    assert (found[0, :, 0, 1:] == 0).all()
    assert (found[0, :, 1:] == 0).all()
    turned = normalise(pixels, TraceNetConfig(mean=(1, 2, 3), std=(1, 2, 4), channel_order="bgr"))
    assert turned[0, :, 0, 0].tolist() == [12, 5, 2]


def test_prepare_image_resizes() -> None:
    photo = Image.fromarray(np.full((30, 60, 3), 200, np.uint8))
    canvas = fit_canvas(60, 30, 96)
    found = prepare_image(photo, canvas, TraceNetConfig(mean=(0, 0, 0)))
    assert found.shape == (1, 3, 64, 96)
    assert (found[0, :, :48] == 200).all()
    assert (found[0, :, 48:] == 0).all()


def test_clicks_on_the_working_image() -> None:
    canvas = Canvas(100, 50, 200, 100)
    found = to_working(np.array([[0.0, 0.0], [-0.5, 49.0], [99.4, 10.25]], np.float64), canvas)
    np.testing.assert_allclose(found, np.array([[1.0, 1.0], [0.0, 99.0], [199.8, 21.5]], np.float64))


@pytest.mark.parametrize(("photo", "working"), [(128, 128), (150, 128), (7, 96), (4097, 640)])
def test_the_last_fraction_of_the_last_pixel_stays_inside(photo: int, working: int) -> None:
    canvas = fit_canvas(photo, photo, working)
    at = math.nextafter(photo - 0.5, 0)
    found = to_working(np.array([[at, at]], np.float64), canvas).astype(np.float32)
    assert (found < working).all()
    assert (found > working - 0.1).all()


@pytest.mark.parametrize(
    "click", [(-0.51, 3), (99.5, 3), (3, 49.5), (3, -1), (math.nan, 3), (3, math.inf), (-math.inf, 3), (1e300, 3)]
)
def test_clicks_outside_the_photo(click: tuple[float, float]) -> None:
    with pytest.raises(ClickError, match=r"outside the photo of 100x50 pixels; x runs from 0 to 99, y from 0 to 49"):
        to_working(np.array([[5.0, 5.0], click], np.float64), Canvas(100, 50, 200, 100))


def test_the_error_does_not_list_a_thousand_clicks() -> None:
    with pytest.raises(ClickError) as caught:
        to_working(np.full((1000, 2), -5.0), Canvas(100, 50, 200, 100))
    assert len(str(caught.value)) < 300


def test_cells_and_boxes() -> None:
    clicks = np.array([[0.0, 0.0], [15.9, 16.0], [127.99, 64.0]])
    assert cells_of(clicks, 4).tolist() == [[0, 0], [1, 0], [4, 7]]
    reg = np.array([[1.0, 2, 3, 4]] * 3)
    found = decode_boxes(reg, cells_of(clicks, 4), 4)
    assert found.tolist() == [[7, 6, 11, 12], [7, 22, 11, 28], [119, 70, 123, 76]]
    assert decode_boxes(reg, cells_of(clicks, 4), 4, "zero")[0].tolist() == [-1, -2, 3, 4]


def planes(h: int = 64, w: int = 128, level_head: bool = True) -> dict[str, Floats]:
    """Planes whose values tell where they were read."""
    out = {}
    for level in LEVELS:
        rows, columns = math.ceil(h / 2**level), math.ceil(w / 2**level)
        at = np.arange(rows * columns, dtype=np.float32).reshape(1, 1, rows, columns)
        out[f"logits{level}"] = np.concatenate([at - 1000, at], 1)
        out[f"ctr{level}"] = at * 2
        out[f"reg{level}"] = np.broadcast_to(at, (1, 4, rows, columns))
        out[f"theta{level}"] = np.broadcast_to(at, (1, 169, rows, columns)) + level
        if level_head:
            out[f"level{level}"] = -at
    return out


@pytest.mark.parametrize("level_head", [True, False])
def test_predictions_are_read_at_the_clicks(level_head: bool) -> None:
    clicks = np.array([[127.0, 63.0], [8.0, 0.0]])
    found = predictions_at(planes(level_head=level_head), clicks)
    assert ("level" in found) == level_head
    assert found["logits"].tolist() == [[127, 31, 7, 1, 0], [1, 0, 0, 0, 0]]  # the best class
    assert found["ctr"].tolist() == [[254, 62, 14, 2, 0], [2, 0, 0, 0, 0]]
    assert found["theta"].shape == (2, 5, 169)
    assert found["theta"][0, :, 5].tolist() == [130, 35, 12, 7, 7]
    assert found["boxes"][0, 0].tolist() == [124 - 127, 60 - 127, 124 + 127, 60 + 127]


def test_scores() -> None:
    predictions = {"logits": np.array([[0.0, 2.0]]), "ctr": np.array([[0.0, -2.0]])}
    s = 1 / (1 + math.exp(-2))
    assert click_scores(predictions)[0].tolist() == pytest.approx([0.5, s])
    assert click_scores(predictions, "score_centerness")[0].tolist() == pytest.approx([0.5, math.sqrt(s * (1 - s))])


def test_ranking_of_levels() -> None:
    predictions = {
        "logits": np.array([[0.0, 5.0, 5.0, -1.0, 9.0]]),
        "level": np.array([[3.0, 1.0, 2.0, math.nan, math.nan]]),
    }
    by_score = PredictorSettings(level_choice="score")
    assert rank_levels(predictions, by_score).tolist() == [[7, 4, 5, 3, 6]]
    assert rank_levels(predictions, PredictorSettings(levels=(3, 5))).tolist() == [[3, 5, 4]]
    assert rank_levels(predictions, PredictorSettings(levels=(4, 4))).tolist() == [[4]]
    with pytest.raises(InputError, match="level_head=True"):
        rank_levels({"logits": predictions["logits"]}, PredictorSettings())


def test_origins() -> None:
    clicks = np.array([[33.5, 7.0]])
    assert mask_origin(clicks, 5, "click").tolist() == [[33.5, 7.0]]
    assert mask_origin(clicks, 5, "cell").tolist() == [[48.0, 16.0]]


CANVAS = Canvas(100, 50, 200, 100)
EXACT = PredictorSettings(mask_margin=0, mask_margin_pixels=0)


@pytest.mark.parametrize(
    ("box", "click", "settings", "expected"),
    [
        ((20, 10, 60, 31), (30, 20), EXACT, Window(5, 16, 10, 30)),
        ((20, 10, 60, 30), (30, 20), PredictorSettings(mask_margin=0.5, mask_margin_pixels=2), Window(0, 21, 0, 41)),
        ((20, 10, 60, 30), (199.9, 99.9), EXACT, Window(5, 50, 10, 100)),
        ((20, 10, 60, 30), (0, 0), EXACT, Window(0, 15, 0, 30)),
        ((-500, -500, 900, 900), (30, 20), EXACT, Window(0, 50, 0, 100)),
        ((40, 20, 40, 20), (40, 20), EXACT, Window(10, 11, 20, 21)),
        ((0, 0, 1, 1), (30, 20), PredictorSettings(mask_window="full"), Window(0, 50, 0, 100)),
        ((500, 500, 600, 600), (30, 20), EXACT, Window(10, 50, 15, 100)),
        ((-90, -90, -80, -80), (30, 20), EXACT, Window(0, 11, 0, 16)),
    ],
)
def test_mask_windows(
    box: tuple[float, ...], click: tuple[float, float], settings: PredictorSettings, expected: Window
) -> None:
    assert box_window(np.array(box), np.array(click), CANVAS, settings) == expected


def test_boxes_far_out_of_range_are_clipped() -> None:
    box = np.array([-3e38, -math.inf, math.inf, 3e38])
    assert box_window(box, np.array([30.0, 20.0]), CANVAS, EXACT) == Window(0, 50, 0, 100)


def test_a_linear_plane_stays_linear_on_the_photo() -> None:
    """Sample i of the half-resolution mask lies at 2i + 1 on the working image, photo pixel x at (x + 0.5) * scale."""
    canvas = Canvas(100, 50, 200, 100)
    window = Window.full(50, 100)
    ys, xs = np.arange(50.0)[:, None] * 2 + 1, np.arange(100.0)[None] * 2 + 1
    found = photo_logits(3 * ys - 2 * xs, window, canvas)
    expected = 3 * (np.arange(50.0)[:, None] + 0.5) * 2 - 2 * (np.arange(100.0)[None] + 0.5) * 2
    np.testing.assert_allclose(found, expected)
    larger = photo_logits(3 * ys - 2 * xs, window, Canvas(400, 200, 200, 100))
    y, x = ((np.arange(n) + 0.5) * 0.5 for n in (200.0, 400.0))
    np.testing.assert_allclose(larger, 3 * y.clip(1, 99)[:, None] - 2 * x.clip(1, 199)[None])


def test_outside_the_window_is_background() -> None:
    window = Window(10, 20, 30, 50)
    plane = half_plane(np.ones((10, 20)), window, CANVAS)
    assert (plane[window.slices] == 1).all()
    assert (plane == OUTSIDE_LOGIT).sum() == 50 * 100 - 200
    found = photo_logits(np.ones((10, 20)), window, CANVAS)
    assert (found[10:20, 30:50] == 1).all()
    found[10:20, 30:50] = OUTSIDE_LOGIT
    assert (found == OUTSIDE_LOGIT).all()
    with pytest.raises(InputError, match="the window is 10x20"):
        half_plane(np.ones((11, 20)), window, CANVAS)


def test_windows_of_the_input_are_those_of_the_whole() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8))
    for size in (64, 101, 230):
        canvas, config = fit_canvas(101, 70, size), TraceNetConfig(channel_order="bgr", std=(2.0, 3.0, 4.0))
        whole = normalise(np.asarray(resize_whole(photo, canvas.width, canvas.height)), config)
        height, width = canvas.padded_height, canvas.padded_width
        assert whole.shape[2:] == (height, width)
        for window in (
            Window(0, 5, 0, 7),
            Window(height - 20, height, width - 30, width),
            Window(canvas.height, height, 3, 9),
            Window(10, 10, 0, 5),
            Window.full(height, width),
        ):
            resized = ResizedPhoto(photo, canvas.width, canvas.height)
            found = prepare_window(resized, canvas, config, window)
            np.testing.assert_array_equal(found, whole[..., window.y0 : window.y1, window.x0 : window.x1])


def test_planes_move_between_scales() -> None:
    """A plane that is linear on the photo stays it: sample i lies at (2i + 1) / size of the photo."""
    coarse, fine = Canvas(100, 50, 40, 20), Canvas(100, 50, 150, 75)

    def linear(canvas: Canvas) -> Floats:
        ys, xs = ((2 * np.arange(float(math.ceil(n / 2))) + 1) / n for n in (canvas.height, canvas.width))
        return 3 * ys[:, None] - 2 * xs[None]

    down = inference.move_plane(linear(fine), fine, coarse)
    np.testing.assert_allclose(down, linear(coarse), atol=1e-6)
    up = inference.move_plane(linear(coarse), coarse, fine)
    np.testing.assert_allclose(
        up[4:-4, 4:-4], linear(fine)[4:-4, 4:-4], atol=1e-6
    )  # beyond the last samples it is constant


def test_settings_of_older_checkpoints_have_no_zoom() -> None:
    settings = PredictorSettings.from_dict({"working_size": 512, "levels": [3, 7]})
    assert (settings.zoom, settings.agreement) == ("off", 0)
    wanted = PredictorSettings(zoom="auto", zoom_factors=(0.5, "native"), zoom_levels=(3, 6), zoom_choice="level")
    assert PredictorSettings.from_dict(json.loads(json.dumps(wanted.to_dict()))) == wanted


def test_settings_round_trip() -> None:
    settings = PredictorSettings(working_size=512, levels=(3, 5), mask_window="full", score="score_centerness")
    assert PredictorSettings.from_dict(settings.to_dict()) == settings
    assert PredictorSettings(levels=[3, 5]).levels == (3, 5)  # type: ignore[arg-type]  # as JSON gives it
    assert PredictorSettings(levels=(np.int64(3), np.int64(5))).levels == (3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": (2, 7)}, r"levels \(2, 7\): give first and last"),
        ({"levels": (3, 8)}, "3 <= first <= last <= 7"),
        ({"levels": (5, 3)}, "3 <= first <= last <= 7"),
        ({"levels": (3.0, 5.0)}, "two integers"),
        ({"levels": (3, 4, 5)}, "two integers"),
        ({"levels": 5}, "two integers"),
        ({"levels": "3-7"}, "two integers"),
        ({"levels": None}, "two integers"),
        ({"working_size": 0}, "at least 1 pixel"),
        ({"working_size": 640.5}, "an integer"),
        ({"working_size": "640"}, "an integer"),
        ({"level_choice": "best"}, "level_choice='best' is not known"),
        ({"agreement": -1}, "number of candidates"),
        ({"agreement": 2.5}, "number of candidates"),
        ({"agreement": True}, "number of candidates"),
        ({"zoom": "2"}, "zoom='2' is not known"),
        ({"zoom_choice": "best"}, "zoom_choice='best' is not known"),
        ({"zoom_levels": (2, 5)}, "3 <= first <= last <= 7"),
        ({"zoom_enlarge": 0.5}, "at least 1"),
        ({"zoom_enlarge": math.inf}, "finite"),
        ({"zoom_factors": ()}, "no zoom factors"),
        ({"zoom_factors": [1] * 9}, "pass 1 to 8"),
        ({"zoom_factors": "native"}, "pass a sequence"),
        ({"zoom_factors": 2}, "pass a sequence"),
        ({"zoom_factors": [0]}, "positive numbers"),
        ({"zoom_factors": [1, -1]}, "positive numbers"),
        ({"zoom_factors": [math.nan]}, "positive numbers"),
        ({"zoom_factors": [math.inf]}, "positive numbers"),
        ({"zoom_factors": [300]}, "at most 256"),
        ({"zoom_factors": [True]}, "positive numbers"),
        ({"zoom_factors": ["2"]}, "positive numbers"),
        ({"mask_window": "circle"}, "mask_window='circle' is not known"),
        ({"score": "iou"}, "score='iou' is not known"),
        ({"mask_margin": math.nan}, "must be finite"),
        ({"mask_margin_pixels": math.inf}, "must be finite"),
        ({"size": 3}, r"unknown fields \['size'\]"),
    ],
)
def test_settings_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PredictorSettings.from_dict(change)
