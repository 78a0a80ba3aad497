"""Windows of a schedule's planes for one request, and for many at once: the backward rules in Python.

The twin of ``csrc/runtime/rules.cpp``, in the arithmetic of the kernels: coordinates of resizes are float32. Windows
are separable: rows and columns do not depend on each other, and along an axis the first cell of a demand depends on
the first cell of the output only, the last on the last. So one rule maps a :data:`Span`, of integers or of arrays of
them, and :func:`sweep` evaluates every position of a click in one walk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracenet.engine.schedule import RESIZE_MODES, Schedule, Step
from tracenet_kernels.errors import RequestError, WindowError
from tracenet_kernels.window import EMPTY, Window, hull

Edge = Any
"""A coordinate: an int, or an int64 array with one per request."""
Span = tuple[Edge, Edge]
Rule = Callable[[Step, int, Span, int, int], Span]
"""Step, axis (0: y), span of its output, lengths of its input and output along the axis -> span of the input."""
Ints = NDArray[np.int32]


class NotSeparable(RequestError):  # noqa: N818 - says what the windows are
    """A demand is empty along one axis, so that rows and columns depend on each other; plan request by request."""


def plan_windows(schedule: Schedule, request: Mapping[int, Window]) -> list[Window]:
    """The window of every plane that a request needs, :data:`EMPTY` where nothing is needed.

    Equal to what the C++ planner gives where nothing is kept. External steps, which it refuses, compute their whole
    output from whole inputs.

    Args:
        request: plane number -> window on it.

    Raises:
        RequestError: a plane is not there, or nothing computes it.
        WindowError: a window is empty or not on its plane.
    """
    windows = [EMPTY] * len(schedule.planes)
    _check_computed(schedule, request)
    for plane, window in request.items():
        p = schedule.planes[plane]
        if window.is_empty or not Window.full(p.height, p.width).contains(window):
            raise WindowError(f"{window} is asked of {p.name!r}, {p.height} x {p.width}; ask for cells of it")
        windows[plane] = window
    for step in reversed(schedule.steps):
        y0, y1, x0, x1 = windows[step.output]
        if y0 == y1 or x0 == x1:
            continue
        if step.op == "external":
            windows[step.output] = Window.full(*_sides(schedule, step.output))
        rows, columns = inner_span(schedule, step, 0, (y0, y1)), inner_span(schedule, step, 1, (x0, x1))
        if rows[0] == rows[1] or columns[0] == columns[1]:
            continue
        for position, plane in enumerate(step.inputs):
            y, x = demand(schedule, step, position, 0, rows), demand(schedule, step, position, 1, columns)
            windows[plane] = hull((windows[plane], Window(*y, *x)))
    return windows


def sweep(
    schedule: Schedule, axis: int, starts: Mapping[int, ArrayLike], stops: Mapping[int, ArrayLike]
) -> tuple[Ints, Ints]:
    """One axis of the windows of N requests, which ask for the same planes.

    Args:
        axis: 0: rows, 1: columns.
        starts, stops: plane number -> [N] first cell, and one past the last, that is asked of it; on the plane.

    Returns:
        First cell and one past the last of every plane's window, [N, planes]; both 0 where nothing is needed.

    Raises:
        NotSeparable: a demand is empty for one of the requests.
        RequestError: no or differing planes or lengths, a span that is empty or not on its plane.
    """
    if not starts or starts.keys() != stops.keys():
        raise RequestError(f"starts name the planes {sorted(starts)}, stops {sorted(stops)}; name the same, at least 1")
    _check_computed(schedule, starts)
    spans: dict[int, Span] = {}
    count = np.size(next(iter(starts.values())))
    for plane in starts:
        span = np.asarray(starts[plane], np.int64), np.asarray(stops[plane], np.int64)
        length = _sides(schedule, plane)[axis]
        if any(edge.shape != (count,) for edge in span):
            raise RequestError(f"plane {plane} has {[edge.shape for edge in span]} edges; pass [{count}] for all")
        if (span[0] < 0).any() or (span[1] > length).any() or (span[0] >= span[1]).any():
            raise RequestError(f"a span asked of plane {plane} is empty or not within its {length} cells")
        spans[plane] = span
    for step in reversed(schedule.steps):
        if step.output not in spans:
            continue
        if step.op == "external":
            spans[step.output] = (0, _sides(schedule, step.output)[axis])
        inner = _solid(step, inner_span(schedule, step, axis, spans[step.output]))
        for position, plane in enumerate(step.inputs):
            lo, hi = _solid(step, demand(schedule, step, position, axis, inner))
            before = spans.get(plane, (lo, hi))
            spans[plane] = np.minimum(before[0], lo), np.maximum(before[1], hi)
    lo, hi = (np.zeros((count, len(schedule.planes)), np.int32) for _ in range(2))
    for plane, span in spans.items():
        lo[:, plane], hi[:, plane] = span
    return lo, hi


def inner_span(schedule: Schedule, step: Step, axis: int, span: Span) -> Span:
    """Cells of what a step computes inside itself: the convolution of a stem, the logits of a mask head.

    For other steps ``span`` itself.
    """
    rule = _INNER.get(step.op)
    if rule is None:
        return span
    return rule(step, axis, span, _sides(schedule, step.inputs[0])[axis], _sides(schedule, step.output)[axis])


def demand(schedule: Schedule, step: Step, position: int, axis: int, inner: Span) -> Span:
    """Cells of input ``position`` that a step reads for the inner span; empty where only padding is read."""
    first, others = _DEMANDS[step.op]
    rule = first if position == 0 else others
    lengths = _sides(schedule, step.inputs[position])[axis], _sides(schedule, step.output)[axis]
    return rule(step, axis, inner, *lengths)


def _sides(schedule: Schedule, plane: int) -> tuple[int, int]:
    return schedule.planes[plane].height, schedule.planes[plane].width


def _check_computed(schedule: Schedule, planes: Iterable[int]) -> None:
    unknown = {*planes} - {*schedule.inputs, *(step.output for step in schedule.steps)}
    if unknown:
        raise RequestError(f"plane {min(unknown)} is asked for, but no step computes it")


def _solid(step: Step, span: Span) -> Span:
    if np.any(np.asarray(span[0]) >= span[1]):
        raise NotSeparable(
            f"step {step.name!r} reads nothing but padding for one of the requests; plan them one by one"
        )
    return span


def _clamp(edge: Edge, last: int) -> Edge:
    return min(max(edge, 0), last) if isinstance(edge, int) else np.clip(edge, 0, last)


def _cell(position: Any, last: int) -> Edge:
    """The cell that a float32 position lies in, at most ``last``."""
    return (
        min(math.floor(position), last) if np.ndim(position) == 0 else np.minimum(np.floor(position), last).astype(int)
    )


def _slide(step: Step, axis: int, span: Span, length: int, out: int, prefix: str = "") -> Span:
    kernel, stride, pad, dilation = (
        step.ints.get(f"{prefix}{name}_{'yx'[axis]}", int(name != "pad"))
        for name in ("kernel", "stride", "pad", "dilation")
    )
    reach = dilation * (kernel - 1) + 1
    return _clamp(span[0] * stride - pad, length), _clamp((span[1] - 1) * stride - pad + reach, length)


def _pooled(step: Step, axis: int, span: Span, length: int, out: int) -> Span:
    return _slide(step, axis, span, step.ints[("conv_height", "conv_width")[axis]], out, "pool_")


def _same(step: Step, axis: int, span: Span, length: int, out: int) -> Span:
    return span


def _whole(step: Step, axis: int, span: Span, length: int, out: int) -> Span:
    return 0, length


def _cell_or_same(step: Step, axis: int, span: Span, length: int, out: int) -> Span:
    return span if length == out else (0, length)


def _residual(step: Step, axis: int, span: Span, length: int, out: int) -> Span:
    factor = step.ints.get("residual_factor", 1)
    return span[0] // factor, (span[1] - 1) // factor + 1


def _aligned(span: Span, factor: int, length: int) -> Span:
    """Output i lies at clamp((i - factor / 2) / factor, 0, length - 1); a tap of weight 0 is not read."""
    first, last = (_clamp(edge - factor // 2, (length - 1) * factor) for edge in (span[0], span[1] - 1))
    return first // factor, -(-last // factor) + 1


def _upsampled(step: Step, axis: int, span: Span, length: int, out: int) -> Span:
    factor = step.ints.get("factor", 0)
    return _aligned(span, factor, length) if factor else span


def _resized(step: Step, axis: int, span: Span, length: int, out: int) -> Span:
    mode = RESIZE_MODES[step.ints.get("mode", 0)]
    if mode == "aligned_bilinear":
        return _aligned(span, step.ints.get("factor", 1), length)
    if mode != "nearest" and length == out:
        return span
    ratio, half = np.float32(step.floats.get(f"ratio_{'yx'[axis]}", 1.0)), np.float32(0.5)
    first, last = np.float32(span[0]), np.float32(span[1] - 1)
    if mode == "nearest":
        return _cell(first * ratio, length - 1), _cell(last * ratio, length - 1) + 1
    if mode == "bilinear":
        first, last = ((at + half) * ratio - half for at in (first, last))
    else:
        first, last = first * ratio, last * ratio
    lower = _cell(np.maximum(last, np.float32(0)), length - 1)
    return _cell(np.maximum(first, np.float32(0)), length - 1), _clamp(lower + 1, length - 1) + 1


_INNER: dict[str, Rule] = {"stem": _pooled, "mask_head": _upsampled}
_DEMANDS: dict[str, tuple[Rule, Rule]] = {  # of the first input, of the others
    "conv2d": (_slide, _residual),
    "max_pool2d": (_slide, _slide),
    "avg_pool2d": (_slide, _slide),
    "stem": (_slide, _slide),
    "resize": (_resized, _same),
    "add": (_same, _same),
    "sigmoid": (_same, _same),
    "concat": (_same, _same),
    "mask_head": (_same, _whole),
    "convert": (_same, _same),
    "mul": (_same, _cell_or_same),
    "plane_mean": (_whole, _whole),
    "group_norm": (_whole, _whole),
    "take_channels": (_same, _same),
    "external": (_whole, _whole),
}
