"""The pictures of one evaluation: bands and clicks (the paper's figure 4), metrics by band (figure 5), IoU by size,
the click tolerance of an object (figure 1b), the best, median and worst clicks, and table II as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tracenet.data import BandClicks, CocoDataset, ImageRecord, click_bands, deepest_interior_point
from tracenet.data.clicks import BANDS
from tracenet.data.segmentation import decode
from tracenet.evaluation.charts import band_chart, size_chart
from tracenet.evaluation.compare import category_table
from tracenet.evaluation.protocol import ClickProtocol
from tracenet.evaluation.results import ObjectResult
from tracenet.evaluation.run import Evaluation
from tracenet.evaluation.tolerance import around, click_tolerance, tolerance_picture
from tracenet.files import save_pictures, save_text
from tracenet.pictures import CLICK_COLOUR, MASK_COLOUR, overlay
from tracenet_kernels.errors import InputError

TRUTH_COLOUR = (60, 220, 90)
PANEL, BAND_PANEL = 260, 320
"""Longest sides of panels, in pixels."""
TITLE, GAP = 24, 8
COLUMNS = 5
"""Clicks in each row of the sheet."""
WELL_SHOWN = 0.15
"""Share of the photo's area that the example object should have."""


def draw_figures(
    folder: Path,
    evaluation: Evaluation,
    dataset: CocoDataset,
    protocol: ClickProtocol,
    example: int | None = None,
) -> list[Path]:
    """Write every picture of an evaluation into ``folder``, which is made if need be.

    Args:
        example: annotation id of the object whose bands and click tolerance are drawn; by default one that shows well.

    Returns:
        The files written.

    Raises:
        InputError: nothing was evaluated, ``example`` is not among it, or the folder cannot be written to.
    """
    one = example_object(evaluation.objects, example)
    record = next(r for r in dataset.records if r.id == one.image)
    instance = next(i for i in record.instances if i.id == one.instance)
    photo, mask = dataset.image(record), decode(one.truth)
    make_folder(folder)
    pictures = {
        "bands.png": bands_picture(photo, mask, protocol.simulate(instance, mask)),
        "by_band.png": band_chart({"all objects": evaluation.report}),
        "iou_by_size.png": size_chart(evaluation.objects),
        "tolerance.png": tolerance_picture(photo, click_tolerance(evaluation.segment, photo, mask)),
        "clicks.png": clicks_sheet(evaluation.objects, dataset),
    }
    save_pictures({folder / name: picture for name, picture in pictures.items()})
    save_text(category_table({"this model": evaluation.report}) + "\n", folder / "table_2.md")
    return [*(folder / name for name in pictures), folder / "table_2.md"]


def make_folder(folder: Path) -> None:
    """Make a folder unless it is there. Raises InputError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {folder} cannot be made ({error.strerror or error}); choose another") from error


def example_object(results: Sequence[ObjectResult], instance: int | None = None) -> ObjectResult:
    """The object with that annotation id, or the one with pixels in all bands whose share of its photo shows it best.

    Raises:
        InputError: there is none.
    """
    if instance is not None:
        found = [one for one in results if one.instance == instance]
        if not found:
            raise InputError(f"annotation {instance} is not among the {len(results)} objects that were evaluated")
        return found[0]
    if not results:
        raise InputError("no object was evaluated, so there is nothing to draw")

    def rating(one: ObjectResult) -> tuple[int, float]:
        height, width = one.truth["size"]
        return int((one.clicks.areas > 0).sum()), -abs(one.pixels / (height * width) - WELL_SHOWN)

    return max(results, key=rating)


def bands_picture(photo: Image.Image, mask: NDArray[np.bool_], clicks: BandClicks) -> Image.Image:
    """Five panels, innermost band first: the band's pixels of the object lit, and its simulated clicks."""
    box = around(mask, photo.size)
    bands = click_bands(mask)
    panels = []
    for band in range(BANDS):
        points = clicks.points[clicks.bands == band]
        lit = overlay(photo, bands == band)
        panel, scale = _panel(lit, box, BAND_PANEL)
        _outline(panel, _panel_mask(mask, box, panel.size), (255, 255, 255), 1)
        draw = ImageDraw.Draw(panel)
        for x, y in ((points - box[:2] + 0.5) * scale).tolist():
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=CLICK_COLOUR, outline=(0, 0, 0))
        panels.append((panel, f"band {band + 1}: {int(clicks.areas[band])} pixels"))
    return _sheet([panels])


