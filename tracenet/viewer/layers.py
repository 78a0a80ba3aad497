"""A network as the viewer shows it: its nodes, and the layers whose windows are drawn over the photo.

Both backends' forms are read: the captured graph of the torch backend, the schedule of all others, whose steps stand
for several nodes of the graph each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracenet.conventions import LEVELS
from tracenet.inference import Canvas
from tracenet_kernels.window import EMPTY, Window, hull, subtract_all

STAGES = ("stem", "C2", "C3", "C4", "C5", "FPN", "heads", "mask branch", "mask head")
IMAGE, STEM = "image", "backbone.conv1"
PYRAMID = ("P5", "P4", "P3", "P6", "P7")
HEADS = tuple(f"heads{level}" for level in LEVELS)
LAYERS = (IMAGE, STEM, "C2", "C3", "C4", "C5", *PYRAMID, "maskfeat", *HEADS, "mask_half")
"""Layers that are drawn, in the network's order. ``heads3`` is the first layer of the towers on P3, ``mask_half`` the
mask at half the working size."""
_STAGE_OF = {"maskfeat": "mask branch", "mask_half": "mask head", STEM: "stem"}


@dataclass(frozen=True)
class ViewNode:
    """One node of the graph or step of the schedule.

    Attributes:
        plane: rows and columns, None where there are none.
        inputs: positions of its producers.
        layer: the layer its multiply-adds are counted for; empty for those that cost nothing worth naming.
    """

    name: str
    op: str
    stage: str
    layer: str
    plane: tuple[int, int] | None
    inputs: tuple[int, ...]
    full_macs: int


@dataclass(frozen=True)
class NetworkView:
    """Nodes in order, and where they and their planes are found by name."""

    nodes: tuple[ViewNode, ...]
    positions: Mapping[str, int]
    aliases: Mapping[str, str]
    stem: tuple[int, int]


def layer_of(name: str) -> str:
    """The layer that a node of TraceNet belongs to by its qualified name, one of :data:`LAYERS` or an empty string."""
    if match := re.match(r"backbone\.layer(\d)", name):
        return f"C{int(match[1]) + 1}"
    if name.startswith("backbone."):
        return STEM
    if match := re.match(r"fpn\.(?:lateral|output|p)(\d)", name):
        return f"P{match[1]}"
    if name.startswith("heads"):
        match = re.search(r"@(\d)", name)
        return f"heads{LEVELS[0] + (int(match[1]) if match else 0)}"
    if name.startswith("mask_branch."):
        return "maskfeat"
    return "mask_half" if name.startswith(("mask_head.", "aligned_bilinear")) else ""


def stage_of(name: str) -> str:
    """The stage of a node by its name, one of :data:`STAGES` or an empty string."""
    if name.startswith("fpn."):
        return "FPN"
    layer = layer_of(name)
    return "heads" if layer in HEADS else _STAGE_OF.get(layer, layer)


class NetworkViews:
    """Views of one network at every size, the last few kept."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._kept: dict[tuple[int, int], tuple[NetworkView, Any]] = {}

    def at(self, canvas: Canvas) -> NetworkView:
        return self._entry(canvas)[0]

    def demands(self, canvas: Canvas, request: Mapping[str, Window]) -> dict[str, Window]:
        """Name -> window that a request demands of every plane, were nothing kept."""
        view, planner = self._entry(canvas)
        if self._network.backend == "torch":
            return dict(self._network.traced(canvas).plan(dict(request)).windows)
        windows = planner.plan(dict(request)).windows
        named = {plane.name: window for plane, window in zip(planner.schedule.planes, windows, strict=True)}
        found = {name: window for name, window in named.items() if not window.is_empty}
        return found | {alias: found[name] for alias, name in view.aliases.items() if name in found}

    def _entry(self, canvas: Canvas) -> tuple[NetworkView, Any]:
        size = (canvas.padded_height, canvas.padded_width)
        if size not in self._kept:
            entry: tuple[NetworkView, Any]
            if self._network.backend == "torch":
                entry = (_graph_view(self._network.traced(canvas).graph), None)
            else:
                from tracenet.engine.planner import HostPlanner

                schedule = self._network.program(canvas).schedule
                entry = (_schedule_view(schedule), HostPlanner(schedule))
            while len(self._kept) >= 4:
                self._kept.pop(next(iter(self._kept)))
            self._kept[size] = entry
        return self._kept[size]


