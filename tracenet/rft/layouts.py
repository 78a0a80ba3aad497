"""Layout inference: walk the graph forwards once and let every rule say where its output's plane lies."""

from __future__ import annotations

from tracenet.graph.graph import CONSTANT, INPUT, Graph
from tracenet.rft.rules.registry import find_rule, image_layout
from tracenet_kernels.errors import UnsupportedOpError


def infer_layouts(graph: Graph) -> None:
    """Set ``layout`` of every node in place.

    Inputs of three or more dimensions have their plane on the last two axes; smaller inputs and constants are flat.
    A node without a rule keeps its error, to be raised when a plan first visits it: other outputs stay usable.
    """
    for node in graph.nodes:
        if node.op == INPUT:
            node.layout = image_layout(node.shape) if node.ndim >= 3 else None
        elif node.op != CONSTANT:
            try:
                node.layout = find_rule(node).layout(node)
                node.layout_error = None
            except UnsupportedOpError as error:
                # A consumer of an unsupported node reads it whole, so its own layout may be anything.
                node.layout, node.layout_error = None, error
