"""The comparison tools must themselves fail when they should."""

from __future__ import annotations

import math

import pytest
import torch

from tracenet_kernels import testing
from tracenet_kernels.window import Window


def test_errors_are_relative_to_the_reference() -> None:
    measured = testing.errors(torch.tensor([[1.0, 2.0], [3.0, 4.5]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert measured.max_abs == 0.5
    assert measured.max_ref == 4.0
    assert measured.max_relative == 0.125
    assert measured.frobenius == pytest.approx(0.5 / math.sqrt(30))
    assert measured.worst == (1, 1)


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        (torch.float64, 1e-11, 1e-9),
        (torch.float32, 5e-5, 5e-4),
        (torch.float16, 5e-3, 5e-2),
        (torch.bfloat16, 5e-3, 5e-2),
    ],
)
def test_each_dtype_has_its_limit(dtype: torch.dtype, good: float, bad: float) -> None:
    reference = torch.ones(5, 7, dtype=torch.float64)
    testing.assert_close(reference * (1 + good), reference, dtype=dtype)
    with pytest.raises(AssertionError, match="too far"):
        testing.assert_close(reference * (1 + bad), reference, dtype=dtype)


def test_integers_and_zeros_are_exact() -> None:
    testing.assert_close(torch.tensor([1, 2]), torch.tensor([1, 2]))
    with pytest.raises(AssertionError, match="too far"):
        testing.assert_close(torch.tensor([1, 1_000_000]), torch.tensor([2, 1_000_000]))
    testing.assert_close(torch.zeros(3), torch.zeros(3))
    with pytest.raises(AssertionError, match="too far"):
        testing.assert_close(torch.full((3,), 1e-12), torch.zeros(3))
    testing.assert_close(torch.zeros(0, 3), torch.zeros(0, 3))


def test_shapes_and_unwritten_elements_fail() -> None:
    with pytest.raises(AssertionError, match="shape"):
        testing.assert_close(torch.zeros(3), torch.zeros(3, 1))
    with pytest.raises(AssertionError, match=r"1 of 4 elements.*first at \(1, 0\)"):
        testing.assert_close(torch.tensor([[1.0, 1.0], [math.nan, 1.0]]), torch.ones(2, 2))
    with pytest.raises(AssertionError, match="infinite"):
        testing.assert_close(torch.tensor([-math.inf]), torch.tensor([math.inf]))
    testing.assert_close(torch.tensor([-math.inf, 1.0]), torch.tensor([-math.inf, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32, torch.uint8])
def test_writes_outside_and_holes_inside_show(dtype: torch.dtype) -> None:
    windows = [Window(1, 3, 2, 5), Window(4, 5, 0, 1)]
    output = testing.poisoned(2, 5, 6, 3, dtype=dtype)
    for window in windows:
        rows, columns = window.slices
        output[:, rows, columns] = 1
    testing.assert_only_written(output, windows, axes=(-3, -2))
    with pytest.raises(AssertionError, match="not written inside the windows, first at row 0, column 0"):
        testing.assert_only_written(output, [*windows, Window.of_cell(0, 0)], axes=(-3, -2))
    output[1, 3, 3, 2] = 1
    with pytest.raises(AssertionError, match="written outside the windows, first at row 3, column 3"):
        testing.assert_only_written(output, windows, axes=(-3, -2))
