"""Reading COCO and LVIS json: every way to write a mask, and every way to get a file wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from tracenet.data import CocoDataset
from tracenet.data.check import main as check
from tracenet.data.segmentation import decode, encode, parse_segmentation
from tracenet_kernels.errors import ImageError, InputError


def square() -> np.ndarray:
    mask = np.zeros((20, 30), bool)
    mask[5:15, 4:16] = True
    return mask


def content() -> dict[str, Any]:
    compressed = rle.encode(np.asfortranarray(square().astype(np.uint8)))
    compressed["counts"] = compressed["counts"].decode()
    flat = square().flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    polygon = [[4, 5, 16, 5, 16, 15, 4, 15]]
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 30, "height": 20},
            {"id": 3, "file_name": "empty.png", "width": 30, "height": 20},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 120, "segmentation": compressed},
            {"id": 2, "image_id": 7, "category_id": 1, "segmentation": {"size": [20, 30], "counts": counts}},
            {"id": 4, "image_id": 7, "category_id": 2, "iscrowd": 0, "area": 120, "segmentation": polygon},
            {"id": 5, "image_id": 7, "category_id": 2, "iscrowd": 1, "area": 120, "segmentation": compressed},
            {"id": 6, "image_id": 7, "category_id": 2, "area": 9, "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]},
        ],
    }


def write(folder: Path, data: dict[str, Any], **options: Any) -> CocoDataset:
    for name in ("a.png", "empty.png"):
        if not (folder / name).exists():
            Image.new("L", (30, 20)).save(folder / name)
    (folder / "a.json").write_text(json.dumps(data))
    return CocoDataset(folder, folder / "a.json", **options)


def test_polygon_and_both_rle_decode_alike(tmp_path: Path) -> None:
    dataset = write(tmp_path, content())
    assert [r.id for r in dataset] == [7]  # images without instances are left out
    (record,) = dataset.records
    masks = dataset.masks(record)
    assert [instance.id for instance, _ in masks] == [1, 2, 4]  # no crowd, nothing below 16 pixels
    for instance, mask in masks:
        assert np.array_equal(mask, square())
        assert instance.box == (4, 5, 16, 15)
    assert dataset.too_small == {("annotation", 6)}
    assert [crowd.id for crowd in record.crowds] == [5]
    assert record.instances[1].area == -1
    assert dataset.image(record).mode == "RGB"
    assert dataset.validate(progress=False) == []


def test_union_of_polygons(tmp_path: Path) -> None:
    left, right = [4, 5, 10, 5, 10, 15, 4, 15], [8, 5, 16, 5, 16, 15, 8, 15]
    data = content()
    data["annotations"] = [{"id": 1, "image_id": 7, "category_id": 1, "segmentation": [left, right]}]
    dataset = write(tmp_path, data)
    assert np.array_equal(dataset.masks(dataset.records[0])[0][1], square())


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(0, 2**31))
def test_run_lengths_survive_whatever_the_mask(height: int, width: int, density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": [height, width], "counts": encoded["counts"].decode()}
    parsed, box = parse_segmentation(text, height, width)
    np.testing.assert_array_equal(decode(encode(parsed, height, width)), mask)
    if mask.any():
        ys, xs = np.nonzero(mask)
        # pycocotools' box spans whole columns where a run goes from one column into the next.
        assert box[0] == xs.min() and box[2] == xs.max() + 1
        assert box[1] <= ys.min() and box[3] >= ys.max() + 1


def test_images_can_be_chosen_or_left_out(tmp_path: Path) -> None:
    write(tmp_path, content())
    assert len(CocoDataset(tmp_path, tmp_path / "a.json", only=[3])) == 0
    assert len(CocoDataset(tmp_path, tmp_path / "a.json", without=[7])) == 0


def test_category_gaps_and_categories_without_instances(tmp_path: Path) -> None:
    data = content()
    data["categories"] = [{"id": 90, "name": "kite"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    dataset = write(tmp_path, data)
    assert dataset.categories == {90: "kite", 1: "cat", 2: "dog"}
    assert dataset.num_classes == 3
    assert [dataset.class_index(c) for c in (1, 2, 90)] == [0, 1, 2]
    with pytest.raises(InputError, match=r"category 3 is not listed; known are \[1, 2, 90\]"):
        dataset.class_index(3)


def test_classes_without_a_list_of_categories(tmp_path: Path) -> None:
    dataset = write(tmp_path, content())
    assert dataset.categories == {}
    assert (dataset.class_index(1), dataset.class_index(2)) == (0, 1)


@pytest.mark.parametrize("folder", ["", "val2017"])
def test_lvis(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    Image.new("RGB", (30, 20)).save(tmp_path / folder / "000000000005.jpg")
    image = {
        "id": 5,
        "coco_url": "http://images.cocodataset.org/val2017/000000000005.jpg",
        "width": 30,
        "height": 20,
        "neg_category_ids": [4, 9],
        "not_exhaustive_category_ids": [2],
    }
    old = {**image, "id": 6, "file_name": "COCO_val2014_000000000005.jpg"}  # the name of another folder's file
    annotation = {"image_id": 5, "category_id": 2, "area": 120, "bbox": [4, 5, 12, 10]}
    polygon = [[4, 5, 16, 5, 16, 15, 4, 15]]
    data = {
        "categories": [{"id": c, "name": f"c{c}"} for c in (2, 4, 9)],
        "images": [image, old],
        "annotations": [
            {"id": 1, **annotation, "segmentation": polygon},
            {"id": 2, **annotation, "image_id": 6, "segmentation": polygon},
        ],
    }
    dataset = write(tmp_path, data)
    assert len(dataset) == 2
    for record in dataset:
        assert record.path == tmp_path / folder / "000000000005.jpg"
        assert (record.neg_category_ids, record.not_exhaustive_category_ids) == ((4, 9), (2,))
        assert np.array_equal(dataset.masks(record)[0][1], square())


def test_proposals_join_their_image(tmp_path: Path) -> None:
    proposal = {"id": 1, "image_id": 3, "score": 0.75, "segmentation": content()["annotations"][0]["segmentation"]}
    (tmp_path / "p.json").write_text(json.dumps({"annotations": [proposal, {**proposal, "id": 2, "image_id": 7}]}))
    dataset = write(tmp_path, content(), proposals=tmp_path / "p.json")
    assert [r.id for r in dataset] == [3, 7]  # an image may have proposals alone
    (alone,) = dataset.records[0].instances
    assert (alone.id, alone.proposal, alone.score, alone.category_id) == (1, True, 0.75, None)
    assert [(i.id, i.proposal) for i in dataset.records[1].instances] == [
        (1, False),
        (2, False),
        (4, False),
        (6, False),
        (2, True),
    ]
    assert np.array_equal(dataset.mask(dataset.records[0], alone), square())
    for change, message in (
        ({"score": 1.5}, "score 1.5; expected 0 to 1"),
        ({"score": float("nan")}, "score nan; expected a finite number"),
        ({"image_id": 8}, "image 8, which is not listed"),
    ):
        (tmp_path / "p.json").write_text(json.dumps({"annotations": [{**proposal, **change}]}))
        with pytest.raises(InputError, match=rf"p\.json: proposal 1 .*{message}"):
            write(tmp_path, content(), proposals=tmp_path / "p.json")


Change = Callable[[dict[str, Any]], Any]


def annotation(**fields: Any) -> Change:
    return lambda data: data["annotations"][0].update(fields)


def polygons(*values: Any) -> Change:
    return annotation(segmentation=list(values), area=-0.0)


def counts(value: Any) -> Change:
    return annotation(segmentation={"size": [20, 30], "counts": value})


BROKEN: list[tuple[Change, str]] = [
    (lambda d: d["images"].append(dict(d["images"][0])), "image 7 is listed twice; ids must be unique"),
    (lambda d: d["images"].append({**d["images"][0], "width": 9}), "image 7 is listed twice with different contents"),
    (lambda d: d["images"][0].pop("width"), "image 7 has no width"),
    (lambda d: d["images"][0].pop("file_name"), "image 7 has no file_name"),
    (lambda d: d["images"][0].pop("id"), "image .no id. has no integer id"),
    (lambda d: d["images"][0].update(width=0), "image 7 is stated as 0x20"),
    (lambda d: d["images"][0].update(height=20.5), "image 7 is stated as 30x20.5"),
    (lambda d: d["images"][0].update(file_name=7), "image 7 has the file_name 7"),
    (lambda d: d["images"][0].update(file_name="b.png"), r"image 7 is absent: there is no file .*b\.png"),
    (lambda d: d.update(categories=[{"id": 2, "name": "dog"}]), "annotation 1 has category 1, which is not listed"),
    (lambda d: d.update(categories=[{"id": 1}, {"id": 1}]), "category 1 is listed twice"),
    (lambda d: d.update(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "category 2 has the name 'a'"),
    (lambda d: d.update(categories=[{"name": "a"}]), "category .no id. has no integer id"),
    (lambda d: d["annotations"].append(dict(d["annotations"][0])), "annotation 1 is listed twice"),
    (annotation(id="one"), "annotation one has no integer id"),
    (annotation(image_id=99), "annotation 1 is on image 99, which is not listed"),
    (lambda d: d["annotations"][0].pop("segmentation"), "annotation 1 has no segmentation"),
    (lambda d: d["annotations"][0].pop("category_id"), "annotation 1 has no category_id"),
    (annotation(area=float("inf")), "annotation 1 has area inf; expected a finite number"),
    (annotation(area=-4), "annotation 1 has area -4; it cannot be negative"),
    (annotation(bbox=[1, 2, 3]), r"annotation 1 has bbox \[1, 2, 3\]"),
    (annotation(bbox=[1, 2, -3, 4]), "annotation 1 has bbox .* not negative"),
    (annotation(bbox=[18, 5, 12, 10]), "annotation 1 states a bbox over x 18 to 30, .* x 4 to 16, y 5 to 15"),
    (annotation(segmentation="x"), "annotation 1 has a segmentation of type str"),
    (polygons(), "annotation 1 has an empty segmentation"),
    (polygons([1, 1, 9, 9]), "annotation 1 has 4 numbers in polygon 0"),
    (polygons([1, 1, 9, 9, 1, 9], [1, 2, 3, 4, 5, 6, 7]), "annotation 1 has 7 numbers in polygon 1"),
    (polygons([1, 1, 9, 9, 1, float("nan")]), "annotation 1 has NaN or infinite coordinates in polygon 0"),
    (polygons([1, 1, 9, 9, 1, None]), "annotation 1 has something else than numbers in polygon 0"),
    (polygons(1, 2, 3, 4, 5, 6), "annotation 1 has a int as polygon 0"),
    (polygons([1, 1, 1e9, 9, 1, 9]), "annotation 1 has polygons over x 1 to 1e.09, .* far outside its image of 30x20"),
    (annotation(segmentation={"size": [20, 30]}), "annotation 1 has a segmentation without counts"),
    (annotation(segmentation={"size": [30, 20], "counts": [600]}), r"annotation 1 has a mask of size \[30, 20\]"),
    (counts([100, 20]), "annotation 1 has runs that cover 120 pixels of a mask of 600"),
    (counts([-1, 601]), "annotation 1 has runs that cover 600"),
    (counts([1.5, 598.5]), "annotation 1 has counts that are neither"),
    (counts("c26"), "annotation 1 has runs that cover"),
    (counts(""), "annotation 1 has a compressed RLE that is empty"),
    (counts("8o"), "annotation 1 has a compressed RLE that is empty, cut short or damaged"),
    (counts("oooooooooooo0"), "annotation 1 has a compressed RLE with runs beyond any image"),
    (counts("\u00e9"), "annotation 1 has .*(damaged|runs that cover)"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_broken_entries_are_refused_or_skipped_by_name(tmp_path: Path, change: Change, message: str) -> None:
    data = content()
    change(data)
    with pytest.raises(InputError, match=message) as caught:
        write(tmp_path, data)
    assert str(caught.value).startswith(str(tmp_path / "a.json"))
    assert "on_error='skip'" in str(caught.value)
    dataset = write(tmp_path, data, on_error="skip")
    assert dataset.problems
    assert all(str(problem).startswith(str(tmp_path / "a.json")) for problem in dataset.problems)
    assert re.search(message, str(dataset.problems[0]))
    for record in dataset:
        for instance, mask in dataset.masks(record):
            assert np.array_equal(mask, square()), instance
    assert dataset.validate(progress=False)[: len(dataset.problems)] == dataset.problems


MASKS: list[tuple[Change, str]] = [
    (counts([600]), "annotation 1 has an empty mask"),
    (annotation(area=4000), "annotation 1 states an area of 4000 pixels, but its segmentation has 120"),
    (annotation(area=0.5), "annotation 1 states an area of 0.5 pixels, but its segmentation has 120"),
]


@pytest.mark.parametrize(("change", "message"), MASKS, ids=[message for _, message in MASKS])
def test_wrong_masks_are_found_when_decoded(tmp_path: Path, change: Change, message: str) -> None:
    data = content()
    change(data)
    dataset = write(tmp_path, data)
    assert [str(problem).partition(": ")[2] for problem in dataset.validate(progress=False)] == [message]
    with pytest.raises(InputError, match=message):
        dataset.masks(dataset.records[0])
    with pytest.raises(InputError, match=message):
        dataset.mask(dataset.records[0], dataset.records[0].instances[0])
    dataset = write(tmp_path, data, on_error="skip")
    for _ in range(2):  # reported once, however often it is met
        assert [instance.id for instance, _ in dataset.masks(dataset.records[0])] == [2, 4]
        assert [problem.id for problem in dataset.problems] == [1]


def test_rough_boxes_and_areas_are_no_contradiction(tmp_path: Path) -> None:
    data = content()
    annotation(bbox=[2, 3, 15, 13], area=190)(data)
    dataset = write(tmp_path, data)
    assert len(dataset.masks(dataset.records[0])) == 3


def test_a_broken_image_is_one_problem_not_one_per_object(tmp_path: Path) -> None:
    data = content()
    data["images"][0].pop("width")
    dataset = write(tmp_path, data, on_error="skip")
    assert [(p.kind, p.id) for p in dataset.problems] == [("image", 7)]
    assert len(dataset) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read annotations"),
        ("[]", "has no images and no annotations"),
        ('{"annotations": []}', "has no images"),
        ('{"images": 3, "annotations": []}', "images is not a list of objects"),
        ('{"images": [], "annotations": [3]}', "annotations is not a list of objects"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_files_that_are_no_coco_json(tmp_path: Path, text: str, message: str, on_error: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=rf"a\.json.*{message}|{message}.*a\.json"):
        CocoDataset(tmp_path, tmp_path / "a.json", on_error=on_error)


def test_absent_files_folders_and_unknown_options(tmp_path: Path) -> None:
    write(tmp_path, content())
    with pytest.raises(InputError, match="cannot read annotations"):
        CocoDataset(tmp_path, tmp_path / "absent.json")
    with pytest.raises(InputError, match="is not a folder"):
        CocoDataset(tmp_path / "nowhere", tmp_path / "a.json")
    with pytest.raises(InputError, match="on_error is 'ignore'"):
        CocoDataset(tmp_path, tmp_path / "a.json", on_error="ignore")


def test_without_a_folder_of_images_masks_can_still_be_read(tmp_path: Path) -> None:
    write(tmp_path, content())
    dataset = CocoDataset(None, tmp_path / "a.json")
    assert len(dataset.masks(dataset.records[0])) == 3
    assert dataset.validate(progress=False) == []
    with pytest.raises(ImageError, match="image 7"):
        dataset.image(dataset.records[0])


def test_images_absent_truncated_or_of_another_size(tmp_path: Path) -> None:
    dataset = write(tmp_path, content())
    (record,) = dataset.records
    whole = record.path.read_bytes()
    Image.new("RGB", (31, 20)).save(record.path)
    for damage, message in (
        (record.path.read_bytes(), "31x20 pixels, but .* states 30x20 for image 7"),
        (b"not an image", "image 7 .* cannot read"),
        (whole[: len(whole) // 2], "image 7 .* cannot read"),
    ):
        record.path.write_bytes(damage)
        with pytest.raises(ImageError, match=message):
            dataset.image(record)
        (problem,) = dataset.validate(progress=False)
        assert (problem.kind, problem.id) == ("image", 7)
    record.path.unlink()
    with pytest.raises(ImageError, match="image 7"):
        dataset.image(record)


def test_check_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, content())
    arguments = ["--images", str(tmp_path), "--annotations", str(tmp_path / "a.json")]
    assert check(arguments) == 0
    assert "0 problems" in capsys.readouterr().out
    (tmp_path / "a.png").write_bytes(b"")
    assert check(arguments) == 2
    out = capsys.readouterr().out
    assert "1 problem\n" in out
    assert f"{tmp_path / 'a.json'}: image 7 cannot be used" in out
    assert check(["--annotations", str(tmp_path / "absent.json")]) == 2
