"""One model of the list: traced, planned for several requests, compared with the full network, and timed.

Errors are ``max|traced - full| / max|full|`` per requested output; ``full`` is the model's own forward pass, run by
PyTorch without this library.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import tracenet
from bench.zoo.build import images
from tracenet import Window
from tracenet.graph.graph import CONSTANT, INPUT, Graph
from tracenet.rft.trace import Plan
from tracenet.traced import TracedModel
from tracenet_kernels.errors import BackendError, TraceNetError

TOLERANCE = 1e-4
"""Largest error of a request that counts as exact."""
DOUBLE_TOLERANCE = 1e-8
"""The same in float64, for networks that amplify float32's rounding beyond :data:`TOLERANCE` by themselves."""
NOTHING_LIKE = 1e9
"""An error that JSON can hold, of what cannot be compared."""
Request = dict[int | str, Window]
Result = TypeVar("Result")


@dataclass
class Row:
    """What is known of one model; the JSON has these keys.

    ``rounding`` (how far the full network in float32 is from itself in float64) and ``max_rel_error_double`` are only
    measured where an error is above the tolerance.

    The timed requests are the centre cell of the deepest map (``mac_share``, ``crop_pad_ms``, ``native_ms``) and, under
    names with ``shallow``, of the map named ``shallow``: that of the largest stride up to 8. ``full_ms`` serves both.

    ``load`` is the machine's load average when the model was done: above the number of cores, times are disturbed.

    ``status``: ``exact``; ``barriers`` (exact too, but some node reads whole planes: ``reason`` says which);
    ``refused`` (a typed error of this library); ``wrong`` (an error above the tolerance); ``failed`` (the model could
    not be built or run by PyTorch itself, the process died or ran out of time).
    """

    name: str
    family: str = ""
    source: str = ""
    size: tuple[int, int] = (0, 0)
    nodes: int | None = None
    outputs: dict[str, list[int]] | None = None
    barriers: int | None = None
    barrier_ops: dict[str, int] | None = None
    far_pixels_matter: bool | None = None
    max_rel_error: float | None = None
    native_max_rel_error: float | None = None
    native_reason: str = ""
    rounding: float | None = None
    max_rel_error_double: float | None = None
    errors: dict[str, float] | None = None
    mac_share: float | None = None
    mac_share_patch: float | None = None
    mac_share_by_output: dict[str, float] | None = None
    full_gmacs: float | None = None
    full_ms: float | None = None
    full_layout: str = ""
    crop_pad_ms: float | None = None
    native_ms: float | None = None
    shallow: str | None = None
    mac_share_shallow: float | None = None
    crop_pad_shallow_ms: float | None = None
    native_shallow_ms: float | None = None
    seconds: float = 0.0
    load: float = 0.0
    status: str = "failed"
    reason: str = ""

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def measure(row: Row, model: nn.Module, size: tuple[int, int], repeats: int) -> None:
    """Fill in a row; ``repeats`` timed runs of each kind, none with 0."""
    generator = torch.Generator().manual_seed(1)
    image = images(1, size, generator)
    with torch.inference_mode():
        full = outputs_of(model(image))
    if any(not bool(torch.isfinite(value).all()) or float(value.abs().max()) == 0 for value in full.values()):
        row.reason = "the full network's own outputs are zero or not finite"
        return
    try:
        traced = tracenet.trace(model, image)
        row.nodes = sum(node.op not in (INPUT, CONSTANT) for node in traced.graph.nodes)
        row.outputs = {name: list(value.shape) for name, value in full.items()}
        plans = _plans(traced)
        row.errors = _for_each(plans, lambda plan: max_error(full, traced.run(image, plan), plan))
    except TraceNetError as error:
        row.status, row.reason = "refused", f"{type(error).__name__}: {error}"
        return
    row.max_rel_error = max(row.errors.values())
    _count(row, plans, size)
    native = _for_each(plans, lambda plan: _native(full, traced, image, plan))
    row.native_max_rel_error = max((error for error in native.values() if isinstance(error, float)), default=None)
    row.native_reason = native["centre"] if isinstance(native["centre"], str) else ""
    judge(row)
    row.far_pixels_matter = _far_pixels_matter(model, image, full, plans["corner"])
    if row.status == "wrong":
        _judge_in_double(row, model, image, full)
        model.float()
    if repeats and row.status in ("exact", "barriers"):
        _time(row, model, traced, image, plans, [n for n, error in native.items() if isinstance(error, float)], repeats)


def outputs_of(result: Any) -> dict[str, Tensor]:
    """A model's outputs by the names that a traced graph gives them."""
    leaves, _ = pytree.tree_flatten_with_path(result)
    named = {}
    for path, leaf in leaves:
        keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        named[".".join(keys) or "output"] = leaf
    return {name: leaf for name, leaf in named.items() if isinstance(leaf, Tensor)}


