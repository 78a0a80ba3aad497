"""A schedule in plain torch on full planes: short, slow, and the oracle of the native executor.

Every step follows its row in the table of :mod:`tracenet.engine.schedule`; planes are ``[1, C, H, W]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tracenet.engine.reference_int8 import dequantised, run_int8_step
from tracenet.engine.reference_windows import PairsOfWindow, padded, window_of
from tracenet.engine.schedule import ACTIVATIONS, RESIZE_MODES, Plane, Schedule, Step
from tracenet.graph.capture import run_node
from tracenet.graph.graph import Graph, Node, map_nodes
from tracenet_kernels.errors import ExecutionError
from tracenet_kernels.reference import aligned_bilinear

External = Callable[[Step, list[Tensor]], Tensor]
"""Computes an external step from its inputs, in the shapes that torch gave them."""

_THETA = (80, 64, 8, 8, 8, 1)


def run_schedule(
    schedule: Schedule,
    inputs: Sequence[Tensor],
    external: External | None = None,
    observe: Callable[[int, Tensor], None] | None = None,
) -> dict[str, Tensor]:
    """Every output of a schedule by its name.

    Args:
        inputs: of the network, in order.
        external: computes the steps that have no kernel; see :func:`graph_runner`.
        observe: called with the number and the values of every plane that a step computes.

    Raises:
        ExecutionError: the schedule has an external step and ``external`` is None, or a step does not give its plane.
    """
    values: dict[int, Tensor] = dict(zip(schedule.inputs, inputs, strict=True))
    tensors = {name: torch.from_numpy(values) for name, values in schedule.tensors.items()}
    with torch.no_grad():
        for step in schedule.steps:
            operands = [values[number] for number in step.inputs]
            plane = schedule.planes[step.output]
            if step.op == "external":
                if external is None:
                    raise ExecutionError(f"step {step.name!r} is external; pass what computes it")
                value = external(step, operands)
            else:
                weights = {attribute: tensors[name] for attribute, name in step.tensors.items()}
                sources = [schedule.planes[number] for number in step.inputs]
                if plane.dtype != "float32" or any(source.dtype != "float32" for source in sources):
                    value = run_int8_step(step, operands, sources, weights, plane)
                else:
                    value = _OPS[step.op](step, operands, weights, plane)
                if tuple(value.shape) != (1, plane.channels, plane.height, plane.width):
                    raise ExecutionError(f"step {step.name!r} ({step.op}) gave {tuple(value.shape)} for {plane}")
            values[step.output] = value
            if observe is not None:
                observe(step.output, value)
    return {name: dequantised(values[number], schedule.planes[number]) for name, number in schedule.outputs.items()}


def graph_runner(graph: Graph) -> External:
    """Computes external steps by the nodes they stand for."""

    def run(step: Step, operands: list[Tensor]) -> Tensor:
        node = graph.by_name[step.nodes[0]]
        given = iter(operands)

        def value(operand: Node) -> Tensor:
            return next(given).reshape(operand.shape) if operand.value is None else operand.value

        args, kwargs = map_nodes((node.args, node.kwargs), value)
        return run_node(node, args, kwargs)

    return run


def _conv(step: Step, x: Tensor, weights: dict[str, Tensor], height: int, width: int) -> Tensor:
    window = window_of(step)
    x = padded(x, window, height, width, 0.0)
    y = F.conv2d(x, weights["weight"], None, window[1], 0, window[3], step.ints.get("groups", 1))
    if "scale" in weights:
        y = y * weights["scale"].view(-1, 1, 1)
    return y + weights["bias"].view(-1, 1, 1) if "bias" in weights else y


_FUNCTIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "none": lambda x, a, b: x,
    "relu": lambda x, a, b: F.relu(x),
    "clip": lambda x, a, b: x.clamp(a, b),
    "leaky_relu": lambda x, a, b: F.leaky_relu(x, a),
    "sigmoid": lambda x, a, b: x.sigmoid(),
    "hard_sigmoid": lambda x, a, b: F.hardsigmoid(x),
    "hard_swish": lambda x, a, b: F.hardswish(x),
    "silu": lambda x, a, b: F.silu(x),
    "gelu": lambda x, a, b: F.gelu(x),
    "gelu_tanh": lambda x, a, b: F.gelu(x, approximate="tanh"),
    "tanh": lambda x, a, b: x.tanh(),
}


def _activate(step: Step, x: Tensor) -> Tensor:
    function = _FUNCTIONS[ACTIVATIONS[step.ints.get("activation", 0)]]
    return function(x, step.floats.get("a", 0.0), step.floats.get("b", 0.0))


def _conv2d(step: Step, x: list[Tensor], weights: dict[str, Tensor], plane: Plane) -> Tensor:
    y = _conv(step, x[0], weights, plane.height, plane.width)
    if len(x) > 1:
        factor = step.ints.get("residual_factor", 1)
        residual = x[1].repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        y = y + residual[..., : plane.height, : plane.width]
    return _activate(step, y)


def _max_pool(x: Tensor, window: PairsOfWindow, plane: Plane) -> Tensor:
    x = padded(x, window, plane.height, plane.width, float("-inf"))
    return F.max_pool2d(x, window[0], window[1], 0, window[3])


def _max_pool2d(step: Step, x: list[Tensor], weights: dict[str, Tensor], plane: Plane) -> Tensor:
    return _max_pool(x[0], window_of(step), plane)


def _avg_pool2d(step: Step, x: list[Tensor], weights: dict[str, Tensor], plane: Plane) -> Tensor:
    window = window_of(step)
    kernel, stride, pad, _ = window
    ones = torch.ones_like(x[0][:, :1])
    if step.ints.get("count_include_pad"):
        ones = F.pad(ones, (pad[1], pad[1], pad[0], pad[0]), value=1.0)
    window_of_ones = (kernel, stride, (0, 0) if step.ints.get("count_include_pad") else pad, (1, 1))
    sums, cells = (
        F.avg_pool2d(padded(t, w, plane.height, plane.width, 0.0), kernel, stride, divisor_override=1)
        for t, w in ((x[0], window), (ones, window_of_ones))
    )
    return sums / (step.ints.get("divisor") or cells)


def _stem(step: Step, x: list[Tensor], weights: dict[str, Tensor], plane: Plane) -> Tensor:
    y = _conv(step, x[0], weights, step.ints["conv_height"], step.ints["conv_width"])
    return _max_pool(_activate(step, y), window_of(step, "pool_"), plane)


def _resize(step: Step, x: list[Tensor], weights: dict[str, Tensor], plane: Plane) -> Tensor:
    mode = RESIZE_MODES[step.ints["mode"]]
    if mode == "aligned_bilinear":
        y = aligned_bilinear(x[0], step.ints["factor"])
    else:
        y = x[0]
        for axis, out, ratio in ((2, plane.height, "ratio_y"), (3, plane.width, "ratio_x")):
            y = _resize_axis(y, axis, out, step.floats.get(ratio, 1.0), mode)
    return y + x[1] if len(x) > 1 else y


def _resize_axis(x: Tensor, axis: int, out: int, ratio: float, mode: str) -> Tensor:
    last = x.shape[axis] - 1
    i, r = torch.arange(out, dtype=torch.float32), torch.tensor(ratio, dtype=torch.float32)
    if mode == "nearest":
        return x.index_select(axis, (i * r).floor().long().clamp(max=last))
    source = i * r if mode == "bilinear_align_corners" else ((i + 0.5) * r - 0.5).clamp(min=0)
    low = source.floor().long().clamp(max=last)
    t = (source - low).clamp(0, 1).view([-1 if a == axis else 1 for a in range(4)])
    return x.index_select(axis, low) * (1 - t) + x.index_select(axis, (low + 1).clamp(max=last)) * t


def _add(step: Step, x: list[Tensor], weights: dict[str, Tensor], plane: Plane) -> Tensor:
    return _activate(step, x[0] + x[1] if len(x) > 1 else x[0])


def _mul(step: Step, x: list[Tensor], weights: dict[str, Tensor], plane: Plane) -> Tensor:
    return _activate(step, x[0] * x[1])


def _plane_mean(step: Step, x: list[Tensor], weights: dict[str, Tensor], plane: Plane) -> Tensor:
    return x[0].mean((2, 3), keepdim=True)


def _group_norm(step: Step, x: list[Tensor], weights: dict[str, Tensor], plane: Plane) -> Tensor:
    groups, epsilon = step.ints.get("groups", 1), step.floats.get("epsilon", 0.0)
    return _activate(step, F.group_norm(x[0], groups, weights.get("scale"), weights.get("bias"), epsilon))


def _take_channels(step: Step, x: list[Tensor], weights: dict[str, Tensor], plane: Plane) -> Tensor:
    return x[0].narrow(1, step.ints.get("first", 0), plane.channels)


def _sigmoid(step: Step, x: list[Tensor], weights: dict[str, Tensor], plane: Plane) -> Tensor:
    return x[0].sigmoid()


def _concat(step: Step, x: list[Tensor], weights: dict[str, Tensor], plane: Plane) -> Tensor:
    return torch.cat(x, 1)


def _mask_head(step: Step, x: list[Tensor], weights: dict[str, Tensor], plane: Plane) -> Tensor:
    features, theta, origin, size_of_interest = x
    stride, height, width = step.ints["stride"], *features.shape[2:]
    rows = (origin.reshape(2)[1] - (torch.arange(height) * stride + stride // 2)) / size_of_interest.reshape(())
    columns = (origin.reshape(2)[0] - (torch.arange(width) * stride + stride // 2)) / size_of_interest.reshape(())
    where = torch.stack([columns.expand(height, width), rows.view(-1, 1).expand(height, width)])
    w1, w2, w3, b1, b2, b3 = theta.reshape(-1).split(_THETA)
    y = torch.cat([where.unsqueeze(0), features], 1)
    y = F.relu(F.conv2d(y, w1.view(8, 10, 1, 1), b1))
    y = F.relu(F.conv2d(y, w2.view(8, 8, 1, 1), b2))
    y = F.conv2d(y, w3.view(1, 8, 1, 1), b3)
    factor = step.ints.get("factor", 0)
    return aligned_bilinear(y, factor) if factor else y


_OPS: dict[str, Callable[[Step, list[Tensor], dict[str, Tensor], Plane], Tensor]] = {
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "stem": _stem,
    "resize": _resize,
    "add": _add,
    "sigmoid": _sigmoid,
    "concat": _concat,
    "mask_head": _mask_head,
    "mul": _mul,
    "plane_mean": _plane_mean,
    "group_norm": _group_norm,
    "take_channels": _take_channels,
    "convert": lambda step, x, weights, plane: x[0],
}
