"""Runs plans of a captured network on the C++ runtime, and by the rules of the graph what has no kernel.

Steps of kernels run in C++ one after the other; an external step between them takes its operands out of the session,
computes the windows of its plan as :mod:`tracenet.crop_pad` would, and puts the result back.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracenet.crop_pad import Patch, Values, as_asked, compute_entry, crop_patch, read_output
from tracenet.engine.lower import lower
from tracenet.engine.patterns import is_plane, is_vector, sources
from tracenet.engine.program import Program
from tracenet.engine.schedule import Schedule, Step
from tracenet.engine.session import Session
from tracenet.graph.graph import INPUT, Graph, Node
from tracenet.rft.context import CACHED
from tracenet.rft.rules.pointwise import crop_output
from tracenet.rft.trace import Plan, resolve_output
from tracenet_kernels.backends import say_once
from tracenet_kernels.errors import RequestError, TraceNetError
from tracenet_kernels.window import EMPTY, Window, hull

Outputs = dict[int | str, Any]
CELL = Window(0, 1, 0, 1)


class NativeExecutor:
    """One network's program and a session to run it. Runs from several threads wait for each other.

    Args:
        graph: captured, layouts inferred.
        like: an executor of the same network at another size; packed weights are shared with it where they are equal.
        reduce: False: global vectors are external steps, so that a plan may take them from elsewhere.
        poison: for tests: memory holds NaN before it is written.

    Raises:
        BackendError: the C++ extension is not built.
        InputError: the network was captured without weights.
        ScheduleError: the network is larger than a schedule allows.
    """

    def __init__(
        self, graph: Graph, like: NativeExecutor | None = None, *, reduce: bool = True, poison: bool = False
    ) -> None:
        schedule = lower(graph, reduce=reduce)
        resized = None if like is None else like.resized(schedule)
        self.program = resized or Program(schedule)
        self._tensors = schedule.tensors  # views of the graph's constants but for a few scales and biases
        self.schedule = self.program.schedule
        self._session = Session(self.program, poison=poison)
        self._lock = threading.Lock()
        self._graph = graph
        self._source = sources(graph)
        nodes = [graph.by_name[plane.name] for plane in self.schedule.planes]
        self._number = {node: i for i, node in enumerate(nodes)}
        self._node = nodes
        self._kernel_planes = {nodes[step.output] for step in self.schedule.steps if step.op != "external"}
        self._output_names = {number: name for name, number in self.schedule.outputs.items()}
        self._say_what_is_external()

    def resized(self, schedule: Schedule) -> Program | None:
        """This program at the size of a schedule, sharing its packed weights; None where that is not the schedule."""
        images = [p for p in (schedule.planes[i] for i in schedule.inputs) if (p.height, p.width) != (1, 1)]
        try:
            program = self.program.at_size(images[0].height, images[0].width) if len(images) == 1 else None
        except RequestError:  # sizes that do not follow from the input's
            return None
        if program is None or replace(program.schedule, tensors={}) != replace(schedule, tensors={}):
            return None
        same = self._tensors.keys() == schedule.tensors.keys() and all(
            np.array_equal(values, self._tensors[name]) for name, values in schedule.tensors.items()
        )
        return program if same else None

    def obstacle(self, plan: Plan, inputs: Sequence[Tensor | Patch]) -> str:
        """Why this executor does not run a plan, as a clause; an empty string where it does."""
        if all(step.op == "external" for step in self.schedule.steps):
            return "no step of the network has a kernel, which take fp32 planes of one image"
        for node, given in zip(self._graph.inputs, inputs, strict=True):
            device = (given.tensor if isinstance(given, Patch) else given).device
            if device.type != "cpu":
                return f"input {node.name!r} lies on {device}, kernels run on the CPU"
        external = {self._node[step.output] for step in self.schedule.steps if step.op == "external"}
        for entry in plan.nodes:
            if entry.context is not None and entry.node not in external:
                return f"{entry.node.name!r} is {entry.context}, and a kernel would reduce the whole plane"
            if plan.reads_kept and entry.context != CACHED and entry.pieces != [entry.window]:
                return "the plan reads kept values, which lie outside the session"
        for key in plan.request:
            node = self._source[resolve_output(self._graph, key)]
            if not node.is_constant and node not in self._number:
                return f"{key!r} lies inside a step and is never stored"
            if node in self._kernel_planes and self._number[node] not in self._output_names:
                if self._steps(plan, "external"):
                    return f"{key!r} is no output of the network, and only outputs outlive external steps"
                if node.name in self.schedule.outputs:
                    return f"{key!r} is called like an output that is another plane"
        return ""

    def run(self, plan: Plan, inputs: Sequence[Tensor | Patch]) -> Outputs:
        """The requested windows, keyed like the request.

        Args:
            plan: one without an :meth:`obstacle`.
            inputs: of the network in order, whole or as patches that hold what the plan reads.

        Raises:
            ExecutionError: a step failed; the message names it.
        """
        with self._lock, torch.no_grad():
            parameters = self._set_inputs(plan, inputs)
            if self._steps(plan, "external") or self._is_apart(plan):
                return self._run_in_parts(plan, inputs, parameters)
            return self._run_at_once(plan, inputs, parameters)

    def _steps(self, plan: Plan, op: str) -> list[Step]:
        return [s for s in self.schedule.steps if s.op == op and self._node[s.output] in plan.by_node]

    def _is_apart(self, plan: Plan) -> bool:
        """Whether windows apart are to be computed, and what is asked lies in memory until the run ends."""
        nodes = [self._source[resolve_output(self._graph, key)] for key in plan.asked]
        outlive = all(self._number[n] in self._output_names for n in nodes if n in self._kernel_planes)
        return outlive and any(len(entry.pieces) > 1 for entry in plan.nodes)

    def _say_what_is_external(self) -> None:
        ops = Counter(self._graph.by_name[step.name].op for step in self.schedule.steps if step.op == "external")
        if ops and len(ops) < len(self.schedule.steps):
            listed = ", ".join(f"{op} x{count}" if count > 1 else op for op, count in sorted(ops.items()))
            say_once(f"no kernel for {listed}: these run in PyTorch, node by node, between the others")

    def _set_inputs(self, plan: Plan, inputs: Sequence[Tensor | Patch]) -> dict[int, np.ndarray]:
        """Images go into the session; gives the flat inputs by position."""
        parameters: dict[int, np.ndarray] = {}
        for position, (node, given) in enumerate(zip(self._graph.inputs, inputs, strict=True)):
            if node not in plan.by_node or not (is_plane(node) or is_vector(node)):
                continue
            tensor = (given.tensor if isinstance(given, Patch) else given).detach()
            if node.plane == (1, 1):
                parameters[position] = tensor.numpy().reshape(-1)
            else:
                window = given.window if isinstance(given, Patch) else node.full_window
                self._session.set_planar(position, tensor.numpy(), window)
        return parameters

    def _run_at_once(self, plan: Plan, inputs: Sequence[Tensor | Patch], parameters: dict[int, np.ndarray]) -> Outputs:
        keys = {key: self._source[resolve_output(self._graph, key)] for key in plan.request}
        stored = {key: self._name_of(node) for key, node in keys.items() if node in self._kernel_planes}
        asked: dict[int | str, Window] = {}
        for key, name in stored.items():  # two keys may name one plane
            asked[name] = hull((asked.get(name, EMPTY), *plan.asked[key]))
        result = self._session.run(asked, parameters).outputs if asked else {}
        values = self._input_values(plan, inputs)
        outputs: Outputs = {}
        for key, windows in plan.asked.items():
            if key in stored:
                whole = Patch(asked[stored[key]], torch.from_numpy(result[stored[key]]))
                tensors = [crop_patch(keys[key], whole, window) for window in windows]
            else:
                tensors = [read_output(keys[key], window, values) for window in windows]
            outputs[key] = as_asked(plan, key, tensors)
        return outputs

    def _run_in_parts(self, plan: Plan, inputs: Sequence[Tensor | Patch], parameters: dict[int, np.ndarray]) -> Outputs:
        windows: dict[int, list[Window]] = {}
        for number, node in enumerate(self._node):
            if node.op != INPUT and node in plan.by_node:
                entry = plan.by_node[node]
                windows[number] = [CELL] if entry.context == CACHED or not is_plane(node) else entry.pieces
        values = self._input_values(plan, inputs)
        self._session.begin(windows, parameters)
        try:
            first = 0
            for position, step in enumerate(self.schedule.steps):
                node = self._node[step.output]
                if step.op == "external" and node in plan.by_node:
                    self._session.run_steps(first, position)
                    self._compute(node, plan, values)
                    first = position + 1
            self._session.run_steps(first, len(self.schedule.steps))
            outputs: Outputs = {}
            for key, asked in plan.asked.items():
                node = self._source[resolve_output(self._graph, key)]
                if node in self._kernel_planes:
                    tensors = [self._read(node, window).tensor for window in asked]
                else:
                    tensors = [read_output(node, window, values) for window in asked]
                outputs[key] = as_asked(plan, key, tensors)
        except TraceNetError:
            with contextlib.suppress(RequestError):  # a step that failed in C++ has ended the run
                self._session.finish()
            raise
        self._session.finish()
        return outputs

    def _compute(self, node: Node, plan: Plan, values: Values) -> None:
        """Run an external step and put its result into the session, where kernels read it."""
        entry = plan.by_node[node]
        taken: dict[Node, list[Patch]] = defaultdict(list)
        for read in entry.reads:
            source = self._source[read.producer]
            if source in values.patches:
                values.patches[read.producer] = values.patches[source]
            elif source in self._kernel_planes and not read.window.is_empty:
                taken[read.producer].append(self._read(source, read.window))
        values.patches |= taken
        result = compute_entry(plan, entry, values)
        for producer in taken:
            del values.patches[producer]
        values.patches[node] = result
        for patch in result:
            if is_plane(node):
                cells = patch.tensor[0].permute(1, 2, 0)
            else:  # a vector, or a cell that stands for what kernels do not see
                cells = patch.tensor.reshape(1, 1, -1) if is_vector(node) else torch.zeros(1, 1, 1)
            window = patch.window if is_plane(node) else CELL
            self._session.write(self._number[node], window, cells.contiguous().numpy())

    def _read(self, node: Node, window: Window) -> Patch:
        """A window in the layout of the kernels, which PyTorch knows as channels_last: nothing is moved."""
        cells = torch.from_numpy(self._session.read(self._number[node], window))
        return Patch(window, cells.permute(2, 0, 1).unsqueeze(0))

    def _input_values(self, plan: Plan, inputs: Sequence[Tensor | Patch]) -> Values:
        values = Values(torch.device("cpu"))
        for node, given in zip(self._graph.inputs, inputs, strict=True):
            if node in plan.by_node:
                window = plan.by_node[node].window
                cut = crop_patch(node, given, window) if isinstance(given, Patch) else crop_output(node, given, window)
                values.patches[node] = [Patch(window, cut)]
        return values

    def _name_of(self, node: Node) -> str:
        """What a session calls a plane: the name of an output that it is, else its own."""
        return self._output_names.get(self._number[node], node.name)
