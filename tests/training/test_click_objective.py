"""Losses at clicks: their weights over levels, and the choice among the levels of several views."""

from __future__ import annotations

import math

import pytest
import torch

from tracenet.conventions import LEVELS, THETA
from tracenet.models import TraceNet, TraceNetConfig
from tracenet.training.click_objective import (
    ClickObjective,
    ClickTargets,
    HeadsAtClicks,
    ViewLosses,
    choice_loss,
    click_losses,
    view_losses,
)
from tracenet_kernels.errors import InputError


def targets(full: int = 2, weight: float = 1.0) -> ClickTargets:
    """Three clicks: on an object of P3's size, on one of P5's, and one for the level only."""
    masks = torch.zeros(3, 160, 160)
    masks[0, 10:22, 10:22] = 1
    masks[1:, 20:120, 20:120] = 1
    boxes = torch.tensor([[20.0, 20.0, 44.0, 44.0], [40.0, 40.0, 240.0, 240.0], [40.0, 40.0, 240.0, 240.0]])
    clicks = torch.tensor([[30.0, 31.0], [100.0, 150.0], [60.0, 60.0]])
    return ClickTargets(clicks, masks, boxes, full, torch.tensor([1.0, weight, 1.0]))


def heads(pairs: torch.Tensor, level: torch.Tensor | None = None) -> HeadsAtClicks:
    index = pairs.nonzero()
    m = len(index)
    torch.manual_seed(1)
    return HeadsAtClicks(
        torch.zeros(len(pairs), 5),
        torch.zeros(len(pairs), 5) if level is None else level,
        torch.full((m, 4), 20.0, requires_grad=True),
        torch.zeros(m, requires_grad=True),
        torch.randn(m, THETA, requires_grad=True),
        index[:, 0],
        index[:, 1] + LEVELS[0],
    )


@pytest.fixture(scope="module")
def model() -> TraceNet:
    return TraceNet(TraceNetConfig(channels=16, level_head=True))


def test_levels_learn_by_their_likelihood() -> None:
    wanted, weights = targets().level_weights(ClickObjective(levels=2))
    assert (weights > 0).sum(1).tolist() == [2, 2, 0]  # the last click is for the level only
    assert weights[0].argmax() == 0 and weights[1].argmax() == wanted[1].argmax()
    _, one = targets().level_weights(ClickObjective(levels=1))
    assert one[0].tolist() == [1, 0, 0, 0, 0]
    _, limited = targets().level_weights(ClickObjective(levels=3, mask_levels=(4, 5)))
    assert ((limited[:2] > 0) == torch.tensor([False, True, True, False, False])).all()
    _, lighter = targets(weight=0.5).level_weights(ClickObjective(levels=1))
    assert float(lighter[1].sum()) == 0.5


def test_losses_reach_what_they_should(model: TraceNet) -> None:
    objective = ClickObjective(levels=2)
    clicks = targets()
    _, weights = clicks.level_weights(objective)
    found = heads(weights > 0)
    view = view_losses(model, found, torch.randn(1, 8, 40, 40), clicks, objective)
    assert set(view.values) == {"dice", "bce", "box", "score", "centerness", "iou", "level", "level_hit"}
    assert view.values["score"].item() == pytest.approx(math.log(2), rel=1e-4)
    assert view.reached.shape == (2, 5)
    assert bool((view.reached[weights[:2] == 0] == 0).all())
    assert view.values["level"].item() == pytest.approx(math.log(5), rel=1e-4)
    total = objective.total(click_losses([view]))
    grads = torch.autograd.grad(total, [found.reg, found.theta, found.ctr])
    assert all(float(g.abs().sum()) > 0 for g in grads)


def test_a_box_in_the_right_place_costs_nothing(model: TraceNet) -> None:
    objective = ClickObjective(levels=1)
    clicks = targets()
    _, weights = clicks.level_weights(objective)
    found = heads(weights > 0)
    stride = 2.0 ** found.level_of[:, None]
    centre = (clicks.clicks[:2] / stride).floor() * stride + stride / 2
    exact = torch.cat([centre - clicks.boxes[:2, :2], clicks.boxes[:2, 2:] - centre], 1)
    found.reg.data.copy_(exact)
    view = view_losses(model, found, torch.zeros(1, 8, 40, 40), clicks, objective)
    assert view.values["box"].item() == pytest.approx(0, abs=1e-6)


def view(level: list[list[float]], reached: list[list[float]]) -> ViewLosses:
    return ViewLosses({"level": torch.tensor(1.0)}, torch.tensor(level), torch.tensor(reached), torch.ones(len(level)))


def test_the_choice_is_one_softmax_over_all_views() -> None:
    sure = [[50.0, 0.0, 0.0, 0.0, 0.0]]
    unsure = [[0.0] * 5]
    good, bad = [[0.9, 0.1, 0.0, 0.0, 0.0]], [[0.2, 0.1, 0.0, 0.0, 0.0]]
    assert float(choice_loss([view(sure, good)])) == pytest.approx(0.1)
    assert float(choice_loss([view(unsure, good)])) == pytest.approx(1 - 1.0 / 5)
    # The second view is surer than the first, whatever the first's own ranking says.
    first, second = view(sure, bad), view([[60.0, 0.0, 0.0, 0.0, 0.0]], good)
    assert float(choice_loss([first, second])) == pytest.approx(0.1, abs=1e-3)
    assert float(click_losses([first, second])["choice"]) == pytest.approx(0.1, abs=1e-3)
    assert float(click_losses([first])["level"]) == 1.0


def test_impossible_objectives_are_refused() -> None:
    with pytest.raises(InputError, match="levels=0"):
        ClickObjective(levels=0)
    with pytest.raises(InputError, match="mask_levels"):
        ClickObjective(mask_levels=(2, 5))
