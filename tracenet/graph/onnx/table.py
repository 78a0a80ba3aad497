"""The table of every ONNX operator that can be traced."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tracenet.graph.onnx.elementwise import ELEMENTWISE
from tracenet.graph.onnx.layers import LAYERS
from tracenet.graph.onnx.op import Translation
from tracenet.graph.onnx.resize import RESIZES
from tracenet.graph.onnx.shapes import SHAPES

TRANSLATIONS: Mapping[str, Translation] = MappingProxyType({**LAYERS, **ELEMENTWISE, **SHAPES, **RESIZES})
