"""The one-click objective: what the network should answer at a click, whatever computed its outputs there.

A click asks five cells, one a level. Box, score, centerness and mask are learned at the click's likeliest levels,
weighted by their likelihood; the level head learns the size of the object (cross-entropy) and to choose the level
whose mask is best (one minus the expected IoU under its softmax). With a second view of the same object at another
scale, the choice is one softmax over the cells of both, which makes level logits comparable between scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tracenet.conventions import LEVELS, SIZES_OF_INTEREST, STRIDES
from tracenet.inference import HALF, PredictorSettings
from tracenet.models import TraceNet
from tracenet.models.mask import upsample_logits
from tracenet.training import losses
from tracenet.training.targets import centerness_targets, level_targets
from tracenet_kernels.errors import InputError

_KEPT = PredictorSettings()
LEAST_SHARE = 0.15
"""A trained level weighs at least this much, so that an unlikely neighbour still learns to give a mask."""


@dataclass(frozen=True)
class ClickObjective:
    """Weights and options of the losses at clicks. A weight of 0 leaves a loss out.

    Attributes:
        dice, bce: of the mask; ``bce`` inside the enlarged box.
        boundary: extra weight of mask samples near the edge, within ``bce``; see
            :func:`tracenet.training.losses.boundary_weights`.
        box: 1 - GIoU.
        score: binary cross-entropy of ``logits`` with the IoU of the mask that the cell gives.
        centerness: binary cross-entropy with FCOS's centerness.
        level: cross-entropy of the level head with :func:`tracenet.training.targets.level_targets`.
        choice: one minus the expected IoU under the level head's softmax.
        levels: how many of the likeliest levels of every click learn box and mask.
        mask_levels: first and last level that may learn masks, inclusive.
    """

    dice: float = 1.0
    bce: float = 1.0
    boundary: float = 0.0
    box: float = 0.5
    score: float = 0.25
    centerness: float = 0.25
    level: float = 1.0
    choice: float = 2.0
    levels: int = 3
    mask_levels: tuple[int, int] = (3, 7)

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= len(LEVELS):
            raise InputError(f"levels={self.levels}: between 1 and {len(LEVELS)} levels learn from a click")
        first, last = self.mask_levels
        if not LEVELS[0] <= first <= last <= LEVELS[-1]:
            raise InputError(f"mask_levels={self.mask_levels}: first and last level, within 3 and 7")
        object.__setattr__(self, "mask_levels", (first, last))

    def total(self, values: dict[str, Tensor]) -> Tensor:
        """Weighted sum of those of ``values`` that are losses."""
        return losses.weighted_sum(self, values, TERMS)


TERMS = ("dice", "bce", "box", "score", "centerness", "level", "choice")


@dataclass(frozen=True)
class ClickTargets:
    """Clicks on one view and what is true there.

    Attributes:
        clicks: ``[N, 2]`` (x, y) in view pixels.
        masks: ``[N, h, w]`` coverage in 0..1 of each click's object at half the view's resolution.
        boxes: ``[N, 4]`` of each click's object.
        full: the first ``full`` clicks have all losses, the others those of the level head only.
        weight: ``[N]``, 1 for annotated masks, less for proposals.
    """

    clicks: Tensor
    masks: Tensor
    boxes: Tensor
    full: int
    weight: Tensor

    def level_weights(self, objective: ClickObjective) -> tuple[Tensor, Tensor]:
        """Soft level targets ``[N, 5]``, and the weights ``[N, 5]`` with which levels learn box and mask."""
        wanted = level_targets(self.boxes)
        allowed = wanted.clone()
        first, last = objective.mask_levels
        allowed[:, : first - LEVELS[0]] = 0
        allowed[:, last - LEVELS[0] + 1 :] = 0
        count = min(objective.levels, last - first + 1)
        top = allowed.topk(count, dim=1)
        share = (top.values / top.values.sum(1, keepdim=True).clamp(min=1e-12)).clamp(min=LEAST_SHARE)
        weights = torch.zeros_like(wanted).scatter_(1, top.indices, share) * self.weight[:, None]
        weights[self.full :] = 0
        return wanted, weights


@dataclass(frozen=True)
class HeadsAtClicks:
    """Head outputs where they are needed: all five levels for the choice, M (click, level) pairs for the rest.

    Attributes:
        logits: ``[N, 5]`` score logits.
        level: ``[N, 5]`` level logits, None without a level head.
        reg: ``[M, 4]`` distances in pixels.
        ctr: ``[M]``.
        theta: ``[M, 169]``.
        click_of: ``[M]`` index of the pair's click.
        level_of: ``[M]`` the pair's level, 3..7.
    """

    logits: Tensor
    level: Tensor | None
    reg: Tensor
    ctr: Tensor
    theta: Tensor
    click_of: Tensor
    level_of: Tensor


@dataclass(frozen=True)
class ViewLosses:
    """Losses of one view (mean over its clicks), and what a choice over several views needs.

    Attributes:
        values: name -> scalar; the losses of :data:`TERMS` but ``choice``, and figures worth logging: ``iou`` (at each
            click's likeliest level) and ``level_hit``.
        level: ``[full, 5]`` level logits, None without a level head.
        reached: ``[full, 5]`` IoU that each level's mask reaches, 0 where no mask was computed.
        weight: ``[full]`` of the clicks.
    """

    values: dict[str, Tensor]
    level: Tensor | None
    reached: Tensor
    weight: Tensor


def view_losses(
    model: TraceNet, heads: HeadsAtClicks, features: Tensor, targets: ClickTargets, objective: ClickObjective
) -> ViewLosses:
    """All losses of the clicks on one view but the choice.

    Args:
        model: gives the mask head and the conventions.
        heads: outputs at the clicks; the pairs are those with a positive :meth:`ClickTargets.level_weights`.
        features: ``maskfeat [1, 8, h/8, w/8]`` of the view.
        targets: the clicks.
        objective: weights and options.
    """
    assert model.mask_head is not None
    wanted, pair_weight = targets.level_weights(objective)
    columns = heads.level_of - LEVELS[0]
    weight = pair_weight[heads.click_of, columns]
    weight = weight / weight.sum().clamp(min=1e-12)
    clicks, boxes = targets.clicks[heads.click_of], targets.boxes[heads.click_of]
    strides = clicks.new_tensor([STRIDES[level] for level in LEVELS])[columns][:, None]
    cells = (clicks / strides).floor() * strides
    centres = cells + (strides / 2 if model.config.anchor_offset == "half" else 0)
    sizes = clicks.new_tensor([SIZES_OF_INTEREST[level] for level in LEVELS])[columns]
    origin = clicks if model.config.rel_to == "click" else cells + strides / 2
    logits = upsample_logits(model.mask_head(features, heads.theta, origin, sizes))[:, 0]
    h, w = targets.masks.shape[-2:]
    logits = logits[:, :h, :w]
    target = targets.masks[heads.click_of]
    with torch.no_grad():
        kept = losses.box_samples(boxes, h, w, HALF, _KEPT.mask_margin, _KEPT.mask_margin_pixels)
        quality = losses.hard_iou(logits, target, kept)  # of what inference keeps
    predicted = torch.cat([centres - heads.reg[:, :2], centres + heads.reg[:, 2:]], 1)
    score = heads.logits[heads.click_of, columns]
    middle = centerness_targets(torch.cat([centres - boxes[:, :2], boxes[:, 2:] - centres], 1))
    each = {
        "dice": losses.dice_loss(logits, target),
        "bce": losses.window_bce(logits, target, boxes, HALF, boundary=objective.boundary),
        "box": losses.giou_loss(predicted, boxes),
        "score": F.binary_cross_entropy_with_logits(score, quality, reduction="none"),
        "centerness": F.binary_cross_entropy_with_logits(heads.ctr, middle, reduction="none"),
    }
    values = {name: (value * weight).sum() for name, value in each.items()}
    likeliest = wanted.argmax(1)
    at_best = likeliest[heads.click_of] == columns
    values["iou"] = quality[at_best].mean() if bool(at_best.any()) else quality.mean()
    reached = torch.zeros_like(wanted).index_put((heads.click_of, columns), quality)[: targets.full]
    level = heads.level
    if level is not None:
        cross_entropy = -(wanted * F.log_softmax(level, 1)).sum(1)
        values["level"] = (cross_entropy * targets.weight).sum() / targets.weight.sum()
        values["level_hit"] = (level.argmax(1) == likeliest).float().mean()
        level = level[: targets.full]
    return ViewLosses(values, level, reached, targets.weight[: targets.full])


def choice_loss(views: Sequence[ViewLosses]) -> Tensor:
    """``1 - sum_c softmax(level logits)_c * IoU_c``, mean over clicks; c runs over the levels of all views.

    The views show the same clicks in the same order.
    """
    assert all(view.level is not None for view in views)
    chance = torch.cat([view.level for view in views if view.level is not None], 1).softmax(1)
    expected = (chance * torch.cat([view.reached for view in views], 1)).sum(1)
    weight = views[0].weight
    return ((1 - expected) * weight).sum() / weight.sum().clamp(min=1e-12)


def click_losses(views: Sequence[ViewLosses]) -> dict[str, Tensor]:
    """Losses and figures of one sample: means over its views, and the choice among all their levels."""
    names = views[0].values
    values = {name: torch.stack([view.values[name] for view in views]).mean() for name in names}
    if all(view.level is not None for view in views):
        values["choice"] = choice_loss(views)
    return values