def _graph_view(graph: Any) -> NetworkView:
    from tracenet.rft.costs import node_macs

    shown = [node for node in graph.nodes if not node.is_constant]
    positions = {node.name: i for i, node in enumerate(shown)}
    nodes = tuple(
        ViewNode(
            node.name,
            node.op.removeprefix("aten."),
            stage_of(node.name),
            layer_of(node.name),
            None if node.layout is None else node.plane,
            tuple(dict.fromkeys(positions[one.name] for one in node.operands if one.name in positions)),
            node_macs(node, node.full_window),
        )
        for node in shown
    )
    aliases = {name: node.name for name, node in graph.outputs.items()}
    return NetworkView(nodes, positions, aliases, graph.by_name[STEM].plane)


def _schedule_view(schedule: Any) -> NetworkView:
    from tracenet.engine.planner import step_macs

    nodes: list[ViewNode] = []
    of_plane: dict[int, int] = {}
    for number in schedule.inputs:
        plane = schedule.planes[number]
        of_plane[number] = len(nodes)
        nodes.append(ViewNode(plane.name, "input", "", "", (plane.height, plane.width), (), 0))
    stem = (0, 0)
    for step in schedule.steps:
        plane = schedule.planes[step.output]
        if step.op == "stem":
            stem = (step.ints["conv_height"], step.ints["conv_width"])
        names = [step.name, *step.nodes]
        layer = next((layer for name in names if (layer := layer_of(name))), "")
        inputs = tuple(of_plane[number] for number in step.inputs if number in of_plane)
        macs = step_macs(schedule, step, Window.full(plane.height, plane.width))
        if step.op == "mask_head" and not step.ints.get("factor"):  # the other mask output, upsampled, has it too
            macs = 0
        of_plane[step.output] = len(nodes)
        nodes.append(
            ViewNode(step.name, step.op, stage_of(step.name), layer, (plane.height, plane.width), inputs, macs)
        )
    positions = {schedule.planes[number].name: position for number, position in of_plane.items()}
    aliases = {name: schedule.planes[number].name for name, number in schedule.outputs.items()}
    if stem == (0, 0):
        stem = next((node.plane for node in nodes if node.name.startswith(STEM) and node.plane), (1, 1))
    return NetworkView(tuple(nodes), positions, aliases, stem)


def report(views: NetworkViews, canvas: Canvas, factor: float, plans: Sequence[Any]) -> dict[str, Any]:
    """What one click needed and computed at one scale, as :class:`tracenet.viewer.messages.Trace` says it.

    Args:
        views: of the predictor's network.
        canvas: of the scale.
        factor: of the scale.
        plans: what ran there.
    """
    view = views.at(canvas)
    demands = views.demands(canvas, _together(plan.request for plan in plans))
    computed = _computed(view, plans)
    macs = _macs(view, plans)
    layers = []
    for layer in LAYERS:
        plane, demand = _demand(view, layer, demands)
        if demand.is_empty:
            continue
        pieces = _pieces(view, layer, computed)
        members = [i for i, node in enumerate(view.nodes) if node.layer == layer]
        layers.append(
            {
                "name": layer,
                "stage": "input" if layer == IMAGE else "FPN" if layer in PYRAMID else _stage_of_layer(layer),
                "plane": list(plane),
                "demand": list(demand),
                "photo_box": _photo_box(demand, plane, canvas),
                "computed": [list(piece) for piece in pieces],
                "computed_photo": [_photo_box(piece, plane, canvas) for piece in pieces],
                "macs": sum(macs.get(i, 0) for i in members),
                "full_macs": sum(view.nodes[i].full_macs for i in members),
            }
        )
    stages = [
        {
            "stage": stage,
            "macs": sum(count for i, count in macs.items() if view.nodes[i].stage == stage),
            "full_macs": sum(node.full_macs for node in view.nodes if node.stage == stage),
        }
        for stage in STAGES
    ]
    return {
        "canvas": {
            "width": canvas.width,
            "height": canvas.height,
            "padded_width": canvas.padded_width,
            "padded_height": canvas.padded_height,
            "scale_x": canvas.scale_x,
            "scale_y": canvas.scale_y,
            "factor": factor,
        },
        "layers": layers,
        "stages": stages,
        "visited": sorted({view.positions[name] for name in demands if name in view.positions}),
        "computed": sorted(view.positions[name] for name in computed),
    }


