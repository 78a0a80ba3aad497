"""The planner of a captured graph: fills the table of windows from a click, or from a window asked of one output.

Windows are separable, and their first and last cells are functions of the request's first and last: tables with one
row per position, made once per network, hold every answer. A launch gathers one row per edge:

    click (x, y):     y0, y1 = lo_y[y // unit], hi_y[y // unit];     x0, x1 likewise
    [y0, y1) x ...:   first cells lo_y[y0], ends hi_y[y1 - 1];       columns likewise

and writes ``PIECES`` rows of the table per plane. With ``minus``, an earlier table, the cells its first row holds are
left out where that is allowed: rows above, rows below, left, right, as :func:`tracenet_kernels.window.subtract` orders
them, each in its own row. All other rows are empty: 0, 0, 0, 0.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from tracenet_kernels.errors import InputError
from tracenet_kernels.triton.cellwise import await_inputs, check_pdl, launch_options
from tracenet_kernels.triton.launch import Cost, Launch
from tracenet_kernels.triton.planes import MAX_ELEMENTS, same_device

PIECES = 4
"""Rows of the table per plane: a window less another is four windows at most."""
_PLANES_PER_PROGRAM = 32

AxisTable = tuple[Tensor, Tensor]
"""First cells and ends, [positions, planes] int16 or int32, contiguous."""


@triton.jit
def _position(value, positions, UNIT: tl.constexpr):
    return tl.minimum(tl.maximum(value, 0) // UNIT, positions - 1)


@triton.jit
def plan_windows_kernel(
    request,
    lo_y,
    hi_y,
    lo_x,
    hi_x,
    first_row,
    minus,
    may_subtract,
    table,
    positions_y,
    positions_x,
    planes,
    UNIT: tl.constexpr,
    MINUS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    plane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = plane < planes
    row = tl.load(first_row + plane, mask=there, other=-1)
    await_inputs(PDL)
    if UNIT > 0:
        start_x = _position(tl.load(request), positions_x, UNIT)
        start_y = _position(tl.load(request + 1), positions_y, UNIT)
        stop_y, stop_x = start_y, start_x
    else:
        y0, y1, x0, x1 = tl.load(request), tl.load(request + 1), tl.load(request + 2), tl.load(request + 3)
        there &= (y0 < y1) & (x0 < x1)
        start_y, stop_y = _position(y0, positions_y, 1), _position(y1 - 1, positions_y, 1)
        start_x, stop_x = _position(x0, positions_x, 1), _position(x1 - 1, positions_x, 1)
    top = tl.load(lo_y + start_y * planes + plane, mask=there, other=0).to(tl.int32)
    bottom = tl.load(hi_y + stop_y * planes + plane, mask=there, other=0).to(tl.int32)
    left = tl.load(lo_x + start_x * planes + plane, mask=there, other=0).to(tl.int32)
    right = tl.load(hi_x + stop_x * planes + plane, mask=there, other=0).to(tl.int32)

    # What is left out: nothing, which is no rows at the window's end.
    out_top, out_bottom, out_left, out_right = bottom, bottom, left, right
    if MINUS:
        allowed = (row >= 0) & (tl.load(may_subtract + plane, mask=there, other=0) != 0)
        before = minus + row * 4
        common_top = tl.maximum(top, tl.load(before, mask=allowed, other=0))
        common_bottom = tl.minimum(bottom, tl.load(before + 1, mask=allowed, other=0))
        common_left = tl.maximum(left, tl.load(before + 2, mask=allowed, other=0))
        common_right = tl.minimum(right, tl.load(before + 3, mask=allowed, other=0))
        common = (common_top < common_bottom) & (common_left < common_right)
        out_top, out_bottom = tl.where(common, common_top, bottom), tl.where(common, common_bottom, bottom)
        out_left, out_right = tl.where(common, common_left, left), tl.where(common, common_right, right)

    # [BLOCK, 16]: the four rows of a plane lie one after the other.
    column = tl.arange(0, 16)[None, :]
    piece, edge = column // 4, column % 4
    y0 = tl.where(piece == 0, top[:, None], tl.where(piece == 1, out_bottom[:, None], out_top[:, None]))
    y1 = tl.where(piece == 0, out_top[:, None], tl.where(piece == 1, bottom[:, None], out_bottom[:, None]))
    x0 = tl.where(piece == 3, out_right[:, None], left[:, None])
    x1 = tl.where(piece == 2, out_left[:, None], right[:, None])
    value = tl.where(edge == 0, y0, tl.where(edge == 1, y1, tl.where(edge == 2, x0, x1)))
    value = tl.where((y0 < y1) & (x0 < x1), value, 0)
    tl.store(table + (row * 4)[:, None] + column, value, mask=(row >= 0)[:, None] & (column < ROWS * 4))


def plan_windows_launches(
    request: Tensor,
    tables_y: AxisTable,
    tables_x: AxisTable,
    first_row: Tensor,
    table: Tensor,
    *,
    unit: int = 0,
    minus: Tensor | None = None,
    may_subtract: Tensor | None = None,
    pieces: int = PIECES,
    pdl: bool = False,
    name: str = "plan_windows",
) -> list[Launch]:
    """One launch that fills a table of windows. Values that lie outside the tables are moved to their nearest end.

    Args:
        request: int32 on the device. With ``unit`` > 0 a click [2], x and y in pixels of the network's input; else the
            window [4] y0, y1, x0, x1 that is asked of the output the tables were made for; an empty one empties all.
        tables_y, tables_x: of rows and columns, one column per plane; 0 and 0 where a plane is not needed.
        first_row: int32 [planes], each plane's first of ``pieces`` rows in ``table``; -1: it has none.
        table: int32 [rows, 4], contiguous: y0, y1, x0, x1.
        unit: pixels per position of the tables.
        minus: a table of the same shape, whose first row per plane is left out of the window.
        may_subtract: int32 [planes], not 0 where that is allowed: the plane still holds those cells.
        pieces: rows per plane: ``PIECES``, or 1 where nothing is left out.
        pdl: programmatic dependent launch (sm_90 on).

    Raises:
        InputError: a dtype, shape, device or row that does not fit.
    """
    window = unit == 0
    if unit < 0 or request.dtype != torch.int32 or request.shape != ((4,) if window else (2,)):
        raise InputError(
            f"the request is {request.dtype} {tuple(request.shape)} with unit {unit}; pass int32 [2] and the pixels "
            "per position for a click, int32 [4] and unit 0 for a window"
        )
    planes = first_row.numel()
    for axis, (lo, hi) in (("y", tables_y), ("x", tables_x)):
        for side in (lo, hi):
            if side.dtype not in (torch.int16, torch.int32) or side.ndim != 2 or side.shape[1] != planes:
                raise InputError(f"tables_{axis}: {side.dtype} {tuple(side.shape)}; pass int16 or int32 [n, {planes}]")
        if lo.shape != hi.shape or 0 in lo.shape or lo.numel() > MAX_ELEMENTS:
            raise InputError(f"tables_{axis}: {tuple(lo.shape)} and {tuple(hi.shape)}; pass equal ones, not empty")
    if table.dtype != torch.int32 or table.ndim != 2 or table.shape[1] != 4:
        raise InputError(f"the table is {table.dtype} {tuple(table.shape)}; pass int32 [rows, 4]")
    if (minus is None) != (may_subtract is None):
        raise InputError("minus and may_subtract go together; pass both or neither")
    if minus is not None and (minus.dtype != torch.int32 or minus.shape != table.shape):
        raise InputError(f"minus is {minus.dtype} {tuple(minus.shape)}; pass int32 {tuple(table.shape)}, as the table")
    for what, column in (("first_row", first_row), ("may_subtract", may_subtract)):
        if column is not None and (column.dtype != torch.int32 or column.shape != (planes,)):
            raise InputError(f"{what} is {column.dtype} {tuple(column.shape)}; pass int32 [{planes}]")
    given = [request, *tables_y, *tables_x, first_row, table, minus, may_subtract]
    if not all(tensor.is_contiguous() for tensor in given if tensor is not None):
        raise InputError("a table or the request is not contiguous; pass contiguous tensors")
    same_device(*given)
    if pieces not in ((1, PIECES) if minus is None else (PIECES,)):
        raise InputError(f"{pieces} rows per plane; pass {PIECES}, or 1 without minus")
    _check_rows(first_row, table.shape[0], pieces)
    args = {
        "request": request,
        **{f"{edge}_y": side for edge, side in zip(("lo", "hi"), tables_y, strict=True)},
        **{f"{edge}_x": side for edge, side in zip(("lo", "hi"), tables_x, strict=True)},
        "first_row": first_row,
        "minus": table if minus is None else minus,
        "may_subtract": first_row if may_subtract is None else may_subtract,
        "table": table,
        "positions_y": tables_y[0].shape[0],
        "positions_x": tables_x[0].shape[0],
        "planes": planes,
    }
    meta = {
        "UNIT": unit,
        "MINUS": minus is not None,
        "ROWS": pieces,
        "BLOCK": _PLANES_PER_PROGRAM,
        "PDL": check_pdl(pdl),
    }
    grid = (triton.cdiv(planes, _PLANES_PER_PROGRAM), 1, 1)
    read = planes * (4 * tables_y[0].element_size() + 4 + (20 if minus is not None else 0))
    options = launch_options(1, pdl=pdl)
    return [Launch(name, plan_windows_kernel, grid, args, meta, options, cost=Cost(0, read, planes * pieces * 16))]


def plan_windows(
    request: Tensor,
    tables_y: AxisTable,
    tables_x: AxisTable,
    first_row: Tensor,
    table: Tensor,
    *,
    unit: int = 0,
    minus: Tensor | None = None,
    may_subtract: Tensor | None = None,
) -> Tensor:
    """Fill ``table`` at once and return it; see :func:`plan_windows_launches`."""
    for launch in plan_windows_launches(
        request, tables_y, tables_x, first_row, table, unit=unit, minus=minus, may_subtract=may_subtract
    ):
        launch()
    return table


def _check_rows(first_row: Tensor, rows: int, pieces: int) -> None:
    used = sorted(row for row in first_row.tolist() if row != -1)
    if not used or used[0] < 0 or used[-1] + pieces > rows:
        raise InputError(f"first_row holds {used[:1]} .. {used[-1:]}; pass -1, or rows with {pieces} below {rows}")
    if any(second - first < pieces for first, second in pairwise(used)):
        raise InputError(f"first_row gives two planes the same rows; keep them {pieces} apart")
