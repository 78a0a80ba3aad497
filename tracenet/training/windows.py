"""The heads at clicks only: what training needs of the towers, at a fraction of the whole planes' cost.

One output cell of four 3x3 convolutions and a final 3x3 reads an 11x11 window. Windows are cut from the pyramid
with zeros outside the plane, and after every block the positions outside the plane are set to zero again, so a
window equals the full network at the border too. Levels so small that the whole plane is cheaper are run whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracenet.conventions import LEVELS, STRIDES
from tracenet.inference import cells_of
from tracenet.models.heads import ConvNormAct, Heads, Tower
from tracenet.training.click_objective import HeadsAtClicks
from tracenet_kernels.errors import InputError


def fold(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``norm(conv(x))`` as one convolution, differentiable in all parameters.

    ``w' = w * gamma / sqrt(var + eps)``, ``b' = beta - mean * gamma / sqrt(var + eps)``; BatchNorm with its stored
    statistics, a convolution without bias.
    """
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


def cells_at(clicks: Tensor, level: int) -> Tensor:
    """:func:`tracenet.inference.cells_of` of clicks ``[N, 2]`` (x, y), on their device."""
    return torch.from_numpy(cells_of(clicks.detach().cpu().numpy(), level)).to(clicks.device)


@dataclass
class Moments:
    """Batch means and variances met while training, to be applied when the step is over."""

    seen: list[tuple[nn.BatchNorm2d, Tensor, Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def apply(self, momentum: float) -> None:
        """Move every layer's stored statistics towards its batch's by ``momentum``."""
        for norm, mean, var in self.seen:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.lerp_(mean, momentum)
            norm.running_var.lerp_(var, momentum)


def stored_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """BatchNorm in evaluation mode, whatever mode ``norm`` is in."""
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


def renorm(norm: nn.Module, x: Tensor, moments: Moments | None) -> Tensor:
    """Batch renormalisation (arXiv 1702.03275): forward with stored statistics, backward as BatchNorm.

    ``y = gamma * ((x - mean_B) / std_B * r + d) + beta``, ``r = std_B / std``, ``d = (mean_B - mean) / std`` without
    gradient and limited to [1/3, 3] and [-3, 3]. Training on one image at a time thus computes the function that
    inference computes. The batch's moments are added to ``moments``; with None the stored statistics are final and
    this is BatchNorm in evaluation mode.
    """
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise InputError(f"only BatchNorm can be trained at clicks, not {type(norm).__name__}")
    if moments is None or x.numel() == x.shape[1]:  # one value per channel has no variance
        return stored_norm(norm, x)
    with torch.no_grad():
        var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        std = torch.sqrt(norm.running_var + norm.eps)
        r = (torch.sqrt(var + norm.eps) / std).clamp(1 / 3, 3)
        d = ((mean - norm.running_mean) / std).clamp(-3, 3)
        moments.seen.append((norm, mean, var))
    return F.batch_norm(x, None, None, norm.weight * r, norm.weight * d + norm.bias, True, 0.0, norm.eps)


def level_norm(block: ConvNormAct, level: int) -> nn.Module:
    """The normalisation a block applies on one pyramid level."""
    return block.norm[LEVELS.index(level)] if isinstance(block.norm, nn.ModuleList) else block.norm


def block_forward(
    block: nn.Module, x: Tensor, moments: Moments | None, level: int = LEVELS[0], padding: int = 1
) -> Tensor:
    """``relu(norm(conv3x3(x)))`` with :func:`renorm`."""
    assert isinstance(block, ConvNormAct)
    return F.relu(renorm(level_norm(block, level), F.conv2d(x, block.conv.weight, padding=padding), moments))


def gather_windows(plane: Tensor, cells: Tensor, radius: int) -> Tensor:
    """Windows ``[N, C, 2r+1, 2r+1]`` of ``plane`` [1, C, h, w] around ``cells`` [N, 2] (row, column); zeros outside."""
    size = 2 * radius + 1
    padded = F.pad(plane[0].permute(1, 2, 0), (0, 0, radius, radius, radius, radius))  # [h + 2r, w + 2r, C]
    offsets = torch.arange(size)
    rows = (cells[:, :1] + offsets).view(-1, size, 1)
    columns = (cells[:, 1:] + offsets).view(-1, 1, size)
    index = (rows * padded.shape[1] + columns).flatten()
    taken = padded.flatten(0, 1).index_select(0, index)
    return taken.view(len(cells), size, size, -1).permute(0, 3, 1, 2)


def inside_plane(cells: Tensor, height: int, width: int, radius: int) -> Tensor:
    """``[N, 1, 2r+1, 2r+1]`` bool: positions of the windows that lie on the plane."""
    offsets = torch.arange(-radius, radius + 1)
    rows, columns = cells[:, :1] + offsets, cells[:, 1:] + offsets
    row_ok = (rows >= 0) & (rows < height)
    column_ok = (columns >= 0) & (columns < width)
    return (row_ok[:, :, None] & column_ok[:, None, :])[:, None]


def tower_at(tower: Tower, planes: dict[int, Tensor], cells: dict[int, Tensor], moments: Moments | None) -> Tensor:
    """Tower output in the 3x3 around each cell, zero outside the plane: ``[sum of N_l, C, 3, 3]``.

    Args:
        tower: blocks of 3x3 convolution, BatchNorm and ReLU.
        planes: ``P_l [1, C, h, w]`` by level.
        cells: ``[N_l, 2]`` (row, column) by level; the output is in the order of this dict.
        moments: for :func:`renorm`.
    """
    depth = len(tower)
    radius = depth + 1
    area = sum((2 * (radius - i) - 1) ** 2 for i in range(depth))
    parts = []
    for level, at in cells.items():
        x = planes[level]
        h, w = x.shape[-2:]
        if len(at) * area >= depth * h * w:
            for block in tower:
                x = block_forward(block, x, moments, level)
            parts.append(gather_windows(x, at, 1))
            continue
        x = gather_windows(x, at, radius)
        inside = inside_plane(at, h, w, radius - 1).to(x.dtype)
        for i, block in enumerate(tower):
            trim = slice(i, inside.shape[-1] - i)
            x = block_forward(block, x, moments, level, padding=0) * inside[:, :, trim, trim]
        parts.append(x)
    return torch.cat(parts)


def heads_at(
    heads: Heads, planes: dict[int, Tensor], clicks: Tensor, box_levels: Tensor, moments: Moments | None = None
) -> HeadsAtClicks:
    """Head outputs at the clicks' cells, equal to :class:`tracenet.models.heads.Heads` on the whole planes.

    Args:
        heads: towers with BatchNorm, shared or per level.
        planes: P3..P7 of one image.
        clicks: ``[N, 2]`` (x, y) on the working image.
        box_levels: ``[N, 5]`` bool: where the box tower is wanted.
        moments: for :func:`renorm`.

    Returns:
        the pairs ordered by level, then click; boxes in pixels, everything float32.
    """
    assert heads.theta is not None
    n = len(clicks)
    cells = {level: cells_at(clicks, level) for level in LEVELS}
    cls = tower_at(heads.cls_tower, planes, cells, moments)  # [5N, C, 3, 3], level-major
    n_levels = len(LEVELS)
    logits = F.conv2d(cls, heads.logits.weight, heads.logits.bias).view(n_levels, n).T.float()
    level = None
    if heads.level is not None:
        level = F.conv2d(cls, heads.level.weight, heads.level.bias).view(n_levels, n).T.float()
    picked = {number: box_levels[:, i].nonzero().flatten() for i, number in enumerate(LEVELS)}
    picked = {number: index for number, index in picked.items() if len(index)}
    at = {number: cells[number][index] for number, index in picked.items()}
    box = tower_at(heads.box_tower, planes, at, moments)
    level_of = torch.cat([torch.full_like(index, number) for number, index in picked.items()])
    scale = heads.scales[level_of - LEVELS[0]]
    stride = torch.tensor([STRIDES[level] for level in LEVELS])[level_of - LEVELS[0]]
    reg = F.conv2d(box, heads.reg.weight, heads.reg.bias).flatten(1).float()
    return HeadsAtClicks(
        logits,
        level,
        F.relu(scale[:, None] * reg) * stride[:, None],
        F.conv2d(box, heads.ctr.weight, heads.ctr.bias).flatten().float(),
        F.conv2d(box, heads.theta.weight, heads.theta.bias).flatten(1).float(),
        torch.cat(list(picked.values())),
        level_of,
    )
