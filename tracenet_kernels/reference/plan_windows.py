"""Windows from tables: the twin of :mod:`tracenet_kernels.triton.plan_windows`."""

from __future__ import annotations

import torch
from torch import Tensor

AxisTable = tuple[Tensor, Tensor]


def plan_windows(
    request: Tensor,
    tables_y: AxisTable,
    tables_x: AxisTable,
    *,
    unit: int = 0,
    minus: Tensor | None = None,
    may_subtract: Tensor | None = None,
) -> Tensor:
    """The four windows of every plane, [planes, 4, 4]: what is asked for, or its parts above, below, left and right.

    Args:
        request: click x, y with ``unit`` > 0, else a window y0, y1, x0, x1.
        tables_y, tables_x: first cells and ends, [positions, planes].
        unit: pixels per position.
        minus: [planes, 4] windows that are left out where ``may_subtract`` [planes] is not 0.
    """
    values = request.tolist()
    if unit:
        x, y = values
        spans = [(y // unit, y // unit), (x // unit, x // unit)]
    else:
        y0, y1, x0, x1 = values
        spans = [(y0, y1 - 1), (x0, x1 - 1)]
    edges = []
    for (start, stop), (lo, hi) in zip(spans, (tables_y, tables_x), strict=True):
        last = lo.shape[0] - 1
        edges += [lo[min(max(start, 0), last)], hi[min(max(stop, 0), last)]]
    window = torch.stack(edges, 1).to(torch.int32)
    if any(stop < start for start, stop in spans):
        window = torch.zeros_like(window)
    y0, y1, x0, x1 = window.unbind(1)
    parts = torch.zeros(len(window), 4, 4, dtype=torch.int32, device=window.device)
    parts[:, 0] = window
    if minus is not None and may_subtract is not None:
        top, left = torch.maximum(y0, minus[:, 0]), torch.maximum(x0, minus[:, 2])
        bottom, right = torch.minimum(y1, minus[:, 1]), torch.minimum(x1, minus[:, 3])
        cut = (may_subtract != 0) & (top < bottom) & (left < right)
        ring = [(y0, top, x0, x1), (bottom, y1, x0, x1), (top, bottom, x0, left), (top, bottom, right, x1)]
        parts[cut] = torch.stack([torch.stack(part, 1) for part in ring], 1)[cut].to(torch.int32)
    empty = (parts[..., 0] >= parts[..., 1]) | (parts[..., 2] >= parts[..., 3])
    parts[empty] = 0
    return parts
