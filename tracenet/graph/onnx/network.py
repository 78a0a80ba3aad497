"""Capture an ONNX model as a :class:`Graph` of the same operations that a PyTorch model gives.

Every node is translated to PyTorch operations. What depends on no input (weights, shapes at the fixed size and the
arithmetic on them) is computed once; the rest becomes a module that is captured like any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tracenet.graph.capture import capture
from tracenet.graph.graph import CONSTANT, INPUT, Graph
from tracenet.graph.onnx.model import OnnxInput, OnnxModel, OnnxNode, read_model
from tracenet.graph.onnx.op import Op, Translation
from tracenet.graph.onnx.table import TRANSLATIONS
from tracenet_kernels.errors import CaptureError, InputError

MAX_CONSTANTS = 2**28
"""Elements of all computed constants together; stored weights do not count."""
MAX_ELEMENTS = 2**31
"""Elements of one computed tensor."""
MAX_INPUT = 2**28
"""Elements of one input."""

Examples = Tensor | Sequence[Any] | Mapping[str, Any] | None
"""Tensors in the order of the model's inputs, or input name -> tensor or shape; None where every size is fixed."""

_META = torch.device("meta")


def capture_onnx(source: Any, example_inputs: Examples = None) -> Graph:
    """Convert an ONNX model to a :class:`Graph` at one input size.

    Args:
        source: path or ``ModelProto``.
        example_inputs: tensors, of which only the shapes matter, or a mapping from input names to tensors or shapes;
            needed where the model leaves a size open.

    Raises:
        InputError: the package onnx is missing, the source is not a model, or the example inputs do not fit it.
        CaptureError: a node cannot be traced; the message names it, its operator and the attribute.
    """
    model = read_model(source)
    examples = _examples(model.inputs, example_inputs)
    network = OnnxNetwork(model, examples)
    zeros = tuple(torch.zeros(example.shape, dtype=example.dtype) for example in examples)
    graph = capture(network.eval(), zeros)
    _rename(graph, model, network)
    return graph


def _examples(inputs: Sequence[OnnxInput], given: Examples) -> list[Tensor]:
    """One meta tensor per input."""
    if not inputs:
        raise InputError("the ONNX model has no inputs; there is nothing to trace")
    values: Mapping[str, Any]
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in {port.name for port in inputs}]
        if unknown:
            raise InputError(f"{unknown[0]!r} is not an input; the model takes {[port.name for port in inputs]}")
        values = given
    elif given is None:
        values = {}
    else:
        several: list[Any] = [given] if isinstance(given, Tensor) or _is_shape(given) else list(given)
        if len(several) != len(inputs):
            names = [port.name for port in inputs]
            raise InputError(f"{len(several)} example inputs came; the model takes {len(names)}: {names}")
        values = {port.name: value for port, value in zip(inputs, several, strict=True)}
    return [_example(port, values.get(port.name)) for port in inputs]


def _is_shape(value: Any) -> bool:
    return isinstance(value, (tuple, list, torch.Size)) and all(type(size) is int for size in value)


def _example(port: OnnxInput, given: Any) -> Tensor:
    if given is None:
        if not all(isinstance(size, int) and size > 0 for size in port.shape):
            sizes = tuple(size if isinstance(size, int) and size > 0 else 1 for size in port.shape)
            raise InputError(
                f"input {port.name!r} leaves sizes open: {list(port.shape)}; pass example_inputs, or its shape such as "
                f"{{{port.name!r}: {sizes}}}"
            )
        given = tuple(port.shape)
    if not isinstance(given, Tensor) and not _is_shape(given):
        raise InputError(f"input {port.name!r} came as {type(given).__name__}; pass a tensor or a shape of integers")
    if isinstance(given, Tensor) and given.dtype != port.dtype:
        raise InputError(f"input {port.name!r} came as {given.dtype}; the model takes {port.dtype}")
    shape = tuple(given.shape) if isinstance(given, Tensor) else tuple(given)
    fits = len(shape) == len(port.shape) and all(
        size > 0 and (not isinstance(wanted, int) or wanted in (0, size))
        for size, wanted in zip(shape, port.shape, strict=True)
    )
    if not fits:
        raise InputError(f"input {port.name!r} came with shape {list(shape)}; the model takes {list(port.shape)}")
    if math.prod(shape) > MAX_INPUT:
        raise InputError(f"input {port.name!r} has shape {list(shape)}; at most {MAX_INPUT} elements can be traced")
    return torch.empty(shape, dtype=port.dtype, device=_META)


class _Step(nn.Module):
    """One node, so that the operations it becomes carry its name."""

    def __init__(self, op: Op, translation: Translation) -> None:
        super().__init__()
        self.op = op
        self.function = translation.function

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return _outputs(self.function(self.op, *inputs))