def requests_of(graph: Graph) -> dict[str, Request]:
    """Corner, edge, centre and a patch of the deepest map; every other map at its centre; all of them at once."""
    planes = {name: node.plane for name, node in graph.outputs.items() if node.layout is not None}
    if not planes:
        return {
            name: {output: Window(0, 1, 0, 1) for output in graph.outputs} for name in ("corner", "centre", "patch")
        }
    deepest = min(reversed(planes), key=lambda name: planes[name][0] * planes[name][1])
    height, width = planes[deepest]
    top, left = height // 4, width // 3
    patch = Window(top, max(top + 1, height * 2 // 3), left, max(left + 1, width * 2 // 3))
    requests: dict[str, Request] = {
        "corner": {deepest: Window.of_cell(0, 0)},
        "edge": {deepest: Window.of_cell(height - 1, width // 2)},
        "centre": {deepest: _centre(planes[deepest])},
        "patch": {deepest: patch},
    }
    for name, plane in planes.items():
        if name != deepest:
            requests[f"centre of {name}"] = {name: _centre(plane)}
    largest = max(planes, key=lambda name: planes[name][0] * planes[name][1])
    requests["odd patch of the largest"] = {largest: _odd_patch(planes[largest])}
    requests["all at the centre"] = {name: _centre(plane) for name, plane in planes.items()}
    return requests


def _plans(traced: TracedModel) -> dict[str, Plan]:
    """A plan per request; requests that ask for the same share one."""
    plans: dict[str, Plan] = {}
    for name, request in requests_of(traced.graph).items():
        same = (plan for plan in plans.values() if plan.request == request)
        plans[name] = next(same, None) or traced.plan(request)
    return plans


def _for_each(plans: Mapping[str, Plan], function: Callable[[Plan], Result]) -> dict[str, Result]:
    """``function`` of every plan, called once for those that requests share."""
    results = {plan: function(plan) for plan in dict.fromkeys(plans.values())}
    return {name: results[plan] for name, plan in plans.items()}


def shallow_output(graph: Graph, rows: int) -> str | None:
    """The output of the largest stride up to 8, if one has rows and columns."""
    strides = {name: rows / node.plane[0] for name, node in graph.outputs.items() if node.layout is not None}
    near = [name for name, stride in strides.items() if 1 <= stride <= 8.5]
    return max(near, key=lambda name: strides[name], default=None)


def _centre(plane: tuple[int, int]) -> Window:
    return Window.of_cell(plane[0] // 2, plane[1] // 2)


def _odd_patch(plane: tuple[int, int]) -> Window:
    """Touches the bottom edge and starts at odd cells where the plane is large enough."""
    height, width = plane
    left = min(3, width - 1)
    return Window(max(height - 5, 0), height, left, min(left + 7, width))


def max_error(full: Mapping[str, Tensor], traced: Mapping[int | str, Tensor], plan: Plan) -> float:
    """Largest relative error over a request's outputs; :data:`NOTHING_LIKE` where shapes differ or a value is NaN."""
    worst = 0.0
    for key, window in plan.request.items():
        node, whole = plan.graph.outputs[str(key)], full[str(key)]
        if node.layout is not None and node.layout.merged:
            axis = node.layout.y
            whole = whole.unflatten(axis, node.plane)
            whole = whole.narrow(axis, window.y0, window.height).narrow(axis + 1, window.x0, window.width)
            whole = whole.flatten(axis, axis + 1)
        elif node.layout is not None:
            whole = whole.narrow(node.layout.y, window.y0, window.height)
            whole = whole.narrow(node.layout.x, window.x0, window.width)
        if whole.shape != traced[key].shape:
            return NOTHING_LIKE
        error = float((whole.double() - traced[key].double()).abs().max() / full[str(key)].abs().max())
        worst = max(worst, min(error, NOTHING_LIKE) if error == error else NOTHING_LIKE)
    return worst


def judge(row: Row) -> None:
    """Set the status and its reason from the errors and barriers."""
    assert row.max_rel_error is not None
    found = {"torch": row.max_rel_error, "native": row.native_max_rel_error or 0.0}
    wrong = [f"{backend} backend {error:.1e}" for backend, error in found.items() if not error <= TOLERANCE]
    if wrong:
        row.status, row.reason = "wrong", f"relative error: {', '.join(wrong)}"
    elif row.barrier_ops:
        row.status = "barriers"
        row.reason = ", ".join(f"{what} x{count}" if count > 1 else what for what, count in row.barrier_ops.items())
    else:
        row.status, row.reason = "exact", ""


def _count(row: Row, plans: Mapping[str, Plan], size: tuple[int, int]) -> None:
    barriers = {(b.name, b.op, b.reason) for plan in plans.values() for b in plan.barriers}
    kinds = Counter(f"{op.removeprefix('aten.')} ({_kind(reason)})" for _, op, reason in barriers)
    row.barriers, row.barrier_ops = len(barriers), dict(kinds.most_common())
    whole = plans["centre"].full_macs
    row.full_gmacs = round(whole / 1e9, 3)
    row.shallow = shallow_output(plans["centre"].graph, size[0])
    if whole:
        row.mac_share = round(plans["centre"].macs / whole, 6)
        row.mac_share_patch = round(plans["patch"].macs / whole, 6)
        row.mac_share_by_output = {
            str(next(iter(plan.request))): round(plan.macs / whole, 6)
            for name, plan in plans.items()
            if name.startswith("centre")
        }
        row.mac_share_shallow = None if row.shallow is None else row.mac_share_by_output[row.shallow]


def _kind(reason: str) -> str:
    """A barrier's reason without the names of nodes."""
    return "reads across the plane" if reason.startswith("reads ") and reason.endswith("across its plane") else reason


def _native(full: Mapping[str, Tensor], traced: TracedModel, image: Tensor, plan: Plan) -> float | str:
    try:
        return max_error(full, traced.run(image, plan, backend="native"), plan)
    except BackendError as error:
        return str(error)


def _judge_in_double(row: Row, model: nn.Module, image: Tensor, full: Mapping[str, Tensor]) -> None:
    """Whether the errors of a row are rounding that the network itself amplifies.

    They are where the full network in float32 is as far from float64 as the traced runs are from it, and the traced
    network equals the full one in float64.
    """
    model, image = model.double(), image.double()
    with torch.inference_mode():
        precise = outputs_of(model(image))
    row.rounding = max(float((precise[n] - full[n]).abs().max() / precise[n].abs().max()) for n in full)
    traced = tracenet.trace(model, image)
    errors = _for_each(_plans(traced), lambda plan: max_error(precise, traced.run(image, plan), plan))
    row.max_rel_error_double = max(errors.values())
    worst = max(row.max_rel_error or 0.0, row.native_max_rel_error or 0.0)
    if row.max_rel_error_double <= DOUBLE_TOLERANCE and worst <= 4 * row.rounding:
        judged = Row(row.name, max_rel_error=0.0, barrier_ops=row.barrier_ops)
        judge(judged)
        row.status, row.reason = judged.status, judged.reason


def _far_pixels_matter(model: nn.Module, image: Tensor, full: Mapping[str, Tensor], plan: Plan) -> bool:
    """Whether the cell at the top left changes with the bottom right of the image, in the full network.

    Where a barrier is reported it should; else the barrier is one of the graph and not of the network.
    """
    changed = image.clone()
    changed[..., -32:, -32:] += 3.0
    with torch.inference_mode():
        other = outputs_of(model(changed))
    for key, window in plan.request.items():
        layout = plan.graph.outputs[str(key)].layout
        difference = (other[str(key)] - full[str(key)]).abs()
        if layout is not None and not layout.merged:
            difference = difference.narrow(layout.y, window.y0, window.height).narrow(layout.x, window.x0, window.width)
        if float(difference.max()) > 0:
            return True
    return False


def _time(
    row: Row,
    model: nn.Module,
    traced: TracedModel,
    image: Tensor,
    plans: Mapping[str, Plan],
    native: Collection[str],
    repeats: int,
) -> None:
    """Medians of interleaved runs at the centre of the deepest and of the shallow map.

    The full network runs in the memory format that is faster. ``native`` names the plans that this backend runs.
    """
    given = _in_faster_format(row, model, image)
    calls: dict[str, Callable[[], Any]] = {"full_ms": lambda: model(given)}
    for name, kind in _timed_plans(row, plans).items():
        calls[f"crop_pad{kind}_ms"] = partial(traced.run, image, plans[name])
        if name in native:
            calls[f"native{kind}_ms"] = partial(traced.run, image, plans[name], backend="native")
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for call in calls.values():
            call()
        for _ in range(repeats):
            for name, call in calls.items():
                times[name].append(_timed(call))
    for name, values in times.items():
        setattr(row, name, round(statistics.median(values), 3))
    if row.shallow is not None and row.shallow in plans["centre"].request:  # the deepest map is the shallow one
        row.crop_pad_shallow_ms, row.native_shallow_ms = row.crop_pad_ms, row.native_ms


def _timed_plans(row: Row, plans: Mapping[str, Plan]) -> dict[str, str]:
    """Requests that are timed, and what the names of their times hold."""
    shallow = f"centre of {row.shallow}"
    return {"centre": "", shallow: "_shallow"} if shallow in plans else {"centre": ""}


def _in_faster_format(row: Row, model: nn.Module, image: Tensor) -> Tensor:
    """Lay model and image out in the memory format in which the full network is faster."""
    formats = {"contiguous_format": torch.contiguous_format, "channels_last": torch.channels_last}
    images_in = {name: image.contiguous(memory_format=memory_format) for name, memory_format in formats.items()}
    trials: dict[str, float] = {}
    for name, memory_format in formats.items():
        _convert(model, memory_format)
        with torch.inference_mode():
            model(images_in[name])
            trials[name] = min(_timed(lambda given=images_in[name]: model(given)) for _ in range(2))
    row.full_layout = min(trials, key=lambda name: trials[name])
    _convert(model, formats[row.full_layout])
    return images_in[row.full_layout]


def _convert(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay the weights out for a format; those of other ranks than four have none."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3
