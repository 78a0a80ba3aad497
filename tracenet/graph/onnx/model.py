"""Read an ONNX model into plain Python: nodes with decoded attributes, initialisers as tensors, inputs and outputs.

The file is data from anywhere: nothing in it is run, sizes are limited, and tensors stored outside the file are read
only from the model's own folder.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracenet_kernels.errors import CaptureError, InputError

MAX_BYTES = 2**31
"""Of the file, and of all tensors stored outside it together."""
MAX_NODES = 100_000
OPSETS = (9, 23)
"""First and last version of the standard operators that the translations know."""
DOMAINS = ("", "ai.onnx")

DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""``TensorProto.DataType`` -> dtype, for those that a graph may hold."""


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One node as the file has it. An absent optional input or output is an empty name."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class OnnxInput:
    """A graph input: its axes (a number where fixed, a word or None where open) and its dtype."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A model's graph, its nodes in the order in which they run."""

    opset: int
    inputs: tuple[OnnxInput, ...]
    outputs: tuple[str, ...]
    nodes: tuple[OnnxNode, ...]
    tensors: dict[str, Tensor]


def import_onnx() -> ModuleType:
    """The package ``onnx``. Raises InputError where it is not installed."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise InputError("ONNX models need the package onnx; install it with pip install 'tracenet[onnx]'") from error
    return onnx


def read_model(source: Any) -> OnnxModel:
    """Decode a path or a ``ModelProto``.

    Raises:
        InputError: the source is neither, or there is no such file.
        CaptureError: the model is damaged, too large, of an unknown version or domain, holds control flow, or refers
            to files outside its folder.
    """
    onnx = import_onnx()
    proto, folder = _proto(onnx, source)
    opset = _opset(proto)
    if proto.functions:
        raise CaptureError(
            f"the model defines {len(proto.functions)} functions of its own (first: {proto.functions[0].name!r}); "
            "inline them first with onnx.inliner.inline_local_functions"
        )
    graph = proto.graph
    if len(graph.node) > MAX_NODES:
        raise CaptureError(f"the model has {len(graph.node)} nodes; at most {MAX_NODES} are read")
    _refuse_broken_names(graph)
    if graph.sparse_initializer:
        raise CaptureError("the model holds sparse initialisers; store them as dense tensors")
    nodes = tuple(_node(onnx, node, position) for position, node in enumerate(graph.node))
    _read_external(onnx, graph.initializer, folder)
    for value in graph.output:  # the checker asks for shapes that runtimes do without
        value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise CaptureError(f"the ONNX model is not valid: {_first_line(error)}") from error
    tensors = {tensor.name: read_tensor(onnx, tensor, f"initialiser {tensor.name!r}") for tensor in graph.initializer}
    inputs = tuple(_input(value) for value in graph.input if value.name not in tensors)
    return OnnxModel(opset, inputs, tuple(value.name for value in graph.output), nodes, tensors)


def _refuse_broken_names(graph: Any) -> None:
    """A name that is not text comes out of the file as bytes."""
    names = [value.name for value in (*graph.input, *graph.output, *graph.initializer)]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
        names += [attribute.name for attribute in node.attribute]
    broken = [name for name in names if not isinstance(name, str)]
    if broken:
        raise CaptureError(f"the model holds a name that is not UTF-8 text ({broken[0]!r}); it is damaged")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _proto(onnx: ModuleType, source: Any) -> tuple[Any, Path | None]:
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return copy, None
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"trace got a {type(source).__name__}; pass a torch.nn.Module, an ONNX ModelProto or its path")
    path = Path(source)
    try:
        if not path.is_file():
            raise InputError(f"there is no ONNX model at {path}; pass the path of a file")
        if path.stat().st_size > MAX_BYTES:
            raise CaptureError(f"{path} is larger than {MAX_BYTES} bytes, the most an ONNX file can hold")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's own class, which is not imported for its sake
        raise CaptureError(f"{path} is not an ONNX model, or is truncated ({_first_line(error)})") from error
    return proto, path.parent


def _opset(proto: Any) -> int:
    versions = {entry.domain: entry.version for entry in proto.opset_import if entry.domain in DOMAINS}
    if not versions:
        raise CaptureError("the file names no version of the standard operators: it is not an ONNX model or is damaged")
    version = int(next(iter(versions.values())))
    if not OPSETS[0] <= version <= OPSETS[1]:
        raise CaptureError(
            f"the model uses operator set {version}; sets {OPSETS[0]} to {OPSETS[1]} are read. Convert it with "
            "onnx.version_converter.convert_version"
        )
    return version


def _node(onnx: ModuleType, node: Any, position: int) -> OnnxNode:
    name = node.name or next((output for output in node.output if output), f"node_{position}")
    if node.domain not in DOMAINS:
        raise CaptureError(
            f"node {name!r} is {node.domain}.{node.op_type}; only the standard operators of ONNX are read. Export the "
            "model without custom operators, or cut the graph before it with onnx.utils.extract_model"
        )
    attributes = {item.name: _attribute(onnx, item, name, node.op_type) for item in node.attribute}
    return OnnxNode(name, node.op_type, tuple(node.input), tuple(node.output), attributes)


def _attribute(onnx: ModuleType, item: Any, node: str, kind: str) -> Any:
    types = onnx.AttributeProto
    where = f"node {node!r} ({kind}), attribute {item.name!r}"
    if item.type in (types.GRAPH, types.GRAPHS):
        raise CaptureError(
            f"{where}: control flow over inner graphs cannot be traced; simplify the model for one input size, or cut "
            "the graph before it with onnx.utils.extract_model"
        )
    if item.ref_attr_name:
        raise CaptureError(f"{where}: refers to an attribute of a function; inline the model's functions first")
    if item.type == types.TENSOR:
        if item.t.data_location == onnx.TensorProto.EXTERNAL:
            raise CaptureError(f"{where}: is stored outside the file; store it inside")
        return read_tensor(onnx, item.t, where)
    if item.type == types.STRING:
        return item.s.decode("utf-8", "replace")
    if item.type == types.STRINGS:
        return [value.decode("utf-8", "replace") for value in item.strings]
    plain = {types.FLOAT: item.f, types.INT: item.i, types.FLOATS: list(item.floats), types.INTS: list(item.ints)}
    if item.type not in plain:
        raise CaptureError(f"{where}: is of a kind that cannot be traced; only numbers, texts and dense tensors can")
    return plain[item.type]


def _input(value: Any) -> OnnxInput:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type not in DTYPES:
        raise CaptureError(f"input {value.name!r} is not a tensor of numbers; only such inputs can be traced")
    if not kind.HasField("shape"):
        raise CaptureError(f"input {value.name!r} has no shape; store at least how many axes it has")
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)
    return OnnxInput(value.name, shape, DTYPES[kind.elem_type])


def read_tensor(onnx: ModuleType, tensor: Any, where: str) -> Tensor:
    """A stored tensor. Raises CaptureError where its type cannot be held or its bytes do not fit its shape."""
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None:
        raise CaptureError(f"{where}: has data type {tensor.data_type}, which cannot be traced; store plain numbers")
    if any(size < 0 for size in tensor.dims):
        raise CaptureError(f"{where}: has a negative size in its shape {list(tensor.dims)}")
    if tensor.HasField("raw_data") and len(tensor.raw_data) != math.prod(tensor.dims) * dtype.itemsize:
        raise CaptureError(f"{where}: holds {len(tensor.raw_data)} bytes, which do not fit its shape and type")
    try:
        values = np.array(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError, RuntimeError) as error:
        raise CaptureError(f"{where}: cannot be decoded ({_first_line(error)})") from error
    if dtype == torch.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _read_external(onnx: ModuleType, tensors: Any, folder: Path | None) -> None:
    """Put the bytes of tensors that are stored beside the model into it."""
    total = 0
    for tensor in tensors:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        where = f"initialiser {tensor.name!r}"
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if folder is None:
            raise CaptureError(f"{where} is stored outside the model; pass the model's path instead of a ModelProto")
        path = _inside(folder, entries.get("location", ""), where)
        try:
            offset, size = int(entries.get("offset", 0)), path.stat().st_size
            length = int(entries.get("length", size - offset))
            if offset < 0 or length < 0 or offset + length > size:
                raise CaptureError(f"{where}: bytes {offset} to {offset + length} lie outside {path.name} ({size})")
            total += length
            if total > MAX_BYTES:
                raise CaptureError(f"the tensors beside the model hold more than {MAX_BYTES} bytes together")
            with path.open("rb") as file:
                file.seek(offset)
                tensor.raw_data = file.read(length)
        except (OSError, ValueError) as error:
            raise CaptureError(f"{where} cannot be read from {path.name} ({error})") from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _inside(folder: Path, location: str, where: str) -> Path:
    """``folder / location``, links followed. Raises CaptureError where that is not a file inside the folder."""
    refusal = f"{where} is stored at {location!r}; only files in the model's own folder are read"
    if not location or "\0" in location or Path(location).is_absolute():
        raise CaptureError(refusal)
    root = folder.resolve()
    path = (root / location).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise CaptureError(refusal)
    return path
