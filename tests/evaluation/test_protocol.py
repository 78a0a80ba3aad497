"""The paper's protocol: the right clicks, the right overlaps, and any model behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.evaluation.objects import Square
from tracenet.data import CocoDataset
from tracenet.evaluation.dense import Overlap, dense_points
from tracenet.evaluation.metrics import mta
from tracenet.evaluation.protocol import ClickProtocol, evaluate_images
from tracenet.evaluation.results import ObjectResult
from tracenet_kernels.errors import ImageError, InputError


def objects_of(dataset: CocoDataset, protocol: ClickProtocol, **options: object) -> list[ObjectResult]:
    images = evaluate_images(Square(), dataset, dataset.records, protocol, **options)  # type: ignore[arg-type]
    return [one for image in images for one in image.objects]


def test_clicks_depend_on_seed_and_annotation_only(dataset: CocoDataset) -> None:
    first = objects_of(dataset, ClickProtocol(clicks=5))
    other = objects_of(dataset, ClickProtocol(clicks=5, seed=1))
    dataset.records = dataset.records[1:]
    (alone,) = objects_of(dataset, ClickProtocol(clicks=5))
    np.testing.assert_array_equal(alone.clicks.unions, first[1].clicks.unions)
    assert replace(alone, clicks=first[1].clicks) == first[1]
    assert not np.array_equal(other[1].clicks.unions, alone.clicks.unions)


def test_the_model_is_asked_once_per_image_and_timed(dataset: CocoDataset) -> None:
    segment = Square()
    images = list(evaluate_images(segment, dataset, dataset.records, ClickProtocol(clicks=10)))
    assert segment.calls == 2
    for image in images:
        assert image.masks == 11
        assert 0 < image.first_mask_seconds + image.masks_seconds < image.seconds


def test_mta_is_its_estimate_where_every_pixel_is_clicked(dataset: CocoDataset) -> None:
    """The dense clicks of a fully clicked object, seen as one band, are equation 2 itself."""
    dense = {1, 3}
    for one in objects_of(dataset, ClickProtocol(clicks=5), dense=dense):
        assert one.dense is not None
        assert (one.dense.step, one.dense.clicks) == (1, one.pixels)
        record = next(r for r in dataset.records if r.id == one.image)
        ((_, truth),) = dataset.masks(record)
        ys, xs = np.nonzero(truth)
        overlap = Overlap(truth)
        masks = Square()(dataset.image(record), np.stack([xs, ys], 1).astype(np.float32))
        hits = [i / u >= 0.7 for i, u in (overlap(mask) for mask, _, _ in masks)]
        assert one.dense.hits == sum(hits)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 300), st.integers(0, 2**32))
def test_dense_points_lie_on_one_grid_inside_the_mask(height: int, width: int, most: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    mask[0, 0] = True
    points, step = dense_points(mask, most)
    assert 1 <= len(points) <= most
    assert mask[points[:, 1], points[:, 0]].all()
    assert len(np.unique(points % step, axis=0)) == 1
    assert len(points) * step**2 >= mask.sum()
    assert (step == 1) == (mask.sum() <= most)


def test_full_mta_sample_is_spread_over_areas(dataset: CocoDataset) -> None:
    record = dataset.records[0]
    areas = [500.0, 3.0, 40.0, 7.0, 90.0, 100.0]
    records = [replace(record, instances=[replace(record.instances[0], id=i, area=a)]) for i, a in enumerate(areas)]
    assert ClickProtocol(full_mta=0).full_mta_sample(records) == set()
    assert ClickProtocol(full_mta=1).full_mta_sample(records) == {4}
    assert ClickProtocol(full_mta=3).full_mta_sample(records) == {3, 4, 0}
    for more in (6, 9):
        assert ClickProtocol(full_mta=more).full_mta_sample(records) == set(range(6))


@pytest.mark.parametrize(
    "wrong", [{"clicks": 7}, {"clicks": 0}, {"seed": -1}, {"full_mta": -1}, {"full_mta_clicks": 0}]
)
def test_impossible_protocols_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"give a positive multiple of 5|must be at least"):
        ClickProtocol(**wrong)


def test_overlap_counts_pixels(dataset: CocoDataset) -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((40, 50), bool)
    truth[5:30, 10:33] = rng.random((25, 23)) < 0.5
    overlap = Overlap(truth)
    for share in (0.0, 0.3, 1.0):
        mask = rng.random(truth.shape) < share
        assert overlap(mask) == ((mask & truth).sum(), (mask | truth).sum())
    with pytest.raises(InputError, match="mask of shape"):
        overlap(np.zeros((40, 49), bool))
    with pytest.raises(InputError, match="float64"):
        overlap(np.zeros((40, 50)))


def test_bad_images_are_refused_or_left_out_as_asked(dataset: CocoDataset) -> None:
    dataset.records[0].path.write_bytes(dataset.records[0].path.read_bytes()[:100])
    with pytest.raises(ImageError, match=r"a\.png"):
        list(evaluate_images(Square(), dataset, dataset.records, ClickProtocol(clicks=5)))
    dataset.on_error = "skip"
    first, second = evaluate_images(Square(), dataset, dataset.records, ClickProtocol(clicks=5))
    assert first.objects == []
    assert "a.png" in first.problems[0]
    assert [one.instance for one in second.objects] == [3]


def test_mta_of_a_perfect_model_is_one(dataset: CocoDataset) -> None:
    truths = {record.width: dataset.masks(record)[0][1] for record in dataset.records}

    def perfect(
        photo: Image.Image, points: NDArray[np.float32]
    ) -> Iterator[tuple[NDArray[np.bool_], int | None, float]]:
        for _ in points:
            yield truths[photo.width], None, 1.0

    images = evaluate_images(perfect, dataset, dataset.records, ClickProtocol(clicks=5))
    assert mta([one.clicks for image in images for one in image.objects]) == 1
