"""Which cells learn which object: FCOS's assignment (arXiv 1904.01355) and the soft levels of one-click training.

Boxes are (x0, y0, x1, y1) in pixels of the network's input. A cell ``(row, column)`` of a level of stride ``s`` stands
for the pixel ``(column * s + s // 2, row * s + s // 2)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tracenet.conventions import LEVELS, STRIDES
from tracenet_kernels.errors import InputError

SIZE_LIMITS = (64.0, 128.0, 256.0, 512.0)
"""FCOS's limits between the levels: P3 learns boxes whose largest distance is at most 64 pixels, P7 above 512."""
CENTRE_RADIUS = 1.5
BACKGROUND = -1


@dataclass(frozen=True)
class Cells:
    """All cells of one image, level after level, row-major within a level.

    Attributes:
        points: ``[L, 2]`` float32 (x, y), the pixel each cell stands for.
        strides: ``[L]`` float32.
        levels: ``[L]`` int64, 3..7.
        at: ``[L, 2]`` int64 (row, column) within the level.
    """

    points: Tensor
    strides: Tensor
    levels: Tensor
    at: Tensor

    @classmethod
    def of(cls, planes: dict[int, tuple[int, int]], device: torch.device | str = "cpu") -> Cells:
        """Cells of levels with the given plane sizes ``level -> (height, width)``."""
        points, strides, levels, at = [], [], [], []
        for level, (height, width) in planes.items():
            stride = STRIDES[level]
            rows, columns = torch.meshgrid(
                torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
            )
            cells = torch.stack([rows.flatten(), columns.flatten()], 1)
            at.append(cells)
            points.append(cells.flip(1).float() * stride + stride // 2)
            strides.append(torch.full((len(cells),), float(stride), device=device))
            levels.append(torch.full((len(cells),), level, dtype=torch.int64, device=device))
        return cls(torch.cat(points), torch.cat(strides), torch.cat(levels), torch.cat(at))

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class Assignment:
    """What every cell of one image learns.

    Attributes:
        instance: ``[L]`` int64, index of the object, :data:`BACKGROUND` where there is none.
        distances: ``[L, 4]`` float32 left, top, right, bottom to the object's box; 0 for background.
    """

    instance: Tensor
    distances: Tensor

    @property
    def positive(self) -> Tensor:
        """``[L]`` bool."""
        return self.instance != BACKGROUND


def box_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances ``[L, n, 4]`` (left, top, right, bottom) from ``points [L, 2]`` to the sides of ``boxes [n, 4]``."""
    x, y = points[:, None, 0], points[:, None, 1]
    return torch.stack([x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y], 2)


def assign(
    cells: Cells,
    boxes: Tensor,
    centres: Tensor | None = None,
    radius: float = CENTRE_RADIUS,
    limits: Sequence[float] = SIZE_LIMITS,
) -> Assignment:
    """FCOS's assignment of cells to objects.

    A cell may learn an object if it lies inside the box, within ``radius`` strides of the object's centre on both
    axes (that square is clipped to the box; 0 switches the rule off), and if the largest of its four distances is in
    the level's range. Of several, the object with the smallest box wins, of equal ones the first.

    Args:
        cells: of the image.
        boxes: ``[n, 4]``.
        centres: ``[n, 2]`` (x, y); the boxes' middles by default. CondInst takes the masks' centres of mass.
        radius: in strides of the level.
        limits: the four limits between P3, P4, P5, P6 and P7, in pixels, growing.

    Raises:
        InputError: limits that are not four growing numbers, a negative radius.
    """
    if len(limits) != len(LEVELS) - 1 or any(a >= b for a, b in pairwise(limits)):
        raise InputError(f"size limits are {tuple(limits)}; give four growing numbers of pixels, like {SIZE_LIMITS}")
    if radius < 0:
        raise InputError(f"the centre radius is {radius}; give strides, 0 for every cell of the box")
    count = len(cells)
    if len(boxes) == 0:
        return Assignment(
            torch.full((count,), BACKGROUND, dtype=torch.int64, device=cells.points.device),
            torch.zeros(count, 4, device=cells.points.device),
        )
    distances = box_distances(cells.points, boxes)  # [L, n, 4]
    if radius > 0:
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2 if centres is None else centres
        reach = cells.strides[:, None, None] * radius
        low = torch.maximum(middle - reach, boxes[:, :2])  # [L, n, 2]
        high = torch.minimum(middle + reach, boxes[:, 2:])
        point = cells.points[:, None]
        inside = ((point > low) & (point < high)).all(2)
    else:
        inside = distances.amin(2) > 0
    edges = cells.points.new_tensor([0.0, *limits, torch.inf])
    column = cells.levels - LEVELS[0]
    largest = distances.amax(2)
    fits = (largest > edges[column][:, None]) & (largest <= edges[column + 1][:, None])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1).expand(count, -1)
    area = area.masked_fill(~(inside & fits), torch.inf)
    smallest, instance = area.min(1)
    instance = torch.where(torch.isinf(smallest), torch.full_like(instance, BACKGROUND), instance)
    picked = distances[torch.arange(count, device=boxes.device), instance.clamp(min=0)]
    return Assignment(instance, torch.where((instance == BACKGROUND)[:, None], torch.zeros_like(picked), picked))


def centres_of_mass(masks: Tensor, stride: int) -> Tensor:
    """Centres ``[n, 2]`` (x, y) in pixels of coverage masks ``[n, h, w]`` with ``stride`` pixels per sample."""
    weight = masks.float()
    total = weight.sum((1, 2)).clamp(min=1e-6)
    y = (torch.arange(masks.shape[1], device=masks.device) + 0.5) * stride
    x = (torch.arange(masks.shape[2], device=masks.device) + 0.5) * stride
    return torch.stack([(weight.sum(1) * x).sum(1) / total, (weight.sum(2) * y).sum(1) / total], 1)


def level_targets(boxes: Tensor, sharpness: float = 2.0) -> Tensor:
    """Soft level assignment ``[N, 5]`` of boxes ``[N, 4]``: ``softmax_l(-sharpness * (l - t)^2)`` over P3..P7.

    ``t = 4 + log2(max(w, h) / 90.5)`` clamped to [3, 7]: sides of 64, 128, 256 and 512 fall between levels. That is one
    to two levels coarser than FCOS's assignment, whose ranges bound the largest distance to a side: a click may lie
    anywhere in the object, and a coarser cell sees more of it.
    """
    size = (boxes[:, 2:] - boxes[:, :2]).amax(1).clamp(min=1)
    t = (4 + torch.log2(size / 90.5)).clamp(3, 7)
    levels = torch.arange(3, 8, dtype=boxes.dtype, device=boxes.device)
    return torch.softmax(-sharpness * (levels - t[:, None]).square(), 1)


def centerness_targets(distances: Tensor) -> Tensor:
    """FCOS: ``sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))`` of distances ``[M, 4]``; 0 outside the box."""
    horizontal, vertical = distances[:, [0, 2]], distances[:, [1, 3]]
    ratio = (horizontal.amin(1).clamp(min=0) / horizontal.amax(1).clamp(min=1e-6)) * (
        vertical.amin(1).clamp(min=0) / vertical.amax(1).clamp(min=1e-6)
    )
    return ratio.clamp(0, 1).sqrt()