def graph_nodes(view: NetworkView) -> list[dict[str, Any]]:
    """Nodes as :class:`tracenet.viewer.messages.Graph` says them."""
    return [
        {
            "name": node.name,
            "op": node.op,
            "stage": node.stage,
            "plane": None if node.plane is None else list(node.plane),
            "inputs": list(node.inputs),
            "full_macs": node.full_macs,
        }
        for node in view.nodes
    ]


def _stage_of_layer(layer: str) -> str:
    return "heads" if layer in HEADS else _STAGE_OF.get(layer, layer)


def _together(requests: Iterable[Mapping[Any, Any]]) -> dict[str, Window]:
    """One request for all: of an output that several ask for, the hull."""
    found: dict[str, Window] = {}
    for request in requests:
        for name, window in request.items():
            found[str(name)] = hull((found.get(str(name), EMPTY), window))
    return found


def _computed(view: NetworkView, plans: Sequence[Any]) -> dict[str, list[Window]]:
    """Plane name -> disjoint windows that the plans computed; of inputs, what was read of them."""
    found: dict[str, list[Window]] = {}
    for plan in plans:
        # Not every backend lists what was read of the image among what its steps computed.
        read = {IMAGE: [plan.windows[IMAGE]]} if IMAGE in plan.windows else {}
        for name, pieces in (read | plan.pieces).items():
            if name in view.positions:
                mine = found.setdefault(name, [])
                for piece in pieces:
                    mine += subtract_all(piece, mine)
    return {name: pieces for name, pieces in found.items() if pieces}


def _macs(view: NetworkView, plans: Sequence[Any]) -> dict[int, int]:
    """Position -> multiply-adds computed."""
    found: dict[int, int] = {}
    for plan in plans:
        if hasattr(plan, "step_macs"):
            named = plan.step_macs.items()
        else:
            named = ((entry.node.name, entry.macs) for entry in plan.nodes)
        for name, macs in named:
            position = view.positions.get(name)
            if position is not None and macs:
                found[position] = found.get(position, 0) + macs
    return found


def _plane_name(view: NetworkView, layer: str) -> str | None:
    """The plane whose windows stand for a layer; the stem's is that of the convolution, where it is there."""
    if layer in HEADS:
        shift = int(layer[-1]) - LEVELS[0]
        first = f"heads.cls_tower.0{f'@{shift}' if shift else ''}.relu"
        return first if first in view.positions else view.aliases.get(f"logits{layer[-1]}")
    return view.aliases.get(layer, layer if layer in view.positions else None)


def _demand(view: NetworkView, layer: str, demands: Mapping[str, Window]) -> tuple[tuple[int, int], Window]:
    name = _plane_name(view, layer)
    if name is None and layer == STEM:
        plane, pooled = view.nodes[view.positions["backbone.maxpool"]].plane, demands.get("backbone.maxpool", EMPTY)
        assert plane is not None
        return view.stem, _before_pooling(pooled, view.stem)
    if name is None or name not in view.positions:
        return (1, 1), EMPTY
    return view.nodes[view.positions[name]].plane or (1, 1), demands.get(name, EMPTY)


def _pieces(view: NetworkView, layer: str, computed: Mapping[str, list[Window]]) -> list[Window]:
    name = _plane_name(view, layer)
    if name is None and layer == STEM:
        pieces: list[Window] = []
        for pooled in computed.get("backbone.maxpool", []):
            pieces += subtract_all(_before_pooling(pooled, view.stem), pieces)
        return pieces
    return computed.get(name or "", [])


def _before_pooling(window: Window, plane: tuple[int, int]) -> Window:
    """What a 3x3 max-pool with stride 2 and padding 1 reads for a window."""
    if window.is_empty:
        return EMPTY
    y0, y1, x0, x1 = window
    return Window(max(2 * y0 - 1, 0), min(2 * y1, plane[0]), max(2 * x0 - 1, 0), min(2 * x1, plane[1]))


def _photo_box(window: Window, plane: tuple[int, int], canvas: Canvas) -> list[float]:
    """Edges (x0, y0, x1, y1) of a window in photo pixels, clipped to the photo."""
    cell_y, cell_x = canvas.padded_height / plane[0], canvas.padded_width / plane[1]
    edges = (
        window.x0 * cell_x / canvas.scale_x,
        window.y0 * cell_y / canvas.scale_y,
        window.x1 * cell_x / canvas.scale_x,
        window.y1 * cell_y / canvas.scale_y,
    )
    limits = (float(canvas.photo_width), float(canvas.photo_height)) * 2
    return [round(min(max(edge, 0.0), limit), 3) for edge, limit in zip(edges, limits, strict=True)]
