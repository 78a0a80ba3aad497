"""Multiply-adds of an ONNX graph, counted for the sizes that its tensors really have in one run.

Counted are convolutions and matrix products, as the tracer counts them; element-wise work is not. Shapes come from the
run itself: every operand gets a ``Shape`` node, so sizes that no shape inference can tell are right too. Products in
control flow (``If``, ``Loop``) are not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

COUNTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_SHAPE = "shape_of:"


def count_macs(path: str | Path, inputs: Mapping[str, NDArray[Any]]) -> int:
    """Multiply-adds of one run of the graph at ``path`` on ``inputs``."""
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type in COUNTED]
    names = dict.fromkeys(name for node in nodes for name in (*node.input[:2], node.output[0]))
    if not nodes:
        return 0
    del graph.output[:]
    for name in names:
        graph.node.append(onnx.helper.make_node("Shape", [name], [_SHAPE + name]))
        graph.output.append(onnx.helper.make_tensor_value_info(_SHAPE + name, onnx.TensorProto.INT64, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known = {port.name for port in session.get_inputs()}
    found = session.run(None, {name: value for name, value in inputs.items() if name in known})
    shapes = {name: [int(n) for n in shape] for name, shape in zip(names, found, strict=True)}
    return sum(_node_macs(node, shapes) for node in nodes)


def _node_macs(node: Any, shapes: Mapping[str, list[int]]) -> int:
    first, second, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type == "Conv":  # weights [out, in / groups, *kernel]
        return prod(out) * prod(second[1:])
    if node.op_type == "ConvTranspose":  # weights [in, out / groups, *kernel]
        return prod(first) * prod(second[1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return prod(out) * first[0 if transposed else 1]
    return prod(out) * first[-1]