def clicks_sheet(results: Sequence[ObjectResult], dataset: CocoDataset, columns: int = COLUMNS) -> Image.Image:
    """Three rows: best, median and worst IoU of the deepest interior click, at most one object of a photo in each."""
    records = {record.id: record for record in dataset.records}
    ranked = sorted(results, key=lambda one: (-one.iou, one.instance))
    centre = (len(ranked) - 1) / 2
    middle = [ranked[i] for i in sorted(range(len(ranked)), key=lambda i: abs(i - centre))]
    rows = [
        [_click_panel(one, records[one.image], dataset, name) for one in _of_different_images(some, columns)]
        for name, some in (("best", ranked), ("median", middle), ("worst", ranked[::-1]))
    ]
    return _sheet(rows, "cross: the click; green line: the true mask; blue: the predicted mask")


def _of_different_images(results: Sequence[ObjectResult], most: int) -> list[ObjectResult]:
    first: dict[int, ObjectResult] = {}
    for one in results:
        first.setdefault(one.image, one)
    return list(first.values())[:most]


def _click_panel(one: ObjectResult, record: ImageRecord, dataset: CocoDataset, rank: str) -> tuple[Image.Image, str]:
    truth, prediction = decode(one.truth), decode(one.prediction)
    box = around(truth | prediction, (record.width, record.height))
    panel, scale = _panel(dataset.image(record), box)
    click = (np.array(deepest_interior_point(truth)) - box[:2] + 0.5) * scale
    panel = overlay(panel, _panel_mask(prediction, box, panel.size), colour=MASK_COLOUR)
    _outline(panel, _panel_mask(truth, box, panel.size), TRUTH_COLOUR, 2)
    panel = overlay(panel, np.zeros((panel.height, panel.width), bool), [click.tolist()])
    name = "" if one.category is None else dataset.categories.get(one.category, "")
    return panel, f"{rank}: IoU {one.iou:.2f}  {name}"


def _panel(photo: Image.Image, box: tuple[int, int, int, int], side: int = PANEL) -> tuple[Image.Image, float]:
    """The crop of a photo with a longest side of ``side``, and the factor it was scaled by."""
    part = photo.crop(box)
    scale = side / max(part.size)
    size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    return part.resize(size, Image.Resampling.LANCZOS), scale


def _panel_mask(mask: NDArray[np.bool_], box: tuple[int, int, int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
    part = Image.fromarray((mask[box[1] : box[3], box[0] : box[2]] * 255).astype(np.uint8))
    return np.asarray(part.resize(size, Image.Resampling.BILINEAR)) > 127


def _outline(panel: Image.Image, mask: NDArray[np.bool_], colour: tuple[int, int, int], width: int) -> None:
    solid = Image.fromarray((mask * 255).astype(np.uint8))
    inner = np.asarray(solid.filter(ImageFilter.MinFilter(2 * width + 1))) > 0
    panel.paste(colour, mask=Image.fromarray(((mask & ~inner) * 255).astype(np.uint8)))


def _sheet(rows: Sequence[Sequence[tuple[Image.Image, str]]], legend: str = "") -> Image.Image:
    """Titled panels in rows and columns, on white."""
    font = ImageFont.load_default(size=14)
    heights = [max((panel.height for panel, _ in row), default=0) + TITLE + GAP for row in rows]
    widths = [
        max(max(row[i][0].width, round(font.getlength(row[i][1]))) for row in rows if i < len(row)) + GAP
        for i in range(max(len(row) for row in rows))
    ]
    size = (GAP + max(sum(widths), round(font.getlength(legend))), GAP + sum(heights) + (TITLE if legend else 0))
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for (panel, title), width in zip(row, widths, strict=False):
            draw.text((left, top), title, (0, 0, 0), font)
            sheet.paste(panel, (left, top + TITLE))
            left += width
        top += height
    draw.text((GAP, top), legend, (90, 90, 90), font)
    return sheet
