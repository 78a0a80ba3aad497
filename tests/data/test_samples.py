"""Training samples: what a view shows, alone, at two scales and under pasted objects."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracenet.data import CocoDataset
from tracenet.data.augment import Augmentation
from tracenet.data.clicks import training_clicks
from tracenet.data.samples import (
    UNKNOWN_CLASS,
    TrainingSample,
    by_category,
    make_sample,
    make_samples,
    padded_batch,
    zoom_pair,
)
from tracenet.inference import HALF
from tracenet_kernels.errors import ImageError, InputError

MakeDataset = Callable[..., CocoDataset]
PLAIN = Augmentation(crop=0, flip=0, colour=0, whole_scale=(1, 1), working_sizes=(130,))
STRONG = Augmentation(
    working_sizes=(128, 192),
    crop=0.8,
    scale=(0.3, 2),
    crop_instance=0.5,
    copy_paste=1,
    hue=0.1,
    noise=3,
    paste_scale=(0.3, 2),
)
many = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)


def equal(a: TrainingSample, b: TrainingSample) -> bool:
    one, other = vars(a), vars(b)
    return all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


def check(sample: TrainingSample) -> None:
    """Shapes, dtypes, and that masks, depths and boxes tell the same story."""
    height, width = sample.image.shape[:2]
    n = len(sample)
    half = (-(-height // HALF), -(-width // HALF))
    assert sample.image.shape == (height, width, 3) and sample.image.dtype == torch.uint8
    for masks in (sample.masks, sample.depth):
        assert masks.shape == (n, *half) and masks.dtype == torch.uint8
    assert sample.crowd.shape == half
    assert sample.boxes.shape == (n, 4) and sample.boxes.dtype == torch.float32
    assert sample.categories.shape == sample.proposal.shape == sample.weight.shape == (n,)
    assert (sample.categories.dtype, sample.proposal.dtype, sample.weight.dtype) == (
        torch.int64,
        torch.bool,
        torch.float32,
    )
    for mask, depth, box in zip(sample.masks.numpy(), sample.depth.numpy(), sample.boxes.numpy(), strict=True):
        np.testing.assert_array_equal(mask >= 128, depth > 0)
        assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height
        ys, xs = np.nonzero(mask >= 128)
        around = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) * HALF
        # A sample counts where half of it is covered, so edges differ by up to a sample and the resampling's blur.
        assert np.abs(around - box).max() <= 2 * HALF + 2


def test_a_photo_shown_as_it_is(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    record = dataset.records[0]  # 130 x 96
    sample = make_sample(dataset, record, np.random.default_rng(0), PLAIN, class_of=by_category, source="a")
    check(sample)
    np.testing.assert_array_equal(sample.image.numpy(), np.asarray(dataset.image(record)))
    assert sample.boxes.tolist() == [[12, 10, 44, 50], [60, 30, 100, 80], [50, 8, 58, 16]]
    assert sample.categories.tolist() == [0, 1, 0]
    assert (sample.scale, sample.image_id, sample.source) == (1, 1, "a")
    assert sample.proposal.tolist() == [False] * 3 and sample.weight.tolist() == [1] * 3
    expected = np.zeros((48, 65), np.uint8)
    expected[5:25, 6:22] = 255
    np.testing.assert_array_equal(sample.masks[0] >= 128, expected > 0)
    assert int(sample.depth[0].max()) == 8  # sixteen samples wide
    assert make_sample(dataset, record, np.random.default_rng(0), PLAIN).categories.tolist() == [0, 0, 0]


@many
@given(seed=st.integers(0, 10**6))
def test_strong_samples_are_sound_and_repeat(make_dataset: MakeDataset, tmp_path: Path, seed: int) -> None:
    dataset = CocoDataset(tmp_path / "a", tmp_path / "a" / "a.json") if (tmp_path / "a").exists() else make_dataset()
    record, other = dataset.records[0], dataset.records[1]
    make = [make_sample(dataset, record, np.random.default_rng(seed), STRONG, (dataset, other)) for _ in range(2)]
    check(make[0])
    assert equal(*make)


@pytest.mark.parametrize("factor", [0.5, 0.25, 2.0, 0.75])
def test_a_click_means_the_same_at_both_scales(make_dataset: MakeDataset, factor: float) -> None:
    dataset = make_dataset()
    shown = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        a, b = zoom_pair(dataset, dataset.records[0], rng, STRONG, factor, (dataset, dataset.records[1]))
        assert [side * factor for side in a.image.shape[:2]] == list(b.image.shape[:2])
        assert b.scale == pytest.approx(a.scale * factor)
        assert len(a) == len(b)
        torch.testing.assert_close(b.boxes, a.boxes * factor)
        for mask, depth, other in zip(a.masks, a.depth, b.masks, strict=True):
            instance, clicks, _ = training_clicks(mask[None], depth[None], rng, 1, where="centre")
            assert instance.tolist() == [0]
            x, y = (clicks[0] * factor // HALF).long().tolist()
            if int(depth.max()) * factor > 3:  # deep enough to be off the edge at both scales
                assert other[y, x] >= 128
                shown += 1
    assert shown > 5


def test_scales_of_one_view_in_any_number(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    samples = make_samples(dataset, dataset.records[0], np.random.default_rng(1), PLAIN, (1.0, 0.5, 0.25))
    assert [s.image.shape[:2] for s in samples] == [(96, 128), (48, 64), (24, 32)]
    for scales in ((1.0, 0.37), (1.0, -0.5), ()):
        with pytest.raises(InputError, match="scales"):
            make_samples(dataset, dataset.records[0], np.random.default_rng(1), PLAIN, scales)


def test_pasted_objects_cut_what_lies_under_them(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    record = dataset.records[0]
    pasting = replace(PLAIN, copy_paste=1, pasted=3, paste_scale=(1, 1.5))
    dropped = cut = pasted = 0
    for seed in range(40):
        sample = make_sample(dataset, record, np.random.default_rng(seed), pasting, (dataset, dataset.records[1]))
        bare = make_sample(dataset, record, np.random.default_rng(seed), PLAIN)
        check(sample)
        total = sample.masks.to(torch.int64).sum(0)
        assert int(total.max()) <= 258  # nowhere do two objects both cover a sample; rounding aside
        own = sum(any((m <= b).all() and (m > 0).any() for b in bare.masks) for m in sample.masks)
        dropped += own < 3
        cut += int((sample.masks[:1] < bare.masks[:1]).any())
        pasted += len(sample) - own
    assert dropped and cut and pasted > 40
    unpasted = make_sample(dataset, record, np.random.default_rng(0), PLAIN, (dataset, dataset.records[1]))
    assert equal(unpasted, make_sample(dataset, record, np.random.default_rng(0), PLAIN))


def test_crowds_and_proposals(make_dataset: MakeDataset, tmp_path: Path) -> None:
    make_dataset()
    file = tmp_path / "a" / "a.json"
    data = json.loads(file.read_text())
    data["annotations"][1]["iscrowd"] = 1
    file.write_text(json.dumps(data))
    proposal = {"id": 1, "image_id": 1, "score": 0.5, "segmentation": [[20, 60, 50, 60, 50, 90, 20, 90]]}
    (tmp_path / "p.json").write_text(json.dumps({"annotations": [proposal]}))
    dataset = CocoDataset(tmp_path / "a", file, proposals=tmp_path / "p.json")
    sample = make_sample(dataset, dataset.records[0], np.random.default_rng(0), PLAIN, class_of=by_category)
    check(sample)
    assert sample.proposal.tolist() == [False, False, True]
    assert sample.weight.tolist() == [1, 1, 0.5]
    assert sample.categories.tolist() == [0, 0, UNKNOWN_CLASS]
    expected = np.zeros((48, 65), np.uint8)
    expected[15:40, 30:50] = 255
    np.testing.assert_array_equal(sample.crowd >= 128, expected > 0)
    # Neither crowds nor proposals are pasted: the donor has two true objects.
    pasting = replace(PLAIN, copy_paste=1, pasted=8, paste_scale=(0.5, 0.5))
    record = dataset.records[1]
    for seed in range(20):
        sample = make_sample(dataset, record, np.random.default_rng(seed), pasting, (dataset, dataset.records[0]))
        assert len(sample) <= 3 + 2
        assert not sample.proposal.any()


def test_too_many_objects_are_thinned_out_at_random(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    chosen = set()
    for seed in range(20):
        sample = make_sample(dataset, dataset.records[0], np.random.default_rng(seed), PLAIN, max_instances=1)
        assert len(sample) == 1
        chosen.add(tuple(sample.boxes[0].tolist()))
    assert len(chosen) == 3


def test_objects_hardly_in_view_are_left_out(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    zoomed = Augmentation(working_sizes=(64,), crop=1, scale=(4, 4), flip=0, colour=0)
    counts = {len(make_sample(dataset, dataset.records[0], np.random.default_rng(s), zoomed)) for s in range(30)}
    assert {0, 1} <= counts


def test_broken_photos_and_masks(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = make_dataset()
    (tmp_path / "a" / "1.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"image 1 of .*a\.json: cannot read .*1\.png"):
        make_sample(dataset, dataset.records[0], np.random.default_rng(0), PLAIN)
    pasting = replace(PLAIN, copy_paste=1)
    with pytest.raises(ImageError, match="image 1 of"):
        make_sample(dataset, dataset.records[1], np.random.default_rng(0), pasting, (dataset, dataset.records[0]))
    dataset.on_error = "skip"
    sample = make_sample(dataset, dataset.records[1], np.random.default_rng(0), pasting, (dataset, dataset.records[0]))
    assert len(sample) == 3
    assert [(p.kind, p.id) for p in dataset.problems] == [("image", 1)]
    file = tmp_path / "a" / "a.json"
    data = json.loads(file.read_text())
    data["annotations"][4]["area"] = 9000
    file.write_text(json.dumps(data))
    dataset = CocoDataset(tmp_path / "a", file)
    with pytest.raises(InputError, match=r"a\.json: annotation 5 states an area of 9000"):
        make_sample(dataset, dataset.records[1], np.random.default_rng(0), PLAIN)
    dataset = CocoDataset(tmp_path / "a", file, on_error="skip")
    assert len(make_sample(dataset, dataset.records[1], np.random.default_rng(0), PLAIN)) == 2


def test_padded_batch(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    samples = [make_sample(dataset, r, np.random.default_rng(0), PLAIN) for r in dataset]
    batch, sizes = padded_batch(samples)
    assert batch.dtype == torch.uint8
    assert sizes.tolist() == [list(s.image.shape[:2]) for s in samples]
    assert batch.shape[1] % 32 == batch.shape[2] % 32 == 0
    assert batch.shape[1] - int(sizes[:, 0].max()) < 32
    for row, sample, (height, width) in zip(batch, samples, sizes.tolist(), strict=True):
        assert torch.equal(row[:height, :width], sample.image)
        assert not row[height:].any() and not row[:, width:].any()
    with pytest.raises(InputError, match="at least one sample"):
        padded_batch([])
