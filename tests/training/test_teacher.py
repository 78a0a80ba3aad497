"""The teacher's masks: which are kept, what is written, and that a killed run goes on to the same file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from tests.onnx_pairs import SIDE, Layout, write_pair
from tracenet.cli import main
from tracenet.data import CocoDataset
from tracenet.data.segmentation import decode, encode, parse_segmentation
from tracenet.sam_onnx import SamOnnxPredictor, SamOptions
from tracenet.training.teach import TeacherSettings, draw, teach_files
from tracenet.training.teacher import Proposal, grid_points, propose, propose_on, suppress
from tracenet_kernels.errors import ImageError, InputError

PHOTO = Image.new("RGB", (60, 40))
OPEN = TeacherSettings(grid=3, min_area=0.0, max_area=1.0, min_pixels=1, max_sides=4, one_piece=0.0)
CLICKS = [(10, 10), (30, 10), (50, 10), (10, 30), (30, 30), (50, 30)]


@dataclass
class Scripted:
    """Answers every click with the first of ``masks`` that holds it, and nothing elsewhere."""

    masks: list[NDArray[np.bool_]]
    scores: list[float] = field(default_factory=list)
    soft: float = 9.0
    prompts_at_once: int = 1
    fingerprint: str = "scripted"
    asked: list[tuple[int, int]] = field(default_factory=list)
    encoded: int = 0

    def set_image(self, image: Any) -> None:
        self.encoded += 1

    def decode(self, point_coords: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        logits, scores = [], []
        for ((x, y),) in np.asarray(point_coords).tolist():
            self.asked.append((x, y))
            held = [i for i, mask in enumerate(self.masks) if mask[y, x]]
            mask = self.masks[held[0]] if held else np.zeros((40, 60), bool)
            logits.append(np.where(mask, self.soft, -self.soft))
            scores.append((self.scores or [1.0] * len(self.masks))[held[0]] if held else 0.0)
        return np.array(logits, np.float32)[:, None], np.array(scores, np.float32)[:, None]

    def resize(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits


def box(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    mask = np.zeros((40, 60), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def areas(found: list[Proposal]) -> list[int]:
    return [int(rle.area(one.mask)) for one in found]


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 9))
def test_the_grid_is_inside_and_even(height: int, width: int, grid: int) -> None:
    points = grid_points(height, width, grid)
    assert (points >= 0).all() and (points < [width, height]).all()
    xs = np.unique(points[:, 0])
    assert len(points) == len(xs) * len(np.unique(points[:, 1])) or min(width, height) < grid
    if width >= height and width >= 4 * grid:
        assert len(xs) == grid
        assert np.ptp(np.diff(xs)) <= 1 if grid > 1 else True
        assert abs((xs[0] + 0.5) - (width - xs[-1] - 0.5)) <= 1.5  # as far from the left as from the right


def test_grid_by_hand() -> None:
    assert [tuple(p) for p in grid_points(40, 60, 3).tolist()] == CLICKS


def test_objects_beside_the_annotated_ones_are_proposed_once() -> None:
    left, right = box(2, 2, 20, 38), box(40, 20, 58, 38)
    teacher = Scripted([left, right])
    found = propose_on(PHOTO, [box(25, 0, 38, 20)], teacher, OPEN)
    assert areas(found) == [18 * 36, 18 * 18]
    assert [one.click for one in found] == [(10, 10), (50, 30)]
    # (30, 10) lies on what is annotated, (10, 30) on the proposal that the first click gave.
    assert teacher.asked == [(10, 10), (50, 10), (30, 30), (50, 30)]
    assert teacher.encoded == 1


def test_every_click_is_asked_where_nothing_is_skipped() -> None:
    teacher = Scripted([box(2, 2, 20, 38)])
    settings = TeacherSettings(**{**vars(OPEN), "skip_true": False, "skip_covered": False})
    found = propose_on(PHOTO, [box(25, 0, 38, 20)], teacher, settings)
    assert teacher.asked == CLICKS
    assert len(found) == 1  # the second answer is the same mask


def test_several_prompts_at_once_ask_the_same_clicks_of_one_round() -> None:
    teacher = Scripted([box(2, 2, 20, 38), box(40, 20, 58, 38)], prompts_at_once=4)
    found = propose_on(PHOTO, [box(25, 0, 38, 20)], teacher, OPEN)
    assert len(found) == 2
    assert teacher.asked == [(10, 10), (50, 10), (10, 30), (30, 30), (50, 30)]


def test_a_photo_annotated_all_over_is_not_encoded() -> None:
    teacher = Scripted([box(0, 0, 60, 40)])
    assert propose_on(PHOTO, [box(0, 0, 60, 40)], teacher, OPEN) == []
    assert teacher.encoded == 0


@pytest.mark.parametrize(
    ("change", "mask"),
    [
        ({"predicted_iou": 0.95}, box(2, 2, 20, 20)),  # the teacher says 0.9
        ({"min_area": 0.2}, box(2, 2, 20, 20)),
        ({"max_area": 0.1}, box(2, 2, 20, 20)),
        ({"min_pixels": 325}, box(2, 2, 20, 20)),
        ({"max_sides": 1}, box(0, 0, 20, 20)),
        ({"max_sides": 0}, box(2, 0, 20, 20)),
        ({"one_piece": 0.9}, box(2, 2, 20, 20) | box(40, 2, 48, 20)),
    ],
)
def test_filters(change: dict[str, float], mask: NDArray[np.bool_]) -> None:
    loose = TeacherSettings(**{**vars(OPEN), "predicted_iou": 0.5})
    assert len(propose_on(PHOTO, [], Scripted([mask], [0.9]), loose)) == 1
    strict = TeacherSettings(**{**vars(loose), **change})
    assert propose_on(PHOTO, [], Scripted([mask], [0.9]), strict) == []


def test_unstable_masks_are_dropped() -> None:
    sharp, blurred = Scripted([box(2, 2, 20, 20)]), Scripted([box(2, 2, 20, 20)], soft=0.5)
    assert propose_on(PHOTO, [], sharp, OPEN)[0].stability == 1.0
    assert propose_on(PHOTO, [], blurred, OPEN) == []  # within the offset everything is in, and nothing
    nearer = TeacherSettings(**{**vars(OPEN), "stability_offset": 0.25})
    assert len(propose_on(PHOTO, [], blurred, nearer)) == 1


def test_overlap_with_what_is_annotated() -> None:
    mask = box(0, 0, 20, 20)  # 400 pixels
    settings = TeacherSettings(**{**vars(OPEN), "skip_true": False, "true_iou": 0.2, "true_inside": 0.3})

    def kept(*truths: NDArray[np.bool_]) -> bool:
        return bool(propose_on(PHOTO, truths, Scripted([mask]), settings))

    assert kept()
    assert kept(box(0, 0, 3, 20))  # IoU 0.15
    assert not kept(box(0, 0, 5, 20))  # IoU 0.25
    assert kept(box(0, 0, 3, 20), box(3, 0, 6, 20))  # 0.3 inside
    assert not kept(box(0, 0, 3, 20), box(3, 0, 6, 20), box(6, 0, 9, 20))  # 0.45 inside, each of IoU 0.15
    assert kept(box(15, 0, 60, 40))  # 0.25 inside, IoU 0.05
    assert not kept(box(13, 0, 60, 40))  # 0.35 inside, IoU 0.06


def test_suppression_keeps_the_best() -> None:
    def one(mask: NDArray[np.bool_], score: float) -> Proposal:
        return Proposal(rle.encode(np.asfortranarray(mask, np.uint8)), (0, 0), score, 1.0)

    a, b, c = one(box(0, 0, 20, 20), 0.9), one(box(0, 0, 20, 30), 0.95), one(box(0, 0, 20, 5), 0.8)
    assert suppress([a, b, c], 0.5) == [b, c]  # IoU of a and b is 2/3
    assert suppress([a, b, c], 0.7) == [b, a, c]
    assert suppress([], 0.5) == []
    assert one(box(0, 0, 1, 1), 1.2).score == 1.0


@pytest.mark.parametrize(
    "wrong", [{"grid": 0}, {"stability": 1.1}, {"min_area": 0.5, "max_area": 0.1}, {"max_sides": -1}, {"nms_iou": -0.1}]
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        TeacherSettings(**wrong)


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    """Three photos of 60 x 40; an object at the left of each, and a crowd at the right of the last."""
    folder = tmp_path / "photos"
    folder.mkdir()
    left = [[0, 0, 20, 0, 20, 40, 0, 40]]
    crowd = [[40, 0, 60, 0, 60, 40, 40, 40]]
    annotations: list[dict[str, Any]] = [
        {"id": 9, "image_id": 3, "category_id": 4, "iscrowd": 1, "segmentation": crowd}
    ]
    for number in (1, 2, 3):
        PHOTO.save(folder / f"{number}.png")
        annotations.append({"id": number, "image_id": number, "category_id": 4, "segmentation": left})
    images = [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in (1, 2, 3)]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 4, "name": "box"}]}
    (tmp_path / "a.json").write_text(json.dumps(data))
    return CocoDataset(folder, tmp_path / "a.json")


MIDDLE, RIGHT = box(22, 2, 38, 38), box(42, 2, 58, 38)


def test_what_is_written_is_read_as_proposals(dataset: CocoDataset, tmp_path: Path) -> None:
    out = propose(dataset, Scripted([MIDDLE, RIGHT], [0.97, 0.99]), OPEN, tmp_path / "p.json", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "p.json", "photos"]
    data = json.loads(out.read_text())
    assert [(row["image_id"], row["area"], row["score"]) for row in data["annotations"]] == [
        (1, 576, 0.99),
        (1, 576, 0.97),
        (2, 576, 0.99),
        (2, 576, 0.97),
        (3, 576, 0.97),  # the crowd covers the other
    ]
    assert data["annotations"][0]["bbox"] == [42, 2, 16, 36]
    assert data["annotations"][0]["predicted_iou"] == 0.99 and data["annotations"][0]["stability"] == 1.0
    assert data["info"]["settings"] == vars(OPEN)
    both = CocoDataset(tmp_path / "photos", dataset.annotations, proposals=out)
    found = [(i.score, mask) for i, mask in both.masks(both.records[0]) if i.proposal]
    assert [score for score, _ in found] == [0.99, 0.97]
    np.testing.assert_array_equal(found[0][1], RIGHT)
    np.testing.assert_array_equal(found[1][1], MIDDLE)
    # Proposals of an earlier teacher are no truth.
    again = propose(both, Scripted([MIDDLE, RIGHT], [0.97, 0.99]), OPEN, tmp_path / "q.json", progress=False)
    assert again.read_text() == out.read_text()


class KilledError(Exception):
    pass


@pytest.mark.parametrize("cut", [0, 7])
def test_a_killed_run_goes_on_to_the_same_file(
    dataset: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    whole = propose(dataset, Scripted([MIDDLE, RIGHT]), OPEN, tmp_path / "whole.json", progress=False)
    teacher, out = Scripted([MIDDLE, RIGHT]), tmp_path / "p.json"
    partial = tmp_path / "p.json.partial"

    class Mortal(Scripted):
        def set_image(self, image: Any) -> None:
            super().set_image(image)
            if self.encoded == 3:
                raise KilledError

    with pytest.raises(KilledError):
        propose(dataset, Mortal([MIDDLE, RIGHT]), OPEN, out, progress=False)
    assert not out.exists()
    done = partial.read_bytes()
    assert done.count(b"\n") == 3
    partial.write_bytes(done[: len(done) - cut])
    assert propose(dataset, teacher, OPEN, out, progress=False).read_bytes() == whole.read_bytes()
    assert teacher.encoded == (2 if cut else 1)
    assert not partial.exists()
    propose(dataset, teacher, OPEN, out, progress=False)
    assert teacher.encoded == (2 if cut else 1)  # nothing is left to do


def test_other_settings_do_not_go_on_from_a_partial_file(dataset: CocoDataset, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    (tmp_path / "p.json.partial").write_text(json.dumps({"fingerprint": {"teacher": "another"}}) + "\n")
    with pytest.raises(InputError, match=r"p\.json\.partial was left by proposals with another teacher"):
        propose(dataset, Scripted([MIDDLE]), OPEN, out, progress=False)
    (tmp_path / "p.json.partial").write_text("[]\n")
    with pytest.raises(InputError, match="delete it"):
        propose(dataset, Scripted([MIDDLE]), OPEN, out, progress=False)


def test_a_finished_file_of_another_teacher_is_made_anew(dataset: CocoDataset, tmp_path: Path) -> None:
    out = propose(dataset, Scripted([MIDDLE]), OPEN, tmp_path / "p.json", progress=False)
    teacher = Scripted([RIGHT], fingerprint="another")
    propose(dataset, teacher, OPEN, out, progress=False)
    assert [row["bbox"][0] for row in json.loads(out.read_text())["annotations"]] == [42, 42]


def test_bad_photos_stop_or_are_skipped(dataset: CocoDataset, tmp_path: Path) -> None:
    (tmp_path / "photos" / "2.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"2\.png"):
        propose(dataset, Scripted([MIDDLE]), OPEN, tmp_path / "p.json", progress=False)
    lenient = CocoDataset(tmp_path / "photos", dataset.annotations, on_error="skip")
    out = propose(lenient, Scripted([MIDDLE]), OPEN, tmp_path / "q.json", progress=False)
    assert {row["image_id"] for row in json.loads(out.read_text())["annotations"]} == {1, 3}
    assert ["2.png" in str(problem) for problem in lenient.problems] == [True]


def test_the_command_with_an_onnx_pair(dataset: CocoDataset, tmp_path: Path) -> None:
    encoder, decoder = write_pair(tmp_path / "pair", Layout(radius=12.0, iou=(0.98,)))
    held = json.loads(dataset.annotations.read_text())
    held["images"] = held["images"][:1]
    held["annotations"] = [row for row in held["annotations"] if row["image_id"] == 1]
    (tmp_path / "held.json").write_text(json.dumps(held))
    settings = TeacherSettings(grid=3, stability=0.7, stability_offset=0.5, max_area=0.5)
    report = teach_files(
        tmp_path / "photos",
        dataset.annotations,
        encoder,
        decoder,
        tmp_path / "p.json",
        settings,
        without=tmp_path / "held.json",
        limit=1,
        threads=1,
        figures=3,
    )
    assert (report["images"], report["annotated"], report["images_without_proposals"]) == (1, 1, 0)
    rows = json.loads((tmp_path / "p.json").read_text())["annotations"]
    assert report["proposals"] == len(rows) > 0
    assert {row["image_id"] for row in rows} == {2}
    teacher = SamOnnxPredictor(encoder, decoder, SamOptions(threads=1))
    teacher.set_image(PHOTO)
    for row in rows:
        encoded, _ = parse_segmentation(row["segmentation"], 40, 60)
        mask = decode(encode(encoded, 40, 60))
        np.testing.assert_array_equal(mask, teacher.resize(teacher.decode([row["click"]])[0])[0, 0] > 0)
        assert row["area"] == mask.sum()
        # A disc of radius 12 of the 64-pixel image, on a photo of 60.
        assert row["area"] <= np.pi * (12 * 60 / SIDE) ** 2 * 1.1
    picture = np.array(Image.open(tmp_path / "p_figures" / "2.jpg"))
    assert picture.shape == (40, 60, 3)
    assert picture.any()


def test_pictures_show_proposals_and_annotations(dataset: CocoDataset) -> None:
    counts = rle.encode(np.asfortranarray(RIGHT, np.uint8))["counts"].decode()
    row = {"segmentation": {"size": [40, 60], "counts": counts}, "click": [44, 4]}
    picture = np.array(draw(dataset, dataset.records[0], [row]))
    assert picture[20, 50].tolist() != picture[20, 10].tolist() != picture[20, 30].tolist() == [0, 0, 0]


def test_the_command_line(
    dataset: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, decoder = write_pair(tmp_path / "pair", Layout(iou=(0.98,)))
    words = ["teach", "--images", f"{tmp_path}/photos", "--annotations", str(dataset.annotations), "--grid", "2"]
    words += ["--stability", "0.5", "--encoder", str(encoder), "--out", f"{tmp_path}/p.json", "--threads", "1"]
    for last, code in ((decoder, 0), (encoder, 2)):
        monkeypatch.setattr("sys.argv", ["tracenet", *words, "--decoder", str(last)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
        printed = capsys.readouterr()
        if code == 0:
            assert json.loads(printed.out)["images"] == 3
            assert json.loads((tmp_path / "p.json").read_text())["info"]["settings"]["grid"] == 2
        else:
            assert "not the decoder of a SAM-style pair" in printed.err
