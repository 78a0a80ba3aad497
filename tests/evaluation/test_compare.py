"""Reports side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluation.objects import clicked, square
from tracenet.evaluation.compare import CATEGORIES, category_table, load_reports, main, metric_table
from tracenet.evaluation.report import summarise
from tracenet_kernels.errors import InputError

MASK = square(10, 10, 20)
GOOD = {**summarise([clicked(1, MASK, MASK, category=1)], {1: "person"}), "seed": 0}
BAD = {**summarise([clicked(1, MASK, ~MASK, category=1)], {1: "person"}), "seed": 0}


def write(folder: Path, **reports: Any) -> list[Path]:
    for name, report in reports.items():
        (folder / f"{name}.json").write_text(json.dumps(report))
    return [folder / f"{name}.json" for name in reports]


def test_tables() -> None:
    lines = metric_table({"a": GOOD, "b|c": BAD}).splitlines()
    assert lines[0] == "|  | a | b\\|c |"
    assert lines[1] == "| --- | ---: | ---: |"
    assert "| 1-click IoU | 1.000 (1.000 to 1.000) | 0.000 (0.000 to 0.000) |" in lines
    assert "| mTA, large | - | - |" in lines
    assert "| mIoU-T, band 5 | 1.000 | 0.000 |" in lines
    assert {line.count("|") for line in lines} == {4, 5}  # the escaped one counts too


def test_category_table_has_the_papers_columns() -> None:
    header, _, row = category_table({"ours": GOOD}).splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["mIoU-T", *CATEGORIES, "all categories"]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["ours", "1.000", *["-"] * 7, "1.000"]
    assert "| TraceNet-R-50-FPN (paper) | 0.431 |" in category_table({"ours": GOOD}, paper=True)


def test_command_writes_tables_and_bands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(path) for path in write(tmp_path, good=GOOD, bad=BAD)]
    out = [str(tmp_path / "t.md"), str(tmp_path / "t.png")]
    assert main([*files, "--names", "first", "second", "--out", out[0], "--out", out[1]]) == 0
    text = (tmp_path / "t.md").read_text()
    assert "| first | second |" in text
    assert capsys.readouterr().out == text
    with Image.open(out[1]) as picture:
        assert len(picture.getcolors(1 << 24) or []) > 50


def test_files_that_cannot_be_compared_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, seed, sha = write(tmp_path, a=GOOD, b={**BAD, "seed": 1}, c={**BAD, "annotations": {"sha256": "aa"}})
    with pytest.raises(InputError, match="differ in seed"):
        load_reports([first, seed])
    with pytest.raises(InputError, match="differ in annotations"):
        load_reports([first, sha])
    with pytest.raises(InputError, match="all different"):
        load_reports([first, first])
    with pytest.raises(InputError, match="all different"):
        load_reports([first, sha], ["one"])
    (tmp_path / "d.json").write_text('{"miou_t": 1}')
    (tmp_path / "e.json").write_text("{")
    with pytest.raises(InputError, match="has no by_band, by_category"):
        load_reports([tmp_path / "d.json"])
    assert main([str(tmp_path / "e.json")]) == 2
    assert "cannot be read as JSON" in capsys.readouterr().err
