"""The Receptive Field Tracer: from windows of the outputs to a window of every node.

Post-order depth-first search with an explicit stack from the requested outputs; every node is visited once and its
window is the hull of its consumers' demands, so the cost is O(E + N) (paper, section III-A).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from tracenet.graph.graph import CONSTANT, INPUT, Graph, Node
from tracenet.rft import costs
from tracenet.rft.context import CACHED, EXACT, MODES, WINDOW, Approximation, is_global_vector
from tracenet.rft.rules.registry import Demand, find_rule
from tracenet_kernels.errors import RequestError, WindowError
from tracenet_kernels.window import EMPTY, Border, Window, border_of, hull, subtract_all

Kept = Mapping[str, Sequence[Window]]
"""Node name -> windows whose values are already known."""


class Vectors(Protocol):
    """Values of global vectors that are known; see :class:`tracenet.global_context.GlobalVectors`."""

    @property
    def exact(self) -> bool:
        """Whether they are those of the full network."""
        ...

    @property
    def source(self) -> str:
        """What they were computed of, in words."""
        ...

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> Tensor: ...


Asked = Window | Sequence[int] | None | Sequence[Window | Sequence[int]]
"""What a request asks of one output: a window, None for all of it, or a list of windows."""

MAX_PIECES = 4
"""Windows per node that a plan computes apart by default; the ring around one window has four."""
MIN_SAVING = 0.1
"""Share of multiply-adds that windows apart must save by default; every one of them is a launch of its own."""
LARGEST_MAX_PIECES = 16
"""More would make planning slow."""
MERGE_WASTE = 0.2
"""Two pieces become one if their hull holds at most this share of cells that neither needs."""


@dataclass(slots=True)
class Read:
    """What one consumer reads of one producer: the part on the plane and the padding around it."""

    producer: Node
    window: Window
    border: Border


@dataclass(slots=True)
class NodePlan:
    """One node of a plan.

    Attributes:
        window: hull of the consumers' demands, on the plane.
        pieces: what has to be computed: the window itself; a few disjoint windows that cover what is demanded, where
            that saves enough; or a few windows that cover what is demanded and not kept (none if everything is).
        reads: what computing the pieces reads of each producer, with borders.
        macs: multiply-adds of computing it.
        bytes: bytes of its output window.
        barrier: why it reads whole planes, or None.
        context: for a global vector that is not reduced from the whole plane: ``"cached"`` or ``"window"``.
        source: for ``"window"``, the part of its operand that it is reduced from.
    """

    node: Node
    window: Window
    pieces: list[Window]
    reads: list[Read] = field(default_factory=list)
    macs: int = 0
    bytes: int = 0
    barrier: str | None = None
    context: str | None = None
    source: Window = EMPTY

    @property
    def compute(self) -> Window:
        """Hull of the pieces; ``EMPTY`` if nothing is computed."""
        return hull(self.pieces)


@dataclass(frozen=True, slots=True)
class Barrier:
    """A node that reads whole planes, and why."""

    name: str
    op: str
    reason: str


class Plan:
    """A window per node for one request.

    Attributes:
        request: output key (index or name, as asked) -> window on that output's plane, or a list of them.
        asked: the same, always as lists.
        nodes: :class:`NodePlan` per visited node, producers first.
        windows: name -> :class:`Window`, for every visited node and, as aliases, every output whose node was visited.
        borders: name -> padding per operand read, where there is any.
        barriers: nodes that read whole planes.
        global_context: how global vectors are come by: ``"exact"``, ``"cached"`` or ``"window"``.
        vectors: the values that a ``"cached"`` plan takes as constants.
        approximations: nodes whose values are not those of the full network, and how they are come by.
        macs: multiply-adds (convolutions and matrix products) of the plan; ``full_macs``: of the whole network;
            ``hull_macs``: of the plan with one window per node (of a plan over kept values: ``macs``).
        reads_kept: whether the plan was made over kept values.
        planning_ms: time the trace took.
    """

    def __init__(
        self,
        graph: Graph,
        asked: dict[int | str, list[Window]],
        request: dict[int | str, Any],
        nodes: list[NodePlan],
        planning_ms: float,
        hull_macs: int,
        reads_kept: bool = False,
        global_context: str = EXACT,
        vectors: Vectors | None = None,
    ) -> None:
        self.graph = graph
        self.asked = asked
        self.request = request
        self.hull_macs = hull_macs
        self.reads_kept = reads_kept
        self.nodes = nodes
        self.planning_ms = planning_ms
        self.global_context = global_context
        self.vectors = vectors
        self.by_node = {entry.node: entry for entry in nodes}
        self.windows = {entry.node.name: entry.window for entry in nodes}
        for name, node in graph.outputs.items():
            if node in self.by_node:
                self.windows.setdefault(name, self.by_node[node].window)
        self.borders = {
            entry.node.name: [read.border for read in entry.reads]
            for entry in nodes
            if any(not read.border.is_zero for read in entry.reads)
        }
        self.barriers = [
            Barrier(entry.node.name, entry.node.op, entry.barrier) for entry in nodes if entry.barrier is not None
        ]
        self.approximations = [
            Approximation(entry.node.name, how) for entry in nodes if (how := self._approximated(entry)) is not None
        ]
        self.macs: int = sum(entry.macs for entry in nodes)

    def _approximated(self, entry: NodePlan) -> str | None:
        if entry.context == WINDOW:
            height, width = entry.node.args[0].plane
            return f"reduced from {entry.source} of {height} x {width}"
        if entry.context == CACHED and self.vectors is not None and not self.vectors.exact:
            return f"taken from {self.vectors.source}"
        return None

    @property
    def pieces(self) -> dict[str, list[Window]]:
        """Name -> windows that are computed, for every visited node."""
        return {entry.node.name: entry.pieces for entry in self.nodes}

    @property
    def exact(self) -> bool:
        """Whether running the plan gives the full network's values (given that kept values are)."""
        return not self.approximations

    @cached_property
    def full_macs(self) -> int:
        """Multiply-adds of the whole network, untraced; counted when first asked for, not while a click waits."""
        return costs.full_macs(self.graph)

    @property
    def planes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the plane of every name in ``windows``."""
        graph = self.graph
        return {name: (graph.outputs.get(name) or graph.by_name[name]).plane for name in self.windows}

    def macs_of(self, *prefixes: str) -> int:
        """Multiply-adds of the nodes inside modules whose qualified name starts with one of ``prefixes``."""
        return sum(entry.macs for entry in self.nodes if _inside(entry.node, prefixes))

    def full_macs_of(self, *prefixes: str) -> int:
        """As :meth:`macs_of`, for the whole network."""
        return sum(costs.node_macs(node, node.full_window) for node in self.graph.nodes if _inside(node, prefixes))

    @property
    def bytes(self) -> int:
        """Bytes of all output windows together."""
        return sum(entry.bytes for entry in self.nodes)

    def table(self, full: bool = False) -> str:
        """A readable table: one line per node that costs something (``full=True``: every node)."""
        from tracenet.rft.table import plan_table

        return plan_table(self, full)

    def __repr__(self) -> str:
        share = self.macs / self.full_macs if self.full_macs else 0.0
        return (
            f"<Plan: {len(self.nodes)} nodes, {self.macs / 1e9:.2f} of {self.full_macs / 1e9:.2f} GMACs ({share:.1%}), "
            f"{len(self.barriers)} barriers, planned in {self.planning_ms:.1f} ms>"
        )


def _inside(node: Node, prefixes: tuple[str, ...]) -> bool:
    return any(node.module == prefix or node.module.startswith((f"{prefix}.", f"{prefix}@")) for prefix in prefixes)


def resolve_output(graph: Graph, key: int | str) -> Node:
    """The node behind an output's index or name, or behind a node's own name.

    Raises:
        RequestError: nothing has that index or name.
    """
    if isinstance(key, str):
        node = graph.outputs.get(key) or graph.by_name.get(key)
        if node is not None:
            return node
    elif isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(graph.outputs):
        return list(graph.outputs.values())[key]
    names = list(graph.outputs)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise RequestError(f"{key!r} is not an output; ask by index 0..{len(names) - 1} or by name: {shown}")


def _check_request(graph: Graph, request: Mapping[int | str, Asked]) -> dict[int | str, Window | list[Window]]:
    if not isinstance(request, Mapping):
        raise RequestError(f"the request is a {type(request).__name__}; pass a dict such as {{0: Window(0, 8, 0, 8)}}")
    if not request:
        raise RequestError("the request is empty; ask for at least one output window, e.g. {0: Window(0, 8, 0, 8)}")
    return {key: _check_asked(resolve_output(graph, key), key, value) for key, value in request.items()}


def _check_asked(node: Node, key: int | str, value: Asked) -> Window | list[Window]:
    if isinstance(value, (tuple, list)) and value and all(isinstance(part, (tuple, list)) for part in value):
        return [_check_window(node, key, part) for part in value]
    return _check_window(node, key, value)


def _check_window(node: Node, key: int | str, value: Any) -> Window:
    if value is None or node.layout_error is not None:
        return node.full_window
    if not isinstance(value, (tuple, list)) or len(value) != 4:
        raise WindowError(
            f"the window of output {key!r} is {value!r}; pass Window(y0, y1, x0, x1), a list of them, or None for all"
        )
    window = value if isinstance(value, Window) else Window(*value)
    if node.layout is None and window != node.full_window:
        raise WindowError(
            f"output {key!r} has shape {list(node.shape)} without rows and columns, but a window {window} came; "
            "ask for all of it with None"
        )
    if window.is_empty:
        raise WindowError(f"the window of output {key!r} is empty: {window}; ask for at least one cell")
    if not node.full_window.contains(window):
        raise WindowError(
            f"the window of output {key!r} is {window}, its plane is {node.plane[0]} x {node.plane[1]} "
            "(rows x columns); clip the window to the plane"
        )
    return window


def plan_windows(
    graph: Graph,
    request: Mapping[int | str, Asked],
    kept: Kept | None = None,
    global_context: str = EXACT,
    vectors: Vectors | None = None,
    *,
    max_pieces: int = MAX_PIECES,
    min_saving: float = MIN_SAVING,
) -> Plan:
    """Trace a request back to the inputs.

    Args:
        graph: captured network with layouts inferred.
        request: output index or name -> window on its plane (None: all of it), or a list of windows.
        kept: windows of nodes whose values are already known; they are not computed again and nothing is traced
            behind them.
        global_context: ``"exact"``; ``"cached"``: global vectors are constants, from ``vectors``, and nothing is
            traced behind them; ``"window"``: they are reduced from what other nodes need of their operand.
        vectors: for ``"cached"``.
        max_pieces: windows that may be computed apart of a node whose demands lie far apart; 1: always their hull.
            Plans over kept values compute what is missing in up to :data:`MAX_PIECES` windows.
        min_saving: share of the multiply-adds of a plan of hulls that windows apart must save to be taken.

    Raises:
        RequestError: an output, a kept node or a mode is not known; a vector is missing, or no window is demanded of
            its operand; ``max_pieces`` or ``min_saving`` is out of range.
        WindowError: a window is empty or outside its plane.
        UnsupportedOpError: a visited node has no backward rule.
    """
    start = time.perf_counter()
    checked = _check_request(graph, request)
    unknown = [name for name in kept or () if name not in graph.by_name]
    if unknown:
        raise RequestError(f"{unknown[0]!r} is kept but is not a node of this graph; use the names in plan.windows")
    _check_mode(global_context, vectors)
    _check_pieces(max_pieces, min_saving)
    asked = {key: value if isinstance(value, list) else [value] for key, value in checked.items()}
    search = _Search(graph, asked, kept, global_context, vectors)
    nodes = search.walk(1)
    macs = hull_macs = sum(entry.macs for entry in nodes)
    if search.is_apart and max_pieces > 1 and not kept:
        split = search.walk(max_pieces)
        macs = sum(entry.macs for entry in split)
        if macs < hull_macs and macs <= (1 - min_saving) * hull_macs:
            nodes = split
    taken = vectors if global_context == CACHED else None
    milliseconds = (time.perf_counter() - start) * 1e3
    return Plan(graph, asked, dict(checked), nodes, milliseconds, hull_macs, bool(kept), global_context, taken)


class _Search:
    """Depth-first searches for one request.

    Attributes:
        is_apart: whether a search met a node whose demands lie so far apart that many cells of their hull are not
            needed.
    """

    def __init__(
        self,
        graph: Graph,
        asked: Mapping[int | str, list[Window]],
        kept: Kept | None,
        global_context: str,
        vectors: Vectors | None,
    ) -> None:
        self.kept, self.global_context, self.vectors = kept, global_context, vectors
        self.asked: dict[Node, list[Window]] = {}
        for key, windows in asked.items():
            self.asked.setdefault(resolve_output(graph, key), []).extend(windows)
        self.order = list(reversed(_post_order(list(self.asked))))
        self.is_apart = False

    def walk(self, max_pieces: int) -> list[NodePlan]:
        """Every node that is needed, producers first, with at most ``max_pieces`` windows each."""
        demands = {node: list(windows) for node, windows in self.asked.items()}
        followers: dict[Node, list[NodePlan]] = {}  # global vectors that take what others demand of their operand
        plans: dict[Node, NodePlan] = {}
        for node in self.order:
            following = followers.get(node, [])
            if node not in demands:
                if following:
                    raise _nothing_demanded(node, following)
                continue  # only kept values lie between it and the request
            windows = [hull(demands[node])] if following else demands[node]
            self.is_apart = self.is_apart or (len(windows) > 1 and len(merge_windows(windows)) > 1)
            if self.global_context != EXACT and is_global_vector(node):
                entry = _visit_vector(node, windows, self.kept, self.global_context, self.vectors)
                if entry.context == WINDOW:
                    followers.setdefault(node.args[0], []).append(entry)
            else:
                entry = _visit(node, windows, self.kept, max_pieces)
            plans[node] = entry
            for follower in following:
                _follow(follower, entry)
            for read in entry.reads:
                if not read.window.is_empty:
                    demands.setdefault(read.producer, []).append(read.window)
        return list(reversed(plans.values()))


def _check_pieces(max_pieces: int, min_saving: float) -> None:
    if isinstance(max_pieces, bool) or not isinstance(max_pieces, int) or not 1 <= max_pieces <= LARGEST_MAX_PIECES:
        raise RequestError(f"max_pieces is {max_pieces!r}; pass an integer from 1 to {LARGEST_MAX_PIECES}")
    if isinstance(min_saving, bool) or not isinstance(min_saving, (int, float)) or not 0 <= min_saving < 1:
        raise RequestError(f"min_saving is {min_saving!r}; pass a share from 0 to less than 1, such as {MIN_SAVING}")


def _check_mode(global_context: str, vectors: Vectors | None) -> None:
    if global_context not in MODES:
        raise RequestError(f"global_context is {global_context!r}; pass one of {', '.join(map(repr, MODES))}")
    if global_context == CACHED and vectors is None:
        raise RequestError(
            "global_context='cached' came without vectors; pass vectors=traced.global_vectors(inputs), or what "
            "traced.run_with_vectors gave for the same image"
        )
    if global_context != CACHED and vectors is not None:
        raise RequestError(f"vectors came with global_context={global_context!r}; they are for global_context='cached'")


def _visit_vector(
    node: Node, windows: list[Window], kept: Kept | None, global_context: str, vectors: Vectors | None
) -> NodePlan:
    """A global vector that is not reduced from the whole plane; in the mode ``"window"`` its reads follow later."""
    window = hull(windows)
    entry = NodePlan(node, window, [window], bytes=costs.window_bytes(node, window))
    if kept and any(part.contains(window) for part in kept.get(node.name, ())):
        entry.pieces = []
    elif global_context == WINDOW:
        entry.context = WINDOW
    elif vectors is not None and node.name in vectors:
        entry.context, entry.pieces = CACHED, []
    else:
        raise RequestError(
            f"the plan needs the global vector {node.name!r}, which is not among the vectors that came; "
            "traced.global_vectors(inputs) gives all of them"
        )
    return entry


def _follow(vector: NodePlan, operand: NodePlan) -> None:
    """Reduce a global vector from the window that is there of its operand."""
    vector.reads = [Read(operand.node, operand.window, border_of(operand.window, *operand.node.plane))]
    if operand.window == operand.node.full_window:  # then it is exact
        vector.context, vector.barrier = None, find_rule(vector.node).barrier(vector.node)
    else:
        vector.source = operand.window


def _nothing_demanded(node: Node, following: list[NodePlan]) -> RequestError:
    return RequestError(
        f"global_context='window' takes {following[0].node.name!r} from the window that other nodes need of "
        f"{node.name!r}, and none needs any; ask for an output that reads it, or pass global_context='cached'"
    )


def _post_order(roots: list[Node]) -> list[Node]:
    """Producers before consumers, constants left out; every node once."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((o, False) for o in node.operands if not o.is_constant and o not in seen)
    return order


