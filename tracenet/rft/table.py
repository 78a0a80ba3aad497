"""A plan as a readable table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracenet.rft.context import WINDOW

if TYPE_CHECKING:
    from tracenet.rft.trace import NodePlan, Plan

_HEAD = ("node", "op", "plane", "window", "share", "border t,b,l,r", "MMACs", "KiB", "barrier")


def plan_table(plan: Plan, full: bool) -> str:
    """One aligned line per node (``full=False``: nodes with multiply-adds, borders or barriers), then totals."""
    rows: list[tuple[str, ...]] = []
    for entry in plan.nodes:
        node, window = entry.node, entry.compute
        borders = [r.border for r in entry.reads if not r.border.is_zero]
        if not full and not (entry.macs or borders or entry.barrier or entry.context):
            continue
        height, width = node.plane
        rows.append(
            (
                node.name,
                node.op.removeprefix("aten."),
                f"{height}x{width}",
                f"{window}, {len(entry.pieces)} apart" if len(entry.pieces) > 1 else str(window),
                f"{sum(piece.area for piece in entry.pieces) / (height * width):.0%}",
                ",".join(map(str, borders[0])) if borders else "",
                f"{entry.macs / 1e6:.1f}",
                f"{entry.bytes / 1024:.0f}",
                entry.barrier or _context(entry),
            )
        )
    widths = [max(len(row[i]) for row in [_HEAD, *rows]) for i in range(len(_HEAD))]
    right = {4, 6, 7}
    lines = [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [_HEAD, tuple("-" * w for w in widths), *rows]
    ]
    share = plan.macs / plan.full_macs if plan.full_macs else 0.0
    lines.append(
        f"{plan.macs / 1e9:.3f} of {plan.full_macs / 1e9:.3f} GMACs ({share:.1%}), "
        f"{plan.bytes / 2**20:.1f} MiB of windows, {len(plan.barriers)} barriers, planned in {plan.planning_ms:.1f} ms"
    )
    if plan.macs < plan.hull_macs:
        lines.append(
            f"windows apart save {1 - plan.macs / plan.hull_macs:.1%} of the {plan.hull_macs / 1e9:.3f} GMACs of one "
            "window per node"
        )
    if plan.approximations:
        first, count = plan.approximations[0], len(plan.approximations)
        lines.append(f"approximate: {count} of the nodes, the first ({first.name}) {first.how}")
    elif plan.vectors is not None:
        lines.append(f"global vectors are cached, computed of {plan.vectors.source}")
    return "\n".join(line.rstrip() for line in lines)


def _context(entry: NodePlan) -> str:
    """How a global vector that is not reduced from the whole plane is come by."""
    return f"{entry.context} {entry.source}" if entry.context == WINDOW else entry.context or ""
