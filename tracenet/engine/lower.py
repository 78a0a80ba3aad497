"""Lowering: a captured graph becomes a schedule."""

from __future__ import annotations

import math

import numpy as np

from tracenet.engine.fuse import Draft, Fusion, Stored
from tracenet.engine.order import arrange
from tracenet.engine.patterns import is_plane, is_vector
from tracenet.engine.schedule import Plane, Schedule, Step
from tracenet.graph.graph import Graph, Node
from tracenet.kept import kept_names


def lower(graph: Graph, *, reduce: bool = True) -> Schedule:
    """Fuse a graph's nodes into steps and put them in order.

    What no kernel computes becomes a step ``external`` of one node. Such steps may read and give anything; a value
    that is neither a plane of one image nor a vector, both fp32, stands as one cell of one channel.

    Args:
        graph: captured, layouts inferred (as in :attr:`tracenet.TracedModel.graph`).
        reduce: False makes the global vectors, which a plan may take from elsewhere, external steps.

    Raises:
        InputError: the network was captured on the meta device, without weights.
    """
    fusion = Fusion(graph, reduce=reduce)
    ordered = arrange(list(fusion.drafts.values()))
    keep = {fusion.source(graph.by_name[name]) for name in kept_names(graph)}
    planes: list[Plane] = []
    number: dict[Node, int] = {}
    for node in [*graph.inputs, *(draft.output for draft, _ in ordered)]:
        number[node] = len(planes)
        planes.append(_plane(node, node in keep))
    tensors: dict[str, np.ndarray] = {}
    steps = tuple(_step(draft, group, number, tensors) for draft, group in ordered)
    inputs = tuple(number[node] for node in graph.inputs)
    outputs = {name: fusion.source(node) for name, node in graph.outputs.items() if not node.is_constant}
    computed = {name: number[node] for name, node in outputs.items() if number[node] not in inputs}
    return Schedule(tuple(planes), steps, inputs, computed, tensors)


def _plane(node: Node, keep: bool) -> Plane:
    if not is_plane(node):
        return Plane(node.name, math.prod(node.shape) if is_vector(node) else 1, 1, 1, keep)
    return Plane(node.name, node.shape[1], *node.plane, keep)


def _step(draft: Draft, group: int, number: dict[Node, int], tensors: dict[str, np.ndarray]) -> Step:
    name = draft.output.name
    names: dict[str, str] = {}
    for attribute in ("weight", "scale", "bias"):
        stored: Stored | None = getattr(draft, attribute)
        if stored is not None:
            names[attribute] = stored.name or f"{name}:{attribute}"  # no constant has a colon
            tensors[names[attribute]] = np.ascontiguousarray(stored.values, np.float32)
    return Step(
        draft.op,
        name,
        tuple(number[x] for x in draft.inputs),
        number[draft.output],
        draft.ints,
        draft.floats,
        names,
        group,
        tuple(node.name for node in draft.nodes),
    )
