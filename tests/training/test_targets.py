"""FCOS's assignment and the soft levels, against answers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tracenet.conventions import STRIDES
from tracenet.training.targets import (
    BACKGROUND,
    SIZE_LIMITS,
    Cells,
    assign,
    box_distances,
    centerness_targets,
    centres_of_mass,
    level_targets,
)
from tracenet_kernels.errors import InputError


def planes(height: int, width: int) -> dict[int, tuple[int, int]]:
    return {level: (-(-height // stride), -(-width // stride)) for level, stride in STRIDES.items()}


def test_cells_stand_for_their_middle_pixel() -> None:
    cells = Cells.of({3: (2, 3), 5: (1, 1)})
    assert cells.points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [16, 16]]
    assert cells.levels.tolist() == [3] * 6 + [5]
    assert cells.at[5].tolist() == [1, 2]


def test_an_object_is_learned_around_its_centre_on_its_level() -> None:
    cells = Cells.of(planes(256, 256))
    box = torch.tensor([[64.0, 64.0, 128.0, 112.0]])  # 64 x 48, centre (96, 88)
    found = assign(cells, box)
    points = {tuple(p) for p in cells.points[found.positive].tolist()}
    # Within 12 pixels of the centre on P3, both axes; largest distance at most 64.
    assert points == {(x, y) for x in (84 + 8, 84 + 16) for y in (76 + 8, 76 + 16)} | {
        (x, y) for x in (92, 100) for y in (84, 92)
    }
    assert set(cells.levels[found.positive].tolist()) == {3}
    at = (cells.points == torch.tensor([92.0, 84.0])).all(1) & (cells.levels == 3)
    assert found.distances[at].tolist() == [[28.0, 20.0, 36.0, 28.0]]
    assert bool((found.distances[~found.positive] == 0).all())


@pytest.mark.parametrize(("size", "level"), [(60.0, 3), (150.0, 4), (300.0, 5), (600.0, 6), (1100.0, 7)])
def test_larger_objects_are_learned_on_coarser_levels(size: float, level: int) -> None:
    cells = Cells.of(planes(1280, 1280))
    box = torch.tensor([[100.0, 100.0, 100.0 + size, 100.0 + size]])
    found = assign(cells, box)
    assert set(cells.levels[found.positive].tolist()) == {level}


def test_the_smaller_object_wins_and_the_rest_of_the_box_is_background() -> None:
    cells = Cells.of(planes(128, 128))
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0], [24.0, 24.0, 40.0, 40.0]])
    found = assign(cells, boxes, radius=0)
    on_p3 = cells.levels == 3
    inside = box_distances(cells.points, boxes)[:, 1].amin(1) > 0
    assert set(found.instance[on_p3 & inside].tolist()) == {1}
    outside = box_distances(cells.points, boxes)[:, 0].amin(1) <= 0
    assert set(found.instance[outside].tolist()) == {BACKGROUND}


def test_the_mass_can_stand_for_the_centre() -> None:
    cells = Cells.of(planes(128, 128))
    box = torch.tensor([[0.0, 0.0, 60.0, 60.0]])
    found = assign(cells, box, torch.tensor([[8.0, 8.0]]))
    assert {tuple(p) for p in cells.points[found.positive].tolist()} == {(4, 4), (12, 4), (4, 12), (12, 12)}


def test_no_objects_no_positives() -> None:
    found = assign(Cells.of(planes(64, 64)), torch.zeros(0, 4))
    assert not bool(found.positive.any())
    assert found.distances.shape == (len(found.instance), 4)


def test_impossible_limits_are_refused() -> None:
    cells = Cells.of(planes(64, 64))
    with pytest.raises(InputError, match="four growing numbers"):
        assign(cells, torch.zeros(0, 4), limits=(64, 64, 128, 256))
    with pytest.raises(InputError, match="centre radius is -1"):
        assign(cells, torch.zeros(0, 4), radius=-1)


@given(
    st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 150), st.integers(4, 256), st.integers(4, 256)),
        min_size=1,
        max_size=6,
    )
)
def test_every_positive_cell_lies_in_its_box_and_range(corners: list[tuple[int, int, int, int]]) -> None:
    boxes = torch.tensor([[x, y, min(x + w, 256), min(y + h, 192)] for x, y, w, h in corners], dtype=torch.float32)
    cells = Cells.of(planes(192, 256))
    found = assign(cells, boxes)
    at = found.positive
    assert bool((found.distances[at] > 0).all())
    largest = found.distances[at].amax(1)
    low = torch.tensor([0.0, *SIZE_LIMITS])[cells.levels[at] - 3]
    high = torch.tensor([*SIZE_LIMITS, float("inf")])[cells.levels[at] - 3]
    assert bool(((largest > low) & (largest <= high)).all())
    own = boxes[found.instance[at]]
    distances = torch.cat([cells.points[at] - own[:, :2], own[:, 2:] - cells.points[at]], 1)
    torch.testing.assert_close(found.distances[at], distances)


def test_centres_of_mass() -> None:
    masks = torch.zeros(2, 4, 6)
    masks[0, 1, 2] = 1
    masks[1, :2, :2] = 255
    assert centres_of_mass(masks, 2).tolist() == [[5.0, 3.0], [2.0, 2.0]]


def test_level_targets_follow_the_size_ranges() -> None:
    sizes = torch.tensor([10.0, 45.0, 90.5, 181.0, 362.0, 2000.0])
    boxes = torch.stack([torch.zeros(6), torch.zeros(6), sizes, sizes / 2], 1)
    target = level_targets(boxes)
    assert (target.argmax(1) + 3).tolist() == [3, 3, 4, 5, 6, 7]
    torch.testing.assert_close(target.sum(1), torch.ones(6))
    at_limit = level_targets(torch.tensor([[0.0, 0.0, 128.0, 1.0]]))[0]
    assert float(at_limit[1]) == pytest.approx(float(at_limit[2]), rel=1e-2)


def test_centerness() -> None:
    distances = torch.tensor([[4.0, 2.0, 4.0, 2.0], [2.0, 2.0, 6.0, 2.0], [9.0, 2.0, -1.0, 2.0]])
    torch.testing.assert_close(centerness_targets(distances), torch.tensor([1.0, (1 / 3) ** 0.5, 0.0]))