def _visit(node: Node, windows: list[Window], kept: Kept | None, max_pieces: int) -> NodePlan:
    if node.layout_error is not None:
        raise node.layout_error
    window = hull(windows)
    entry = NodePlan(node, window, [window], bytes=costs.window_bytes(node, window))
    if node.op in (INPUT, CONSTANT):
        return entry
    rule = find_rule(node)
    reason = rule.barrier(node)
    if kept:
        entry.pieces = _missing(node, windows, kept.get(node.name, ()), whole=reason is not None)
    elif max_pieces > 1 and len(windows) > 1 and reason is None and _may_be_split(node):
        entry.pieces = apart_windows(windows, max_pieces)
        entry.bytes = sum(costs.window_bytes(node, piece) for piece in entry.pieces)
    for piece in entry.pieces:
        demands = list(rule.demands(node, piece))
        entry.reads.extend(_read(demand) for demand in demands)
        entry.barrier = reason or _mismatch(demands)
        entry.macs += rule.macs(node, piece)
    return entry


def _may_be_split(node: Node) -> bool:
    return node.layout is not None and not node.layout.merged


def _missing(node: Node, windows: list[Window], kept: Sequence[Window], whole: bool) -> list[Window]:
    """Windows to compute so that, with the kept ones, every demand is covered.

    Without kept values a node's window is the hull of its demands. With them the hull of a ring would be everything,
    so what is missing stays apart where that saves work. Barriers and flattened planes are never split.
    """
    if whole or not _may_be_split(node):
        window = hull(windows)
        return [] if any(part.contains(window) for part in kept) else [window]
    return merge_windows([piece for window in windows for piece in subtract_all(window, kept)])


