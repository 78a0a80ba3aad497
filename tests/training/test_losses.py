"""Losses against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from tracenet.training import losses


def test_focal_loss_is_cross_entropy_weighted_by_what_was_missed() -> None:
    logits = torch.tensor([0.0, 0.0, 4.0, -4.0])
    target = torch.tensor([1.0, 0.0, 1.0, 1.0])
    p = logits.sigmoid()
    expected = torch.stack(
        [
            -0.25 * 0.5**2 * p[0].log(),
            -0.75 * 0.5**2 * (1 - p[1]).log(),
            -0.25 * (1 - p[2]) ** 2 * p[2].log(),
            -0.25 * (1 - p[3]) ** 2 * p[3].log(),
        ]
    )
    torch.testing.assert_close(losses.focal_loss(logits, target), expected)


def test_boundary_weights_reach_as_far_as_asked() -> None:
    target = torch.zeros(1, 1, 12)
    target[..., 6:] = 1
    weights = losses.boundary_weights(target, factor=2.0, radius=2)
    assert weights[0, 0].tolist() == [1, 1, 1, 1, 3, 3, 3, 3, 1, 1, 1, 1]


def test_boundary_mistakes_weigh_more() -> None:
    target = torch.zeros(1, 40, 40)
    target[:, 10:30, 10:30] = 1
    boxes = torch.tensor([[20.0, 20.0, 60.0, 60.0]])
    near, far = 20 * (2 * target - 1), 20 * (2 * target - 1)
    near[:, 10, 10:30] = -20
    far[:, 20, 10:30] = -20
    plain = [float(losses.window_bce(x, target, boxes, 2)) for x in (near, far)]
    weighted = [float(losses.window_bce(x, target, boxes, 2, boundary=3.0)) for x in (near, far)]
    assert plain[0] == pytest.approx(plain[1], rel=1e-3)
    assert weighted[0] > 2 * weighted[1]


def test_dice() -> None:
    target = torch.zeros(2, 8, 8)
    target[:, 2:6, 2:6] = 1
    logits = torch.stack([40 * (2 * target[0] - 1), 40 * (1 - 2 * target[1])])
    value = losses.dice_loss(logits, target)
    assert float(value[0]) == pytest.approx(0, abs=1e-4)
    assert float(value[1]) > 0.95


def test_window_bce_ignores_what_lies_far_outside() -> None:
    target = torch.zeros(1, 40, 40)
    target[:, 4:8, 4:8] = 1
    logits = 20 * (2 * target - 1)
    boxes = torch.tensor([[8.0, 8.0, 16.0, 16.0]])
    assert float(losses.window_bce(logits, target, boxes, 2)) < 1e-3
    logits[:, 30:, 30:] = 50
    assert float(losses.window_bce(logits, target, boxes, 2)) < 1e-3


def test_hard_iou_counts_only_inside_the_window() -> None:
    target = torch.zeros(1, 10, 10)
    target[:, :4] = 1
    logits = torch.where(torch.arange(10).view(1, 10, 1) < 8, 1.0, -1.0).expand(1, 10, 10)
    assert float(losses.hard_iou(logits, target, torch.ones(1, 10, 10))) == pytest.approx(0.5)
    window = torch.zeros(1, 10, 10)
    window[:, :5] = 1
    assert float(losses.hard_iou(logits, target, window)) == pytest.approx(0.8)


def test_giou() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 1.0]])
    b = torch.tensor([[0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 3.0, 1.0], [1.0, 0.0, 3.0, 1.0]])
    # Same; apart with a hull a third empty; half overlapping in a full hull.
    torch.testing.assert_close(losses.giou_loss(a, b), torch.tensor([0.0, 1 + 1 / 3, 1 - 1 / 3]))
