"""Graph and Node: one captured network as single-output nodes in topological order.

A node holds the operation to call, its arguments (other nodes stand in them where tensors go), the
shape and dtype of its output, and its *layout*: which tensor axes are the rows and columns of its plane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tracenet_kernels.window import Window

INPUT = "input"
CONSTANT = "constant"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the plane's rows and columns lie in a tensor.

    ``y`` and ``x`` are axis numbers. If ``merged``, both axes are one (``y == x``), holding the plane row by row,
    as in a [N, H * W, C] token tensor. ``height`` and ``width`` are the plane's full size in cells.
    """

    y: int
    x: int
    height: int
    width: int
    merged: bool = False

    @property
    def axes(self) -> tuple[int, int]:
        return (self.y, self.x)

    def moved(self, y: int, x: int) -> Layout:
        """The same plane on other tensor axes."""
        return Layout(y, x, self.height, self.width, self.merged)


@dataclass(eq=False, slots=True)
class Node:
    """One operation. ``layout is None`` means the output has no rows and columns to window ("flat").

    Attributes:
        name: the module's qualified name, extended by the operation where a module runs several, and by
            ``@k`` for the k-th further call of a shared module.
        op: ``"input"``, ``"constant"``, or an operator's name such as ``"aten.conv2d"``.
        target: the callable (an ``OpOverload``); ``None`` for inputs and constants.
        item: which element of a tuple-valued operation this node is, else ``None``.
        shape, dtype: of the full output.
        value: the tensor of a constant.
        source: the line of the model's code that it comes from, as ``file:line: code``; empty where it is not known.
        layout_error: why the layout could not be inferred (raised only when a plan visits the node).
    """

    name: str
    op: str
    target: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    dtype: torch.dtype
    module: str = ""
    item: int | None = None
    value: Tensor | None = None
    layout: Layout | None = None
    layout_error: Exception | None = None
    index: int = -1
    cache: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def operands(self) -> list[Node]:
        """Producer nodes in argument order, one entry per occurrence."""
        return list(iter_nodes((self.args, self.kwargs)))

    @property
    def is_constant(self) -> bool:
        return self.op == CONSTANT

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def plane(self) -> tuple[int, int]:
        """Height and width in cells; flat nodes count as one cell."""
        return (self.layout.height, self.layout.width) if self.layout is not None else (1, 1)

    @property
    def full_window(self) -> Window:
        return Window.full(*self.plane)

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """Argument by position or keyword, as the operator's schema allows both."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def __repr__(self) -> str:
        return f"<{self.name}: {self.op} {list(self.shape)}>"


def iter_nodes(value: Any) -> Iterator[Node]:
    """Every node inside a nest of tuples, lists and dicts, in order."""
    if isinstance(value, Node):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from iter_nodes(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from iter_nodes(item)


def map_nodes(value: Any, function: Callable[[Node], Any]) -> Any:
    """Copy a nest of tuples, lists and dicts with every node replaced by ``function(node)``."""
    if isinstance(value, Node):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_nodes(item, function) for item in value)
    if isinstance(value, list):
        return [map_nodes(item, function) for item in value]
    if isinstance(value, dict):
        return {key: map_nodes(item, function) for key, item in value.items()}
    return value


class Graph:
    """Nodes in topological order with named inputs and outputs.

    Attributes:
        nodes: producers before consumers.
        inputs: input nodes in the order of the model's arguments.
        outputs: output name -> node; names come from the model's own output structure
            (``"P3"`` for a dict key, ``"0"`` or ``"0.1"`` for positions, ``"output"`` for a single tensor).
    """

    def __init__(self, nodes: list[Node], inputs: list[Node], outputs: dict[str, Node]) -> None:
        self.nodes = nodes
        self.inputs = inputs
        self.outputs = outputs
        self.renumber()

    def renumber(self) -> None:
        """Refresh node indices after nodes were added or removed."""
        self.by_name = {node.name: node for node in self.nodes}
        for index, node in enumerate(self.nodes):
            node.index = index

    def users(self) -> dict[Node, list[Node]]:
        """Consumers of every node, one entry per occurrence."""
        users: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for operand in node.operands:
                users[operand].append(node)
        return users

    def keep_reachable(self) -> None:
        """Drop nodes that no output depends on; inputs stay."""
        alive: set[Node] = set(self.inputs)
        stack = list(self.outputs.values())
        while stack:
            node = stack.pop()
            if node not in alive or node.op == INPUT:
                alive.add(node)
                stack.extend(operand for operand in node.operands if operand not in alive)
        self.nodes = [node for node in self.nodes if node in alive]
        self.renumber()

    def __len__(self) -> int:
        return len(self.nodes)
