"""Several datasets as one endless, reproducible source of training samples.

Sample ``index`` of ``step`` depends on (seed, step, index) alone: not on who makes it, nor on what was made before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tracenet.data.augment import Augmentation
from tracenet.data.coco import CocoDataset, ImageRecord, Instance
from tracenet.data.samples import MAX_INSTANCES, UNKNOWN_CLASS, TrainingSample, make_samples
from tracenet_kernels.errors import ImageError, InputError

T = TypeVar("T")

ATTEMPTS = 50
"""Views in a row without a usable object after which something must be wrong with the data."""


@dataclass(frozen=True)
class Source:
    """One dataset of a mixture.

    Attributes:
        name: of its own in messages and samples.
        dataset: where photos and objects are from.
        weight: how often it is drawn, relative to the others.
        set_weights: how often photos are drawn whose json ``dataset`` is the key, relative to the others of this source
            (1 for those not named; 0 leaves them out).
    """

    name: str
    dataset: CocoDataset
    weight: float = 1.0
    set_weights: Mapping[str, float] = field(default_factory=dict)

    def image_weights(self) -> NDArray[np.float64]:
        """How often each record is drawn, relative to the others of this source."""
        return np.array([self.set_weights.get(record.source, 1.0) for record in self.dataset], np.float64)


def class_names(datasets: Sequence[CocoDataset]) -> tuple[str, ...]:
    """Names of all categories, each once: those of the first dataset in order of their ids, then what others add."""
    return tuple(dict.fromkeys(d.categories[c] for d in datasets for c in sorted(d.categories)))


class Mixture:
    """Draws samples from several datasets.

    Args:
        sources: the datasets.
        augmentation: what happens to their photos; pasted objects come from any of them.
        seed: with step and index fixes a sample.
        classes: names of the categories, matched with those of each dataset. Others get ``UNKNOWN_CLASS``. None: every
            object is of class 0.
        pair_share: share of samples that come as two views of the same thing (:func:`tracenet.data.samples.zoom_pair`).
        pair_factor: scale of the second view relative to the first.
        max_instances: objects shown in one view at most.

    Raises:
        InputError: nothing usable to draw from, or an option outside its range.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        augmentation: Augmentation,
        seed: int,
        classes: Sequence[str] | None = None,
        pair_share: float = 0.0,
        pair_factor: float = 0.5,
        max_instances: int = MAX_INSTANCES,
    ) -> None:
        self.sources = tuple(sources)
        self.augmentation = augmentation
        self.seed = seed
        self.classes = None if classes is None else tuple(classes)
        self.pair_share = pair_share
        self.pair_factor = pair_factor
        self.max_instances = max_instances
        self._check()
        weights = np.array([source.weight for source in self.sources])
        self._source_ends = np.cumsum(weights / weights.sum())
        self._image_ends = [np.cumsum(w / w.sum()) for w in (source.image_weights() for source in self.sources)]
        self._index = {name: i for i, name in enumerate(self.classes or ())}

    def _check(self) -> None:
        if not self.sources:
            raise InputError("a mixture needs at least one dataset")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise InputError(f"datasets are named {names}; give each a name of its own")
        for source in self.sources:
            if not 0 < source.weight < np.inf:
                raise InputError(f"dataset {source.name} has weight {source.weight}; it must be positive")
            weights = source.image_weights()
            if not len(weights):
                raise InputError(
                    f"dataset {source.name} ({source.dataset.annotations}) has no photo with a usable object; leave it "
                    "out, or look at it with python -m tracenet.data.check"
                )
            if not np.isfinite(weights).all() or weights.min() < 0 or not weights.sum():
                raise InputError(
                    f"dataset {source.name} has set_weights {dict(source.set_weights)} for the sets "
                    f"{sorted({r.source for r in source.dataset})}; they cannot be negative, and one must be positive"
                )
            if self.classes is not None and not set(self.classes) & set(source.dataset.categories.values()):
                raise InputError(
                    f"dataset {source.name} has none of the categories {self.classes[:8]}...; train class-agnostic, or "
                    "leave it out"
                )
        if not 0 <= self.pair_share <= 1 or not self.pair_factor > 0:
            raise InputError(f"pair_share {self.pair_share} must be 0 to 1, pair_factor {self.pair_factor} positive")
        if self.max_instances < 1:
            raise InputError(f"max_instances is {self.max_instances}; at least one object is shown")

    def sample(self, step: int, index: int) -> list[TrainingSample]:
        """Sample ``index`` of ``step``: one view with at least one object, or a pair of views.

        Photos that cannot be used, where their dataset skips problems, and views without an object are drawn again.

        Raises:
            ImageError, InputError: a photo or mask cannot be used, named by file and id; too many draws in a row.
        """
        rng = np.random.default_rng([self.seed, step, index])
        scales = (1.0, self.pair_factor) if self.pair_share and rng.random() < self.pair_share else (1.0,)

        def make(number: int, record: ImageRecord) -> list[TrainingSample] | None:
            source = self.sources[number]
            partner = None
            if self.augmentation.copy_paste:
                other, other_record = self._draw(rng)
                partner = self.sources[other].dataset, other_record
            samples = make_samples(
                source.dataset,
                record,
                rng,
                self.augmentation,
                scales,
                partner,
                self._class_index,
                source.name,
                self.max_instances,
            )
            return samples if len(samples[0]) else None

        return self.usable(rng, make)

    def usable(self, rng: np.random.Generator, make: Callable[[int, ImageRecord], T | None]) -> T:
        """What ``make`` makes of a random photo, given the number of its source and its record.

        Where it makes None, and where the photo cannot be used and its dataset skips such, another photo is drawn.

        Raises:
            ImageError, InputError: as :meth:`sample`.
        """
        for _ in range(ATTEMPTS):
            number, record = self._draw(rng)
            dataset = self.sources[number].dataset
            try:
                made = make(number, record)
            except ImageError as error:
                if dataset.on_error == "raise":
                    raise
                dataset.refuse("image", record.id, f"cannot be used: {error}")
                continue
            if made is not None:
                return made
        raise InputError(
            f"{ATTEMPTS} views in a row of {', '.join(source.name for source in self.sources)} show no usable object; "
            "check the annotations with python -m tracenet.data.check, or augment less"
        )

    def _draw(self, rng: np.random.Generator) -> tuple[int, ImageRecord]:
        """The number of a source, and one of its photos."""
        number = int(np.searchsorted(self._source_ends[:-1], rng.random(), side="right"))
        ends = self._image_ends[number]
        return number, self.sources[number].dataset.records[int(np.searchsorted(ends[:-1], rng.random(), side="right"))]

    def _class_index(self, dataset: CocoDataset, instance: Instance) -> int:
        if self.classes is None:
            return 0
        name = None if instance.category_id is None else dataset.categories.get(instance.category_id)
        return UNKNOWN_CLASS if name is None else self._index.get(name, UNKNOWN_CLASS)
