"""Fusion: one walk over the graph turns nodes into drafts of steps, each absorbing what its kernel computes anyway.

A node is absorbed by its consumer's step only where nothing else reads it and it is no output of the graph: planes that
somebody may ask for stay planes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tracenet.engine import patterns
from tracenet.engine.mask_pattern import find_mask_heads
from tracenet.engine.schedule import ACTIVATIONS, RESIZE_MODES
from tracenet.graph.graph import INPUT, Graph, Node
from tracenet.rft.rules.convolution import ConvSpec

RELU = ACTIVATIONS.index("relu")
HOMOGENEOUS = (RELU, ACTIVATIONS.index("leaky_relu"))
"""Activations that a positive factor may cross."""


@dataclass(frozen=True)
class Stored:
    """A tensor of a step: values, and the name of the constant they are (None: made here, named after the step)."""

    values: np.ndarray
    name: str | None = None

    @classmethod
    def of(cls, node: Node) -> Stored:
        return cls(patterns.array(node), node.name)


@dataclass(eq=False)
class Draft:
    """A step in the making; ``inputs`` and ``output`` are nodes whose values are planes.

    ``weight`` [out, in / groups, ky, kx] belongs to convolutions, ``scale`` and ``bias`` [out] to them and norms.
    """

    op: str
    inputs: list[Node]
    output: Node
    nodes: list[Node]
    ints: dict[str, int] = field(default_factory=dict)
    floats: dict[str, float] = field(default_factory=dict)
    weight: Stored | None = None
    scale: Stored | None = None
    bias: Stored | None = None

    @property
    def activated(self) -> bool:
        return bool(self.ints.get("activation"))

    @property
    def is_bare(self) -> bool:
        """A convolution or resize of one operand whose epilogue is still empty but for scale and bias."""
        return len(self.inputs) == 1 and not self.activated

    def take(self, node: Node, *absorbed: Draft) -> Draft:
        """Compute ``node`` as well, and what other drafts stood for."""
        nodes = [*self.nodes, *(n for draft in absorbed for n in draft.nodes), node]
        self.nodes = sorted(nodes, key=lambda n: n.index)
        self.output = node
        return self

    def transform(self, scale: np.ndarray, shift: np.ndarray) -> None:
        """Multiply a convolution's result by ``scale`` and add ``shift``, both [out], in float64."""
        if np.any(scale != 1):
            own = 1.0 if self.scale is None else self.scale.values.astype(np.float64)
            self.scale = Stored(own * scale)
        if self.bias is not None or np.any(shift != 0):
            own = 0.0 if self.bias is None else self.bias.values.astype(np.float64)
            if np.any(scale != 1) or np.any(shift != 0):
                self.bias = Stored(own * scale + shift)


