"""The dynamic mask head in a graph: coordinates beside features, then three 1x1 layers whose weights are inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tracenet.engine.patterns import array, is_plane, is_vector
from tracenet.graph.graph import Graph, Node
from tracenet.rft.rules.convolution import ConvSpec, conv_spec

CHANNELS = 8
LAYERS = (((8, 10, 1, 1), 0, 152), ((8, 8, 1, 1), 80, 160), ((1, 8, 1, 1), 144, 168))
"""Weight shape, and where in the parameters weights and biases start."""

_VIEWS = ("aten.view", "aten.reshape", "aten.expand", "aten.unsqueeze", "aten.squeeze", "aten.contiguous", "aten.clone")

Source = Callable[[Node], Node]
"""The node whose values a node has."""


@dataclass(frozen=True)
class MaskHead:
    """One match; ``inner`` are the nodes that nothing else needs, ``final`` gives the logits."""

    features: Node
    theta: Node
    origin: Node
    size_of_interest: Node
    stride: int
    final: Node
    inner: frozenset[Node]

    @property
    def inputs(self) -> list[Node]:
        return [self.features, self.theta, self.origin, self.size_of_interest]


def find_mask_heads(graph: Graph, source: Source) -> dict[Node, MaskHead]:
    """Every mask head of a graph by the node that gives its logits."""
    users = graph.users()
    found: dict[Node, MaskHead] = {}
    for node in graph.nodes:
        if node.op == "aten.conv2d" and not node.args[1].is_constant:
            head = _match(node, source)
            outputs = set(graph.outputs.values())
            if head is not None and not any(
                inner in outputs or any(u not in head.inner and u is not node for u in users[inner])
                for inner in head.inner
            ):
                found[node] = head
    return found


def _match(final: Node, source: Source) -> MaskHead | None:
    thetas: set[Node] = set()
    node = final
    for depth in (2, 1, 0):
        spec = _pointwise_convolution(node)
        theta = None if spec is None else _parameters(spec, *LAYERS[depth])
        if spec is None or theta is None:
            return None
        thetas.add(theta)
        node = source(spec.x)
        if depth:
            if node.op != "aten.relu":
                return None
            node = source(node.args[0])
    parts = _flat_cat(node, source)
    if len(thetas) != 1 or len(parts) != 3 or not is_plane(parts[2]) or parts[2].shape[1] != CHANNELS:
        return None
    coordinates = [_coordinate(part, axis) for axis, part in enumerate(parts[:2])]
    if coordinates[0] is None or coordinates[0] != coordinates[1]:
        return None
    origin, size_of_interest, stride = coordinates[0]
    theta = thetas.pop()
    leaves = {parts[2], theta, origin, size_of_interest}
    if not all(is_vector(leaf) for leaf in (theta, origin, size_of_interest)):
        return None
    return MaskHead(parts[2], theta, origin, size_of_interest, stride, final, _between(final, leaves))


def _pointwise_convolution(node: Node) -> ConvSpec | None:
    if node.op != "aten.conv2d" or not is_plane(node):
        return None
    spec = conv_spec(node)
    plain = (spec.kernel, spec.stride, spec.padding, spec.groups) == ((1, 1), (1, 1), ((0, 0), (0, 0)), 1)
    return spec if plain and spec.bias is not None else None


def _parameters(spec: ConvSpec, shape: tuple[int, ...], weights_at: int, biases_at: int) -> Node | None:
    """The vector that a layer's weights and biases are cut out of, at these positions."""
    assert spec.bias is not None
    if spec.weight.shape != shape:
        return None
    cuts = [_cut(part) for part in (spec.weight, spec.bias)]
    starts, counts = (weights_at, biases_at), (int(np.prod(shape)), shape[0])
    for cut, start, count in zip(cuts, starts, counts, strict=True):
        if cut is None or cut[1:] != (start, start + count) or cut[0] is not cuts[0][0]:  # type: ignore[index]
            return None
    assert cuts[0] is not None
    return cuts[0][0]


def _cut(node: Node) -> tuple[Node, int, int] | None:
    """``theta, start, stop`` of a row-major view of ``theta[:, start:stop]``, theta ``[1, 169]``."""
    node = _unview(node)
    if node.op != "aten.slice" or node.arg(4, "step", 1) != 1 or node.args[0].shape != (1, 169) or node.args[1] != 1:
        return None
    return node.args[0], int(node.args[2]), int(node.args[3])


def _unview(node: Node) -> Node:
    while node.op in _VIEWS:
        node = node.args[0]
    return node


def _flat_cat(node: Node, source: Source) -> list[Node]:
    """Operands of a concatenation over channels, those of nested ones in their place."""
    cat = source(node)
    if cat.op != "aten.cat" or cat.arg(1, "dim", 0) % cat.ndim != 1:
        return [node]
    return [leaf for part in cat.args[0] for leaf in _flat_cat(part, source)]


def _coordinate(node: Node, axis: int) -> tuple[Node, Node, int] | None:
    """``origin, size_of_interest, stride`` of ``(origin[axis] - (stride * i + stride // 2)) / size_of_interest``."""
    quotient = _unview(node)
    if quotient.op != "aten.div" or quotient.kwargs:
        return None
    difference, size_of_interest = quotient.args[0], _unview(quotient.args[1])
    if difference.op != "aten.sub" or difference.kwargs or not difference.args[1].is_constant:
        return None
    picked, pixels = _unview(difference.args[0]), difference.args[1]
    if picked.op != "aten.select" or tuple(picked.args[1:]) != (1, axis) or picked.args[0].shape != (1, 2):
        return None
    cells = (1, 1, 1, node.shape[3]) if axis == 0 else (1, 1, node.shape[2], 1)
    if pixels.shape != cells or size_of_interest.shape != (1,):
        return None
    values = array(pixels).reshape(-1)
    stride = int(values[1] - values[0]) if len(values) > 1 else int(values[0]) * 2
    if stride < 1 or not np.array_equal(values, np.arange(len(values)) * stride + stride // 2):
        return None
    return picked.args[0], size_of_interest, stride


def _between(final: Node, leaves: set[Node]) -> frozenset[Node]:
    """Nodes that the logits need behind the leaves, constants and the logits themselves left out."""
    inner: set[Node] = set()
    stack = list(final.operands)
    while stack:
        node = stack.pop()
        if node not in leaves and node not in inner and not node.is_constant:
            inner.add(node)
            stack.extend(node.operands)
    return frozenset(inner)
