"""Runs plans of a captured network on a GPU, for :meth:`tracenet.TracedModel.run`.

A program computes one window per node: where a plan has windows apart, their hull, whose values are the same.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracenet.crop_pad import Patch, as_asked, crop_patch
from tracenet.engine.gpu.program import GpuProgram
from tracenet.engine.gpu.session import GpuSession
from tracenet.engine.lower import lower
from tracenet.engine.patterns import is_plane, is_vector, sources
from tracenet.graph.graph import Graph, Node
from tracenet.rft.trace import Plan, resolve_output
from tracenet_kernels import gpu
from tracenet_kernels.backends import say_once
from tracenet_kernels.window import EMPTY, Window, hull

Outputs = dict[int | str, Any]


class GpuExecutor:
    """One network's program in float32 and a session to run it. Runs from several threads wait for each other.

    Args:
        graph: captured, layouts inferred.
        device: that the inputs lie on; in Triton's interpreter the CPU.

    Raises:
        BackendError: no Triton kernel can run here, or none computes a step.
        InputError: the network was captured without weights.
    """

    def __init__(self, graph: Graph, device: torch.device) -> None:
        self.program = GpuProgram(lower(graph), device, "float32")
        self.session = GpuSession(self.program)
        self._lock = threading.Lock()  # from an input that is set to the outputs that are copied, one run at a time
        self._graph = graph
        self._source = sources(graph)
        self._numbers = {plane.name: i for i, plane in enumerate(self.program.schedule.planes)}

    def obstacle(self, plan: Plan, inputs: Sequence[Tensor | Patch]) -> str:
        """Why this executor does not run a plan, as a clause; an empty string where it does."""
        for entry in plan.nodes:
            if entry.context is not None:
                return f"{entry.node.name!r} is {entry.context}, and kernels reduce the whole plane"
        if plan.reads_kept and any(entry.pieces != [entry.window] for entry in plan.nodes):
            return "the plan reads kept values, which lie outside the session"
        for node, given in zip(self._graph.inputs, inputs, strict=True):
            if _tensor(given).device != self.program.device:
                return f"input {node.name!r} lies on {_tensor(given).device}, the others on {self.program.device}"
        computed = {step.output for step in self.program.schedule.steps}
        for key in plan.request:
            node = self._source[resolve_output(self._graph, key)]
            if self._numbers.get(node.name) not in computed:
                return f"{key!r} is nothing that a kernel computes"
            if self._numbers[node.name] not in self.program.schedule.outputs.values():
                return f"{key!r} is no output of the network, and its memory is used again"
        return ""

    def run(self, plan: Plan, inputs: Sequence[Tensor | Patch]) -> Outputs:
        """The requested windows, keyed like the request, on the inputs' device.

        Args:
            plan: one without an :meth:`obstacle`.
            inputs: of the network in order, whole or as patches that hold what the plan reads.

        Raises:
            ExecutionError: a launch failed.
        """
        with self._lock:
            return self._run(plan, inputs)

    def _run(self, plan: Plan, inputs: Sequence[Tensor | Patch]) -> Outputs:
        parameters = {}
        for position, (node, given) in enumerate(zip(self._graph.inputs, inputs, strict=True)):
            if node not in plan.by_node or not (is_plane(node) or is_vector(node)):
                continue
            tensor = _tensor(given).detach()
            if node.plane == (1, 1):
                parameters[position] = tensor.cpu().numpy().reshape(-1)
            else:
                self.session.set_planar(position, tensor, given.window if isinstance(given, Patch) else None)
        if any(len(entry.pieces) > 1 for entry in plan.nodes):
            say_once("backend 'triton' computes one window per node: of windows apart their hull (plan.hull_macs)")
        nodes = {key: self._source[resolve_output(self._graph, key)] for key in plan.request}
        asked: dict[int | str, Window] = {}
        names = {key: self._name(node) for key, node in nodes.items()}
        for key, name in names.items():  # two keys may name one plane
            asked[name] = hull((asked.get(name, EMPTY), *plan.asked[key]))
        computed = self.session.run_on_device(asked, parameters)
        outputs: Outputs = {}
        for key, windows in plan.asked.items():
            whole = Patch(asked[names[key]], computed[names[key]].contiguous())
            outputs[key] = as_asked(plan, key, [crop_patch(nodes[key], whole, window).clone() for window in windows])
        return outputs

    def _name(self, node: Node) -> str:
        """What a session calls a plane: the name of an output that it is."""
        number = self._numbers[node.name]
        return next(name for name, plane in self.program.schedule.outputs.items() if plane == number)


def can_run(inputs: Sequence[Tensor | Patch]) -> str:
    """Why inputs are not for this backend, as a clause; an empty string where they are."""
    devices = {_tensor(given).device for given in inputs}
    if len(devices) != 1:
        return f"the inputs lie on {sorted(map(str, devices))}"
    (device,) = devices
    if device.type != "cuda" and not gpu.interpreted():
        return f"the inputs lie on {device}, kernels run on CUDA devices"
    return ""


def device_of(inputs: Sequence[Tensor | Patch]) -> torch.device:
    """Where the first input lies."""
    return _tensor(inputs[0]).device


def _tensor(given: Tensor | Patch) -> Tensor:
    return given.tensor if isinstance(given, Patch) else given
