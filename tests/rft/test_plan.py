"""What a plan says: windows, borders, barriers, multiply-adds, bytes, its table, and that it is linear in the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

import tracenet
from tracenet.graph import Graph, Node
from tracenet.graph.graph import INPUT
from tracenet.rft import Demand, plan_windows
from tracenet.rft.layouts import infer_layouts
from tracenet.rft.rules import Pointwise
from tracenet.rft.rules.registry import _RULES
from tracenet_kernels.window import Border, Window


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 7, 2, 3)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.gate = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(self.pool(self.stem(x)))
        return {"map": self.head(y), "gated": y * self.gate(y)}


@pytest.fixture(scope="module")
def traced() -> tracenet.TracedModel:
    return tracenet.trace(Small().eval(), torch.zeros(1, 3, 64, 80))


def test_windows_borders_and_counts_at_a_corner(traced) -> None:
    plan = traced.plan({"map": Window(0, 2, 18, 20)})
    assert plan.request == {"map": Window(0, 2, 18, 20)}
    assert plan.windows["head"] == plan.windows["map"] == Window(0, 2, 18, 20)
    assert plan.windows["body.0"] == Window(0, 2, 18, 20)
    assert plan.windows["pool"] == Window(0, 3, 17, 20)
    assert plan.windows["stem"] == Window(0, 6, 33, 40)
    assert plan.windows["x"] == Window(0, 14, 63, 80)
    assert plan.borders == {
        "body.0": [Border(1, 0, 0, 1)],
        "pool": [Border(1, 0, 0, 0)],
        "stem": [Border(3, 0, 0, 2)],
    }
    assert plan.macs == 4 * 8 + 4 * 36 * 4 + 42 * 4 * 3 * 49
    assert plan.full_macs == (16 * 20) * (8 + 144) + (32 * 40) * 588
    assert plan.macs_of("body") == 4 * 36 * 4
    assert plan.full_macs_of("body", "head") == 320 * 152
    assert plan.bytes == 4 * (3 * 14 * 17 + 4 * 6 * 7 + 4 * 9 + 2 * 4 * 4 + 2 * 4)
    assert not plan.barriers
    assert [entry.node.name for entry in plan.nodes] == ["x", "stem", "pool", "body.0", "body.2", "head"]
    assert plan.planning_ms > 0


def test_barriers_are_reported_with_name_operation_and_reason(traced) -> None:
    plan = traced.plan({"gated": Window(3, 4, 3, 4)})
    assert [(b.name, b.op) for b in plan.barriers] == [("gate", "aten.adaptive_avg_pool2d")]
    assert "whole plane" in plan.barriers[0].reason
    assert plan.windows["x"] == Window(0, 64, 0, 80)


def test_a_request_may_name_any_node_and_ask_for_all_of_it(traced) -> None:
    by_index = traced.plan({0: None})
    assert by_index.request[0] == Window(0, 16, 0, 20)
    assert traced.plan({"pool": Window(1, 2, 1, 2)}).windows["pool"] == Window(1, 2, 1, 2)
    both = traced.plan({0: Window(0, 1, 0, 1), "map": (4, 5, 6, 7)})
    assert both.windows["head"] == Window(0, 5, 0, 7)  # one node asked twice: the hull


def test_table_and_repr(traced) -> None:
    plan = traced.plan({"gated": Window(3, 4, 3, 4)})
    lines = plan.table().splitlines()
    assert lines[0].split()[:5] == ["node", "op", "plane", "window", "share"]
    row = next(line for line in lines if line.startswith("stem"))
    assert all(word in row for word in ("conv2d", "32x40", "[0, 32) x [0, 40)", "100%", "3,2,3,2"))
    assert any(line.startswith("gate") and "pools the whole plane" in line for line in lines)
    assert "1 barriers" in lines[-1]
    assert "MiB" in lines[-1]
    assert len(plan.table(full=True).splitlines()) == len(plan.nodes) + 3
    assert all(line == line.rstrip() for line in lines)
    assert f"<Plan: {len(plan.nodes)} nodes" in repr(plan)
    assert "1 barriers" in repr(plan)


def test_a_plan_without_multiply_adds_has_a_table() -> None:
    plan = tracenet.trace(nn.ReLU().eval(), torch.zeros(1, 1, 4, 4)).plan({0: None})
    assert (plan.macs, plan.full_macs) == (0, 0)
    assert "0.000 of 0.000 GMACs" in plan.table()
    assert repr(plan)


class Counting(Pointwise):
    """Counts how often each node is asked for its demands."""

    def __init__(self) -> None:
        self.calls: Counter[Node] = Counter()

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        self.calls[node] += 1
        return super().demands(node, window)


@pytest.fixture
def counting() -> Iterable[Counting]:
    rule = Counting()
    tracenet.register_rule("test.join")(rule)
    yield rule
    del _RULES["test.join"]


@pytest.mark.parametrize("reach", [1, 3])
def test_every_node_of_a_long_chain_is_visited_once(counting: Counting, reach: int) -> None:
    shape = (1, 1, 8, 8)
    nodes = [Node("x", INPUT, None, (), {}, shape, torch.float32)]
    for i in range(3000):
        operands = tuple(nodes[-reach:])
        nodes.append(Node(f"n{i}", "test.join", None, operands, {}, shape, torch.float32))
    graph = Graph(nodes, nodes[:1], {"output": nodes[-1]})
    infer_layouts(graph)
    plan = plan_windows(graph, {0: Window(1, 2, 3, 4)})
    assert len(plan.nodes) == 3001
    assert plan.windows["x"] == Window(1, 2, 3, 4)
    assert set(counting.calls.values()) == {1}
    assert [entry.node for entry in plan.nodes] == nodes
