"""Write a traced network for fixed windows as an ONNX model: only what the request needs is computed.

The plan is run once by the crop-and-pad executor while its operations are recorded, so crops become slices, borders
become padding, and whatever that executor runs can be written. Parameters of dynamic layers (``theta`` of the mask
head) stay inputs of the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from tracenet import crop_pad
from tracenet.crop_pad import Patch
from tracenet.files import check_target, write_whole
from tracenet.graph import Graph, Node, capture
from tracenet.graph.onnx.writer import write_graph
from tracenet.rft.context import EXACT
from tracenet.rft.rules.pointwise import crop_output
from tracenet.rft.trace import Plan, resolve_output
from tracenet.traced import TracedModel
from tracenet_kernels.errors import InputError, RequestError
from tracenet_kernels.window import Window

INPUTS = ("window", "whole")


def export_onnx(traced: TracedModel, plan: Plan, path: str | Path, inputs: str = "window") -> Path:
    """Write the windows of a plan as a plain ONNX model, whole or not at all.

    Outputs carry the request's names and hold its windows. Inputs carry the network's names; those that the plan does
    not read are left out. The model's metadata tells every window (``tracenet.inputs``, ``tracenet.outputs``: JSON of
    name -> ``[y0, y1, x0, x1]``, null where a value has no rows and columns).

    Args:
        traced: from :func:`tracenet.trace`.
        plan: from its ``plan``; not one over kept values.
        path: file to write.
        inputs: ``"window"``: the model takes the window of each input that the plan reads; ``"whole"``: it takes the
            whole input and cuts the window out.

    Raises:
        InputError: the package onnx is missing, ``inputs`` is not known, or the file cannot be written.
        RequestError: the plan belongs to another capture, is not exact, leaves out what is kept elsewhere, or has
            several windows of one output.
        UnsupportedOpError: an operation has no standard ONNX operator; the message names the node.
        CaptureError: the network was captured without weights, or is larger than an ONNX file can be.
    """
    check_target(path)
    data = onnx_model(traced, plan, inputs).SerializeToString()

    def write(file: BinaryIO) -> None:
        file.write(data)

    return write_whole(path, write)


def onnx_model(traced: TracedModel, plan: Plan, inputs: str = "window") -> Any:
    """The ``ModelProto`` that :func:`export_onnx` writes."""
    if inputs not in INPUTS:
        raise InputError(f"inputs is {inputs!r}; choose one of {INPUTS}")
    if not isinstance(plan, Plan) or plan.graph is not traced.graph:
        raise RequestError("the plan was made by another traced model; call plan() on this one")
    if plan.global_context != EXACT:
        raise RequestError(
            f"the plan has global_context={plan.global_context!r}, which is not exact or holds for one image; "
            "make it with 'exact'"
        )
    _refuse_kept(plan)
    if any(isinstance(asked, list) for asked in plan.request.values()):
        raise RequestError("the plan has several windows of one output; export one model per window, or their hull")
    if plan.macs < plan.hull_macs:  # a model of one window per node has no cells to put together
        plan = traced.plan(plan.request, max_pieces=1)
    recorded = _record(plan, whole=inputs == "whole")
    model = write_graph(recorded)
    windows = {node.name: _input_window(plan, node, inputs == "whole") for node in _read_inputs(plan)}
    outputs = {str(key): _plain(window) if _has_plane(plan, key) else None for key, window in plan.request.items()}
    for key, value in (("inputs", windows), ("outputs", outputs), ("macs", plan.macs)):
        model.metadata_props.add(key=f"tracenet.{key}", value=json.dumps(value))
    return model


def _refuse_kept(plan: Plan) -> None:
    for entry in plan.nodes:
        for read in entry.reads:
            producer = plan.by_node.get(read.producer)
            if not read.window.is_empty and read.producer.value is None and (producer is None or not producer.pieces):
                raise RequestError(
                    f"the plan takes {read.producer.name!r} from kept values, which a model of its own does not have; "
                    "make the plan without kept"
                )


def _has_plane(plan: Plan, key: int | str) -> bool:
    return resolve_output(plan.graph, key).layout is not None


def _plain(window: Window) -> list[int]:
    return list(window)


def _read_inputs(plan: Plan) -> list[Node]:
    """The network's inputs that the plan reads, in order."""
    return [node for node in plan.graph.inputs if node in plan.by_node]


def _input_window(plan: Plan, node: Node, whole: bool) -> list[int] | None:
    if node.layout is None:
        return None
    return _plain(node.full_window if whole else plan.by_node[node].window)


class _PlanModule(nn.Module):
    """One plan as a module: values of the inputs it reads to its outputs."""

    def __init__(self, plan: Plan, whole: bool) -> None:
        super().__init__()
        self.plan = plan
        self.whole = whole

    def forward(self, *values: Tensor) -> dict[str, Tensor]:
        given: dict[Node, Tensor | Patch] = {}
        for node, value in zip(_read_inputs(self.plan), values, strict=True):
            cut = node.layout is not None and not self.whole
            given[node] = Patch(self.plan.by_node[node].window, value) if cut else value
        inputs = [given.get(node, values[0]) for node in self.plan.graph.inputs]
        outputs, _ = crop_pad.run_plan(self.plan, inputs)
        return {str(key): value for key, value in outputs.items()}


def _record(plan: Plan, whole: bool) -> Graph:
    read = _read_inputs(plan)
    if not read:
        raise RequestError("the request depends on no input; there is nothing to export")
    examples = tuple(torch.zeros(_input_shape(plan, node, whole), dtype=node.dtype) for node in read)
    graph = capture(_PlanModule(plan, whole).eval(), examples)
    stored = {_memory(node.value): node.name for node in plan.graph.nodes if node.value is not None}
    for node, recorded in zip(read, graph.inputs, strict=True):
        recorded.name = node.name
    for node in graph.nodes:
        if node.value is not None:
            node.name = stored.get(_memory(node.value), node.name)
    return graph


def _input_shape(plan: Plan, node: Node, whole: bool) -> list[int]:
    shape = list(node.shape)
    if node.layout is not None and not whole:
        window = plan.by_node[node].window
        shape[node.layout.y], shape[node.layout.x] = window.height, window.width
    return shape


def _memory(value: Tensor) -> tuple[Any, ...]:
    return value.data_ptr(), tuple(value.shape), value.stride()


def input_values(plan: Plan, inputs: Sequence[Tensor], how: str = "window") -> dict[str, Any]:
    """What to feed an exported model: input name -> array, cut out of the network's full inputs."""
    values = {}
    for node, value in zip(plan.graph.inputs, inputs, strict=True):
        if node in plan.by_node:
            part = crop_output(node, value, plan.by_node[node].window) if how == "window" else value
            values[node.name] = part.contiguous().numpy()
    return values


def onnx_runner(model: Any, values: Mapping[str, Any]) -> Callable[[], dict[str, Tensor]]:
    """A function that runs a model in ONNX Runtime, on as many threads as PyTorch uses.

    Raises:
        InputError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("running ONNX models needs onnxruntime; install it with pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads would slow other runs
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]

    def run() -> dict[str, Tensor]:
        return {name: torch.from_numpy(value) for name, value in zip(names, session.run(names, values), strict=True)}

    return run
