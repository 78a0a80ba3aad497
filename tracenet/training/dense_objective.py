"""The detector's objective: score, box, centerness at every cell, masks at the cells FCOS assigns.

Conventions: FCOS (arXiv 1904.01355) and CondInst (arXiv 2003.05664), with these differences: masks are compared at
stride 2 (CondInst: 4), dice is smoothed by 1 and averaged over images, not over all masks of a batch. Cells assigned to
an object of no known class (a teacher's proposal) and background cells on a crowd learn nothing: neither that there is
an object nor that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tracenet.conventions import LEVELS, SIZES_OF_INTEREST
from tracenet.inference import HALF
from tracenet.models import TraceNet
from tracenet.models.mask import upsample_logits
from tracenet.training import losses
from tracenet.training.targets import (
    CENTRE_RADIUS,
    SIZE_LIMITS,
    Assignment,
    Cells,
    assign,
    centerness_targets,
    centres_of_mass,
)
from tracenet_kernels.errors import InputError

CENTRES = ("mass", "box")


@dataclass(frozen=True)
class DenseObjective:
    """Weights and limits of the losses at every cell.

    Attributes:
        score: focal loss, per positive cell.
        box: 1 - GIoU weighted by centerness, per total centerness.
        centerness: binary cross-entropy, per positive cell.
        dice: of the masks of assigned cells.
        bce: of the same masks, inside the enlarged box.
        boundary: extra weight of mask samples near the edge, within ``bce``.
        alpha, gamma: of the focal loss.
        radius: of the square of cells around an object's centre that learn it, in strides; 0 for the whole box.
        centre: ``mass`` of the mask, or middle of the ``box``.
        size_limits: between P3, P4, P5, P6 and P7, in pixels.
        masks_per_image: at most this many masks are computed for one image, shared evenly among its objects; those
            cells go first that predict the best score times centerness.
    """

    score: float = 1.0
    box: float = 1.0
    centerness: float = 1.0
    dice: float = 1.0
    bce: float = 0.0
    boundary: float = 0.0
    alpha: float = 0.25
    gamma: float = 2.0
    radius: float = CENTRE_RADIUS
    centre: str = "mass"
    size_limits: tuple[float, float, float, float] = SIZE_LIMITS
    masks_per_image: int = 64

    def __post_init__(self) -> None:
        if self.centre not in CENTRES:
            raise InputError(f"centre={self.centre!r} is not known; choose one of {CENTRES}")
        if self.masks_per_image < 1:
            raise InputError(f"masks_per_image={self.masks_per_image}; at least one mask is needed")

    def total(self, values: dict[str, Tensor]) -> Tensor:
        """Weighted sum of those of ``values`` that are losses."""
        return losses.weighted_sum(self, values, TERMS)


TERMS = ("score", "box", "centerness", "dice", "bce")


@dataclass(frozen=True)
class ObjectTargets:
    """Objects of one image.

    Attributes:
        boxes: ``[n, 4]`` (x0, y0, x1, y1) in pixels.
        categories: ``[n]`` int64 class index.
        masks: ``[n, h, w]`` coverage in 0..1 at half resolution, without the image's padding.
        ignored: ``[n]`` bool, of no known class.
        crowd: ``[h, w]`` uint8 coverage of regions that are not background.
    """

    boxes: Tensor
    categories: Tensor
    masks: Tensor
    ignored: Tensor
    crowd: Tensor


def assign_image(cells: Cells, targets: ObjectTargets, objective: DenseObjective) -> Assignment:
    """:func:`tracenet.training.targets.assign` with the objective's rules."""
    centres = None
    if objective.centre == "mass" and len(targets.boxes):
        centres = centres_of_mass(targets.masks, HALF)
    return assign(cells, targets.boxes, centres, objective.radius, objective.size_limits)


def flat(outputs: dict[str, Tensor], name: str) -> Tensor:
    """Planes of all levels as ``[B, L, c]`` in the order of :class:`tracenet.training.targets.Cells`, float32."""
    return torch.cat([outputs[f"{name}{level}"].flatten(2).transpose(1, 2) for level in LEVELS], 1).float()