class Fusion:
    """The walk. ``drafts`` are in an order in which producers come first.

    Args:
        graph: captured, layouts inferred.
        reduce: False leaves global vectors to the caller, as external steps.

    Attributes:
        drafts: steps by the node that each gives.
    """

    def __init__(self, graph: Graph, *, reduce: bool = True) -> None:
        self.graph = graph
        self.reduce = reduce
        self.drafts: dict[Node, Draft] = {}
        self._source = patterns.sources(graph)
        self._outputs = {self.source(node) for node in graph.outputs.values()}
        self._uses = Counter(
            self.source(operand)
            for node in graph.nodes
            if self._source[node] is node
            for operand in node.operands
            if not operand.is_constant
        )
        self._mask_heads = find_mask_heads(graph, self.source)
        inner = {node for head in self._mask_heads.values() for node in head.inner}
        for node in graph.nodes:
            if not node.is_constant and node.op != INPUT and node not in inner:
                self._add(node)
        self._drop_unread_mask_heads()

    def source(self, node: Node) -> Node:
        """The node that computes the values of ``node``: itself, or what it passes on unchanged."""
        return self._source[node]

    def _add(self, node: Node) -> None:
        source = self.source(node)
        if source is not node:
            if source in self.drafts:
                self.drafts[source].nodes.append(node)
            return
        draft = next((d for make in _MAKERS if (d := make(self, node)) is not None), None)
        self.drafts[node] = draft or self._external(node)

    def _external(self, node: Node) -> Draft:
        inputs = [self.source(operand) for operand in node.operands if not operand.is_constant]
        return Draft("external", inputs, node, [node])

    def _open(self, node: Node, *ops: str) -> Draft | None:
        """The draft that gives a node which its one reader may absorb."""
        draft = self.drafts.get(node)
        if draft is None or draft.op not in ops or self._uses[node] != 1 or node in self._outputs:
            return None
        return draft

    def _close(self, *absorbed: Draft) -> None:
        for draft in absorbed:
            del self.drafts[draft.output]

    def _planes(self, *nodes: Node) -> list[Node]:
        return [self.source(node) for node in nodes]

    def _mask_head(self, node: Node) -> Draft | None:
        head = self._mask_heads.get(node)
        if head is None:
            return None
        nodes = sorted({*head.inner, node}, key=lambda n: n.index)
        return Draft("mask_head", self._planes(*head.inputs), node, nodes, {"stride": head.stride, "factor": 0})

    def _convolution(self, node: Node) -> Draft | None:
        spec = patterns.convolution(node)
        if spec is None:
            return None
        leading = tuple(before for before, _ in spec.padding)
        bias = None if spec.bias is None else Stored.of(spec.bias)
        (x,), nodes = self._planes(spec.x), [node]
        pad = self._padding_of(x, node, spec)
        if pad is not None:
            leading = tuple(a + b for a, b in zip(leading, pad, strict=True))
            self._close(self.drafts[x])
            x, nodes = self.source(x.args[0]), [x, node]
        ints = patterns.window_attributes(spec.kernel, spec.stride, leading, spec.dilation)
        ints["groups"] = spec.groups
        return Draft("conv2d", [x], node, nodes, ints, weight=Stored.of(spec.weight), bias=bias)

    def _padding_of(self, x: Node, node: Node, spec: ConvSpec) -> tuple[int, int] | None:
        """(top, left) of zeros around a plane that the convolution ``node`` alone reads: it may pad as well.

        Past the last row and column a step pads by up to its reach, or by as much as before the first.
        """
        pad = patterns.zero_padding(x)
        if pad is None or self._open(x, "external") is None:
            return None
        for axis in range(2):
            length, before = x.args[0].plane[axis], pad[axis] + spec.padding[axis][0]
            reach = spec.dilation[axis] * (spec.kernel[axis] - 1) + 1
            read = (node.plane[axis] - 1) * spec.stride[axis] + reach
            if read > length + before + max(before, reach):
                return None
        return pad

    def _affine(self, node: Node) -> Draft | None:
        """Into the convolution before it; behind its ReLU where factors are positive; else a depthwise 1x1."""
        found = patterns.affine(node)
        if found is None:
            return None
        x = self.source(found.x)
        conv = self._open(x, "conv2d")
        positive = not np.any(found.shift) and bool(np.all(found.scale > 0))
        crossed = not conv.activated or (positive and conv.ints["activation"] in HOMOGENEOUS) if conv else False
        if conv is not None and len(conv.inputs) == 1 and crossed:
            self._close(conv)
            conv.transform(found.scale, found.shift)
            return conv.take(node)
        ints = patterns.window_attributes((1, 1), (1, 1), (0, 0), (1, 1))
        ints["groups"] = node.shape[1]
        weight, bias = Stored(found.scale.reshape(-1, 1, 1, 1)), Stored(found.shift)
        return Draft("conv2d", [x], node, [node], ints, weight=weight, bias=bias if np.any(found.shift) else None)

    def _activation(self, node: Node) -> Draft | None:
        found = patterns.activation(node)
        if found is None:
            return None
        (x,) = self._planes(node.args[0])
        number = ACTIVATIONS.index(found.name)
        draft = self._open(x, "conv2d", "add", "mul", "group_norm")
        if draft is not None and not draft.activated:
            self._close(draft)
            draft.ints["activation"] = number
            draft.floats |= found.floats
            return draft.take(node)
        return Draft("add", [x], node, [node], {"activation": number}, found.floats)

    def _pooling(self, node: Node) -> Draft | None:
        found = patterns.pooling(node)
        if found is None:
            return None
        op, ints = found
        (x,) = self._planes(node.args[0])
        conv = self._open(x, "conv2d") if op == "max_pool2d" else None
        if conv is not None and conv.ints.get("activation") == RELU and len(conv.inputs) == 1:
            return self._stem(conv, node, ints)
        return Draft(op, [x], node, [node], ints)

    def _stem(self, conv: Draft, node: Node, pool: dict[str, int]) -> Draft:
        self._close(conv)
        if conv.scale is not None and conv.weight is not None:  # the stem's kernel has a bias alone
            weight = conv.weight.values * conv.scale.values.reshape(-1, 1, 1, 1)
            conv.weight, conv.scale = Stored(weight), None
        height, width = conv.output.plane
        conv.ints |= {f"pool_{name}": value for name, value in pool.items()}
        conv.ints |= {"conv_height": height, "conv_width": width}
        conv.op = "stem"
        return conv.take(node)

    def _resize(self, node: Node) -> Draft | None:
        found = patterns.resize(node)
        if found is None:
            return None
        mode, ints, floats = found
        (x,) = self._planes(node.args[0])
        head = self.drafts.get(x)
        if mode == "aligned_bilinear" and head is not None and head.op == "mask_head" and not head.ints["factor"]:
            return Draft("mask_head", list(head.inputs), node, [*head.nodes, node], {**head.ints, **ints})
        return Draft("resize", [x], node, [node], {"mode": RESIZE_MODES.index(mode), **ints}, floats)

    def _sum(self, node: Node) -> Draft | None:
        if node.op != "aten.add" or node.arg(2, "alpha", 1) != 1 or not patterns.is_plane(node):
            return None
        operands = [node.args[0], node.arg(1, "other")]
        if not all(isinstance(o, Node) and patterns.is_plane(o) and o.shape == node.shape for o in operands):
            return None
        a, b = self._planes(*operands)
        for x, other in ((a, b), (b, a)):
            conv = self._open(x, "conv2d")
            if conv is not None and conv.is_bare:
                return self._residual(conv, other, node)
        for x, other in ((b, a), (a, b)):
            resized = self._open(x, "resize")
            if resized is not None and resized.is_bare:
                self._close(resized)
                resized.inputs.append(other)
                return resized.take(node)
        return Draft("add", [a, b], node, [node])

    def _residual(self, conv: Draft, other: Node, node: Node) -> Draft:
        resized = self._open(other, "resize")
        factor = patterns.nearest_factor(other) if resized is not None and resized.is_bare else 0
        self._close(conv)
        if resized is None or not factor:
            conv.inputs.append(other)
            return conv.take(node)
        self._close(resized)
        conv.inputs.append(resized.inputs[0])
        conv.ints["residual_factor"] = factor
        return conv.take(node, resized)

    def _sigmoid(self, node: Node) -> Draft | None:
        if node.op != "aten.sigmoid" or not patterns.is_plane(node) or not patterns.is_plane(node.args[0]):
            return None
        return Draft("sigmoid", self._planes(node.args[0]), node, [node])

    def _product(self, node: Node) -> Draft | None:
        operands = patterns.product(node)
        return None if operands is None else Draft("mul", self._planes(*operands), node, [node])

    def _plane_mean(self, node: Node) -> Draft | None:
        if not self.reduce or not patterns.is_plane_mean(node):
            return None
        return Draft("plane_mean", self._planes(node.args[0]), node, [node])

    def _group_norm(self, node: Node) -> Draft | None:
        found = patterns.group_norm(node)
        if found is None:
            return None
        scale, bias = (None if p is None else Stored.of(p) for p in found)
        floats = {"epsilon": float(node.arg(4, "eps", 1e-5))}
        (x,) = self._planes(node.args[0])
        return Draft("group_norm", [x], node, [node], {"groups": int(node.args[1])}, floats, scale=scale, bias=bias)

    def _slice(self, node: Node) -> Draft | None:
        first = patterns.first_channel(node)
        if first is None:
            return None
        return Draft("take_channels", self._planes(node.args[0]), node, [node], {"first": first})

    def _concat(self, node: Node) -> Draft | None:
        parts = patterns.concatenation(node)
        return None if parts is None else Draft("concat", self._planes(*parts), node, [node])

    def _drop_unread_mask_heads(self) -> None:
        """An upsampled mask is made from the features; the logits before it are a step only where somebody asks."""
        read = {x for draft in self.drafts.values() for x in draft.inputs} | self._outputs
        for node in self._mask_heads:
            if node not in read:
                del self.drafts[node]


_MAKERS: tuple[Callable[[Fusion, Node], Draft | None], ...] = (
    Fusion._mask_head,
    Fusion._convolution,
    Fusion._affine,
    Fusion._activation,
    Fusion._pooling,
    Fusion._resize,
    Fusion._sum,
    Fusion._sigmoid,
    Fusion._product,
    Fusion._plane_mean,
    Fusion._group_norm,
    Fusion._slice,
    Fusion._concat,
)
