"""What windows cost: multiply-adds and bytes, per node and for whole networks."""

from __future__ import annotations

import math

from tracenet.graph.graph import CONSTANT, INPUT, Graph, Node
from tracenet.rft.rules.registry import find_rule
from tracenet_kernels.window import Window


def node_macs(node: Node, window: Window) -> int:
    """Multiply-adds to compute ``window`` of a node; 0 for operations that are not convolutions or matrix products."""
    if node.op in (INPUT, CONSTANT) or node.layout_error is not None:
        return 0
    return find_rule(node).macs(node, window)


def full_macs(graph: Graph) -> int:
    """Multiply-adds of the whole network, untraced."""
    return sum(node_macs(node, node.full_window) for node in graph.nodes)


def window_bytes(node: Node, window: Window) -> int:
    """Bytes of ``window`` of a node's output: all channels of all images in the batch."""
    cells = math.prod(node.shape)
    if node.layout is not None:
        plane = node.full_window.area
        cells = cells // plane * window.area if plane else 0
    return cells * node.dtype.itemsize
