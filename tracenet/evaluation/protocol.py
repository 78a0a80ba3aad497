"""The paper's protocol (section IV): which clicks every annotated object gets, and how its masks are scored.

Each object is clicked once at its deepest interior point, 25 times in five bands, and, in a sample of objects, at every
pixel. The model behind it is anything that answers :class:`Segment`, so that several are judged on the same clicks and
masks by the same code::

    class Mine:
        def __call__(self, photo, points):
            features = encode(photo)
            for x, y in points:
                mask, score = decode(features, x, y)  # bool [photo.height, photo.width]
                yield mask, None, score

    images = evaluate_images(Mine(), dataset, dataset.records, ClickProtocol(seed=0))
    report = summarise([one for image in images for one in image.objects], dataset.categories)
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tracenet.data import BandClicks, CocoDataset, ImageRecord, Instance, deepest_interior_point, simulate_clicks
from tracenet.data.clicks import BANDS, CLICKS_PER_BAND
from tracenet.evaluation.dense import Overlap, dense_points
from tracenet.evaluation.metrics import HIT, ObjectClicks
from tracenet.evaluation.results import DenseClicks, ImageResult, ObjectResult, encode_mask
from tracenet_kernels.errors import ImageError, InputError


class Segment(Protocol):
    """A model that answers clicks.

    Called with an RGB photo and clicks ``[N, 2]`` float32 (x, y) in photo pixels, integers are pixel centres; gives one
    ``(mask, level, score)`` per click, in order: bool ``[H, W]`` at photo size, the pyramid level that answered (None
    without levels), the model's own rating of the mask. Masks should come one at a time: there are hundreds per photo.
    """

    def __call__(
        self, photo: Image.Image, points: NDArray[np.float32]
    ) -> Iterator[tuple[NDArray[np.bool_], int | None, float]]: ...


@dataclass(frozen=True)
class ClickProtocol:
    """Which clicks an object gets; they depend on the seed and the annotation's id only.

    Attributes:
        clicks: simulated clicks per object, a multiple of five bands.
        seed: of the simulated clicks.
        full_mta: objects on which mTA is also computed by its full definition.
        full_mta_clicks: objects of more pixels than this are clicked on a grid of at most so many pixels instead.

    Raises:
        InputError: a count is not positive, or ``clicks`` no multiple of five.
    """

    clicks: int = BANDS * CLICKS_PER_BAND
    seed: int = 0
    full_mta: int = 0
    full_mta_clicks: int = 1024

    def __post_init__(self) -> None:
        if self.clicks < BANDS or self.clicks % BANDS:
            raise InputError(
                f"{self.clicks} clicks per object; give a positive multiple of {BANDS}, the paper takes 25"
            )
        if self.seed < 0 or self.full_mta < 0 or self.full_mta_clicks < 1:
            raise InputError(
                f"seed {self.seed}, full mTA on {self.full_mta} objects with {self.full_mta_clicks} clicks: "
                "the first two must be at least 0, the clicks at least 1"
            )

    def simulate(self, instance: Instance, mask: NDArray[np.bool_]) -> BandClicks:
        """The simulated clicks on one object."""
        return simulate_clicks(mask, np.random.default_rng([self.seed, instance.id]), self.clicks // BANDS)

    def full_mta_sample(self, records: Sequence[ImageRecord]) -> set[int]:
        """Annotation ids of ``full_mta`` objects of ``records``, evenly spread in order of their area.

        Drawn at random they would mostly be small, and objects count by their pixels.
        """
        ordered = sorted((instance.area, instance.id) for record in records for instance in record.instances)
        count = min(self.full_mta, len(ordered))
        return {ordered[(2 * i + 1) * len(ordered) // (2 * count)][1] for i in range(count)}


def evaluate_images(
    segment: Segment,
    dataset: CocoDataset,
    records: Sequence[ImageRecord],
    protocol: ClickProtocol,
    dense: Collection[int] = (),
) -> Iterator[ImageResult]:
    """Click every object of ``records``, image by image.

    Args:
        dense: annotation ids that are clicked densely too, see :meth:`ClickProtocol.full_mta_sample`.

    Raises:
        InputError: a mask is wrong; or a photo is absent, unreadable or of another size than stated (ImageError). With
            the dataset's ``on_error="skip"`` they are left out instead, and the image's result says why.
    """
    for record in records:
        start, clock, known = time.perf_counter(), _Stopwatch(), len(dataset.problems)
        objects: list[ObjectResult] = []
        truths = dataset.masks(record)
        problems = [str(problem) for problem in dataset.problems[known:]]
        try:
            photo = dataset.image(record) if truths else None
        except ImageError as error:
            if dataset.on_error != "skip":
                raise
            photo = None
            problems.append(str(error))
        if photo is not None:
            objects = _click_objects(segment, photo, record, truths, protocol, dense, clock)
        seconds = time.perf_counter() - start
        yield ImageResult(record.id, objects, problems, seconds, clock.first, clock.total - clock.first, clock.laps)


def _click_objects(
    segment: Segment,
    photo: Image.Image,
    record: ImageRecord,
    truths: Sequence[tuple[Instance, NDArray[np.bool_]]],
    protocol: ClickProtocol,
    dense: Collection[int],
    clock: _Stopwatch,
) -> list[ObjectResult]:
    drawn = [protocol.simulate(instance, mask) for instance, mask in truths]
    grids = [
        dense_points(mask, protocol.full_mta_clicks) if instance.id in dense else (np.empty((0, 2), np.int64), 0)
        for instance, mask in truths
    ]
    points = [
        np.concatenate([[deepest_interior_point(mask)], one.points, grid])
        for (_, mask), one, (grid, _) in zip(truths, drawn, grids, strict=True)
    ]
    found = clock.time(segment(photo, np.concatenate(points).astype(np.float32)))
    objects = []
    for (instance, truth), one, (grid, step) in zip(truths, drawn, grids, strict=True):
        overlap = Overlap(truth)
        first, level, score = next(found)
        intersection, union = overlap(first)
        pixels = np.array([overlap(next(found)[0]) for _ in one.bands])
        tapped = np.array([overlap(next(found)[0]) for _ in grid]).reshape(-1, 2)
        hits = int((tapped[:, 0] / tapped[:, 1] >= HIT).sum())
        objects.append(
            ObjectResult(
                instance=instance.id,
                image=record.id,
                category=instance.category_id,
                area=instance.area if instance.area >= 0 else float(overlap.pixels),
                clicks=ObjectClicks(pixels[:, 0], pixels[:, 1], one.bands, one.areas),
                intersection=intersection,
                union=union,
                level=level,
                score=score,
                truth=encode_mask(truth),
                prediction=encode_mask(first),
                dense=DenseClicks(hits, len(grid), step) if step else None,
            )
        )
    return objects


class _Stopwatch:
    """Seconds that an iterator takes for its first item and for all."""

    def __init__(self) -> None:
        self.first = self.total = 0.0
        self.laps = 0

    def time(
        self, masks: Iterator[tuple[NDArray[np.bool_], int | None, float]]
    ) -> Iterator[tuple[NDArray[np.bool_], int | None, float]]:
        start = time.perf_counter()
        for item in masks:
            self.total += time.perf_counter() - start
            self.first = self.first or self.total
            self.laps += 1
            yield item
            start = time.perf_counter()
