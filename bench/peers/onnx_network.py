"""A captured network as an ONNX graph, node by node, without ``torch.onnx``.

Convolutions carry their folded BatchNorm; aligned bilinear becomes Resize + Pad. Static shapes, float32, batch 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from tracenet.graph import Graph, Node
from tracenet.graph.graph import INPUT
from tracenet_kernels.errors import InputError

OPSET, IR_VERSION = 17, 8


class _Writer:
    """Nodes and constants of the ONNX graph so far."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def value(self, value: Any, dtype: Any) -> str:
        """Name of a small constant; equal ones are stored once."""
        array = np.asarray(value, dtype)
        name = f"constant:{array.dtype}:{array.shape}:{array.tolist()}"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        return self.value(values, np.int64)

    def operand(self, value: Any) -> str:
        """Name of a node's output, or of the float32 constant that stands in its place."""
        return value.name if isinstance(value, Node) else self.value(float(value), np.float32)


Emit = Callable[[_Writer, Node], Any]


def _pair(value: Any) -> list[int]:
    pair = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(one) for one in (pair * 2 if len(pair) == 1 else pair)]


def _conv(w: _Writer, node: Node) -> None:
    inputs = [node.args[0].name, node.args[1].name]
    if node.arg(2, "bias") is not None:
        inputs.append(node.arg(2, "bias").name)
    padding = _pair(node.arg(4, "padding", 0))
    w.add(
        "Conv",
        inputs,
        node.name,
        kernel_shape=list(node.args[1].shape[2:]),
        strides=_pair(node.arg(3, "stride", 1)),
        pads=padding * 2,
        dilations=_pair(node.arg(5, "dilation", 1)),
        group=int(node.arg(6, "groups", 1)),
    )


def _binary(op: str) -> Emit:
    def emit(w: _Writer, node: Node) -> None:
        if node.kwargs.get("alpha", 1) != 1:
            raise InputError(f"{node.name!r} adds with alpha={node.kwargs['alpha']}, which ONNX's {op} does not have")
        w.add(op, [w.operand(node.args[0]), w.operand(node.args[1])], node.name)

    return emit


def _max_pool(w: _Writer, node: Node) -> None:
    kernel = _pair(node.args[1])
    w.add(
        "MaxPool",
        [node.args[0].name],
        node.name,
        kernel_shape=kernel,
        strides=_pair(node.arg(2, "stride") or kernel),
        pads=_pair(node.arg(3, "padding", 0)) * 2,
        dilations=_pair(node.arg(4, "dilation", 1)),
        ceil_mode=int(node.arg(5, "ceil_mode", False)),
    )