def dense_losses(
    outputs: dict[str, Tensor],
    targets: Sequence[ObjectTargets],
    objective: DenseObjective,
    mean_over_ranks: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[dict[str, Tensor], Cells, list[Assignment]]:
    """``score``, ``box`` and ``centerness`` of a batch.

    Args:
        outputs: planes of :class:`tracenet.models.TraceNet` for ``[B, 3, H, W]``.
        targets: of each image.
        objective: weights and limits.
        mean_over_ranks: averages the normalisers over all processes.

    Returns:
        the losses, the cells, and each image's assignment.
    """
    device = outputs[f"reg{LEVELS[0]}"].device
    sizes = {}
    for level in LEVELS:
        height, width = outputs[f"reg{level}"].shape[-2:]
        sizes[level] = (height, width)
    cells = Cells.of(sizes, device)
    assignments = [assign_image(cells, t, objective) for t in targets]
    logits, reg, ctr = (flat(outputs, name) for name in ("logits", "reg", "ctr"))
    wanted = torch.zeros_like(logits)
    counted = torch.ones(logits.shape[:2], device=device)
    positive = torch.zeros(logits.shape[:2], dtype=torch.bool, device=device)
    distances = torch.zeros_like(reg)
    for b, (one, target) in enumerate(zip(assignments, targets, strict=True)):
        counted[b, on_crowd(cells, target.crowd)] = 0
        at = one.positive.nonzero()[:, 0]
        if not len(at):
            continue
        counted[b, at] = 1
        ignored = target.ignored[one.instance[at]]
        counted[b, at[ignored]] = 0
        at = at[~ignored]
        wanted[b, at, target.categories[one.instance[at]]] = 1
        positive[b, at] = True
        distances[b, at] = one.distances[at]
    count = mean_over_ranks(positive.sum().float()).clamp(min=1)
    focal = losses.focal_loss(logits, wanted, objective.alpha, objective.gamma)
    values = {"score": (focal.sum(2) * counted).sum() / count}
    middle = centerness_targets(distances[positive])
    near = reg[positive] * reg.new_tensor([-1, -1, 1, 1])  # boxes around a common origin
    true = distances[positive] * reg.new_tensor([-1, -1, 1, 1])
    share = mean_over_ranks(middle.sum()).clamp(min=1e-6)
    values["box"] = (losses.giou_loss(near, true) * middle).sum() / share
    cross_entropy = F.binary_cross_entropy_with_logits(ctr[..., 0][positive], middle, reduction="none")
    values["centerness"] = cross_entropy.sum() / count
    return values, cells, assignments


def on_crowd(cells: Cells, crowd: Tensor) -> Tensor:
    """``[L]`` bool: cells whose point lies on ``crowd [h, w]`` (coverage 0-255 at half resolution)."""
    height, width = crowd.shape
    if not height or not width or not bool(crowd.any()):
        return torch.zeros(len(cells), dtype=torch.bool, device=cells.points.device)
    at = (cells.points / HALF).long()
    inside = (at[:, 0] < width) & (at[:, 1] < height)
    return inside & (crowd[at[:, 1].clamp(max=height - 1), at[:, 0].clamp(max=width - 1)] >= 128)


def pick_cells(rating: Tensor, instance: Tensor, limit: int) -> Tensor:
    """Indices of at most ``limit`` cells, the best-rated of every object in equal parts (at least one each).

    Args:
        rating: ``[P]`` of the positive cells of one image.
        instance: ``[P]`` their objects.
    """
    present = instance.unique()
    each = max(1, limit // max(1, len(present)))
    picked = []
    for number in present.tolist():
        at = (instance == number).nonzero()[:, 0]
        best = rating[at].topk(min(each, len(at))).indices
        picked.append(at[best])
    if not picked:
        return instance.new_zeros(0)
    return torch.cat(picked)[: max(limit, 1)]


def mask_losses(
    model: TraceNet,
    outputs: dict[str, Tensor],
    image: int,
    cells: Cells,
    assignment: Assignment,
    targets: ObjectTargets,
    objective: DenseObjective,
    generator: torch.Generator,
) -> dict[str, Tensor] | None:
    """``dice``, ``bce`` and ``iou`` of the masks at the assigned cells of one image; None without any.

    Models with ``rel_to="click"`` see a click anywhere in the cell, drawn with ``generator`` (on the CPU).
    """
    assert model.mask_head is not None
    device = cells.points.device
    at = assignment.positive.nonzero()[:, 0]
    at = at[~targets.ignored[assignment.instance[at]]]
    if not len(at):
        return None
    logits, ctr, theta = (flat(outputs, name)[image] for name in ("logits", "ctr", "theta"))
    with torch.no_grad():
        rating = logits[at].amax(1).sigmoid() * ctr[at, 0].sigmoid()
        at = at[pick_cells(rating, assignment.instance[at], objective.masks_per_image)]
    corner = cells.at[at].flip(1).float() * cells.strides[at][:, None]
    if model.config.rel_to == "click":
        drawn = torch.rand(len(at), 2, generator=generator).to(device)
        origin = corner + drawn * cells.strides[at][:, None]
    else:
        origin = corner + torch.floor(cells.strides[at] / 2)[:, None]
    sizes = corner.new_tensor([SIZES_OF_INTEREST[level] for level in LEVELS])[cells.levels[at] - LEVELS[0]]
    features = outputs["maskfeat"][image : image + 1].float()
    half = upsample_logits(model.mask_head(features, theta[at], origin, sizes))[:, 0]
    own = assignment.instance[at]
    target = targets.masks[own]
    half = half[:, : target.shape[1], : target.shape[2]]
    boxes = targets.boxes[own]
    with torch.no_grad():
        iou = losses.hard_iou(half, target, torch.ones_like(target)).mean()
    values = {"dice": losses.dice_loss(half, target).mean(), "iou": iou}
    if objective.bce > 0:
        values["bce"] = losses.window_bce(half, target, boxes, HALF, boundary=objective.boundary).mean()
    return values


def prior_bias(probability: float = 0.01) -> float:
    """Bias of a score whose sigmoid is ``probability``: a detector that starts by finding nothing."""
    return -math.log((1 - probability) / probability)
