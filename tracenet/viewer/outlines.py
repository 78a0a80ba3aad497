"""Masks as programs exchange them: COCO's run lengths, and polygons that follow the pixels' edges. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tracenet_kernels.errors import InputError

Mask = NDArray[np.bool_]


def encode_rle(mask: Mask) -> dict[str, list[int]]:
    """COCO's uncompressed RLE: run lengths of the columns one below the other, the first of zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(edges).tolist()
    if flat.size and flat[0]:
        counts.insert(0, 0)
    return {"size": [int(side) for side in mask.shape], "counts": counts}


def decode_rle(size: Sequence[int], counts: Sequence[int]) -> Mask:
    """The mask ``[H, W]`` of an uncompressed RLE.

    Raises:
        InputError: negative runs, or runs that do not fill the mask.
    """
    height, width = size
    runs = np.asarray(counts, np.int64)
    if runs.ndim != 1 or (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise InputError(
            f"the RLE's {runs.size} runs do not fill {height} x {width} pixels; pass COCO's uncompressed run lengths, "
            "column by column, beginning with zeros"
        )
    values = np.arange(runs.size) % 2 == 1
    return np.repeat(values, runs).reshape((width, height)).T


def polygons(mask: Mask) -> list[list[float]]:
    """Outlines of a mask along the pixels' edges, ``[x0, y0, x1, y1, ...]``; pixel i spans [i, i + 1).

    Parts that touch at a corner are polygons of their own. A hole is joined to the outline around it by a slit without
    width, so that areas and pixels are the mask's own: COCO's polygons have no holes.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return []
    top, left = int(rows[0]), int(columns[0])
    inside = np.zeros((int(rows[-1]) - top + 3, int(columns[-1]) - left + 3), np.bool_)  # a frame of background
    inside[1:-1, 1:-1] = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    outline = _Outline(inside)
    for corner in outline.holes():
        outline.join(corner)
    return [outline.coordinates(ring, left - 1, top - 1) for ring in outline.rings()]


class _Outline:
    """The corners of a mask's edges: each has one neighbour along its row and one along its column."""

    def __init__(self, inside: Mask) -> None:
        self._inside = inside
        a, b, c, d = inside[:-1, :-1], inside[:-1, 1:], inside[1:, :-1], inside[1:, 1:]
        falling, rising = a & d & ~b & ~c, b & c & ~a & ~d  # two pixels touch: each has a corner of its own
        corners = (
            ((a != b) & (b == c) & (c == d) | falling, True, True),
            ((b != a) & (a == c) & (c == d) | rising, False, True),
            ((c != a) & (a == b) & (b == d) | rising, True, False),
            ((d != a) & (a == b) & (b == c) | falling, False, False),
        )
        at = [np.nonzero(where) for where, _, _ in corners]
        y, x = (np.concatenate([one[axis] for one in at]) + 1 for axis in (0, 1))
        counts = [one[0].size for one in at]
        goes_left, goes_up = (np.repeat([corner[i] for corner in corners], counts) for i in (1, 2))
        # Along a row edges go from one corner to the next; of two at one place the one that ends an edge comes first.
        self._in_row = _partners(np.lexsort((~goes_left, x, y)))
        self._in_column = _partners(np.lexsort((~goes_up, y, x)))
        self._y: list[int] = y.tolist()
        self._x: list[int] = x.tolist()
        self._at_column: dict[int, list[int]] = {}
        for corner, column in enumerate(self._x):
            self._at_column.setdefault(column, []).append(corner)

    def rings(self) -> list[list[int]]:
        """Corners of every ring in order, from the leftmost of its topmost ones to the right."""
        seen = [False] * len(self._x)
        found = []
        for start in sorted(range(len(self._x)), key=lambda i: (self._y[i], self._x[i])):
            ring, at = [], start
            while not seen[at]:
                other = self._in_row[at]
                seen[at] = seen[other] = True
                ring += [at, other]
                at = self._in_column[other]
            if ring:
                found.append(ring)
        return found

    def holes(self) -> list[int]:
        """Of every ring around a hole, the topmost corner of its leftmost column."""
        return [
            min(ring, key=lambda i: (self._x[i], self._y[i]))
            for ring in self.rings()
            if not self._inside[self._y[ring[0]], self._x[ring[0]]]
        ]

    def join(self, corner: int) -> None:
        """Cut from a hole's corner to the left, to the edge of the ring that is there.

        The edges of that corner go right and down. The upper side of the cut and the edge to the right become one edge;
        the lower side goes on down. The ring on the left begins further left than the hole, so cuts never go around.
        """
        x, y = self._x[corner], self._y[corner]
        edge = x - int(np.argmin(self._inside[y, :x][::-1]))
        upper, lower = self._edge_at(edge, y)
        above, below = len(self._x), len(self._x) + 1
        right = self._in_row[corner]
        self._x += [edge, edge]
        self._y += [y, y]
        self._at_column[edge] += [above, below]
        self._in_row += [right, corner]
        self._in_row[right], self._in_row[corner] = above, below
        self._in_column += [upper, lower]
        self._in_column[upper], self._in_column[lower] = above, below

    def _edge_at(self, column: int, row: int) -> tuple[int, int]:
        """Upper and lower corner of the edge along a column, beside the pixels of a row."""
        for corner in self._at_column[column]:
            other = self._in_column[corner]
            if self._y[corner] <= row < self._y[other]:
                return corner, other
        raise AssertionError(f"no edge along column {column} beside row {row}")

    def coordinates(self, ring: list[int], dx: int, dy: int) -> list[float]:
        """``[x0, y0, x1, y1, ...]`` of a ring, moved, without corners on straight lines."""
        points = [(self._x[i] + dx, self._y[i] + dy) for i in ring]
        points = [point for i, point in enumerate(points) if point != points[i - 1]]
        around = zip(points[-1:] + points[:-1], points, points[1:] + points[:1], strict=True)
        turns = [at for before, at, after in around if not _straight(before, at, after)]
        return [float(v) for point in turns for v in point]


def _straight(before: tuple[int, int], at: tuple[int, int], after: tuple[int, int]) -> bool:
    return before[0] == at[0] == after[0] or before[1] == at[1] == after[1]


def _partners(order: NDArray[np.intp]) -> list[int]:
    """Of corners in the order in which edges pair them, the other one of each pair."""
    partner = np.empty(order.size, np.intp)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    found: list[int] = partner.tolist()
    return found
