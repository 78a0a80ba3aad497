"""Operations that move cells along the plane by a fixed index map: pads, slices, flips, rolls, repeats, concatenation.

Per axis, output ``i`` copies input ``index[i]``, or a fill value where ``index[i]`` is -1. The demand of a window is
the hull of its indices, so a window that wraps around (circular padding, roll) demands the whole axis.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from tracenet.graph.graph import Layout, Node
from tracenet.rft.rules.registry import Demand, Reader, Rule, call, register_rule, whole
from tracenet_kernels.errors import UnsupportedOpError
from tracenet_kernels.window import Window

FILL = -1


def index_demand(index: np.ndarray, a: int, b: int) -> tuple[int, int]:
    """Hull of the input cells that outputs ``[a, b)`` copy."""
    part = index[a:b]
    part = part[part != FILL]
    return (int(part.min()), int(part.max()) + 1) if part.size else (0, 0)


class IndexMap(Rule):
    """Base of rules given by one index array per plane axis; other axes are handled by the operator itself."""

    def index(self, node: Node, axis: int, length: int) -> np.ndarray:
        """Input index of every output cell along tensor axis ``axis`` (one of the plane's) of ``length`` inputs."""
        raise NotImplementedError

    def others(self, node: Node, x: Tensor, axes: tuple[int, int]) -> Tensor:
        """Apply what the operator does on axes that are not the plane's."""
        return x

    def fill(self, node: Node) -> float:
        return 0.0

    def layout(self, node: Node) -> Layout | None:
        source = node.args[0].layout
        if source is None:
            return None
        if source.merged:
            length = node.args[0].shape[source.y]
            if not np.array_equal(self.index(node, source.y, length), np.arange(length)):
                raise UnsupportedOpError(f"node {node.name!r} ({node.op}) indexes flattened rows and columns")
            return source
        if node.ndim != node.args[0].ndim:
            raise UnsupportedOpError(f"node {node.name!r} ({node.op}) flattens its input or adds new axes")
        return Layout(source.y, source.x, node.shape[source.y], node.shape[source.x])

    def _maps(self, node: Node) -> tuple[np.ndarray, np.ndarray]:
        maps = node.cache.get("index")
        if maps is None:
            x = node.args[0]
            maps = tuple(self.index(node, axis, x.shape[axis]) for axis in x.layout.axes)
            node.cache["index"] = maps
        return maps

    def _demand(self, node: Node, window: Window) -> Demand:
        source = node.args[0].layout
        if source.merged:
            return Demand(node.args[0], window, source.axes)
        rows, cols = self._maps(node)
        y, x = index_demand(rows, window.y0, window.y1), index_demand(cols, window.x0, window.x1)
        return Demand(node.args[0], Window(*y, *x), source.axes)

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        if node.layout is None:
            return [whole(operand) for operand in node.operands if not operand.is_constant]
        return [self._demand(node, window)]

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        if node.layout is None:
            return call(node, {}, read)
        demand = self._demand(node, window)
        x = self.others(node, read(demand), (node.layout.y, node.layout.x))
        if node.layout.merged:
            return x
        rows, cols = self._maps(node)
        source = demand.window
        x = _take(x, node.layout.y, rows[window.y0 : window.y1], source.y0, self.fill(node))
        return _take(x, node.layout.x, cols[window.x0 : window.x1], source.x0, self.fill(node))


def _take(x: Tensor, axis: int, index: np.ndarray, origin: int, fill: float) -> Tensor:
    """``x`` gathered along ``axis`` at ``index - origin``, ``fill`` where the index is FILL."""
    if x.shape[axis] == 0:
        shape = list(x.shape)
        shape[axis] = len(index)
        return x.new_full(shape, fill)
    local = torch.from_numpy(np.where(index == FILL, 0, index - origin)).to(x.device)
    out = x.index_select(axis, local)
    if (index == FILL).any():
        padding = torch.from_numpy(index == FILL).to(x.device)
        shape = [1] * x.ndim
        shape[axis] = len(index)
        out = out.masked_fill(padding.view(shape), fill)
    return out


def _pad_index(mode: str, before: int, after: int, length: int) -> np.ndarray:
    i = np.arange(-before, length + after)
    if mode == "constant":
        return np.where((i >= 0) & (i < length), i, FILL)
    if mode == "replicate":
        return np.clip(i, 0, length - 1)
    if mode == "circular":
        return i % length
    return length - 1 - np.abs(length - 1 - np.abs(i))  # reflect, the edge not repeated


@register_rule("aten.pad", "aten.constant_pad_nd", "aten.reflection_pad2d", "aten.replication_pad2d",
               "aten._pad_circular", "aten._pad_enum")  # fmt: skip
class Pad(IndexMap):
    """Constant, reflect, replicate and circular padding (negative amounts crop)."""

    def _mode(self, node: Node) -> str:
        if node.op == "aten.pad":
            return str(node.arg(2, "mode", "constant"))
        if node.op == "aten._pad_enum":
            return ("reflect", "replicate", "circular", "constant")[int(node.args[2])]
        return {"constant": "constant", "reflection": "reflect", "replication": "replicate", "": "circular"}[
            node.op.removeprefix("aten.").split("_")[0]
        ]

    def _amounts(self, node: Node) -> dict[int, tuple[int, int]]:
        pads, n = list(node.args[1]), node.args[0].ndim
        return {n - 1 - i: (int(pads[2 * i]), int(pads[2 * i + 1])) for i in range(len(pads) // 2)}

    def fill(self, node: Node) -> float:
        position = 3 if node.op in ("aten.pad", "aten._pad_enum") else 2
        value = node.arg(position, "value") if "pad" in node.op and self._mode(node) == "constant" else None
        return 0.0 if value is None else float(value)

    def index(self, node: Node, axis: int, length: int) -> np.ndarray:
        before, after = self._amounts(node).get(axis, (0, 0))
        mode = self._mode(node)
        if mode == "circular":  # wraps around what negative amounts leave; the other modes look past it
            kept = np.arange(max(-before, 0), length - max(-after, 0))
            return kept[_pad_index(mode, max(before, 0), max(after, 0), len(kept))]
        return _pad_index(mode, before, after, length)

    def others(self, node: Node, x: Tensor, axes: tuple[int, int]) -> Tensor:
        amounts = {axis: pads for axis, pads in self._amounts(node).items() if axis not in axes and pads != (0, 0)}
        if not amounts:
            return x
        pads: list[int] = []
        for axis in range(x.ndim - 1, -1, -1):
            pads += amounts.get(axis, (0, 0))
        if self._mode(node) != "constant":
            raise UnsupportedOpError(f"node {node.name!r} pads channels in mode {self._mode(node)!r}")
        return torch.nn.functional.pad(x, pads, value=self.fill(node))


@register_rule("aten.slice", "aten.narrow")
class Slice(IndexMap):
    """``x[..., start:stop:step]`` along one axis."""

    def _slice(self, node: Node) -> tuple[int, slice]:
        axis = int(node.arg(1, "dim", 0)) % node.args[0].ndim
        if node.op == "aten.narrow":
            start = int(node.args[2]) % max(node.args[0].shape[axis], 1)
            return axis, slice(start, start + int(node.args[3]))
        return axis, slice(node.arg(2, "start"), node.arg(3, "end"), node.arg(4, "step", 1))

    def index(self, node: Node, axis: int, length: int) -> np.ndarray:
        sliced, part = self._slice(node)
        return np.arange(length)[part] if axis == sliced else np.arange(length)

    def others(self, node: Node, x: Tensor, axes: tuple[int, int]) -> Tensor:
        axis, part = self._slice(node)
        return x if axis in axes else x[(slice(None),) * axis + (part,)]


@register_rule("aten.flip")
class Flip(IndexMap):
    """Reverse some axes."""

    def _dims(self, node: Node) -> set[int]:
        return {int(d) % node.ndim for d in node.args[1]}

    def index(self, node: Node, axis: int, length: int) -> np.ndarray:
        return np.arange(length)[::-1].copy() if axis in self._dims(node) else np.arange(length)

    def others(self, node: Node, x: Tensor, axes: tuple[int, int]) -> Tensor:
        return x.flip(sorted(self._dims(node) - set(axes)))


@register_rule("aten.roll")
class Roll(IndexMap):
    """Cyclic shift: output ``i`` reads input ``(i - shift) mod n``."""

    def _shifts(self, node: Node) -> dict[int, int]:
        dims = node.arg(2, "dims", [])
        if not dims:
            raise UnsupportedOpError(f"node {node.name!r} rolls a flattened tensor; give torch.roll its dims")
        return {int(d) % node.ndim: int(s) for s, d in zip(node.args[1], dims, strict=True)}

    def index(self, node: Node, axis: int, length: int) -> np.ndarray:
        return (np.arange(length) - self._shifts(node).get(axis, 0)) % length

    def others(self, node: Node, x: Tensor, axes: tuple[int, int]) -> Tensor:
        for axis, amount in self._shifts(node).items():
            if axis not in axes:
                x = x.roll(amount, axis)
        return x


@register_rule("aten.repeat")
class Repeat(IndexMap):
    """Tile a tensor: output ``i`` reads input ``i mod n``."""

    def index(self, node: Node, axis: int, length: int) -> np.ndarray:
        return np.arange(node.shape[axis]) % length

    def others(self, node: Node, x: Tensor, axes: tuple[int, int]) -> Tensor:
        return x.repeat([1 if axis in axes else int(times) for axis, times in enumerate(node.args[1])])


@register_rule("aten.repeat_interleave")
class RepeatInterleave(IndexMap):
    """Repeat each cell ``k`` times along one axis: output ``i`` reads input ``i // k``."""

    def _axis(self, node: Node) -> int:
        if not isinstance(node.args[1], int) or node.arg(2, "dim") is None:
            raise UnsupportedOpError(f"node {node.name!r} repeats by a tensor or over a flattened input")
        return int(node.arg(2, "dim")) % node.ndim

    def index(self, node: Node, axis: int, length: int) -> np.ndarray:
        return np.arange(node.shape[axis]) // (node.args[1] if axis == self._axis(node) else 1)

    def others(self, node: Node, x: Tensor, axes: tuple[int, int]) -> Tensor:
        axis = self._axis(node)
        return x if axis in axes else x.repeat_interleave(node.args[1], axis)


def _values(node: Node, index: Node) -> np.ndarray:
    """A constant index; read once, so that a node can run where tensors have no values to look at."""
    if "values" not in node.cache:
        assert index.value is not None
        node.cache["values"] = index.value.cpu().numpy()
    return node.cache["values"]


@register_rule("aten.index_select")
class IndexSelect(IndexMap):
    """Gather with a constant index along one axis."""

    def _parts(self, node: Node) -> tuple[int, np.ndarray]:
        if not node.args[2].is_constant:
            raise UnsupportedOpError(f"node {node.name!r} selects by an index computed from data")
        return int(node.args[1]) % node.ndim, _values(node, node.args[2])

    def index(self, node: Node, axis: int, length: int) -> np.ndarray:
        selected, index = self._parts(node)
        return np.arange(length)[index] if axis == selected else np.arange(length)

    def others(self, node: Node, x: Tensor, axes: tuple[int, int]) -> Tensor:
        axis, index = self._parts(node)
        return x if axis in axes else x.index_select(axis, torch.from_numpy(index).to(x.device))


@register_rule("aten.index")
class Index(IndexSelect):
    """``x[:, [2, 1, 0]]``: one constant index along one axis; every other form of indexing is a barrier."""

    def _constant(self, node: Node) -> bool:
        given = [index for index in node.args[1] if index is not None]
        return len(given) == 1 and given[0].is_constant and given[0].ndim == 1 and given[0].dtype == torch.int64

    def _parts(self, node: Node) -> tuple[int, np.ndarray]:
        axis = next(axis for axis, index in enumerate(node.args[1]) if index is not None)
        index = _values(node, node.args[1][axis])
        return axis, np.where(index < 0, index + node.args[0].shape[axis], index)

    def layout(self, node: Node) -> Layout | None:
        return super().layout(node) if self._constant(node) else None

    def barrier(self, node: Node) -> str | None:
        planes = [operand for operand in node.operands if operand.layout is not None]
        return "gathers cells" if node.layout is None and planes else None


@register_rule("aten.select")
class Select(Rule):
    """``x[..., i, ...]`` removes one axis: free for channels; for rows or columns the whole plane is read."""

    def _axis(self, node: Node) -> int:
        return int(node.args[1]) % node.args[0].ndim

    def layout(self, node: Node) -> Layout | None:
        source = node.args[0].layout
        if source is None or self._axis(node) in source.axes:
            return None
        return source.moved(*(axis - (self._axis(node) < axis) for axis in source.axes))

    def barrier(self, node: Node) -> str | None:
        return "selects one row or column" if node.layout is None and node.args[0].layout is not None else None

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        x = node.args[0]
        yield whole(x) if node.layout is None else Demand(x, window, x.layout.axes)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        x = node.args[0]
        if node.layout is None:
            return call(node, {}, read)
        return call(node, {0: read(Demand(x, window, x.layout.axes))}, read)


@register_rule("aten.cat", "aten.concat", "aten.concatenate")
class Concatenate(Rule):
    """Join tensors along an axis; along rows or columns each part is demanded where the window meets it."""

    def layout(self, node: Node) -> Layout | None:
        for operand in node.operands:
            if operand.layout is not None:
                if operand.layout.merged and self._axis(node) == operand.layout.y:
                    return None
                if operand.layout.merged:
                    return operand.layout
                y, x = operand.layout.axes
                return Layout(y, x, node.shape[y], node.shape[x])
        return None

    def _axis(self, node: Node) -> int:
        return int(node.arg(1, "dim", 0)) % node.ndim

    def barrier(self, node: Node) -> str | None:
        if node.layout is None and any(operand.layout is not None for operand in node.operands):
            return "joins flattened rows and columns with other cells"
        return None

    def _parts(self, node: Node, window: Window) -> list[Demand]:
        if node.layout is None:
            return [whole(operand) for operand in node.operands]
        axis, (y, x) = self._axis(node), node.layout.axes
        offset, parts = 0, []
        for operand in node.operands:
            part = window
            if axis in (y, x):
                size = operand.shape[axis]
                shifted = window.shift(-offset if axis == y else 0, -offset if axis == x else 0)
                span = (shifted.y0, shifted.y1) if axis == y else (shifted.x0, shifted.x1)
                start, stop = min(max(span[0], 0), size), min(max(span[1], 0), size)
                part = (
                    Window(start, stop, window.x0, window.x1)
                    if axis == y
                    else Window(window.y0, window.y1, start, stop)
                )
                offset += size
            parts.append(Demand(operand, part, (y, x), node.plane))
        return parts

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        return [demand for demand in self._parts(node, window) if not demand.producer.is_constant]

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        parts = [read(demand) for demand in self._parts(node, window)]
        return torch.cat([part for part in parts if part.numel() or len(parts) == 1] or parts[:1], dim=self._axis(node))


@register_rule("aten.stack")
class Stack(Rule):
    """Join tensors along a new axis."""

    def layout(self, node: Node) -> Layout | None:
        source = next((operand.layout for operand in node.operands if operand.layout is not None), None)
        if source is None:
            return None
        axis = int(node.arg(1, "dim", 0)) % node.ndim
        return source.moved(*(a + (axis <= a) for a in source.axes))

    def _parts(self, node: Node, window: Window) -> list[Demand]:
        source = next((operand.layout for operand in node.operands if operand.layout is not None), None)
        if source is None:
            return [whole(operand) for operand in node.operands]
        return [Demand(operand, window, source.axes, node.plane) for operand in node.operands]

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        return [demand for demand in self._parts(node, window) if not demand.producer.is_constant]

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        return call(node, {i: read(demand) for i, demand in enumerate(self._parts(node, window))}, read)


@register_rule("aten.pixel_shuffle", "aten.pixel_unshuffle")
class PixelShuffle(Rule):
    """Depth to space (output row ``i`` reads row ``i // r``) and its inverse (reads ``[a * r, b * r)``)."""

    def layout(self, node: Node) -> Layout | None:
        n = node.ndim
        return Layout(n - 2, n - 1, node.shape[-2], node.shape[-1])

    def _demand(self, node: Node, window: Window) -> Demand:
        x, r = node.args[0], int(node.args[1])
        if node.op == "aten.pixel_shuffle":
            source = Window(window.y0 // r, -(-window.y1 // r), window.x0 // r, -(-window.x1 // r))
        else:
            source = Window(window.y0 * r, window.y1 * r, window.x0 * r, window.x1 * r)
        return Demand(x, source, (x.ndim - 2, x.ndim - 1))

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        yield self._demand(node, window)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        demand = self._demand(node, window)
        out = call(node, {0: read(demand)}, read)
        if node.op == "aten.pixel_unshuffle":
            return out
        r, source = int(node.args[1]), demand.window
        out = out.narrow(-2, window.y0 - source.y0 * r, window.height)
        return out.narrow(-1, window.x0 - source.x0 * r, window.width)


@register_rule("aten.slice_scatter", "aten.select_scatter")
class Scatter(Rule):
    """``x[..., start:stop:step] = src`` (``x[..., i] = src``), out of place."""

    def _axis(self, node: Node) -> int:
        return int(node.arg(2, "dim", 0)) % node.ndim

    def _index(self, node: Node) -> np.ndarray:
        """For every output cell along the axis the cell of ``src`` it holds, or FILL where it holds ``x``'s own."""
        index = np.full(node.shape[self._axis(node)], FILL)
        if node.op == "aten.select_scatter":
            index[int(node.args[3])] = 0
        else:
            part = slice(node.arg(3, "start"), node.arg(4, "end"), node.arg(5, "step", 1))
            index[part] = np.arange(len(index[part]))
        return index

    def layout(self, node: Node) -> Layout | None:
        x, src = node.args[:2]
        if x.layout is None and src.layout is not None:
            y, column = (self._source_axis(node, axis) for axis in src.layout.axes)
            if src.layout.merged:
                return None
            return Layout(y, column, node.shape[y], node.shape[column])
        return None if x.layout is None or (x.layout.merged and self._axis(node) == x.layout.y) else x.layout

    def _source_axis(self, node: Node, axis: int) -> int:
        """The output axis of an axis of ``src``."""
        return axis + (node.op == "aten.select_scatter" and axis >= self._axis(node))

    def barrier(self, node: Node) -> str | None:
        planes = [operand for operand in node.operands if operand.layout is not None]
        return "writes into flattened rows and columns" if node.layout is None and planes else None

    def _demands(self, node: Node, window: Window) -> tuple[Demand, Demand]:
        x, src = node.args[:2]
        if node.layout is None:
            return whole(x), whole(src)
        axis, select = self._axis(node), node.op == "aten.select_scatter"
        axes: list[int | None] = []
        ranges: list[int] = []
        for own, a, b in (
            (node.layout.y, window.y0, window.y1),
            (node.layout.x, window.x0, window.x1),
        ):
            written = index_demand(self._index(node), a, b) if own == axis else (a, b)
            axes.append(None if select and own == axis else own - (select and own > axis))
            ranges += written
        plane = node.plane
        return (
            Demand(x, window, node.layout.axes, plane),
            Demand(src, Window(*ranges), (axes[0], axes[1]), plane),
        )

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        return [demand for demand in self._demands(node, window) if not demand.producer.is_constant]

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        if node.layout is None:
            return call(node, {}, read)
        (into, of), axis = self._demands(node, window), self._axis(node)
        base = read(into)
        if axis not in node.layout.axes:
            return call(node, {0: base, 1: read(of)}, read)
        rows = axis == node.layout.y
        a, b = (window.y0, window.y1) if rows else (window.x0, window.x1)
        index = self._index(node)[a:b]
        written = np.flatnonzero(index != FILL)
        if not written.size:
            return base
        src = read(of)
        if node.op == "aten.select_scatter":
            src = src.unsqueeze(axis)
        origin = of.window.y0 if rows else of.window.x0
        local = torch.from_numpy(index[written] - origin).to(base.device)
        return base.index_copy(axis, torch.from_numpy(written).to(base.device), src.index_select(axis, local))
