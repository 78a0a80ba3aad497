"""ONNX models as traced graphs, and traced graphs as ONNX models; needs the optional package ``onnx``."""

from tracenet.graph.onnx.network import capture_onnx
from tracenet.graph.onnx.table import TRANSLATIONS

__all__ = ["TRANSLATIONS", "capture_onnx"]
