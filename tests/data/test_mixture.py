"""Mixtures and the loader: weights, classes, and the same samples whoever makes them."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tracenet.data import CocoDataset
from tracenet.data.augment import Augmentation
from tracenet.data.loader import SampleLoader
from tracenet.data.mixture import Mixture, Source, class_names
from tracenet.data.samples import UNKNOWN_CLASS, TrainingSample
from tracenet_kernels.errors import ImageError, InputError

MakeDataset = Callable[..., CocoDataset]
SMALL = Augmentation(working_sizes=(64,), copy_paste=0.5)


def equal(a: list[list[TrainingSample]], b: list[list[TrainingSample]]) -> bool:
    if [len(group) for group in a] != [len(group) for group in b]:
        return False
    views = [(vars(x), vars(y)) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)]
    return all(
        torch.equal(value, y[name]) and value.dtype == y[name].dtype
        if isinstance(value, torch.Tensor)
        else value == y[name]
        for x, y in views
        for name, value in x.items()
    )


@pytest.fixture
def mixture(make_dataset: MakeDataset) -> Mixture:
    sources = [Source("first", make_dataset("a"), 3.0), Source("second", make_dataset("bb", 4, ("dog", "kite")), 1.0)]
    return Mixture(sources, SMALL, seed=5, classes=("cat", "dog"), pair_share=0.5)


def test_weights_and_classes(mixture: Mixture) -> None:
    drawn = [mixture.sample(0, i) for i in range(120)]
    share = Counter(group[0].source for group in drawn)["first"] / len(drawn)
    assert 0.6 < share < 0.9
    assert 0.35 < sum(len(group) == 2 for group in drawn) / len(drawn) < 0.65
    assert all(len(group[0]) for group in drawn)
    seen = {c for group in drawn for c in group[0].categories.tolist()}
    assert seen == {0, 1, UNKNOWN_CLASS}  # kite is not among the classes
    assert class_names([source.dataset for source in mixture.sources]) == ("cat", "dog", "kite")


def test_sets_within_a_file_have_weights(make_dataset: MakeDataset) -> None:
    dataset = make_dataset("a", 4)
    mixture = Mixture([Source("a", dataset, set_weights={"odd": 0.0})], SMALL, seed=0)
    assert {mixture.sample(0, i)[0].image_id for i in range(30)} == {2, 4}
    assert {c for i in range(10) for c in mixture.sample(0, i)[0].categories.tolist()} == {0}
    mixture = Mixture([Source("a", dataset, set_weights={"even": 3.0})], SMALL, seed=0)
    even = sum(mixture.sample(0, i)[0].image_id in (2, 4) for i in range(100)) / 100
    assert 0.6 < even < 0.9


def test_samples_differ_by_seed_step_and_index(mixture: Mixture) -> None:
    at = [mixture.sample(2, 3)]
    other = Mixture(mixture.sources, SMALL, seed=6, classes=("cat", "dog"), pair_share=0.5)
    assert equal(at, [mixture.sample(2, 3)])
    assert equal(at, [pickle.loads(pickle.dumps(mixture)).sample(2, 3)])  # as workers get it that are not forked
    for different in (mixture.sample(3, 2), mixture.sample(2, 4), other.sample(2, 3)):
        assert not equal(at, [different])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_ranks_and_a_resume_change_nothing(mixture: Mixture, workers: int) -> None:
    alone = SampleLoader(mixture, 5)
    expected = [alone.samples(step) for step in range(4)]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    loader = SampleLoader(mixture, 5, workers=workers)
    for step in range(3):
        assert equal(loader.samples(step), expected[step])
    assert equal(loader.samples(1), expected[1])  # back, as after a kill
    loader.close()
    resumed = SampleLoader(mixture, 5, workers=workers)
    assert equal(resumed.samples(3), expected[3])
    resumed.close()
    assert torch.equal(torch.get_rng_state(), state)
    for world in (2, 3, 5):
        ranks = [SampleLoader(mixture, 5, rank, world).samples(2) for rank in range(world)]
        merged = [ranks[index % world][index // world] for index in range(5)]
        assert equal(merged, expected[2])


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_come_through_by_name(make_dataset: MakeDataset, tmp_path: Path, workers: int) -> None:
    dataset = make_dataset("a", 1)
    (tmp_path / "a" / "1.png").write_bytes(b"")
    loader = SampleLoader(Mixture([Source("a", dataset)], SMALL, seed=0), 2, workers=workers)
    with pytest.raises(ImageError, match=r"image 1 of .*a\.json: cannot read") as caught:
        loader.samples(0)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_workers_skip_is_known_afterwards(make_dataset: MakeDataset, tmp_path: Path, workers: int) -> None:
    fine, broken = make_dataset("a", 1), make_dataset("b", 2, on_error="skip")
    (tmp_path / "b" / "1.png").write_bytes(b"")
    mixture = Mixture([Source("a", fine), Source("b", broken)], SMALL, seed=0)
    loader = SampleLoader(mixture, 6, workers=workers)
    shown = {(view.source, view.image_id) for step in range(3) for (view,) in loader.samples(step)}
    loader.close()
    assert shown == {("a", 1), ("b", 2)}
    assert [(p.kind, p.id) for p in broken.problems] == [("image", 1)]
    assert not fine.problems


def test_skipping_broken_photos(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = make_dataset("a", 2, on_error="skip")
    (tmp_path / "a" / "1.png").write_bytes(b"")
    mixture = Mixture([Source("a", dataset)], SMALL, seed=0)
    assert {mixture.sample(0, i)[0].image_id for i in range(10)} == {2}
    assert [(p.kind, p.id) for p in dataset.problems] == [("image", 1)]
    (tmp_path / "a" / "2.png").write_bytes(b"")
    with pytest.raises(InputError, match="50 views in a row of a show no usable object"):
        mixture.sample(0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ()}, "needs at least one dataset"),
        ({"weight": 0.0}, "weight 0.0; it must be positive"),
        ({"weight": float("nan")}, "weight nan"),
        ({"set_weights": {"odd": 0.0, "even": 0.0}}, r"set_weights .* \['even', 'odd'\]"),
        ({"set_weights": {"odd": -1.0}}, "cannot be negative"),
        ({"twice": True}, r"named \['a', 'a'\]; give each a name of its own"),
        ({"empty": True}, "no photo with a usable object"),
        ({"classes": ("bird",)}, "none of the categories"),
        ({"pair_share": 1.5}, "pair_share 1.5"),
        ({"max_instances": 0}, "max_instances is 0"),
    ],
)
def test_nothing_usable_is_refused_at_once(make_dataset: MakeDataset, change: dict[str, Any], message: str) -> None:
    source = Source("a", make_dataset())
    options = dict(change)
    source = replace(source, **{k: options.pop(k) for k in ("weight", "set_weights") if k in options})
    if options.pop("empty", False):
        source = replace(source, dataset=source.dataset.subset(only=[]))
    sources = [source, source] if options.pop("twice", False) else options.pop("sources", [source])
    with pytest.raises(InputError, match=message):
        Mixture(sources, SMALL, 0, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"world": 5}, "4 images a step cannot be shared by 5"),
        ({"workers": -1}, "-1 workers"),
    ],
)
def test_loaders_refuse_what_cannot_work(mixture: Mixture, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SampleLoader(mixture, 4, **options)
