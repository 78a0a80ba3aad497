"""Write a captured graph as an ONNX model of standard operators.

Every node becomes a few ONNX nodes by the table of :mod:`tracenet.graph.onnx.written`; shapes are fixed, so all sizes
are stored as numbers. Padding in front of a convolution or a max pooling moves into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracenet.graph.graph import CONSTANT, INPUT, Graph, Node
from tracenet.graph.onnx.model import DTYPES, import_onnx
from tracenet_kernels.errors import CaptureError, UnsupportedOpError

OPSET = 17
IR_VERSION = 8
MAX_BYTES = 2**31 - 1

TYPES = {dtype: code for code, dtype in DTYPES.items()}
"""dtype -> ``TensorProto.DataType``."""


class Writer:
    """One graph on its way to ONNX.

    Attributes:
        absorbed: padding nodes that no node of the model stands for, as their only readers pad themselves.
    """

    def __init__(self, graph: Graph) -> None:
        self.onnx = import_onnx()
        self.graph = graph
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.absorbed: set[Node] = set()
        self._values: dict[Node, str] = {}
        self._constants: dict[Any, tuple[str, Tensor]] = {}  # tensors are held so that no other takes their address
        self._taken = {node.name for node in graph.inputs} | set(graph.outputs)
        self._current = ""

    def _name(self, base: str) -> str:
        name, count = base, 0
        while name in self._taken:
            count += 1
            name = f"{base}:{count}"
        self._taken.add(name)
        return name

    def write(self, table: Mapping[str, Callable[[Writer, Node], str]]) -> Any:
        """The model as a ``ModelProto``. Raises UnsupportedOpError for a node that the table lacks."""
        for node in self.graph.nodes:
            if node.op == INPUT:
                self._values[node] = node.name
            elif node.op != CONSTANT and node not in self.absorbed:
                function = table.get(node.op)
                if function is None:
                    raise UnsupportedOpError(
                        f"node {node.name!r} is {node.op}, which has no standard ONNX operator here; ask for outputs "
                        "that do not need it, or replace it in the model"
                    )
                self._current = node.name
                self._values[node] = function(self, node)
        for name, node in self.graph.outputs.items():
            self._current = name
            self._emit("Identity", [self.tensor(node)], [name], {})
        return self._model()

    def _model(self) -> Any:
        helper = self.onnx.helper

        def info(name: str, node: Node) -> Any:
            return helper.make_tensor_value_info(name, TYPES[node.dtype], list(node.shape))

        graph = helper.make_graph(
            self.nodes,
            "traced",
            [info(node.name, node) for node in self.graph.inputs],
            [info(name, node) for name, node in self.graph.outputs.items()],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, producer_name="tracenet", opset_imports=opsets, ir_version=IR_VERSION)
        if model.ByteSize() > MAX_BYTES:
            raise CaptureError(f"the model takes {model.ByteSize()} bytes; an ONNX file holds at most {MAX_BYTES}")
        self.onnx.checker.check_model(model, full_check=True)
        return model

    def _emit(self, kind: str, inputs: Sequence[str], outputs: list[str], attributes: dict[str, Any]) -> None:
        given = {key: value for key, value in attributes.items() if value is not None}
        name = f"{self._current}/{kind}/{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), outputs, name, **given))

    def emit(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; gives the output's name. Attributes that are None are left out."""
        output = self._name(self._current)
        self._emit(kind, inputs, [output], attributes)
        return output

    def tensor(self, value: Node | float, dtype: torch.dtype | None = None) -> str:
        """The name of a node's values, or of a number, in a given dtype."""
        if not isinstance(value, Node):
            return self.constant(torch.tensor(value, dtype=dtype))
        if value.value is not None:
            return self.constant(value.value if dtype is None else value.value.to(dtype), value.name)
        return self.cast(self._values[value], value.dtype, dtype or value.dtype)

    def cast(self, name: str, source: torch.dtype, dtype: torch.dtype) -> str:
        return name if source == dtype else self.emit("Cast", name, to=TYPES[dtype])

    def constant(self, value: Tensor, name: str = "constant") -> str:
        """The name of a stored tensor; equal memory and equal small tensors are stored once."""
        stored = value.detach()
        small = stored.numel() <= 64
        key: Any = (stored.dtype, tuple(stored.shape), stored.stride(), stored.data_ptr())
        if small:
            key = (stored.dtype, tuple(stored.shape), *stored.flatten().tolist())
        if key not in self._constants:
            self._constants[key] = self._store(stored, self._name(name)), stored
        return self._constants[key][0]

    def _store(self, value: Tensor, name: str) -> str:
        if value.is_meta:
            raise CaptureError(
                f"{name!r} is on the meta device and has no values; capture the network with its weights"
            )
        values = value.cpu().contiguous()
        raw = values.view(torch.int16).numpy() if value.dtype == torch.bfloat16 else values.numpy()
        tensor = self.onnx.TensorProto(name=name, data_type=TYPES[value.dtype], dims=list(value.shape))
        tensor.raw_data = raw.tobytes()
        self.initializers.append(tensor)
        return name

    def ints(self, values: Sequence[int]) -> str:
        """The name of a stored list of integers."""
        return self.constant(torch.from_numpy(np.array(list(values), np.int64)), "ints")

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        return self.emit("Reshape", name, self.ints(shape))

    def slice(self, name: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        return self.emit("Slice", name, *(self.ints([value]) for value in (start, stop, axis, step)))


def write_graph(graph: Graph) -> Any:
    """A captured graph as a checked ``ModelProto``.

    Raises:
        InputError: the package onnx is not installed.
        UnsupportedOpError: a node has no standard ONNX operator; the message names it.
        CaptureError: the graph was captured without weights, or is larger than an ONNX file can be.
    """
    from tracenet.graph.onnx.written import WRITTEN, absorbed_padding

    writer = Writer(graph)
    writer.absorbed = absorbed_padding(graph)
    return writer.write(WRITTEN)
