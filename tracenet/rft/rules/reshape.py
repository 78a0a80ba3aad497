"""Operations that relabel axes: permute, transpose, squeeze, expand, and reshapes that keep the plane traceable.

A reshape is split into the smallest groups of input and output axes with equal products. The plane survives if its
rows and columns each stay one axis, are split with the row outermost (``H -> (H / r, r)``), are merged with the row
outermost (``(H / r, r) -> H``), or are flattened together row by row (``(H, W) -> H * W``) and back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from tracenet.graph.graph import Layout, Node
from tracenet.rft.rules.pointwise import Pointwise
from tracenet.rft.rules.registry import Demand, Reader, Rule, call, image_layout, register_rule, whole
from tracenet_kernels.window import Window


class Relabel(Rule):
    """Same cells, same order, other axis numbers."""

    def moved(self, node: Node) -> list[int | None]:
        """For every output axis, the input axis it is (None for a new one)."""
        raise NotImplementedError

    def layout(self, node: Node) -> Layout | None:
        source = node.args[0].layout
        if source is None:
            return None
        moved = self.moved(node)
        if source.y not in moved or source.x not in moved:
            return None  # a squeezed row or column of a one-cell axis
        return source.moved(moved.index(source.y), moved.index(source.x))

    def barrier(self, node: Node) -> str | None:
        x = node.args[0]
        return "drops rows or columns" if node.layout is None and x.full_window.area > 1 else None

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        x = node.args[0]
        yield whole(x) if node.layout is None or x.layout is None else Demand(x, window, x.layout.axes)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        x = node.args[0]
        if node.layout is None or x.layout is None:
            return call(node, {}, read)
        return call(node, {0: read(Demand(x, window, x.layout.axes))}, read)


@register_rule("aten.permute", "aten.transpose", "aten.t", "aten.mT", "aten.movedim", "aten.moveaxis", "aten.swapaxes",
               "aten.swapdims")  # fmt: skip
class Permute(Relabel):
    """Permutations of axes."""

    def moved(self, node: Node) -> list[int | None]:
        n = node.ndim
        if node.op == "aten.permute":
            return [int(d) % n for d in node.args[1]]
        order: list[int | None] = list(range(n))
        if node.op == "aten.t":
            return order[::-1]
        if node.op in ("aten.movedim", "aten.moveaxis"):
            source, target = ([v] if isinstance(v, int) else list(v) for v in node.args[1:3])
            rest = [axis for axis in range(n) if axis not in {s % n for s in source}]
            placed: dict[int, int] = {t % n: s % n for s, t in zip(source, target, strict=True)}
            return [placed[axis] if axis in placed else rest.pop(0) for axis in range(n)]
        a, b = (n - 2, n - 1) if node.op == "aten.mT" else (int(node.args[1]) % n, int(node.args[2]) % n)
        order[a], order[b] = order[b], order[a]
        return order


@register_rule("aten.unsqueeze")
class Unsqueeze(Relabel):
    """A new axis of size one."""

    def moved(self, node: Node) -> list[int | None]:
        axis = int(node.args[1]) % node.ndim
        return [None if i == axis else i - (i > axis) for i in range(node.ndim)]


@register_rule("aten.squeeze")
class Squeeze(Relabel):
    """Drop axes of size one."""

    def moved(self, node: Node) -> list[int | None]:
        x = node.args[0]
        dims = node.arg(1, "dim")
        chosen = range(x.ndim) if dims is None else [d % x.ndim for d in ([dims] if isinstance(dims, int) else dims)]
        dropped = {d for d in chosen if x.shape[d] == 1}
        return [axis for axis in range(x.ndim) if axis not in dropped]

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        # Squeezing "all axes of size one" must not drop a row of a one-row crop.
        x = node.args[0]
        if node.layout is None or x.layout is None:
            return call(node, {}, read)
        crop = read(Demand(x, window, x.layout.axes))
        kept = set(self.moved(node))
        return crop.squeeze([axis for axis in range(x.ndim) if axis not in kept])


@register_rule("aten.expand", "aten.broadcast_to", "aten.expand_as")
class Expand(Pointwise):
    """Broadcast to a larger shape; a broadcast row or column is read whole, and of a pattern only the shape counts.

    One value per channel, without a plane, gets one where it is repeated over the last two axes of an image.
    """

    def layout(self, node: Node) -> Layout | None:
        source = node.args[0].layout
        if source is None:
            return self._made(node)
        shift = node.ndim - node.args[0].ndim
        if source.merged:
            return source.moved(source.y + shift, source.x + shift)
        y, x = source.y + shift, source.x + shift
        return Layout(y, x, node.shape[y], node.shape[x])

    @staticmethod
    def _made(node: Node) -> Layout | None:
        x = node.args[0]
        repeats = node.ndim == x.ndim == 4 and x.shape[-2:] == (1, 1) and node.shape[-2:] != (1, 1)
        return image_layout(node.shape) if repeats else None

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        x = node.args[0]
        if not x.is_constant:
            yield whole(x) if node.layout is None else self._operand(node, x, window)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        if node.layout is None:
            return read.whole(node.args[0]).expand(node.shape)
        shape = list(node.shape)
        if node.layout.merged:
            shape[node.layout.y] = window.area
        else:
            shape[node.layout.y], shape[node.layout.x] = window.height, window.width
        return read(self._operand(node, node.args[0], window)).expand(shape)


@dataclass(frozen=True, slots=True)
class _PlaneMap:
    """How a reshape carries the plane: output layout and cells per cell along each axis.

    ``ratio`` > 1: an output row holds ``ratio`` input rows (split); < -1: an input row holds ``-ratio`` output rows
    (merge); 1: kept.
    """

    layout: Layout
    ratio: tuple[int, int]


@register_rule("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.view_as",
               "aten.reshape_as")  # fmt: skip
class Reshape(Rule):
    """Reshapes; those that scatter rows or columns are barriers."""

    def _map(self, node: Node) -> _PlaneMap | None:
        if "map" not in node.cache:
            source = node.args[0].layout
            node.cache["map"] = None if source is None else _plane_map(node.args[0].shape, node.shape, source)
        return node.cache["map"]

    def layout(self, node: Node) -> Layout | None:
        plane = self._map(node)
        return plane.layout if plane is not None else None

    def barrier(self, node: Node) -> str | None:
        if node.layout is None and node.args[0].layout is not None and node.args[0].full_window.area > 1:
            return "reshapes rows and columns into other axes"
        return None

    def _demand(self, node: Node, window: Window, plane: _PlaneMap) -> Demand:
        ranges: list[int] = []
        for (a, b), r in zip(((window.y0, window.y1), (window.x0, window.x1)), plane.ratio, strict=True):
            ranges += (a * r, b * r) if r > 0 else (a // -r, -(-b // -r))
        return Demand(node.args[0], Window(*ranges), node.args[0].layout.axes)

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        plane = self._map(node)
        yield whole(node.args[0]) if plane is None else self._demand(node, window, plane)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        plane = self._map(node)
        if plane is None:
            return read.whole(node.args[0]).reshape(node.shape)
        demand = self._demand(node, window, plane)
        shape = list(node.shape)
        layout, source = plane.layout, demand.window
        if layout.merged:
            shape[layout.y] = window.area
            return read(demand).reshape(shape)
        rows = source.height * -plane.ratio[0] if plane.ratio[0] < 0 else window.height
        cols = source.width * -plane.ratio[1] if plane.ratio[1] < 0 else window.width
        shape[layout.y], shape[layout.x] = rows, cols
        out = read(demand).reshape(shape)
        top = window.y0 + source.y0 * plane.ratio[0] if plane.ratio[0] < 0 else 0
        left = window.x0 + source.x0 * plane.ratio[1] if plane.ratio[1] < 0 else 0
        return out.narrow(layout.y, top, window.height).narrow(layout.x, left, window.width)


def axis_groups(a: tuple[int, ...], b: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest consecutive groups of axes of ``a`` and ``b`` with equal products."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(a) or j < len(b):
        left, right, p, q = [], [], 1, 1
        if i < len(a):
            left, p, i = [i], a[i], i + 1
        if j < len(b):
            right, q, j = [j], b[j], j + 1
        while p != q or not left or not right:
            if (p < q or not left) and i < len(a):
                left.append(i)
                p, i = p * a[i], i + 1
            elif j < len(b):
                right.append(j)
                q, j = q * b[j], j + 1
            else:
                break
        groups.append((left, right))
    return groups


def _plane_map(shape: tuple[int, ...], out: tuple[int, ...], source: Layout) -> _PlaneMap | None:
    """The plane's fate under a reshape, or None if rows or columns are scattered."""
    groups = axis_groups(shape, out)
    if source.merged:
        return _from_merged(shape, out, source, groups)
    found: list[tuple[int, int, int]] = []
    for axis in source.axes:
        kept = _follow(axis, shape, out, groups)
        if kept is None:
            return _to_merged(shape, out, source, groups)
        found.append(kept)
    (y, height, ry), (x, width, rx) = found
    if y == x:  # one of them is a single row or column
        return _to_merged(shape, out, source, groups)
    return _PlaneMap(Layout(y, x, height, width), (ry, rx))