def apart_windows(windows: list[Window], most: int) -> list[Window]:
    """At most ``most`` disjoint windows that cover ``windows``; their hull alone where that has no more cells."""
    apart: list[Window] = []
    for count in range(most, 0, -1):
        apart = []
        for piece in merge_windows(windows, count):
            apart.extend(subtract_all(piece, apart))
        if len(apart) <= most:
            break
    whole = hull(windows)
    return apart if sum(piece.area for piece in apart) < whole.area else [whole]


def merge_windows(windows: list[Window], most: int = MAX_PIECES) -> list[Window]:
    """At most ``most`` windows that cover ``windows``.

    The pair whose hull wastes the smallest share is merged until few enough are left and every further merge would
    waste more than :data:`MERGE_WASTE` of its hull.
    """
    pieces: list[Window] = []
    for window in sorted(set(windows), key=lambda w: (-w.area, w)):
        if not window.is_empty and not any(piece.contains(window) for piece in pieces):
            pieces.append(window)
    while len(pieces) > 1:
        waste, i, j = min(
            (_waste(pieces[i], pieces[j]), i, j) for i in range(len(pieces)) for j in range(i + 1, len(pieces))
        )
        if len(pieces) <= most and waste > MERGE_WASTE:
            break
        merged = hull((pieces[i], pieces[j]))
        pieces = [piece for piece in pieces if not merged.contains(piece)] + [merged]
    return pieces


