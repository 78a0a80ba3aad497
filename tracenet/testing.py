"""Is a network traced exactly? A check for rules of one's own: random requests against the whole network."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracenet.rft.rules.pointwise import crop_output
from tracenet.rft.trace import Plan
from tracenet.traced import TracedModel, trace
from tracenet_kernels.errors import ExactnessError, InputError
from tracenet_kernels.window import Window


@dataclass(frozen=True)
class Exactness:
    """What :func:`check_exactness` found.

    Attributes:
        requests: how many were run, on every backend.
        largest_error: ``max|traced - full| / max|full|`` over all of them.
        smallest_share: the smallest share of an input's cells that a request of one cell read; 1.0: rules that always
            ask for everything.
        barriers: operations that read whole planes.
    """

    requests: int
    largest_error: float
    smallest_share: float
    barriers: tuple[str, ...]


def check_exactness(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    *,
    requests: int = 30,
    tolerance: float = 1e-4,
    backends: Sequence[str] = ("torch",),
    seed: int = 0,
) -> Exactness:
    """Trace a model and compare random windows of its outputs with its own forward pass.

    Corners, edges, single cells and patches of every output are asked for, alone and together. What a plan does not
    read of the inputs is NaN (or another number where they are integers) while it runs, so that a rule which reads more
    than it demands is found as well.

    Args:
        model, inputs: as for :func:`tracenet.trace`; the inputs' values are used.
        requests: how many random ones, after four fixed ones per output.
        tolerance: largest error allowed, relative to the largest value of the output.
        backends: those that are to be compared, of ``"torch"``, ``"native"``, ``"triton"`` and ``"auto"``.
        seed: of the random requests; the same seed asks the same.

    Raises:
        ExactnessError: a window differs; the message names the request, and the first node that is wrong.
        InputError: ``requests`` or ``tolerance`` is no positive number.
        TraceNetError: what :func:`tracenet.trace` and :meth:`~tracenet.TracedModel.run` raise.
    """
    if not isinstance(requests, int) or requests < 0 or not tolerance > 0:
        raise InputError(f"requests is {requests!r} and tolerance {tolerance!r}; pass 0 or more, and more than 0")
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    with torch.no_grad():
        leaves = pytree.tree_leaves(model(*(tensor.clone() for tensor in given)))
    traced = trace(model, tuple(given))
    full = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    worst, smallest, barriers = 0.0, 1.0, dict[str, None]()
    asked = _requests(traced, requests, random.Random(seed))
    for request in asked:
        plan = traced.plan(request)
        barriers |= dict.fromkeys(f"{barrier.name} ({barrier.op}): {barrier.reason}" for barrier in plan.barriers)
        poisoned = [_poisoned(plan, position, tensor) for position, tensor in enumerate(given)]
        if len(request) == 1 and all(window.area == 1 for window in plan.request.values()):
            smallest = min(smallest, _share_read(plan))
        for backend in backends:
            error = _error(plan, traced.run(poisoned, plan, backend=backend), full)
            if not error <= tolerance:
                raise ExactnessError(_told(traced, given, plan, backend, error, tolerance))
            worst = max(worst, error)
    return Exactness(len(asked), worst, smallest, tuple(barriers))


def _requests(traced: TracedModel, count: int, rng: random.Random) -> list[dict[int | str, Any]]:
    """Both corners, the centre and all of every output, then random windows of random outputs."""
    nodes = dict(enumerate(traced.graph.outputs.values()))
    found: list[dict[int | str, Any]] = []
    for key, node in nodes.items():
        height, width = node.plane
        cells = {(0, 0), (height - 1, width - 1), (height // 2, width // 2)}
        found += [{key: Window.of_cell(*cell)} for cell in sorted(cells)]
        found.append({key: None})
    planes = [key for key, node in nodes.items() if node.layout is not None]
    for _ in range(count if planes else 0):
        keys = rng.sample(planes, rng.randint(1, min(3, len(planes))))
        found.append({key: _window(*nodes[key].plane, rng) for key in keys})
    return found


def _window(height: int, width: int, rng: random.Random) -> Window:
    """Mostly small ones: a large window hides what a rule demands too little of."""
    rows, columns = (min(length, rng.choice((1, 1, 2, 3, 5, length))) for length in (height, width))
    y, x = rng.randint(0, height - rows), rng.randint(0, width - columns)
    return Window(y, y + rows, x, x + columns)


def _poisoned(plan: Plan, position: int, tensor: Tensor) -> Tensor:
    """An input with another value wherever the plan does not read it."""
    node = plan.graph.inputs[position]
    value = float("nan") if tensor.is_floating_point() else 1
    result = torch.full_like(tensor, value)
    if node in plan.by_node:
        window = plan.by_node[node].window
        crop_output(node, result, window).copy_(crop_output(node, tensor, window))
    return result


def _share_read(plan: Plan) -> float:
    windows = [
        (plan.by_node[node].window.area, node.full_window.area) for node in plan.graph.inputs if node in plan.by_node
    ]
    return max((area / whole for area, whole in windows), default=0.0)


def _error(plan: Plan, outputs: dict[int | str, Any], full: Sequence[Tensor]) -> float:
    """Largest relative error of a request; infinite where a value is not the same kind of number."""
    worst = 0.0
    nodes = list(plan.graph.outputs.values())
    for key, window in plan.request.items():
        wanted, got = crop_output(nodes[int(key)], full[int(key)], window), outputs[key]
        worst = max(worst, _difference(got, wanted, float(full[int(key)].double().abs().max())))
    return worst


def _difference(got: Tensor, wanted: Tensor, scale: float) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    same = torch.isclose(got.double(), wanted.double(), rtol=0, atol=0, equal_nan=True)
    error = float(torch.where(same, 0.0, (got.double() - wanted.double()).abs()).max()) / (scale or 1.0)
    return error if error == error else float("inf")


def _told(traced: TracedModel, inputs: list[Tensor], plan: Plan, backend: str, error: float, tolerance: float) -> str:
    request = ", ".join(f"{traced.output_names[int(key)]!r} {window}" for key, window in plan.request.items())
    first = _first_wrong(traced, inputs, plan, tolerance)
    return (
        f"on the {backend} backend, {request} is off by {error:.1e} of the output's largest value ({tolerance:.0e} is "
        f"allowed){first or '; every node alone is right, so look at the backend'}"
    )


def _first_wrong(traced: TracedModel, inputs: list[Tensor], plan: Plan, tolerance: float) -> str:
    """The first node whose windows in a plan differ from the same node's in a run of everything."""
    names = [entry.node.name for entry in plan.nodes if not entry.node.is_constant]
    whole = traced.plan(dict.fromkeys(names), max_pieces=1)
    expected = traced.run(inputs, whole)
    _, kept = traced.run_keeping(inputs, plan, keep=names)
    for name in names:
        node = traced.graph.by_name[name]
        scale = float(expected[name].double().abs().max())
        for patch in kept.get(name, ()):
            wanted = crop_output(node, expected[name], patch.window)
            if _difference(patch.tensor, wanted, scale) > tolerance:
                line = f", at {node.source}" if node.source else ""
                return f"; the first wrong node is {name!r} ({node.op}{line}), in {patch.window}: look at its rule"
    return ""