def _nearest(w: _Writer, node: Node) -> None:
    source = node.args[0]
    scales = [new / old for new, old in zip(node.shape, source.shape, strict=True)]
    w.add(
        "Resize",
        [source.name, "", w.value(scales, np.float32)],
        node.name,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _aligned_bilinear(w: _Writer, node: Node) -> None:
    """Output i reads ``clamp((i - f // 2) / f)``: resize by i / f, then move right by f // 2 over replicated edges."""
    source, factor = node.args[0], int(node.args[1])
    half = factor // 2
    scales = w.value([1, 1, factor, factor], np.float32)
    attributes = {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}
    w.add("Resize", [source.name, "", scales], f"{node.name}:resized", **attributes)
    rows, columns = (size - half for size in node.shape[2:])
    slice_to = [f"{node.name}:resized", w.ints(0, 0), w.ints(rows, columns), w.ints(2, 3)]
    w.add("Slice", slice_to, f"{node.name}:cut")
    w.add("Pad", [f"{node.name}:cut", w.ints(0, 0, half, half, 0, 0, 0, 0)], node.name, mode="edge")


def _reshape(w: _Writer, node: Node) -> None:
    w.add("Reshape", [node.args[0].name, w.ints(*node.shape)], node.name)


def _expand(w: _Writer, node: Node) -> None:
    if node.args[0].shape == node.shape:
        w.add("Identity", [node.args[0].name], node.name)
    else:
        w.add("Expand", [node.args[0].name, w.ints(*node.shape)], node.name)


def _slice(w: _Writer, node: Node) -> None:
    axis, start = int(node.arg(1, "dim", 0)), int(node.arg(2, "start", 0) or 0)
    end, step = node.arg(3, "end"), int(node.arg(4, "step", 1))
    limits = [w.ints(start), w.ints(np.iinfo(np.int64).max if end is None else int(end)), w.ints(axis), w.ints(step)]
    w.add("Slice", [node.args[0].name, *limits], node.name)


def _select(w: _Writer, node: Node) -> None:
    w.add("Gather", [node.args[0].name, w.value(int(node.args[2]), np.int64)], node.name, axis=int(node.args[1]))


def _cat(w: _Writer, node: Node) -> None:
    w.add("Concat", [one.name for one in node.args[0]], node.name, axis=int(node.arg(1, "dim", 0)))


def _unary(op: str) -> Emit:
    def emit(w: _Writer, node: Node) -> None:
        w.add(op, [node.args[0].name], node.name)

    return emit


EMITTERS: dict[str, Emit] = {
    "aten.conv2d": _conv,
    "aten.relu": _unary("Relu"),
    "aten.sigmoid": _unary("Sigmoid"),
    "aten.add": _binary("Add"),
    "aten.sub": _binary("Sub"),
    "aten.mul": _binary("Mul"),
    "aten.div": _binary("Div"),
    "aten.max_pool2d": _max_pool,
    "aten.upsample_nearest2d": _nearest,
    "tracenet.aligned_bilinear": _aligned_bilinear,
    "aten.reshape": _reshape,
    "aten.view": _reshape,
    "aten.expand": _expand,
    "aten.slice": _slice,
    "aten.select": _select,
    "aten.cat": _cat,
}
"""Operator -> what writes it."""


def to_onnx(graph: Graph, outputs: Iterable[str]) -> ModelProto:
    """The part of a captured graph that the named outputs need.

    Args:
        graph: BatchNorm folded, float32.
        outputs: names of ``graph.outputs``; the ONNX graph's outputs carry them.

    Raises:
        InputError: an output is not known, or an operator has no ONNX counterpart here.
    """
    names = list(outputs)
    unknown = [name for name in names if name not in graph.outputs]
    if unknown:
        raise InputError(f"output {unknown[0]!r} is not known; choose from {list(graph.outputs)}")
    writer = _Writer()
    info = helper.make_tensor_value_info
    inputs = []
    for node in _reachable(graph, [graph.outputs[name] for name in names]):
        if node.value is not None:
            writer.constants[node.name] = _initializer(node.name, node.value)
        elif node.op == INPUT:
            inputs.append(info(node.name, TensorProto.FLOAT, node.shape))
        elif node.op in EMITTERS:
            EMITTERS[node.op](writer, node)
        else:
            raise InputError(f"{node.name!r} is a {node.op}, which has no ONNX counterpart here; add one to EMITTERS")
    ports = []
    for name in names:
        writer.add("Identity", [graph.outputs[name].name], name)
        ports.append(info(name, TensorProto.FLOAT, graph.outputs[name].shape))
    body = helper.make_graph(writer.nodes, "network", inputs, ports, list(writer.constants.values()))
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    checker.check_model(model)
    return model


def _initializer(name: str, value: torch.Tensor) -> Any:
    array: NDArray[Any] = value.detach().contiguous().numpy()
    return numpy_helper.from_array(array, name)


def _reachable(graph: Graph, outputs: list[Node]) -> list[Node]:
    alive: set[Node] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in alive:
            alive.add(node)
            stack.extend(node.operands)
    return [node for node in graph.nodes if node in alive]


def save_onnx(model: ModelProto, path: str | Path) -> Path:
    """Write a model of up to 2 GB as one file."""
    if model.ByteSize() >= 1 << 31:
        raise InputError(f"the model has {math.ceil(model.ByteSize() / 2**30)} GB; one ONNX file holds less than 2 GB")
    target = Path(path)
    target.write_bytes(model.SerializeToString())
    return target
