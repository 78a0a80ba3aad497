"""Small ONNX models for tests, and ONNX Runtime to say what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from tracenet.traced import TracedModel
from tracenet_kernels.window import Window

Node = tuple[Any, ...]
"""Operator, inputs, outputs and (optional) attributes; names are words with spaces between them."""


def onnx_model(
    nodes: Sequence[Node],
    shape: Sequence[Any] | None = (1, 3, 17, 19),
    constants: Mapping[str, Any] | None = None,
    opset: int = 17,
    outputs: str = "y",
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model from ``x`` to ``outputs``; a name that is empty in the file is written ``-``."""
    made = []
    for position, (kind, inputs, results, *attributes) in enumerate(nodes):
        names = ["" if name == "-" else name for name in inputs.split()]
        made.append(
            helper.make_node(kind, names, results.split(), f"n{position}", **(attributes[0] if attributes else {}))
        )
    graph = helper.make_graph(
        made,
        "test",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)  # fills in the types of the outputs
    for value in model.graph.output:
        if not value.type.WhichOneof("value"):
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def run_onnx(model: onnx.ModelProto | bytes, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output of a model, by ONNX Runtime without any graph optimisation."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def windows_of(height: int, width: int) -> list[Window]:
    """A corner, an edge, a cell in the middle, a patch, and everything."""
    y, x = height // 2, width // 2
    return [
        Window(0, 1, 0, 1),
        Window(height - 1, height, max(x - 1, 0), x + 1),
        Window(y, y + 1, x, x + 1),
        Window(height // 3, height - height // 4, width // 4, width),
        Window.full(height, width),
    ]


def check_windows(traced: TracedModel, x: Tensor, full: Mapping[str, np.ndarray], tolerance: float = 1e-4) -> None:
    """Every output of a traced model is ONNX Runtime's, at several windows."""
    for name, node in traced.graph.outputs.items():
        wanted = torch.from_numpy(full[name])
        assert tuple(wanted.shape) == node.shape, (name, wanted.shape, node.shape)
        assert wanted.dtype == node.dtype
        scale = max(float(wanted.double().abs().max()), 1e-3)
        for window in windows_of(*node.plane):
            layout, part = node.layout, wanted
            if layout is not None and not layout.merged:
                part = wanted.narrow(layout.y, window.y0, window.height).narrow(layout.x, window.x0, window.width)
            elif window != node.full_window:
                continue
            got = traced.run(x, traced.plan({name: window}))[name]
            torch.testing.assert_close(got, part, rtol=0, atol=tolerance * scale, msg=f"{name} at {window}")
