"""The paper's PyTorch path: autocrop, autopad. Slow, simple, always right.

Walks a plan in order. Every node reads crops of its producers, padded where a window meets the plane's edge,
computes exactly its own window, and every tensor is freed after its last use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tracenet.graph.graph import INPUT, Node
from tracenet.rft.context import CACHED, reduce_window
from tracenet.rft.rules.pointwise import crop_output
from tracenet.rft.rules.registry import Demand, find_rule
from tracenet.rft.trace import NodePlan, Plan, resolve_output
from tracenet_kernels.errors import ExecutionError, TraceNetError
from tracenet_kernels.window import EMPTY, Window, subtract_all


@dataclass(slots=True)
class Patch:
    """Values of one window of a node's plane."""

    window: Window
    tensor: Tensor


Store = Mapping[str, list[Patch]]
"""Node name -> patches already known."""


class Values:
    """Values of nodes known so far, as patches by node; a rule's :class:`~tracenet.rft.rules.registry.Reader`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.patches: dict[Node, list[Patch]] = {}

    def whole(self, producer: Node) -> Tensor:
        if producer.value is not None:
            return producer.value
        return self.window(producer, producer.full_window)

    def window(self, producer: Node, window: Window) -> Tensor:
        """``window`` of what is known of a node: a view of one patch, or several put together."""
        patches = self.patches.get(producer, [])
        for patch in patches:
            if patch.window.contains(window):
                return crop_patch(producer, patch, window)
        missing, layout = subtract_all(window, [patch.window for patch in patches]), producer.layout
        if missing or layout is None or layout.merged:
            absent = missing[0] if missing else window
            raise ExecutionError(
                f"{window} of {producer.name!r} is read, but {absent} was neither computed nor is it in the store; "
                "a rule reads what it demands, and a plan made with kept=... needs those patches"
            )
        shape = list(producer.shape)
        shape[layout.y], shape[layout.x] = window.height, window.width
        out = torch.empty(shape, dtype=producer.dtype, device=self.device)
        for patch in patches:
            common = patch.window.intersect(window)
            if not common.is_empty:
                to = common.shift(-window.y0, -window.x0)
                _narrow(out, layout.axes, to).copy_(crop_patch(producer, patch, common))
        return out

    def __call__(self, demand: Demand, fill: float | None = None) -> Tensor:
        producer, window, axes, _ = demand
        layout = producer.layout
        if layout is not None and demand.fits and producer.value is None:
            plane = producer.plane
            clipped = window.clip(*plane)
            if clipped.is_empty:
                return self._nothing(producer, window, axes, 0.0 if fill is None else fill)
            crop = self.window(producer, clipped)
        else:
            tensor = self.whole(producer)
            if axes[0] is not None and axes[0] == axes[1]:
                if demand.plane is None:
                    raise ExecutionError(f"{producer.name!r} is read by flattened rows and columns of unknown size")
                return _crop_merged(tensor, axes[0], Window.full(*demand.plane), window)
            plane = tuple(tensor.shape[a] if a is not None else 1 for a in axes)  # type: ignore[assignment]
            clipped = window.clip(*plane)
            if clipped.is_empty:
                return self._nothing(producer, window, axes, 0.0 if fill is None else fill)
            crop = _narrow(tensor, axes, clipped)
        if clipped == window:
            return crop
        if fill is None:
            raise ExecutionError(f"{window} of {producer.name!r} reaches past its plane {plane} without padding")
        return _pad(crop, axes, window, clipped, fill)

    def _nothing(self, producer: Node, window: Window, axes: tuple[int | None, int | None], fill: float) -> Tensor:
        shape = list(producer.shape)
        for axis, size in zip(axes, (window.height, window.width), strict=True):
            if axis is not None:
                shape[axis] = size
        return torch.full(shape, fill, dtype=producer.dtype, device=self.device)


def _narrow(tensor: Tensor, axes: tuple[int | None, int | None], window: Window) -> Tensor:
    if axes[0] is not None:
        tensor = tensor.narrow(axes[0], window.y0, window.height)
    if axes[1] is not None:
        tensor = tensor.narrow(axes[1], window.x0, window.width)
    return tensor


def _crop_merged(tensor: Tensor, axis: int | None, origin: Window, window: Window) -> Tensor:
    assert axis is not None
    if origin == window:
        return tensor
    plane = tensor.unflatten(axis, (origin.height, origin.width))
    return _narrow(plane, (axis, axis + 1), window.shift(-origin.y0, -origin.x0)).flatten(axis, axis + 1)


def _pad(crop: Tensor, axes: tuple[int | None, int | None], window: Window, clipped: Window, fill: float) -> Tensor:
    amounts = [0] * (2 * crop.ndim)
    for axis, before, after in (
        (axes[0], clipped.y0 - window.y0, window.y1 - clipped.y1),
        (axes[1], clipped.x0 - window.x0, window.x1 - clipped.x1),
    ):
        if axis is not None:
            amounts[2 * (crop.ndim - 1 - axis)] = before
            amounts[2 * (crop.ndim - 1 - axis) + 1] = after
    return F.pad(crop, amounts, value=fill)


def run_plan(
    plan: Plan, inputs: Sequence[Tensor | Patch], store: Store | None = None, keep: Iterable[str] = ()
) -> tuple[dict[int | str, Any], dict[str, list[Patch]]]:
    """Execute a plan.

    Args:
        plan: from :func:`tracenet.rft.plan_windows`.
        inputs: the network's inputs in order, full size or patches that hold the planned windows.
        store: patches of the nodes that the plan was told are kept.
        keep: names of nodes whose values are to be returned beside the outputs.

    Returns:
        the outputs keyed like the request and cropped to it (a list where it asks with a list of windows), and what was
        computed of each of the ``keep`` nodes.

    Raises:
        ExecutionError: a node failed; the message names it and what it was computing.
    """
    first = inputs[0]
    values = Values(first.tensor.device if isinstance(first, Patch) else first.device)
    position = {node: i for i, node in enumerate(plan.graph.inputs)}
    uses = _uses(plan)
    wanted: set[str] = set(keep)
    kept: dict[str, list[Patch]] = {}
    with torch.no_grad():
        for entry in plan.nodes:
            node = entry.node
            if node.value is not None:
                computed = [Patch(entry.window, node.value)]
            elif node.op == INPUT:
                given = inputs[position[node]]
                cut = crop_patch if isinstance(given, Patch) else crop_output
                computed = [Patch(entry.window, cut(node, given, entry.window))]  # type: ignore[arg-type]
            else:
                computed = compute_entry(plan, entry, values)
            values.patches[node] = [*(store or {}).get(node.name, ()), *computed]
            if node.name in wanted and computed:
                kept[node.name] = computed
            for read in entry.reads:
                uses[read.producer] -= 1
                if uses[read.producer] == 0:
                    values.patches.pop(read.producer, None)
    outputs: dict[int | str, Any] = {}
    for key, windows in plan.asked.items():
        node = resolve_output(plan.graph, key)
        outputs[key] = as_asked(plan, key, [read_output(node, window, values) for window in windows])
    return outputs, kept


def read_output(node: Node, window: Window, values: Values) -> Tensor:
    """A window of an output, or of a node that stands for one."""
    if node.value is not None:
        return node.value
    return values(Demand(node, window, node.layout.axes if node.layout is not None else (None, None)))


def as_asked(plan: Plan, key: int | str, tensors: list[Tensor]) -> Any:
    """What a request gets for one key: a list of tensors if it asked with a list, else the one."""
    return tensors if isinstance(plan.request[key], list) else tensors[0]


def _uses(plan: Plan) -> Counter[Node]:
    """How many planned reads each node has; a requested output has one more, so it is never freed."""
    uses: Counter[Node] = Counter()
    for entry in plan.nodes:
        uses.update(read.producer for read in entry.reads)
    uses.update(resolve_output(plan.graph, key) for key in plan.request)
    return uses


def compute_entry(plan: Plan, entry: NodePlan, values: Values) -> list[Patch]:
    """What a plan computes of a node that is neither an input nor a constant, or takes from its vectors.

    Raises:
        ExecutionError: see :func:`compute_node`.
    """
    node = entry.node
    if entry.context == CACHED:
        assert plan.vectors is not None
        return [Patch(node.full_window, plan.vectors[node.name].to(values.device))]
    return [Patch(piece, compute_node(node, piece, values, entry.source)) for piece in entry.pieces]


def compute_node(node: Node, window: Window, values: Values, source: Window = EMPTY) -> Tensor:
    """``window`` of a node by its rule, from values of its producers.

    Args:
        node, window, values: what to compute, from what.
        source: where it is not empty, ``node`` is a global vector, to be reduced from this part of its operand only.

    Raises:
        ExecutionError: the operation failed or gave another shape than the window's.
    """
    try:
        if source.is_empty:
            tensor = find_rule(node).run(node, window, values)
        else:
            tensor = reduce_window(node, source, values)
    except TraceNetError:
        raise
    except Exception as error:
        raise ExecutionError(f"node {node.name!r} ({node.op}) failed on window {window}: {error}") from error
    _check_shape(node, window, tensor)
    return tensor


def _check_shape(node: Node, window: Window, tensor: Tensor) -> None:
    shape = list(node.shape)
    if node.layout is not None and node.layout.merged:
        shape[node.layout.y] = window.area
    elif node.layout is not None:
        shape[node.layout.y], shape[node.layout.x] = window.height, window.width
    if list(tensor.shape) != shape:
        raise ExecutionError(
            f"node {node.name!r} ({node.op}) gave {list(tensor.shape)} for window {window}; its rule must give {shape}"
        )


def crop_patch(node: Node, patch: Patch, window: Window) -> Tensor:
    """The part ``window`` of a patch of ``node`` (a view)."""
    if node.layout is None:
        return patch.tensor
    if node.layout.merged:
        return _crop_merged(patch.tensor, node.layout.y, patch.window, window)
    return _narrow(patch.tensor, node.layout.axes, window.shift(-patch.window.y0, -patch.window.x0))
