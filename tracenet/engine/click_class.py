"""Click classes: what all requests of one form need, so that one captured graph serves every click.

>>> form = RequestForm.locate(schedule, ("logits", "reg", "ctr", "theta"), levels=(3, 5))
>>> clicks = ClickClass.of(schedule, form)
>>> clicks.bounds[plane]  # rows and columns that the plane's window has at most, whatever the click
>>> clicks.click[0].lo[y // clicks.unit]  # first row of every plane's window for a click at row y

Windows are separable (:mod:`tracenet.engine.windows`), so tables with one row per position along an axis say the
windows of every click: a device gathers them instead of planning. Bounds size the grids.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracenet.conventions import STRIDES
from tracenet.engine.schedule import Schedule
from tracenet.engine.windows import sweep
from tracenet_kernels.errors import ClickError, RequestError
from tracenet_kernels.window import EMPTY, Window


@dataclass(frozen=True, slots=True)
class AtClick:
    """Cells around the click's cell ``c = floor(click / stride)``: ``[c - n // 2, c - n // 2 + n)``, clipped.

    Attributes:
        stride: input pixels per cell of the output.
        height, width: n along each axis; 1: the cell alone.
    """

    stride: int
    height: int = 1
    width: int = 1


@dataclass(frozen=True, slots=True)
class Anywhere:
    """A window of at most ``height x width`` cells, wherever it lies on the plane."""

    height: int
    width: int


@dataclass(frozen=True)
class RequestForm:
    """What a family of requests asks for.

    Attributes:
        rules: plane number -> what is asked of it.
    """

    rules: dict[int, AtClick | Anywhere]

    @classmethod
    def locate(cls, schedule: Schedule, heads: Iterable[str], levels: tuple[int, int] = (3, 7)) -> RequestForm:
        """The cell at the click of every head on every level, both ends counted; outputs are called ``logits3``."""
        return cls(
            {
                _output(schedule, f"{head}{level}"): AtClick(STRIDES[level])
                for level in range(levels[0], levels[1] + 1)
                for head in heads
            }
        )

    @classmethod
    def segment(cls, schedule: Schedule, height: int, width: int, output: str = "mask_half") -> RequestForm:
        """A window of the mask; a box as large as ``height x width`` cells at most, rounded up, fits the class."""
        plane = _output(schedule, output)
        p = schedule.planes[plane]
        return cls({plane: Anywhere(rounded_side(height, p.height), rounded_side(width, p.width))})

    def with_square(self, schedule: Schedule, output: str, stride: int, cells: int) -> RequestForm:
        """Besides, the square of ``cells x cells`` of an output around the click, as the standard request has it."""
        return RequestForm({**self.rules, _output(schedule, output): AtClick(stride, cells, cells)})

    @property
    def unit(self) -> int:
        """Input pixels along an axis within which clicks ask for the same windows."""
        strides = [rule.stride for rule in self.rules.values() if isinstance(rule, AtClick)]
        return math.gcd(*strides) if strides else 1


@dataclass(frozen=True)
class AxisTables:
    """One axis of the windows of all planes.

    Attributes:
        lo, hi: [positions, planes] first cell and one past the last, int16 where that suffices, else int32; both 0
            where a plane is not needed.
    """

    lo: NDArray[Any]
    hi: NDArray[Any]

    @property
    def positions(self) -> int:
        return int(self.lo.shape[0])


Tables = tuple[AxisTables, ...]
"""Of rows, of columns."""


@dataclass(frozen=True)
class ClickClass:
    """All requests of a form.

    Attributes:
        form: what is asked.
        size: rows and columns of the network's input.
        sides: of every plane, rows and columns.
        bounds: rows and columns that each plane's window has at most; (0, 0) where it is never needed.
        unit: input pixels per position of the tables ``click``.
        click: windows that the click decides, both edges at row ``click // unit``; None where none are.
        anywhere: plane that a window is asked of -> tables. The first cells of all windows are at row ``start`` of
            ``lo``, the ends at row ``stop - 1`` of ``hi``, for the window ``[start, stop)`` that is asked for.
    """

    form: RequestForm
    size: tuple[int, int]
    sides: tuple[tuple[int, int], ...]
    bounds: list[tuple[int, int]]
    unit: int
    click: Tables | None
    anywhere: dict[int, Tables]

    @classmethod
    def of(cls, schedule: Schedule, form: RequestForm) -> ClickClass:
        """Evaluate a form at every position.

        Raises:
            NotSeparable: rows and columns depend on each other somewhere; plan such requests on the host.
            RequestError: the form asks for nothing, or for what cannot be; the network has not one image as input.
        """
        _check(schedule, form)
        sides = tuple((plane.height, plane.width) for plane in schedule.planes)
        size = _image_size(schedule)
        at_click = {plane: rule for plane, rule in form.rules.items() if isinstance(rule, AtClick)}
        click = None
        if at_click:
            click = tuple(_click_tables(schedule, axis, at_click, form.unit, size) for axis in (0, 1))
        anywhere = {
            plane: tuple(_window_tables(schedule, axis, plane) for axis in (0, 1))
            for plane, rule in form.rules.items()
            if isinstance(rule, Anywhere)
        }
        rows, columns = (_bounds(form, axis, click, anywhere) for axis in (0, 1))
        bounds = [(int(h), int(w)) if h and w else (0, 0) for h, w in zip(rows, columns, strict=True)]
        return cls(form, size, sides, bounds, form.unit, click, anywhere)

    def request(
        self, click: tuple[float, float] | None, windows: Mapping[int, Window] | None = None
    ) -> dict[int, Window]:
        """What one click asks for: plane number -> window.

        Args:
            click: x and y in pixels of the network's input; None for forms that the click does not decide.
            windows: of the planes whose rule is :class:`Anywhere`.

        Raises:
            ClickError: the click is missing, not finite or outside the input.
            RequestError: a window is missing, empty, larger than its rule allows or not on its plane.
        """
        found: dict[int, Window] = {}
        for plane, rule in self.form.rules.items():
            height, width = self.sides[plane]
            if isinstance(rule, AtClick):
                x, y = self._pixel(click)
                rows = _around(y // rule.stride, rule.height, height)
                columns = _around(x // rule.stride, rule.width, width)
                found[plane] = Window(*map(int, (*rows, *columns)))
                continue
            window = (windows or {}).get(plane, EMPTY)
            fits = window.height <= rule.height and window.width <= rule.width
            if window.is_empty or not fits or not Window.full(height, width).contains(window):
                raise RequestError(
                    f"the window asked of plane {plane} is {window}; give one of 1 to {rule.height} x {rule.width} "
                    f"cells within {height} x {width}"
                )
            found[plane] = window
        return found

    def windows(self, click: tuple[float, float] | None, windows: Mapping[int, Window] | None = None) -> list[Window]:
        """Windows of all planes for :meth:`request`, gathered from the tables as a device does it."""
        request = self.request(click, windows)
        edges: list[NDArray[Any]] = []
        for axis in (0, 1):
            lo, hi = np.full(len(self.sides), np.iinfo(np.int32).max, np.int64), np.zeros(len(self.sides), np.int64)
            if self.click is not None:
                at = self._pixel(click)[1 - axis] // self.unit
                _widen(lo, hi, self.click[axis].lo[at], self.click[axis].hi[at])
            for plane, tables in self.anywhere.items():
                start, stop = request[plane][2 * axis : 2 * axis + 2]
                _widen(lo, hi, tables[axis].lo[start], tables[axis].hi[stop - 1])
            edges += [np.where(hi > 0, lo, 0), hi]
        return [Window(*map(int, window)) for window in zip(*edges, strict=True)]

    def _pixel(self, click: tuple[float, float] | None) -> tuple[int, int]:
        x, y = (math.nan, math.nan) if click is None else click
        height, width = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise ClickError(f"the click is {click}; give x and y with 0 <= x < {width} and 0 <= y < {height}")
        return math.floor(x), math.floor(y)


def rounded_side(cells: int, length: int) -> int:
    """A window's side rounded up to 2^k or 3 * 2^k, at most its plane's: windows that share a captured graph."""
    whole = 1 << max(cells - 1, 0).bit_length()
    return min(3 * whole // 4 if 4 * cells <= 3 * whole and whole >= 4 else whole, length)


def _output(schedule: Schedule, name: str) -> int:
    if name not in schedule.outputs:
        raise RequestError(f"{name!r} is not an output; there are {', '.join(schedule.outputs)}")
    return schedule.outputs[name]


def _image_size(schedule: Schedule) -> tuple[int, int]:
    images = [p for p in (schedule.planes[i] for i in schedule.inputs) if (p.height, p.width) != (1, 1)]
    if len(images) != 1:
        raise RequestError(f"the network has {len(images)} inputs that are images; clicks need exactly one")
    return images[0].height, images[0].width


def _check(schedule: Schedule, form: RequestForm) -> None:
    if not form.rules:
        raise RequestError("the form asks for nothing; give a rule for one output at least")
    for plane, rule in form.rules.items():
        sides = (rule.height, rule.width, rule.stride if isinstance(rule, AtClick) else 1)
        if min(map(operator.index, sides)) < 1 or not 0 <= plane < len(schedule.planes):
            raise RequestError(f"plane {plane}: {rule}; name one of the {len(schedule.planes)} planes, all sides >= 1")


def _around(cell: Any, cells: int, length: int) -> tuple[Any, Any]:
    """First and end of so many cells around one, or around each of an array."""
    start = np.minimum(cell, length - 1) - cells // 2
    return np.maximum(start, 0), np.minimum(start + cells, length)


def _narrow(lo: NDArray[np.int32], hi: NDArray[np.int32]) -> AxisTables:
    if hi.max() <= np.iinfo(np.int16).max:
        return AxisTables(lo.astype(np.int16), hi.astype(np.int16))
    return AxisTables(lo, hi)


def _click_tables(
    schedule: Schedule, axis: int, rules: Mapping[int, AtClick], unit: int, size: tuple[int, int]
) -> AxisTables:
    pixels = np.arange(0, size[axis], unit)
    starts, stops = {}, {}
    for plane, rule in rules.items():
        p = schedule.planes[plane]
        length, cells = ((p.height, rule.height), (p.width, rule.width))[axis]
        starts[plane], stops[plane] = _around(pixels // rule.stride, cells, length)
    return _narrow(*sweep(schedule, axis, starts, stops))


def _window_tables(schedule: Schedule, axis: int, plane: int) -> AxisTables:
    p = schedule.planes[plane]
    cells = np.arange((p.height, p.width)[axis])
    return _narrow(*sweep(schedule, axis, {plane: cells}, {plane: cells + 1}))


def _bounds(form: RequestForm, axis: int, click: Tables | None, anywhere: Mapping[int, Tables]) -> NDArray[np.int64]:
    """The longest span of every plane. Click and windows do not know of each other: the hull of their spans counts."""
    sources: list[AxisTables] = []
    longest: list[NDArray[np.int64]] = []
    if click is not None:
        sources.append(click[axis])
        longest.append((sources[-1].hi - sources[-1].lo).max(0))
    for plane, tables in anywhere.items():
        rule = form.rules[plane]
        table = tables[axis]
        stops = np.minimum(np.arange(table.positions) + (rule.height, rule.width)[axis], table.positions)
        sources.append(table)
        longest.append((table.hi[stops - 1] - table.lo).max(0))
    for a, b in permutations(sources, 2):
        both = (a.hi.max(0) > 0) & (b.hi.max(0) > 0)
        longest.append(np.where(both, a.hi.max(0) - b.lo.min(0), 0))
    return np.max(longest, 0)


def _widen(lo: NDArray[Any], hi: NDArray[Any], more_lo: NDArray[Any], more_hi: NDArray[Any]) -> None:
    """The hull of spans, in place; a span that ends at 0 is none."""
    needed = more_hi > 0
    np.minimum(lo, more_lo, out=lo, where=needed)
    np.maximum(hi, more_hi, out=hi)
