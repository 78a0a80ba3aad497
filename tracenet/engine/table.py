"""A schedule as a readable table."""

from __future__ import annotations

from tracenet.engine.schedule import ACTIVATIONS, RESIZE_MODES, Plane, Schedule, Step
from tracenet.rft import Plan

_HEAD = ("#", "op", "group", "kernel", "in", "out", "plane", "epilogue", "keep", "step", "nodes")
_WINDOW = ("window", "share", "MMACs")
_RIGHT = {"#", "group", "in", "out", "share", "MMACs"}


def schedule_table(schedule: Schedule, plan: Plan | None = None) -> str:
    """One aligned line per step, with a plan only those it runs and what they compute; then totals."""
    cut = _HEAD.index("plane") + 1
    head = _HEAD if plan is None else (*_HEAD[:cut], *_WINDOW, *_HEAD[cut:])
    rows: list[tuple[str, ...]] = []
    for i, step in enumerate(schedule.steps):
        row = _row(i, step, schedule)
        if plan is None:
            rows.append(row)
        elif schedule.planes[step.output].name in plan.windows:
            rows.append((*row[:cut], *_work(step, schedule.planes[step.output], plan), *row[cut:]))
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(_pad(head, row, widths)).rstrip() for row in [head, *rows]]
    weights = sum(values.nbytes for values in schedule.tensors.values())
    fused = sum(len(step.nodes) for step in schedule.steps)
    groups = len({step.group for step in schedule.steps} - {0})
    external = sum(step.op == "external" for step in schedule.steps)
    lines.append(
        f"{len(schedule.steps)} steps for {fused} nodes, {groups} groups that share a weight, {external} external, "
        f"{len(schedule.planes)} planes, {len(schedule.tensors)} tensors of {weights / 2**20:.1f} MiB"
    )
    if plan is not None:
        lines.append(f"this request: {len(rows)} steps, {plan.macs / 1e9:.2f} of {plan.full_macs / 1e9:.2f} GMACs")
    return "\n".join(lines)


def _pad(head: tuple[str, ...], row: tuple[str, ...], widths: list[int]) -> list[str]:
    cells = zip(head, row, widths, strict=True)
    return [cell.rjust(width) if name in _RIGHT else cell.ljust(width) for name, cell, width in cells]


def _work(step: Step, plane: Plane, plan: Plan) -> tuple[str, str, str]:
    window = plan.windows[plane.name]
    macs = sum(
        plan.by_node[node].macs for node in map(plan.graph.by_name.__getitem__, step.nodes) if node in plan.by_node
    )
    return str(window), f"{window.area / (plane.height * plane.width):.0%}", f"{macs / 1e6:.1f}"


def _row(position: int, step: Step, schedule: Schedule) -> tuple[str, ...]:
    plane = schedule.planes[step.output]
    first = schedule.planes[step.inputs[0]] if step.inputs else plane
    return (
        str(position),
        step.op,
        str(step.group or ""),
        _kernel(step),
        str(first.channels),
        str(plane.channels),
        f"{plane.height}x{plane.width}",
        _epilogue(step, [schedule.planes[i] for i in step.inputs]),
        "keep" if plane.keep else "",
        step.name,
        " ".join(_shorten(step.nodes)),
    )


def _kernel(step: Step) -> str:
    ints = step.ints
    if step.op == "resize":
        factor = f" x{ints['factor']}" if "factor" in ints else ""
        return f"{RESIZE_MODES[ints['mode']]}{factor}"
    if step.op == "mask_head":
        return f"x{ints['factor']}" if ints.get("factor") else ""
    if "kernel_y" not in ints:
        return ""
    text = f"{ints['kernel_y']}x{ints['kernel_x']}"
    for name, sign in (("stride", "/"), ("dilation", "d")):
        pair = (ints[f"{name}_y"], ints[f"{name}_x"])
        if pair != (1, 1):
            text += f"{sign}{pair[0]}" if pair[0] == pair[1] else f"{sign}{pair[0]},{pair[1]}"
    return text + (f" g{ints['groups']}" if ints.get("groups", 1) > 1 else "")


def _epilogue(step: Step, inputs: list[Plane]) -> str:
    parts: list[str] = [name for name in ("scale", "bias") if name in step.tensors]
    if step.op in ("conv2d", "resize") and len(inputs) > 1:
        factor = step.ints.get("residual_factor", 1)
        parts.append(f"add {inputs[1].name}" + (f" x{factor}" if factor > 1 else ""))
    activation = ACTIVATIONS[step.ints.get("activation", 0)]
    parts += [activation] if activation != "none" else []
    parts += ["max_pool"] if step.op == "stem" else []
    return ", ".join(parts)


def _shorten(nodes: tuple[str, ...]) -> list[str]:
    """Names without the part they share with the one before."""
    short: list[str] = []
    for i, name in enumerate(nodes):
        shared = name.rpartition(".")[0]
        short.append(name.removeprefix(shared) if i and shared and nodes[i - 1].startswith(shared) else name)
    return short
