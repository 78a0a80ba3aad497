"""Windows: half-open rectangles on a plane, and the few operations the whole project is built on.

Coordinates are Python integers in cells of the plane at hand. They may be negative or reach past the
plane: an unclipped demand is a window too. ``clip`` keeps the part that exists and ``border_of`` counts
what was cut off, which is the padding its reader needs.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

from tracenet_kernels.errors import WindowError


def _integer(value: Any, name: str) -> int:
    """``value`` as a Python int; booleans, floats and everything else that is not an integer are refused."""
    is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    if not is_bool:
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise WindowError(f"{name} is {value!r} ({type(value).__name__}); pass an integer, rounded the way you mean it")


def _extent(value: Any, name: str) -> int:
    value = _integer(value, name)
    if value < 0:
        raise WindowError(f"{name} is {value}; pass an integer >= 0")
    return value


class _BorderFields(NamedTuple):
    top: int
    bottom: int
    left: int
    right: int


class Border(_BorderFields):
    """Rows and columns of padding a window needs because it meets the plane's edge: integers >= 0.

    Raises:
        WindowError: a count is negative or not an integer.
    """

    __slots__ = ()

    def __new__(cls, top: int, bottom: int, left: int, right: int) -> Border:
        return tuple.__new__(
            cls, (_extent(top, "top"), _extent(bottom, "bottom"), _extent(left, "left"), _extent(right, "right"))
        )

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Border:  # type: ignore[override]
        return cls(*iterable)

    @property
    def is_zero(self) -> bool:
        """True where no padding is needed."""
        return not any(self)


class _WindowFields(NamedTuple):
    y0: int
    y1: int
    x0: int
    x1: int


class Window(_WindowFields):
    """The half-open rectangle ``[y0, y1) x [x0, x1)``; immutable, hashable, unpacks as ``y0, y1, x0, x1``.

    A window with ``y0 == y1`` or ``x0 == x1`` is empty: it holds no cell but keeps its place.

    Args:
        y0, y1, x0, x1: integers (NumPy and 0-d tensor integers are converted), ``y0 <= y1`` and ``x0 <= x1``.

    Raises:
        WindowError: a coordinate is not an integer, or an end lies before its start.
    """

    __slots__ = ()

    def __new__(cls, y0: int, y1: int, x0: int, x1: int) -> Window:
        if not (type(y0) is int and type(y1) is int and type(x0) is int and type(x1) is int):
            y0, y1, x0, x1 = _integer(y0, "y0"), _integer(y1, "y1"), _integer(x0, "x0"), _integer(x1, "x1")
        if y1 < y0 or x1 < x0:
            raise WindowError(
                f"window [{y0}, {y1}) x [{x0}, {x1}) ends before it starts; "
                "pass (y0, y1, x0, x1) with y0 <= y1 and x0 <= x1"
            )
        return tuple.__new__(cls, (y0, y1, x0, x1))

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Window:  # type: ignore[override]
        # NamedTuple's own _make, and so _replace, would go around the checks above.
        return cls(*iterable)

    @classmethod
    def full(cls, height: int, width: int) -> Window:
        """The whole plane: ``[0, height) x [0, width)``."""
        return cls(0, _extent(height, "height"), 0, _extent(width, "width"))

    @classmethod
    def of_cell(cls, y: int, x: int) -> Window:
        """The one cell at row ``y``, column ``x``."""
        y, x = _integer(y, "y"), _integer(x, "x")
        return cls(y, y + 1, x, x + 1)

    @property
    def height(self) -> int:
        """Rows, ``y1 - y0``."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Columns, ``x1 - x0``."""
        return self.x1 - self.x0

    @property
    def area(self) -> int:
        """Cells, ``height * width``."""
        return (self.y1 - self.y0) * (self.x1 - self.x0)

    @property
    def is_empty(self) -> bool:
        """True where the window holds no cell."""
        return self.y1 == self.y0 or self.x1 == self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """``(rows, columns)`` to index the last two axes of a channels-first array.

        Raises:
            WindowError: the window starts before the plane; a negative slice would count from the end.
        """
        if self.y0 < 0 or self.x0 < 0:
            raise WindowError(f"{self} starts before the plane and cannot be sliced; clip it to the plane first")
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def clip(self, height: int, width: int) -> Window:
        """The part on a plane of ``height x width``; see :func:`clip`."""
        height, width = _extent(height, "height"), _extent(width, "width")
        return Window(
            min(max(self.y0, 0), height),
            min(max(self.y1, 0), height),
            min(max(self.x0, 0), width),
            min(max(self.x1, 0), width),
        )

    def shift(self, dy: int, dx: int) -> Window:
        """The window moved by ``dy`` rows and ``dx`` columns."""
        return Window(self.y0 + dy, self.y1 + dy, self.x0 + dx, self.x1 + dx)

    def dilate(self, border: Border) -> Window:
        """The window grown outwards by ``border``."""
        return Window(self.y0 - border.top, self.y1 + border.bottom, self.x0 - border.left, self.x1 + border.right)

    def intersect(self, other: Window) -> Window:
        """The cells in both; :data:`EMPTY` where there are none."""
        y0, y1 = max(self.y0, other.y0), min(self.y1, other.y1)
        x0, x1 = max(self.x0, other.x0), min(self.x1, other.x1)
        return Window(y0, y1, x0, x1) if y0 < y1 and x0 < x1 else EMPTY

    def contains(self, other: Window) -> bool:
        """True where every cell of ``other`` is in this window; an empty ``other`` always is."""
        if other.is_empty:
            return True
        return self.y0 <= other.y0 and other.y1 <= self.y1 and self.x0 <= other.x0 and other.x1 <= self.x1

    def __str__(self) -> str:
        return f"[{self.y0}, {self.y1}) x [{self.x0}, {self.x1})"


