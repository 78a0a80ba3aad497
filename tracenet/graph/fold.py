"""Fold inference BatchNorm into the convolution that feeds it.

``y = (conv(x) - mean) / sqrt(var + eps) * gamma + beta`` becomes one convolution with
``w' = w * s`` and ``b' = (b - mean) * s + beta``, ``s = gamma / sqrt(var + eps)``; s and b' are computed in float64.
A convolution that is called several times (heads shared over levels) is folded once and shared. Where the calls have
different BatchNorms, or some have none, nothing is folded: the weight stays one, and the BatchNorms stay nodes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tracenet.graph.graph import CONSTANT, Graph, Node, map_nodes

BATCH_NORMS = {
    "aten.batch_norm": (5, 7),
    "aten._native_batch_norm_legit_no_training": (None, 6),
}
"""Operator -> positions of its training flag (if it has one) and of eps."""


def is_batch_norm(node: Node) -> bool:
    """Whether the node is a BatchNorm that uses stored statistics."""
    positions = BATCH_NORMS.get(node.op)
    return positions is not None and not (positions[0] is not None and node.args[positions[0]])


def fold_batch_norm(graph: Graph) -> int:
    """Fold every BatchNorm whose producer is a convolution with constant weights and no other user, in place.

    All convolutions of one weight must have the same BatchNorm.

    Returns the number of nodes folded. Values change by rounding only.
    """
    pairs = _pairs(graph)
    by_weight: dict[Node, set[Any]] = {}
    for node in graph.nodes:
        if _foldable(node):
            norm = pairs.get(node)
            by_weight.setdefault(node.args[1], set()).add(None if norm is None else _key(node, norm))
    replaced: dict[Node, Node] = {}
    new_constants: dict[Node, list[Node]] = {}
    shared: dict[tuple[Any, ...], list[Node]] = {}
    for conv, norm in pairs.items():
        if len(by_weight[conv.args[1]]) > 1:
            continue
        key = _key(conv, norm)
        if key not in shared:
            parameters = [None if p is None else p.value for p in norm.args[1:5]]
            weight, bias = _folded(conv, parameters, _eps(norm))
            shared[key] = new_constants[conv] = [_stored(conv, "weight", weight), _stored(conv, "bias", bias)]
        replaced[norm] = conv
    constants = {conv: shared[_key(conv, norm)] for norm, conv in replaced.items()}  # before any argument changes
    for conv, parts in constants.items():
        conv.args = (conv.args[0], *parts, *conv.args[3:])
    _replace(graph, replaced, new_constants)
    return len(replaced)


def _pairs(graph: Graph) -> dict[Node, Node]:
    """Convolution -> the BatchNorm with stored parameters that alone reads it."""
    users = graph.users()
    outputs = set(graph.outputs.values())
    pairs: dict[Node, Node] = {}
    for norm in graph.nodes:
        if not is_batch_norm(norm) or any(isinstance(p, Node) and not p.is_constant for p in norm.args[1:5]):
            continue
        conv = norm.args[0]
        if _foldable(conv) and len(users[conv]) == 1 and conv not in outputs:
            pairs[conv] = norm
    return pairs


def _key(conv: Node, norm: Node) -> tuple[Any, ...]:
    """What the folded weight depends on."""
    return (conv.op, conv.arg(6, "groups", 1), conv.args[1], conv.arg(2, "bias"), *norm.args[1:5], _eps(norm))


def _eps(norm: Node) -> float:
    return float(norm.args[BATCH_NORMS[norm.op][1]])


def _foldable(node: Any) -> bool:
    if not isinstance(node, Node) or node.op not in ("aten.conv2d", "aten.conv_transpose2d"):
        return False
    weight, bias = node.args[1], node.arg(2, "bias")
    return weight.is_constant and (bias is None or bias.is_constant) and "bias" not in node.kwargs


def _folded(conv: Node, parameters: list[Tensor | None], eps: float) -> tuple[Tensor, Tensor]:
    gamma, beta, mean, var = parameters
    assert mean is not None and var is not None
    weight = conv.args[1].value
    bias_node = conv.arg(2, "bias")
    scale = torch.rsqrt(var.double() + eps)
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() if bias_node is None else bias_node.value.double() - mean.double()
    shift = shift * scale
    if beta is not None:
        shift = shift + beta.double()
    if conv.op == "aten.conv2d":
        folded = weight * scale.to(weight.dtype).view(-1, 1, 1, 1)
    else:  # [Cin, Cout / groups, kh, kw]: output channels run over groups, then the second axis
        groups = int(conv.arg(6, "groups", 1))
        per_group = scale.to(weight.dtype).view(groups, 1, -1, 1, 1)
        folded = (weight.view(groups, -1, *weight.shape[1:]) * per_group).view(weight.shape)
    return folded, shift.to(weight.dtype)


def _stored(conv: Node, kind: str, value: Tensor) -> Node:
    return Node(f"{conv.name}.folded_{kind}", CONSTANT, None, (), {}, tuple(value.shape), value.dtype, value=value)


def _replace(graph: Graph, replaced: dict[Node, Node], new_constants: dict[Node, list[Node]]) -> None:
    nodes: list[Node] = []
    for node in graph.nodes:
        if node in replaced:
            continue
        nodes.extend(new_constants.get(node, ()))
        node.args, node.kwargs = map_nodes((node.args, node.kwargs), lambda n: replaced.get(n, n))
        nodes.append(node)
    graph.nodes = nodes
    graph.outputs = {name: replaced.get(node, node) for name, node in graph.outputs.items()}
    graph.keep_reachable()
