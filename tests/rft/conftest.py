"""What every test of traced networks asks: equal to the full network, blind outside the demand, no wider than it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tracenet.graph import Node
from tracenet.rft import Plan
from tracenet.rft.rules.pointwise import crop_output
from tracenet.traced import TracedModel
from tracenet_kernels.window import EMPTY, Window

TraceCheck = Callable[..., Plan]


def input_window(plan: Plan, node: Node) -> Window:
    """What a plan reads of an input; EMPTY if it is not visited."""
    return plan.windows.get(node.name, EMPTY)


def outside(tensor: Tensor, node: Node, window: Window, value: Tensor | float) -> Tensor:
    """``tensor`` with ``value`` everywhere but inside ``window``."""
    replaced = torch.as_tensor(value, dtype=tensor.dtype).expand_as(tensor).clone()
    if not window.is_empty:
        crop_output(node, replaced, window).copy_(crop_output(node, tensor, window))
    return replaced


def flat_outputs(result: object) -> list[Tensor]:
    """Tensors of a nested output, in the order in which a traced model counts them."""
    leaves, _ = torch.utils._pytree.tree_flatten(result)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def requested(model: nn.Module, traced: TracedModel, inputs: Sequence[Tensor], plan: Plan) -> dict[int | str, Tensor]:
    """The requested windows, cut out of the full network's outputs."""
    nodes = list(traced.graph.outputs.values())
    with torch.no_grad():
        full = flat_outputs(model(*(tensor.clone() for tensor in inputs)))
    return {key: crop_output(nodes[int(key)], full[int(key)], window) for key, window in plan.request.items()}


def assert_close(got: dict[int | str, Tensor], wanted: dict[int | str, Tensor], tolerance: float, what: str) -> None:
    for key, tensor in wanted.items():
        scale = float(tensor.double().abs().max()) if tensor.numel() else 0.0
        close = partial(torch.testing.assert_close, rtol=0, atol=tolerance * max(scale, 1e-3))
        close(got[key], tensor, msg=partial("output {} {}: {}".format, key, what))


def check(
    model: nn.Module,
    traced: TracedModel,
    inputs: Sequence[Tensor],
    request: dict[int | str, Window | None],
    tolerance: float,
    tight: bool = False,
) -> Plan:
    """Run one request and compare it with the full network in three ways."""
    plan = traced.plan(request)
    wanted = requested(model, traced, inputs, plan)
    nodes = traced.graph.inputs
    windows = [input_window(plan, node) for node in nodes]
    poison = [
        outside(tensor, node, window, float("nan") if tensor.is_floating_point() else 77)
        for tensor, node, window in zip(inputs, nodes, windows, strict=True)
    ]
    assert_close(traced.run(poison, plan), wanted, tolerance, "differs from the full network")

    if all(tensor.is_floating_point() for tensor in inputs):
        other = [
            outside(tensor, node, window, torch.rand_like(tensor) * 9 + 5)
            for tensor, node, window in zip(inputs, nodes, windows, strict=True)
        ]
        message = "depends on cells that are not demanded"
        assert_close(requested(model, traced, other, plan), wanted, tolerance, message)
    if tight:
        for i, (node, window) in enumerate(zip(nodes, windows, strict=True)):
            for line in _edges(window):
                changed = list(inputs)
                changed[i] = inputs[i].clone()
                crop_output(node, changed[i], line).add_(100.0)
                moved = requested(model, traced, changed, plan)
                assert any(not torch.equal(moved[key], wanted[key]) for key in wanted), (
                    f"{line} of {node.name} is demanded ({window}) but no requested cell depends on it: {plan.request}"
                )
    return plan


def _edges(window: Window) -> list[Window]:
    y0, y1, x0, x1 = window
    if window.is_empty:
        return []
    rows = [Window(y, y + 1, x0, x1) for y in (y0, y1 - 1)]
    return rows + [Window(y0, y1, x, x + 1) for x in (x0, x1 - 1)]


@pytest.fixture(scope="session")
def trace_check() -> TraceCheck:
    """``trace_check(model, traced, inputs, request, tolerance, tight)`` gives the plan it checked."""
    return check
