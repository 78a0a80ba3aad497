"""The planner on the device against its twin and against windows of the host."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tracenet_kernels import gpu, reference
from tracenet_kernels.errors import InputError
from tracenet_kernels.testing import poisoned
from tracenet_kernels.window import Window, subtract

if reason := gpu.why_not():
    pytest.skip(reason, allow_module_level=True)

from tracenet_kernels.triton.plan_windows import PIECES, plan_windows, plan_windows_launches

DEVICE = "cpu" if gpu.interpreted() else "cuda"
POISON = torch.iinfo(torch.int32).min


def random_tables(positions: int, planes: int, seed: int, dtype: torch.dtype = torch.int16) -> tuple[Tensor, Tensor]:
    """Edges that never fall, as those of windows; every fifth plane is not needed."""
    rng = torch.Generator().manual_seed(seed)
    lo = torch.randint(0, 9, (positions, planes), generator=rng).sort(0).values
    hi = lo + 1 + torch.randint(0, 9, (positions, planes), generator=rng).sort(0).values
    lo[:, ::5], hi[:, ::5] = 0, 0
    return lo.to(DEVICE, dtype), hi.to(DEVICE, dtype)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def shuffled_rows(planes: int, seed: int, rows: int) -> Tensor:
    """Rows in any order; every seventh plane has none."""
    order = random.Random(seed).sample(range(rows // PIECES), planes)
    return ints(*(-1 if plane % 7 == 3 else PIECES * row for plane, row in enumerate(order)))


def filled(table: Tensor, first_row: Tensor) -> Tensor:
    """The rows of every plane that has some, [planes, 4, 4]; all others must be untouched."""
    mine = [row for row in first_row.tolist() if row >= 0]
    rows = torch.tensor([row + i for row in mine for i in range(PIECES)])
    rest = torch.ones(len(table), dtype=torch.bool)
    rest[rows] = False
    assert (table.cpu()[rest] == POISON).all()
    return table.cpu()[rows].reshape(-1, PIECES, 4)


def has_row(first_row: Tensor, values: Tensor) -> Tensor:
    return values.cpu()[(first_row >= 0).cpu()]


@settings(max_examples=12)
@given(st.integers(-20, 140), st.integers(-20, 140), st.sampled_from([1, 8, 12]), st.integers(1, 70))
def test_clicks(x: int, y: int, unit: int, planes: int) -> None:
    tables_y, tables_x = random_tables(11, planes, 0), random_tables(14, planes, 1, torch.int32)
    rows = 4 * planes + 8
    first_row = shuffled_rows(planes, 2, rows)
    table = poisoned(rows, 4, dtype=torch.int32, device=DEVICE)
    plan_windows(ints(x, y), tables_y, tables_x, first_row, table, unit=unit)
    expected = reference.plan_windows(ints(x, y), tables_y, tables_x, unit=unit)
    assert torch.equal(filled(table, first_row), has_row(first_row, expected))


@settings(max_examples=12)
@given(st.integers(0, 10), st.integers(0, 11), st.integers(0, 13), st.integers(0, 14), st.booleans())
def test_windows_less_those_of_an_earlier_table(y0: int, y1: int, x0: int, x1: int, cut: bool) -> None:
    planes = 41
    tables_y, tables_x = random_tables(11, planes, 3), random_tables(14, planes, 4)
    rows = 4 * planes
    first_row = shuffled_rows(planes, 5, rows)
    earlier = poisoned(rows, 4, dtype=torch.int32, device=DEVICE)
    plan_windows(ints(30, 20), tables_y, tables_x, first_row, earlier, unit=4)
    allowed = torch.tensor([plane % 3 for plane in range(planes)], dtype=torch.int32, device=DEVICE)
    options: dict[str, Any] = {"minus": earlier, "may_subtract": allowed} if cut else {}
    table = poisoned(rows, 4, dtype=torch.int32, device=DEVICE)
    plan_windows(ints(y0, y1, x0, x1), tables_y, tables_x, first_row, table, **options)
    if cut:
        options["minus"] = earlier[first_row.clamp_min(0).long()]
    expected = reference.plan_windows(ints(y0, y1, x0, x1), tables_y, tables_x, **options)
    assert torch.equal(filled(table, first_row), has_row(first_row, expected))


def test_the_twin_subtracts_as_windows_do() -> None:
    planes = 60
    tables_y, tables_x = random_tables(9, planes, 6), random_tables(9, planes, 7)
    request = torch.tensor([2, 7, 1, 8], dtype=torch.int32)
    whole = reference.plan_windows(request, tables_y, tables_x)[:, 0]
    earlier = reference.plan_windows(torch.tensor([4, 4]), tables_y, tables_x, unit=1)[:, 0]
    earlier[::4] += torch.tensor([40, 40, 0, 0])  # apart
    allowed = torch.tensor([plane % 2 for plane in range(planes)])
    parts = reference.plan_windows(request, tables_y, tables_x, minus=earlier, may_subtract=allowed)
    assert allowed.any() and (parts[:, 1:] != 0).any()
    for window, before, may, rows in zip(whole.tolist(), earlier.tolist(), allowed, parts.tolist(), strict=True):
        found = [Window(*row) for row in rows if any(row)]
        expected = subtract(Window(*window), Window(*before)) if may else [Window(*window)]
        assert found == [window for window in expected if not window.is_empty]


def test_arguments_that_do_not_fit() -> None:
    good: dict[str, Any] = {
        "request": ints(1, 2),
        "tables_y": random_tables(5, 6, 0),
        "tables_x": random_tables(7, 6, 1),
        "first_row": ints(0, 4, 8, 12, 16, -1),
        "table": torch.zeros(20, 4, dtype=torch.int32, device=DEVICE),
        "unit": 8,
    }
    assert [launch.grid for launch in plan_windows_launches(**good)] == [(1, 1, 1)]
    lo, hi = good["tables_y"]
    bad: list[tuple[dict[str, Any], str]] = [
        ({"unit": 0}, "int32 \\[4\\] and unit 0"),
        ({"unit": -1}, "unit -1"),
        ({"request": ints(1, 2, 3, 4)}, "int32 \\[2\\]"),
        ({"request": ints(1, 2).float()}, "torch.float32"),
        ({"tables_y": (lo, hi[1:])}, "pass equal ones"),
        ({"tables_y": (lo.float(), hi)}, "int16 or int32"),
        ({"tables_x": (lo[:, :5], hi[:, :5])}, "tables_x"),
        ({"tables_y": (lo.T.contiguous().T, hi)}, "contiguous"),
        ({"table": good["table"].long()}, "int32 \\[rows, 4\\]"),
        ({"table": good["table"][:19]}, "below 19"),
        ({"first_row": ints(0, 3, 8, 12, 16, -1)}, "4 apart"),
        ({"first_row": ints(-2, 4, 8, 12, 16, -1)}, "first_row holds"),
        ({"first_row": ints(*[-1] * 6)}, "first_row holds"),
        ({"minus": good["table"]}, "go together"),
        ({"minus": good["table"][:8], "may_subtract": ints(*[1] * 6)}, "minus is"),
        ({"minus": good["table"], "may_subtract": ints(1)}, "may_subtract is"),
    ]
    for change, message in bad:
        with pytest.raises(InputError, match=message):
            plan_windows_launches(**{**good, **change})