class OnnxNetwork(nn.Module):
    """An ONNX model at one input size as a module: inputs in the model's order to a dict of its outputs.

    Attributes:
        constants: buffer -> name of the tensor in the model.
        steps: sub-module -> node.
    """

    def __init__(self, model: OnnxModel, examples: Sequence[Tensor]) -> None:
        super().__init__()
        self.model = model
        self.constants: dict[str, str] = {}
        self.steps: dict[str, OnnxNode] = {}
        self._buffer_of: dict[str, str] = {}
        values = {port.name: example for port, example in zip(model.inputs, examples, strict=True)}
        values.update(model.tensors)
        budget = MAX_CONSTANTS
        for position, node in enumerate(model.nodes):
            budget = self._add(f"step{position}", node, values, budget)
        missing = [name for name in model.outputs if name not in values]
        if missing:
            raise CaptureError(f"output {missing[0]!r} is computed by no node")
        for name in model.outputs:
            self._store(name, values[name])

    def _add(self, key: str, node: OnnxNode, values: dict[str, Tensor], budget: int) -> int:
        """Compute a node's outputs, or keep it as a step if they depend on an input. Gives what is left to compute."""
        translation = _translation(node)
        unknown = [name for name in node.inputs if name and name not in values]
        if unknown:
            raise CaptureError(f"node {node.name!r} ({node.kind}) reads {unknown[0]!r}, which nothing before it gives")
        inputs = [values[name] if name else None for name in node.inputs]
        op = Op(node, self.model.opset, tuple(map(_known, inputs)), _META)
        results = _evaluate(op, translation, [None if x is None else x.to(_META) for x in inputs])
        live = any(x is not None and x.is_meta for x in inputs)
        if not live and any(x.is_meta for x in results):
            budget -= sum(x.numel() for x in results)
            if budget < 0:
                raise op.refusal(f"the model's computed constants hold more than {MAX_CONSTANTS} elements")
            op.device = torch.device("cpu")
            results = _evaluate(op, translation, inputs)
        if any(x.is_meta for x in results):
            op.device = torch.device("cpu")
            self.add_module(key, _Step(op, translation))
            self.steps[key] = node
            for name, value in zip(node.inputs, inputs, strict=True):
                if value is not None:
                    self._store(name, value)
        values.update({name: x for name, x in zip(node.outputs, results, strict=False) if name})
        return budget

    def _store(self, name: str, value: Tensor) -> None:
        if not value.is_meta and name not in self._buffer_of:
            key = self._buffer_of[name] = f"constant{len(self.constants)}"
            self.constants[key] = name
            self.register_buffer(key, value)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        values = {port.name: x for port, x in zip(self.model.inputs, inputs, strict=True)}
        values.update({name: self.get_buffer(key) for name, key in self._buffer_of.items()})
        for key, node in self.steps.items():
            results = self.get_submodule(key)(*(values[name] if name else None for name in node.inputs))
            values.update({name: x for name, x in zip(node.outputs, results, strict=False) if name})
        return {name: values[name] for name in self.model.outputs}


def _translation(node: OnnxNode) -> Translation:
    found = TRANSLATIONS.get(node.kind)
    if found is None:
        raise CaptureError(
            f"node {node.name!r} is {node.kind}, which cannot be traced; cut the graph before it with "
            "onnx.utils.extract_model and trace the convolutional part"
        )
    unknown = sorted(set(node.attributes) - found.attributes)
    if unknown:
        raise CaptureError(f"node {node.name!r} ({node.kind}) has an attribute {unknown[0]!r} that is not understood")
    return found


def _known(value: Tensor | None) -> np.ndarray | None:
    if value is None or value.is_meta:
        return None
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _evaluate(op: Op, translation: Translation, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    try:
        with torch.no_grad():
            results = _outputs(translation.function(op, *inputs))
    except CaptureError:
        raise
    except Exception as error:  # PyTorch and Python complain about unfitting arguments in many ways
        shapes = [None if x is None else list(x.shape) for x in inputs]
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise op.refusal(f"cannot be computed on inputs of shapes {shapes}: {lines[0]}") from error
    if any(op.node.outputs[len(results) :]):
        raise op.refusal(f"its output {op.node.outputs[len(results)]!r} cannot be traced, only the first is")
    for x in results:
        if x.numel() > MAX_ELEMENTS:
            raise op.refusal(f"gives a tensor of shape {list(x.shape)}; at most {MAX_ELEMENTS} elements can be traced")
    return results


def _rename(graph: Graph, model: OnnxModel, network: OnnxNetwork) -> None:
    """Give nodes the names that they have in the model; the last of several that one node became has its plain name."""
    for node, port in zip(graph.inputs, model.inputs, strict=True):
        node.name = port.name
    last = {node.module: node for node in graph.nodes if node.op not in (INPUT, CONSTANT)}
    taken = {node.name for node in graph.inputs}
    for node in graph.nodes:
        if node.op == INPUT:
            continue
        step = network.steps.get(node.module)
        if step is not None:
            _, _, suffix = node.name.partition(".")
            base = step.name if last.get(node.module) is node else f"{step.name}.{suffix}"
            node.module = step.name.strip("/").replace("/", ".")
        else:
            base = network.constants.get(node.name, node.name)
        node.name, count = base, 0
        while node.name in taken:
            count += 1
            node.name = f"{base}_{count}"
        taken.add(node.name)
    graph.renumber()
