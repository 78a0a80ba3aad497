"""The detector's losses: perfect answers cost nothing, proposals teach nothing, masks go to assigned cells."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tracenet.conventions import LEVELS, STRIDES, THETA
from tracenet.models import TraceNet, TraceNetConfig
from tracenet.training.dense_objective import (
    DenseObjective,
    ObjectTargets,
    dense_losses,
    mask_losses,
    pick_cells,
)
from tracenet_kernels.errors import InputError

SIZE = 128
NO_CROWD = torch.zeros(SIZE // 2, SIZE // 2, dtype=torch.uint8)


def objects(proposal: bool = False) -> ObjectTargets:
    """One square of 32 pixels at (32, 48), class 1."""
    masks = torch.zeros(1, SIZE // 2, SIZE // 2)
    masks[0, 24:40, 16:32] = 1
    return ObjectTargets(
        torch.tensor([[32.0, 48.0, 64.0, 80.0]]), torch.tensor([1]), masks, torch.tensor([proposal]), NO_CROWD
    )


def outputs(classes: int = 2, score: float = -9.0) -> dict[str, Tensor]:
    found = {}
    for level in LEVELS:
        n = -(-SIZE // STRIDES[level])
        found[f"logits{level}"] = torch.full((1, classes, n, n), score)
        found[f"reg{level}"] = torch.ones(1, 4, n, n)
        found[f"ctr{level}"] = torch.zeros(1, 1, n, n)
        found[f"theta{level}"] = torch.zeros(1, THETA, n, n)
    found["maskfeat"] = torch.zeros(1, 8, SIZE // 8, SIZE // 8)
    return found


def test_perfect_answers_cost_nothing() -> None:
    answers = outputs()
    _, cells, (assignment,) = dense_losses(answers, [objects()], DenseObjective())
    positive = assignment.positive
    assert int(positive.sum()) == 4  # two by two cells within 12 pixels of the centre
    for i in positive.nonzero()[:, 0].tolist():
        level, (row, column) = int(cells.levels[i]), cells.at[i].tolist()
        answers[f"logits{level}"][0, 1, row, column] = 12.0
        answers[f"reg{level}"][0, :, row, column] = assignment.distances[i]
    values, _, _ = dense_losses(answers, [objects()], DenseObjective())
    assert float(values["score"]) < 1e-3
    assert values["box"].item() == pytest.approx(0, abs=1e-6)
    wrong = dict(answers)
    wrong["logits3"] = answers["logits3"].flip(1)  # the other class
    assert float(dense_losses(wrong, [objects()], DenseObjective())[0]["score"]) > 1


def test_nothing_to_find_is_learned_too() -> None:
    empty = ObjectTargets(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 64, 64), torch.zeros(0) > 0, NO_CROWD
    )
    quiet, _, _ = dense_losses(outputs(score=-9.0), [empty], DenseObjective())
    loud, _, _ = dense_losses(outputs(score=2.0), [empty], DenseObjective())
    assert float(quiet["score"]) < 0.01 < float(loud["score"])
    assert quiet["box"].item() == float(quiet["centerness"]) == 0


def test_proposals_are_neither_object_nor_background() -> None:
    answers = {k: v.requires_grad_() for k, v in outputs(score=0.0).items()}
    values, _, (assignment,) = dense_losses(answers, [objects(proposal=True)], DenseObjective())
    values["score"].backward()
    touched = torch.cat([answers[f"logits{level}"].grad[0, 0].flatten() for level in LEVELS]) != 0
    assert int(assignment.positive.sum()) == 4
    assert torch.equal(touched, ~assignment.positive)
    assert values["box"].item() == 0


def test_a_crowd_is_no_background() -> None:
    crowd = NO_CROWD.clone()
    crowd[:32] = 255  # the upper half of the image, and of the object
    base = objects()
    target = ObjectTargets(base.boxes, base.categories, base.masks, base.ignored, crowd)
    answers = {k: v.requires_grad_() for k, v in outputs(score=0.0).items()}
    values, _, (assignment,) = dense_losses(answers, [target], DenseObjective())
    values["score"].backward()
    touched = answers["logits3"].grad[0, 0] != 0
    on_p3 = assignment.positive[:256].view(16, 16)
    assert torch.equal(touched, on_p3 | (torch.arange(16) >= 8)[:, None])


def test_normalisers_are_averaged_over_processes() -> None:
    seen = []

    def mean(value: Tensor) -> Tensor:
        seen.append(float(value))
        return value * 2

    alone, _, _ = dense_losses(outputs(), [objects()], DenseObjective())
    shared, _, _ = dense_losses(outputs(), [objects()], DenseObjective(), mean)
    assert seen[0] == 4
    torch.testing.assert_close(shared["score"] * 2, alone["score"])


@pytest.mark.parametrize("rel_to", ["click", "cell"])
def test_masks_are_learned_at_assigned_cells(rel_to: str) -> None:
    torch.manual_seed(0)
    model = TraceNet(TraceNetConfig(channels=16, rel_to=rel_to))
    answers = outputs()
    answers["theta3"] = torch.randn_like(answers["theta3"]).requires_grad_()
    answers["maskfeat"] = torch.randn(1, 8, SIZE // 8, SIZE // 8)
    objective = DenseObjective(bce=1.0)
    _, cells, (assignment,) = dense_losses(answers, [objects()], objective)
    values = mask_losses(model, answers, 0, cells, assignment, objects(), objective, torch.Generator().manual_seed(0))
    assert values is not None
    (values["dice"] + values["bce"]).backward()
    moved = answers["theta3"].grad[0].abs().sum(0).nonzero().tolist()
    assert moved == cells.at[assignment.positive].tolist()
    assert 0 <= values["iou"].item() <= 1
    again = mask_losses(model, answers, 0, cells, assignment, objects(), objective, torch.Generator().manual_seed(0))
    assert again is not None
    assert torch.equal(again["dice"], values["dice"])
    assert (
        mask_losses(model, answers, 0, cells, assignment, objects(True), objective, torch.Generator().manual_seed(0))
        is None
    )


def test_cells_are_shared_evenly_among_objects() -> None:
    instance = torch.tensor([0, 0, 0, 0, 0, 1, 2, 2])
    rating = torch.tensor([0.1, 0.9, 0.3, 0.8, 0.2, 0.0, 0.5, 0.6])
    assert pick_cells(rating, instance, 6).tolist() == [1, 3, 5, 7, 6]
    assert pick_cells(rating, instance, 3).tolist() == [1, 5, 7]
    assert pick_cells(rating[:0], instance[:0], 3).tolist() == []


def test_impossible_objectives_are_refused() -> None:
    with pytest.raises(InputError, match="centre='median'"):
        DenseObjective(centre="median")
    with pytest.raises(InputError, match="masks_per_image=0"):
        DenseObjective(masks_per_image=0)
