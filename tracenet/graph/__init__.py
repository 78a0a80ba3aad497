"""Captured networks as plain graphs of single-output nodes."""

from tracenet.graph.capture import capture
from tracenet.graph.fold import fold_batch_norm
from tracenet.graph.graph import Graph, Layout, Node

__all__ = ["Graph", "Layout", "Node", "capture", "fold_batch_norm"]
