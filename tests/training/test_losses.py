"""Losses against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from tracenet.training import losses


def test_level_targets_follow_the_size_ranges() -> None:
    sizes = torch.tensor([10.0, 45.0, 90.5, 181.0, 362.0, 2000.0])
    boxes = torch.stack([torch.zeros(6), torch.zeros(6), sizes, sizes / 2], 1)
    target = losses.level_targets(boxes)
    assert (target.argmax(1) + 3).tolist() == [3, 3, 4, 5, 6, 7]
    torch.testing.assert_close(target.sum(1), torch.ones(6))
    at_limit = losses.level_targets(torch.tensor([[0.0, 0.0, 128.0, 1.0]]))[0]
    assert float(at_limit[1]) == pytest.approx(float(at_limit[2]), rel=1e-2)


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


def test_centerness() -> None:
    boxes = torch.tensor([[0.0, 0.0, 8.0, 4.0]]).expand(3, 4)
    points = torch.tensor([[4.0, 2.0], [2.0, 2.0], [9.0, 2.0]])
    torch.testing.assert_close(losses.centerness(points, boxes), torch.tensor([1.0, (1 / 3) ** 0.5, 0.0]))