def _waste(a: Window, b: Window) -> float:
    """Share of the hull of two windows that neither covers."""
    height, width = max(a.y1, b.y1) - min(a.y0, b.y0), max(a.x1, b.x1) - min(a.x0, b.x0)
    common = max(min(a.y1, b.y1) - max(a.y0, b.y0), 0) * max(min(a.x1, b.x1) - max(a.x0, b.x0), 0)
    return 1 - (a.area + b.area - common) / (height * width)


def _read(demand: Demand) -> Read:
    producer, window, axes, _ = demand
    if producer.layout is None:
        return Read(producer, producer.full_window, border_of(EMPTY, 0, 0))
    clipped = window.clip(*producer.plane)
    if not demand.fits:
        return Read(producer, producer.full_window, border_of(window, *_sizes(producer, axes)))
    return Read(producer, clipped, border_of(window, *producer.plane))


def _sizes(producer: Node, axes: tuple[int | None, int | None]) -> tuple[int, int]:
    y, x = axes
    return (producer.shape[y] if y is not None else 1, producer.shape[x] if x is not None else 1)


def _mismatch(demands: list[Demand]) -> str | None:
    for demand in demands:
        producer = demand.producer
        if producer.layout is not None and not demand.fits and producer.full_window.area > 1:
            return f"reads {producer.name} across its plane"
    return None
