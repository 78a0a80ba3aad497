"""The bundled checkpoint on real photos: a mask under the click, the same as the full network's, for less work."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tracenet import Predictor, inference
from tracenet.models.weights import BUNDLED
from tracenet.segment import segment_photo
from tracenet.untraced import half_logits, planes_of

ASSETS = Path(str(files("tracenet") / "assets"))
CLICKS = {"coffee": (290, 100), "chelsea": (230, 120), "rocket": (320, 250), "astronaut": (220, 120)}

pytestmark = pytest.mark.skipif(
    not (ASSETS / BUNDLED).is_file(), reason=f"the checkpoint tracenet/assets/{BUNDLED} is absent"
)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_pretrained()


@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket"])
def test_one_click_on_a_photo(predictor: Predictor, name: str, tmp_path: Path) -> None:
    path, click = ASSETS / "photos" / f"{name}.jpg", CLICKS[name]
    report = segment_photo(path, click, tmp_path / "mask.png", predictor=predictor)
    with Image.open(tmp_path / "mask.png") as picture:
        mask = np.asarray(picture) > 0
    assert mask.shape == (report["height"], report["width"])
    assert mask[click[1], click[0]]
    assert 0.005 < mask.mean() < 0.9
    assert 0 < report["macs"] < report["full_macs"]
    assert 0.05 < report["score"] <= 1

    plan, scale, model, level = predictor.last_plan, predictor.last_scale, predictor.model, report["level"]
    canvas, settings = scale.canvas, predictor.settings
    assert plan is not None
    window = plan.masks[0].request["mask_half"]
    at = inference.to_working(np.array([click], np.float64), canvas).astype(np.float32)
    planes = planes_of(model, predictor.input_at(scale))
    found = inference.predictions_at(planes, at, model.config.anchor_offset)
    if settings.zoom == "off" and settings.agreement < 2:
        assert int(inference.rank_levels(found, settings)[0, 0]) == level
    half = half_logits(model, planes["maskfeat"], found["theta"][:, level - 3], at, level)[0]
    assert window == inference.box_window(found["boxes"][0, level - 3], at[0], canvas, settings)
    full = inference.photo_logits(half[window.slices], window, canvas)
    decided = np.abs(full) > 1e-3 * np.abs(half).max()
    np.testing.assert_array_equal(mask[decided], (full > 0)[decided])

    kept, _, logits = predictor.predict([click])
    np.testing.assert_array_equal(kept[0][decided], mask[decided])
    error = np.abs(logits[0][window.slices] - half[window.slices]).max()
    assert error <= 1e-4 * np.abs(half).max()
    assert predictor.last_plan is not None
    assert predictor.last_plan.macs < 0.5 * report["macs"]


def test_a_small_window_costs_less(predictor: Predictor) -> None:
    with Image.open(ASSETS / "photos" / "coffee.jpg") as photo:
        predictor.set_image(photo)
    macs = []
    for levels, window in (((3, 3), 32), ((3, 5), "box"), ((3, 7), "full")):
        predictor.forget_features()
        predictor.predict([CLICKS["coffee"]], levels=levels, mask_window=window)
        assert predictor.last_plan is not None
        macs.append(predictor.last_plan.macs)
        full = predictor.last_plan.full_macs
    assert macs[0] < macs[1] < macs[2] <= full
    assert macs[0] < 0.5 * full
