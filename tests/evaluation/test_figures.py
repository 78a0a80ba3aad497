"""Pictures are drawn, of the right things, and not blank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.objects import Square, clicked, square
from tracenet.data import CocoDataset
from tracenet.evaluation.charts import band_chart, size_chart
from tracenet.evaluation.figures import bands_picture, clicks_sheet, draw_figures, example_object
from tracenet.evaluation.protocol import ClickProtocol
from tracenet.evaluation.report import summarise
from tracenet.evaluation.run import Evaluation, evaluate_dataset
from tracenet.evaluation.tolerance import around, click_tolerance, main, read_mask, tolerance_picture
from tracenet.inference import PredictorSettings
from tracenet.models import TraceNet
from tracenet.models.weights import save_checkpoint
from tracenet.pictures import CLICK_COLOUR
from tracenet_kernels.errors import InputError

PROTOCOL = ClickProtocol(clicks=25)
MASK = square(10, 10, 20)
PHOTO = Image.new("RGB", (50, 40), (200, 120, 40))


def colours(picture: Image.Image) -> int:
    return len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0))


@pytest.fixture
def evaluation(dataset: CocoDataset) -> Evaluation:
    return evaluate_dataset(Square(), dataset, PROTOCOL, {})


def test_every_figure_is_written_and_none_is_blank(
    evaluation: Evaluation, dataset: CocoDataset, tmp_path: Path
) -> None:
    written = draw_figures(tmp_path / "a" / "b", evaluation, dataset, PROTOCOL)
    assert len(written) == 6
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert colours(picture.convert("RGB")) > 50, path
    assert (tmp_path / "a" / "b" / "table_2.md").read_text().startswith("| mIoU-T | person |")


def test_example_is_the_one_asked_for(evaluation: Evaluation) -> None:
    assert example_object(evaluation.objects, 3).instance == 3
    with pytest.raises(InputError, match="annotation 4 is not among the 2 objects"):
        example_object(evaluation.objects, 4)
    with pytest.raises(InputError, match="nothing to draw"):
        example_object([])


def test_band_panels_show_all_clicks() -> None:
    class Instance:
        id = 1

    clicks = PROTOCOL.simulate(Instance(), MASK)  # type: ignore[arg-type]
    with_clicks = np.asarray(bands_picture(PHOTO, MASK, clicks))
    panels = np.array_split(with_clicks, 5, axis=1)
    for panel in panels:
        assert (panel == CLICK_COLOUR).all(2).sum() > 40


def test_charts_follow_the_numbers() -> None:
    good, bad = [clicked(1, MASK, MASK)], [clicked(1, MASK, ~MASK, area=2000.0)]
    one = band_chart({"good": summarise(good, {})})
    two = band_chart({"good": summarise(good, {}), "bad": summarise(bad, {})})
    assert one.size == two.size
    assert one.tobytes() != two.tobytes()
    assert size_chart(good).tobytes() != size_chart(bad).tobytes()
    assert band_chart({"nothing": summarise([], {})}).size == one.size
    assert size_chart([]).size == size_chart(good).size


def test_sheet_takes_one_object_of_each_photo(dataset: CocoDataset) -> None:
    """Three objects on two photos: two columns, however many were asked for."""
    masks = {record.id: dataset.masks(record)[0][1] for record in dataset.records}
    results = [
        clicked(1, masks[1], masks[1], image=1),
        clicked(2, masks[1], ~masks[1], image=1),
        clicked(3, masks[2], masks[2], image=2),
    ]
    assert clicks_sheet(results, dataset, 5).size == clicks_sheet(results, dataset, 2).size
    assert clicks_sheet(results, dataset, 1).width < clicks_sheet(results, dataset, 2).width


def test_tolerance_of_known_masks() -> None:
    """A square of reach 10 answers every click; on a square of 21 pixels its IoU is known for each."""
    mask = square(15, 10, 21)
    found = click_tolerance(Square(10), PHOTO, mask)
    assert (found.clicks, found.step) == (441, 1)
    assert np.isnan(found.ious[~mask]).all()
    assert found.ious[20, 25] == 1  # its centre
    overlap = (21 - 3) * (21 - 1)
    assert found.ious[20 + 3, 25 + 1] == pytest.approx(overlap / (2 * 441 - overlap))
    assert found.share == np.mean(found.ious[mask] >= 0.7)
    coarse = click_tolerance(Square(10), PHOTO, mask, most=60)
    assert coarse.step == 3
    assert coarse.clicks == 49
    assert not np.isnan(coarse.ious[mask]).any()
    assert abs(coarse.share - found.share) < 0.05
    assert colours(tolerance_picture(PHOTO, found)) > 50


def test_tolerance_refuses_masks_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="must be the same"):
        click_tolerance(Square(), PHOTO, np.ones((40, 49), bool))
    with pytest.raises(InputError, match="mask is empty"):
        click_tolerance(Square(), PHOTO, np.zeros((40, 50), bool))


def test_tolerance_command(model: TraceNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(model, tmp_path / "m.safetensors", predictor=PredictorSettings(working_size=64))
    checkpoint = ["--checkpoint", str(tmp_path / "m.safetensors")]
    photo, mask, out = (tmp_path / name for name in ("photo.png", "mask.png", "out.png"))
    PHOTO.save(photo)
    Image.fromarray((MASK * 255).astype(np.uint8)).save(mask)
    np.testing.assert_array_equal(read_mask(mask), MASK)
    assert main([str(photo), str(mask), "-o", str(out), "--clicks", "9", *checkpoint]) == 0
    assert "9 clicks 7 px apart" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert colours(picture) > 50
    PHOTO.resize((20, 20)).save(photo)
    assert main([str(photo), str(mask), "-o", str(out), *checkpoint]) == 2
    assert "must be the same" in capsys.readouterr().err


def test_crop_stays_on_the_photo() -> None:
    assert around(square(0, 0, 5), (50, 40)) == (0, 0, 14, 14)
    assert around(np.ones((40, 50), bool), (50, 40)) == (0, 0, 50, 40)