def _follow(
    axis: int, shape: tuple[int, ...], out: tuple[int, ...], groups: list[tuple[list[int], list[int]]]
) -> tuple[int, int, int] | None:
    """(output axis, its size, ratio) of one plane axis, if it is the outermost of its group on both sides."""
    left, right = next(group for group in groups if axis in group[0])
    real_left = [i for i in left if shape[i] != 1 or i == axis]
    real_right = [j for j in right if out[j] != 1]
    if real_left[0] != axis and any(shape[i] != 1 for i in left[: left.index(axis)]):
        return None
    if len(real_right) == 0:
        return (right[0], 1, 1) if right and shape[axis] == 1 else None
    target = real_right[0]
    if len(real_left) == 1 and shape[axis] % out[target] == 0:
        return (target, out[target], shape[axis] // out[target])
    if len(real_right) == 1 and out[target] % shape[axis] == 0:
        inner = out[target] // shape[axis]
        return (target, out[target], -inner if inner > 1 else 1)
    return None


def _to_merged(
    shape: tuple[int, ...], out: tuple[int, ...], source: Layout, groups: list[tuple[list[int], list[int]]]
) -> _PlaneMap | None:
    """(H, W) flattened together into one axis."""
    left, right = next(group for group in groups if source.y in group[0])
    real_right = [j for j in right if out[j] != 1]
    if [i for i in left if shape[i] != 1 or i in source.axes] == [source.y, source.x] and len(real_right) == 1:
        axis = real_right[0]
        return _PlaneMap(Layout(axis, axis, source.height, source.width, merged=True), (1, 1))
    return None


def _from_merged(
    shape: tuple[int, ...], out: tuple[int, ...], source: Layout, groups: list[tuple[list[int], list[int]]]
) -> _PlaneMap | None:
    """H * W kept as one axis, or split back into (H, W)."""
    left, right = next(group for group in groups if source.y in group[0])
    if [i for i in left if shape[i] != 1] != [source.y]:
        return None
    real = [j for j in right if out[j] != 1]
    if len(real) == 1:
        return _PlaneMap(source.moved(real[0], real[0]), (1, 1))
    if len(real) == 2 and (out[real[0]], out[real[1]]) == (source.height, source.width):
        return _PlaneMap(Layout(real[0], real[1], source.height, source.width), (1, 1))
    return None
