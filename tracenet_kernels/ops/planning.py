"""Windows of a whole network from tables."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracenet_kernels import reference
from tracenet_kernels.errors import InputError
from tracenet_kernels.ops.registration import define, launching, require_kernels

PIECES = 4
AxisTable = tuple[Tensor, Tensor]
"""First cells and ends, [positions, planes] int16 or int32, contiguous."""


def plan_windows(
    request: Tensor,
    tables_y: AxisTable,
    tables_x: AxisTable,
    *,
    unit: int = 0,
    minus: Tensor | None = None,
    may_subtract: Tensor | None = None,
) -> Tensor:
    """The windows of every plane for one request, gathered from tables on the device.

    Windows are separable, and their first and last cells are functions of the request's first and last: for a click,
    ``y0, y1 = lo_y[y // unit], hi_y[y // unit]``; for a window ``[a, b)``, ``y0, y1 = lo_y[a], hi_y[b - 1]``; columns
    likewise. Positions outside the tables are moved to their nearest end.

    Args:
        request: int32 [2], a click x, y in pixels, where ``unit`` > 0; else int32 [4], a window y0, y1, x0, x1.
        tables_y, tables_x: (first cells, ends), both [positions, planes] int16 or int32; 0 and 0: not needed.
        unit: pixels per position of the tables.
        minus: int32 [planes, 4], windows that are left out where ``may_subtract``, int32 [planes], is not 0.

    Returns:
        int32 [planes, 4, 4]: per plane the window y0, y1, x0, x1 and three empty rows; where something is left out,
        the parts above, below, left and right of it. Empty rows are 0, 0, 0, 0. ``windows[i]`` is a table that the
        operations in place take.

    Raises:
        InputError: a dtype, shape or device that does not fit.
        BackendError: CUDA tensors where no Triton kernel can run.
    """
    return torch.ops.tracenet.plan_windows(request, *tables_y, *tables_x, unit, minus, may_subtract)


class _Arguments(NamedTuple):
    request: Tensor
    lo_y: Tensor
    hi_y: Tensor
    lo_x: Tensor
    hi_x: Tensor
    unit: int
    minus: Tensor | None
    may_subtract: Tensor | None


def _checked(*given: Any) -> _Arguments:
    a = _Arguments(*given)
    if a.unit < 0 or a.request.dtype != torch.int32 or tuple(a.request.shape) != ((2,) if a.unit > 0 else (4,)):
        raise InputError(
            f"the request is {a.request.dtype} {tuple(a.request.shape)} with unit {a.unit}; pass int32 [2] and the "
            "pixels per position for a click, int32 [4] and unit 0 for a window"
        )
    for axis, lo, hi in (("y", a.lo_y, a.hi_y), ("x", a.lo_x, a.hi_x)):
        if lo.ndim != 2 or lo.shape != hi.shape or 0 in lo.shape or lo.shape[1] != a.lo_y.shape[1]:
            raise InputError(
                f"tables_{axis} have shapes {tuple(lo.shape)} and {tuple(hi.shape)}; pass [positions, planes] of "
                "both, as many planes on both axes"
            )
        if lo.dtype not in (torch.int16, torch.int32) or hi.dtype not in (torch.int16, torch.int32):
            raise InputError(f"tables_{axis} hold {lo.dtype} and {hi.dtype}; pass int16 or int32")
    planes = a.lo_y.shape[1]
    if (a.minus is None) != (a.may_subtract is None):
        raise InputError("minus and may_subtract go together; pass both or neither")
    for name, value, shape in (("minus", a.minus, (planes, 4)), ("may_subtract", a.may_subtract, (planes,))):
        if value is not None and (value.dtype != torch.int32 or tuple(value.shape) != shape):
            raise InputError(f"{name} is {value.dtype} {tuple(value.shape)}; pass int32 {shape}")
    for value in (a.lo_y, a.hi_y, a.lo_x, a.hi_x, a.minus, a.may_subtract):
        if value is not None and (value.device != a.request.device or not value.is_contiguous()):
            raise InputError(
                f"a table is on {value.device} with strides {value.stride()}; pass contiguous ones on "
                f"{a.request.device}, as the request is"
            )
    return a


def _fake(*given: Any) -> Tensor:
    a = _checked(*given)
    return a.request.new_empty((a.lo_y.shape[1], PIECES, 4))


def _on_cpu(*given: Any) -> Tensor:
    if launching():
        return _launched(*given)
    a = _checked(*given)
    return reference.plan_windows(
        a.request, (a.lo_y, a.hi_y), (a.lo_x, a.hi_x), unit=a.unit, minus=a.minus, may_subtract=a.may_subtract
    )


def _on_gpu(*given: Any) -> Tensor:
    require_kernels("plan_windows")
    with torch.cuda.device(given[0].device):
        return _launched(*given)


def _launched(*given: Any) -> Tensor:
    from tracenet_kernels.triton.plan_windows import plan_windows as fill

    a = _checked(*given)
    planes, device = a.lo_y.shape[1], a.request.device
    windows = torch.empty(planes * PIECES, 4, dtype=torch.int32, device=device)
    minus = None
    if a.minus is not None:
        minus = torch.zeros_like(windows)
        minus[::PIECES] = a.minus
    fill(
        a.request,
        (a.lo_y, a.hi_y),
        (a.lo_x, a.hi_x),
        torch.arange(0, planes * PIECES, PIECES, dtype=torch.int32, device=device),
        windows,
        unit=a.unit,
        minus=minus,
        may_subtract=a.may_subtract,
    )
    return windows.view(planes, PIECES, 4)


define(
    "plan_windows",
    "(Tensor request, Tensor lo_y, Tensor hi_y, Tensor lo_x, Tensor hi_x, int unit, Tensor? minus, "
    "Tensor? may_subtract) -> Tensor",
    _on_cpu,
    _on_gpu,
    _fake,
)