EMPTY = Window(0, 0, 0, 0)
"""The canonical empty window: what :func:`hull` gives for nothing and ``intersect`` for disjoint windows."""


def hull(windows: Iterable[Window]) -> Window:
    """The smallest window that contains all of ``windows``.

    Empty windows are ignored; the hull of nothing is :data:`EMPTY`.
    """
    solid = [window for window in windows if not window.is_empty]
    if not solid:
        return EMPTY
    return Window(
        min(w.y0 for w in solid), max(w.y1 for w in solid), min(w.x0 for w in solid), max(w.x1 for w in solid)
    )


def clip(window: Window, height: int, width: int) -> Window:
    """The part of ``window`` on a plane of ``height x width``.

    The axes are independent. An axis that lies wholly off the plane becomes empty at the edge it passed
    (``[-5, -3)`` becomes ``[0, 0)``), so the result can always be sliced.

    Raises:
        WindowError: ``height`` or ``width`` is negative or not an integer.
    """
    return window.clip(height, width)


def border_of(window: Window, height: int, width: int) -> Border:
    """What :func:`clip` cuts off ``window``: the padding its reader needs on each side.

    Per axis, ``top`` counts the rows of the window before the plane and ``bottom`` those after it, so
    ``clip(window).height + top + bottom == window.height`` always holds, also for a window wholly off the
    plane: that one is padding alone. Where the clipped window is not empty,
    ``clip(window).dilate(border_of(window)) == window``.

    Raises:
        WindowError: ``height`` or ``width`` is negative or not an integer.
    """
    height, width = _extent(height, "height"), _extent(width, "width")
    return Border(
        top=max(min(window.y1, 0) - window.y0, 0),
        bottom=max(window.y1 - max(window.y0, height), 0),
        left=max(min(window.x1, 0) - window.x0, 0),
        right=max(window.x1 - max(window.x0, width), 0),
    )


def shift(window: Window, dy: int, dx: int) -> Window:
    """``window`` moved by ``dy`` rows and ``dx`` columns."""
    return window.shift(dy, dx)


def intersect(a: Window, b: Window) -> Window:
    """The cells in both ``a`` and ``b``; :data:`EMPTY` where there are none."""
    return a.intersect(b)


def subtract(a: Window, b: Window) -> list[Window]:
    """The cells of ``a`` that are not in ``b``, as at most four disjoint non-empty windows.

    The order is fixed: the rows above the overlap, the rows below it (both as wide as ``a``, the long
    runs in memory), then what is left of it and right of it.
    """
    if a.is_empty:
        return []
    common = a.intersect(b)
    if common.is_empty:
        return [a]
    pieces = (
        Window(a.y0, common.y0, a.x0, a.x1),
        Window(common.y1, a.y1, a.x0, a.x1),
        Window(common.y0, common.y1, a.x0, common.x0),
        Window(common.y0, common.y1, common.x1, a.x1),
    )
    return [piece for piece in pieces if not piece.is_empty]


def subtract_all(a: Window, others: Iterable[Window]) -> list[Window]:
    """The cells of ``a`` that are in none of ``others``, as disjoint non-empty windows.

    ``others`` may overlap. The number of pieces grows with their number; it is not reduced to four.
    """
    pieces = [] if a.is_empty else [a]
    for other in others:
        pieces = [rest for piece in pieces for rest in subtract(piece, other)]
    return pieces
