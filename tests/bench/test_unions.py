"""The benchmark of windows apart: what it asks, what it counts, that it compares."""

from __future__ import annotations

import pytest
import torch

import tracenet
from bench import unions
from tracenet.traced import TracedModel


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unions, "NETWORKS", {"U-Net": (lambda: unions.UNet(4), unions.squares)})


@pytest.mark.usefixtures("small")
def test_rows_count_and_compare() -> None:
    corners, four, beside = unions.measure("U-Net", (192, 160), 0, ["torch"])
    assert corners["macs"] < corners["hull_macs"] <= corners["full_macs"]
    assert beside["macs"] == beside["hull_macs"]
    assert (corners["clicks"], four["clicks"], beside["most_pieces"]) == (2, 4, 1)
    assert all(row["max_rel_error"] <= unions.TOLERANCE and row["torch_hull_ms"] is None for row in (corners, four))


@pytest.mark.usefixtures("small")
def test_times_are_medians_of_all_kinds() -> None:
    rows = unions.measure("U-Net", (96, 96), 1, ["torch"])
    assert all(row[name] > 0 for row in rows for name in ("torch_hull_ms", "torch_pieces_ms", "full_ms"))
    unions.show({"rows": rows, "backends": ["torch"], "size": [96, 96], "device": "here", "commit": "abc"})


@pytest.mark.usefixtures("small")
def test_wrong_values_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = TracedModel.run
    monkeypatch.setattr(
        TracedModel, "run", lambda *a, **k: {key: [t + 1 for t in v] for key, v in run(*a, **k).items()}
    )
    with pytest.raises(SystemExit, match="U-Net, opposite corners: off by"):
        unions.measure("U-Net", (96, 96), 1, ["torch"])


def test_cells_of_the_detector_lie_on_every_plane() -> None:
    traced = tracenet.trace(unions.detector().eval(), torch.zeros(1, 3, 64, 96))
    request = unions.cells(traced, unions.CLICKS["opposite corners"])
    assert {name[-1] for name in map(str, request)} == {"3", "4", "5"}
    assert traced.plan(request).macs > 0
