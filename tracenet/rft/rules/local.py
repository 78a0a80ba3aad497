"""The rule of neighbourhoods: what most operations of one's own need, in one line."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from tracenet.graph.graph import Layout, Node
from tracenet.rft.rules.pointwise import Pointwise, crop_output
from tracenet.rft.rules.registry import Demand, Reader, Rule, call, whole
from tracenet_kernels.errors import InputError
from tracenet_kernels.window import Window


class Local(Rule):
    """A cell of the output reads the cells around it: filters, local extrema, correlations over displacements.

    The output has the plane of its operands. The operation is run as it is on a crop that reaches further than the
    window, and the margin of the result is cut off. So it may pad by zeros, another constant or the nearest cell, and
    must do the same at every place of the plane. Operands of other planes, vectors and constants are read whole.

    Args:
        reach: how many cells it reads ``(above, below, left, right)``, or one number for all four. Where that depends
            on the operation's arguments, override :meth:`reach`.
    """

    def __init__(self, reach: int | tuple[int, int, int, int] = 0) -> None:
        self._reach = reach

    def reach(self, node: Node) -> int | tuple[int, int, int, int]:
        """Cells that are read above, below, left and right of a cell."""
        return self._reach

    def layout(self, node: Node) -> Layout | None:
        return _POINTWISE.layout(node)

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        grown = self._grown(node, window)
        return [_demand(node, operand, grown) for operand in node.operands if not operand.is_constant]

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        if node.layout is None or node.layout.merged:
            return crop_output(node, call(node, {}, read), window)
        grown = self._grown(node, window)
        crops = {i: read(_demand(node, x, grown)) for i, x in enumerate(node.operands) if _fits(node, x)}
        result = call(node, crops, read)
        rows = result.narrow(node.layout.y, window.y0 - grown.y0, window.height)
        return rows.narrow(node.layout.x, window.x0 - grown.x0, window.width)

    def _grown(self, node: Node, window: Window) -> Window:
        """The window and what lies within reach of it on the plane."""
        reach = self.reach(node)
        above, below, left, right = (reach,) * 4 if isinstance(reach, int) else reach
        if min(above, below, left, right) < 0:
            raise InputError(f"the rule of {node.op} reaches {reach}; every number must be 0 or more")
        grown = Window(window.y0 - above, window.y1 + below, window.x0 - left, window.x1 + right)
        return grown.clip(*node.plane)


def _fits(node: Node, operand: Node) -> bool:
    """Whether an operand has rows and columns where the output has them."""
    axes = _axes(node, operand)
    if axes is None:
        return False
    if operand.is_constant:
        return (operand.shape[axes[0]], operand.shape[axes[1]]) == node.plane
    return operand.layout is not None and operand.layout.axes == axes and operand.plane == node.plane


def _axes(node: Node, operand: Node) -> tuple[int, int] | None:
    """Where an operand's rows and columns are, counted from its last axis as the output's are."""
    own, shift = node.layout, node.ndim - operand.ndim
    if own is None or own.merged or own.y < shift or own.x < shift:
        return None
    return own.y - shift, own.x - shift


def _demand(node: Node, operand: Node, grown: Window) -> Demand:
    axes = _axes(node, operand)
    return Demand(operand, grown, axes) if axes is not None and _fits(node, operand) else whole(operand)


_POINTWISE = Pointwise()
