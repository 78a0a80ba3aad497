"""Results kept while an evaluation runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.objects import clicked, square
from tracenet.evaluation.partial import PartialResults, remove_partial
from tracenet.evaluation.results import ImageResult
from tracenet_kernels.errors import InputError

MASK = square(1, 1, 9)
FINGERPRINT = {"model": {"sha256": "aa"}, "seed": 0}


def image(number: int) -> ImageResult:
    return ImageResult(number, [clicked(number, MASK, MASK, image=number)], [], 1.0)


def kept(folder: Path, rank: int = 0) -> PartialResults:
    return PartialResults(folder / "out.json", FINGERPRINT, rank)


def numbers(results: list[ImageResult]) -> list[int]:
    return sorted(one.image for one in results)


def test_what_was_appended_is_loaded_whichever_process_did_it(tmp_path: Path) -> None:
    assert kept(tmp_path).load() == []
    first, second = kept(tmp_path), kept(tmp_path, rank=1)
    first.append(image(1))
    second.append(image(2))
    first.append(image(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json.partial.1.jsonl", "out.json.partial.jsonl"]
    assert numbers(kept(tmp_path).load()) == [1, 2, 3]
    kept(tmp_path).append(image(4))  # a later run goes on in the same file
    assert numbers(kept(tmp_path).load()) == [1, 2, 3, 4]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    writer = kept(tmp_path)
    writer.append(image(1))
    writer.append(image(2))
    path = tmp_path / "out.json.partial.jsonl"
    whole = path.read_bytes()
    for cut in (5, len(whole.splitlines()[0]) + 30, len(whole) - 1):
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        assert len(kept(tmp_path).load()) == max(complete - 1, 0)
        kept(tmp_path).append(image(9))
        assert len(kept(tmp_path).load()) == max(complete, 1)


def test_results_of_another_evaluation_are_refused(tmp_path: Path) -> None:
    kept(tmp_path).append(image(1))
    with pytest.raises(InputError, match=r"out\.json\.partial\.jsonl.*another seed; delete it"):
        PartialResults(tmp_path / "out.json", {**FINGERPRINT, "seed": 1}).load()
    with pytest.raises(InputError, match="another clicks, model"):
        PartialResults(tmp_path / "out.json", {"model": {}, "seed": 0, "clicks": 25}).load()


@pytest.mark.parametrize("text", ["not json\n", "[1]\n", '{"seed": 0}\n', '"text"\n'])
def test_foreign_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "out.json.partial.jsonl").write_text(text)
    with pytest.raises(InputError, match="holds no results"):
        kept(tmp_path).load()


def test_only_this_outputs_files_are_removed(tmp_path: Path) -> None:
    kept(tmp_path).append(image(1))
    kept(tmp_path, rank=3).append(image(1))
    others = ["a.out.json.partial.jsonl", "out.json.partial.x.jsonl", "out.jsonl", "out_json.partial.jsonl"]
    for name in others:
        (tmp_path / name).write_text("mine")
    remove_partial(tmp_path / "out.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == others
