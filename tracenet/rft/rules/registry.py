"""What a backward rule is, and the registry that finds one for an operation.

A rule answers three questions about one node: which tensor axes are its plane (``layout``), which window of
each producer a window of its output reads (``demands``), and how to compute that window from crops (``run``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tracenet.graph.capture import op_name, run_node
from tracenet.graph.graph import Layout, Node, map_nodes
from tracenet_kernels.errors import InputError, UnsupportedOpError
from tracenet_kernels.window import Window


class Demand(NamedTuple):
    """A window one consumer needs of its producer, possibly reaching past the plane.

    ``axes`` are the producer's tensor axes on which the consumer counts rows and columns; if both are one flattened
    axis, ``plane`` says how many of each it holds. Where they are not the producer's own layout (say, a convolution
    over a transposed tensor), the tracer demands the whole plane.
    """

    producer: Node
    window: Window
    axes: tuple[int | None, int | None]
    plane: tuple[int, int] | None = None

    @property
    def fits(self) -> bool:
        """Whether consumer and producer count rows and columns alike, so that a window is enough."""
        layout = self.producer.layout
        if layout is None or self.axes != layout.axes:
            return False
        return not layout.merged or self.plane in (None, self.producer.plane)


class Reader(Protocol):
    """Gives a rule its operands while a plan is executed: autocrop and autopad."""

    def __call__(self, demand: Demand, fill: float | None = None) -> Tensor:
        """The producer's values inside ``demand.window``; cells off the plane hold ``fill``."""
        ...

    def whole(self, producer: Node) -> Tensor:
        """The producer's full tensor (it must have been demanded whole, or be flat or constant)."""
        ...


class Rule:
    """Base class of backward rules; see :mod:`tracenet.rft.rules.registry` for the contract.

    Windows are in cells of the node's own plane. ``demands`` may reach past the producer's plane: what the tracer
    clips off is recorded as the border, and ``read(demand, fill=...)`` puts padding there.
    """

    def layout(self, node: Node) -> Layout | None:
        """Axes of the output's plane, or None if nothing in it can be windowed."""
        raise NotImplementedError

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        """What the node reads of each producer to compute ``window``. Constants need not be listed."""
        raise NotImplementedError

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        """Compute exactly ``window`` of the node's output."""
        raise NotImplementedError

    def barrier(self, node: Node) -> str | None:
        """Why this node reads whole planes, or None if it does not."""
        return None

    def macs(self, node: Node, window: Window) -> int:
        """Multiply-adds to compute ``window`` (convolutions and matrix products only)."""
        return 0


_RULES: dict[str, Rule] = {}


def register_rule(*ops: Any, replace: bool = False) -> Callable[[type[Rule] | Rule], type[Rule] | Rule]:
    """Register a rule for operations named as in ``Node.op``, e.g. ``"aten.conv2d"`` or ``"mylib.my_op"``.

    Instead of a name, the operation itself, which cannot be misspelt: what ``torch.library.custom_op`` gives, or
    ``torch.ops.mylib.my_op``. Works as a class decorator (the class is instantiated without arguments) or on an
    instance::

        @tracenet.register_rule("mylib.blur3")
        class Blur3(tracenet.Rule):
            ...

        tracenet.register_rule("mylib.my_activation")(tracenet.rft.rules.Pointwise())

    Raises:
        InputError: an operation already has a rule and ``replace`` is False, or something else came.
    """
    names = [_name_of(op) for op in ops]

    def add(rule: type[Rule] | Rule) -> type[Rule] | Rule:
        instance = rule() if isinstance(rule, type) else rule
        if not isinstance(instance, Rule):
            raise InputError(f"a {type(instance).__name__} came as a rule; pass a tracenet.Rule, or a class of it")
        for op in names:
            if op in _RULES and not replace:
                raise InputError(
                    f"{op} already has a rule ({type(_RULES[op]).__name__}); pass replace=True to replace it"
                )
            _RULES[op] = instance
        return rule

    return add


def _name_of(op: Any) -> str:
    """``mylib.my_op`` for an operation or for its name, also as ``mylib::my_op``."""
    name = op if isinstance(op, str) else getattr(op, "_qualname", None) or getattr(op, "_qualified_op_name", None)
    if isinstance(op, torch._ops.OpOverload):
        return op_name(op)
    if not isinstance(name, str) or not name:
        raise InputError(
            f"a {type(op).__name__} came as an operation; pass a name as in Node.op ('mylib.my_op'), or what "
            "torch.library.custom_op gave"
        )
    return name.replace("::", ".")


def registered_ops() -> list[str]:
    """Operations that have a rule."""
    return sorted(_RULES)


def find_rule(node: Node) -> Rule:
    """The rule of a node.

    A node without a rule whose operands are all flat has no plane to window: it is computed whole, exactly.

    Raises:
        UnsupportedOpError: no rule is registered and an operand has a plane.
    """
    rule = _RULES.get(node.op)
    if rule is not None:
        return rule
    if all(operand.layout is None for operand in node.operands):
        return _FLAT
    raise UnsupportedOpError(
        f"node {node.name!r} is {node.op}{f' (at {node.source})' if node.source else ''}, which has no backward rule; "
        "register one with "
        f"@tracenet.register_rule({node.op!r}) (tracenet.rft.rules.Pointwise() if every output cell reads only the "
        "same cell of its inputs, tracenet.rft.rules.Barrier() if it reads the whole plane)"
    )


def call(node: Node, replace: dict[int, Tensor], read: Reader) -> Tensor:
    """Run a node's own operation with some operands (by position in ``node.operands``) given, the others whole."""
    position = -1

    def value(operand: Node) -> Tensor:
        nonlocal position
        position += 1
        return replace[position] if position in replace else read.whole(operand)

    args, kwargs = map_nodes((node.args, node.kwargs), value)
    return run_node(node, args, kwargs)


def whole(producer: Node) -> Demand:
    """A demand for everything a producer holds."""
    axes = producer.layout.axes if producer.layout is not None else (None, None)
    return Demand(producer, producer.full_window, axes)


class Flat(Rule):
    """Operations on tensors without rows and columns: computed whole."""

    def layout(self, node: Node) -> Layout | None:
        return None

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        return [whole(operand) for operand in node.operands if not operand.is_constant]

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        return call(node, {}, read)


_FLAT = Flat()


def image_layout(shape: tuple[int, ...]) -> Layout:
    """The last two axes: how convolutions, pools and resizes see a tensor."""
    n = len(shape)
    return Layout(n - 2, n - 1, shape[-2], shape[-1])


def image_demand(producer: Node, window: Window) -> Demand:
    """A demand counted on the producer's last two axes."""
    return Demand(producer, window, (producer.ndim - 2, producer.ndim - 1))
