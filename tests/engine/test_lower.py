"""What a schedule looks like: which nodes fuse, which stay planes, how steps are ordered, what is shared."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tracenet
from tests.engine.networks import randomised, tracenet_inputs, tracenet_model
from tracenet.conventions import THETA_SIZES
from tracenet.engine.lower import lower
from tracenet.engine.reference import graph_runner, run_schedule
from tracenet.engine.schedule import OPS, Schedule, Step
from tracenet.engine.table import schedule_table
from tracenet.kept import kept_names
from tracenet.models.weights import BUNDLED
from tracenet_kernels.errors import InputError
from tracenet_kernels.window import Window


def check(schedule: Schedule) -> None:
    """What every schedule promises."""
    ready = set(schedule.inputs)
    for step in schedule.steps:
        assert step.op in OPS
        assert ready.issuperset(step.inputs), f"{step.name} runs before what it reads"
        assert step.output not in ready
        ready.add(step.output)
        assert schedule.planes[step.output].name == step.name
        assert set(step.tensors.values()) <= set(schedule.tensors)
    assert ready == set(range(len(schedule.planes)))
    assert set(schedule.outputs.values()) <= ready
    assert all(v.dtype.name == "float32" and v.flags.c_contiguous for v in schedule.tensors.values())
    for group in {step.group for step in schedule.steps} - {0}:
        numbers = [i for i, step in enumerate(schedule.steps) if step.group == group]
        members = [schedule.steps[i] for i in numbers]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), "a group is not together"
        assert len({step.tensors["weight"] for step in members}) == 1
        assert not {step.output for step in members} & {x for step in members for x in step.inputs}


@pytest.fixture(scope="module")
def bundled_kind() -> tuple[tracenet.TracedModel, Schedule]:
    model = tracenet_model(tower_norm="bn_per_level", level_head=True)
    traced = tracenet.trace(model, tracenet_inputs(model))
    schedule = lower(traced.graph)
    check(schedule)
    return traced, schedule


def steps_named(schedule: Schedule, name: str) -> list[Step]:
    return [step for step in schedule.steps if any(name in node for node in step.nodes)]


def test_towers_run_level_by_level_and_share_one_weight(bundled_kind: tuple[tracenet.TracedModel, Schedule]) -> None:
    traced, schedule = bundled_kind
    for tower in ("cls", "box"):
        for depth in range(4):
            steps = steps_named(schedule, f"heads.{tower}_tower.{depth}.conv")
            assert len(steps) == 5 and len({step.group for step in steps} - {0}) == 1
            assert {step.tensors["weight"] for step in steps} == {f"heads.{tower}_tower.{depth}.conv.weight"}
            assert len({step.tensors["scale"] for step in steps}) == len({step.tensors["bias"] for step in steps}) == 5
    for head in ("logits", "reg", "ctr", "theta", "level"):
        steps = steps_named(schedule, f"heads.{head}")
        assert len(steps) == 5 and len({step.group for step in steps} - {0}) == 1
    assert not any(
        "folded" in node.name for node in traced.graph.nodes if "tower" in node.name and "heads" in node.name
    )


def test_no_weight_exists_twice(bundled_kind: tuple[tracenet.TracedModel, Schedule]) -> None:
    traced, schedule = bundled_kind
    weights = {step.tensors["weight"] for step in schedule.steps if "weight" in step.tensors}
    for name in weights:
        node = traced.graph.by_name[name]
        assert node.value is not None and schedule.tensors[name].ctypes.data == node.value.data_ptr()


def test_tracenet_fuses_down_to_its_kernels(bundled_kind: tuple[tracenet.TracedModel, Schedule]) -> None:
    traced, schedule = bundled_kind
    ops = [step.op for step in schedule.steps]
    assert ops.count("stem") == 1 and ops[0] == "stem"
    assert ops.count("add") == 1  # relu(P6), because P6 is an output
    assert ops.count("resize") == 2 and ops.count("mask_head") == 2 and ops.count("external") == 0
    assert ops.count("conv2d") == 52 + 8 + 5 * (8 + 5) + 3 + 4 + 1
    assert set(schedule.outputs) == set(traced.output_names)
    planes = {plane.name: plane for plane in schedule.planes}
    assert {plane.name for plane in schedule.planes if plane.keep} == {
        name for name in kept_names(traced.graph) if name in planes
    }
    residuals = [step.ints["residual_factor"] for step in schedule.steps if step.ints.get("residual_factor", 1) > 1]
    assert residuals == [2, 2]


def test_masks_at_both_resolutions_come_from_the_features(bundled_kind: tuple[tracenet.TracedModel, Schedule]) -> None:
    _, schedule = bundled_kind
    small, large = (step for step in schedule.steps if step.op == "mask_head")
    assert small.inputs == large.inputs
    assert (small.ints, large.ints) == ({"stride": 8, "factor": 0}, {"stride": 8, "factor": 4})
    assert schedule.outputs["mask"] == small.output and schedule.outputs["mask_half"] == large.output
    names = [schedule.planes[i].name for i in small.inputs]
    assert names == ["mask_branch.out", "theta", "origin", "size_of_interest"]
    assert [(schedule.planes[i].channels, schedule.planes[i].height) for i in small.inputs[1:]] == [
        (169, 1),
        (2, 1),
        (1, 1),
    ]


def test_box_distances_are_scaled_in_the_convolution(bundled_kind: tuple[tracenet.TracedModel, Schedule]) -> None:
    traced, schedule = bundled_kind
    reg = steps_named(schedule, "heads.reg")[1]
    scale = traced.graph.by_name["heads@1.constant"].value
    assert scale is not None
    assert schedule.tensors[reg.tensors["scale"]] == pytest.approx(float(scale) * 16, rel=1e-6)
    assert reg.ints["activation"] == 1


class Function(nn.Module):
    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        (lambda n, x: F.relu(n.a(x) + n.b(x)), ["conv2d", "conv2d"]),
        (lambda n, x: F.relu(n.a(x)) + n.b(x), ["conv2d", "conv2d"]),
        (lambda n, x: F.relu(n.a(x)) + F.relu(n.b(x)), ["conv2d", "conv2d", "add"]),
        (lambda n, x: (y := n.a(x)) + y, ["conv2d", "add"]),
        (lambda n, x: torch.add(x, n.a(x), alpha=2), ["conv2d", "external"]),
        (lambda n, x: ((y := n.a(x)), F.relu(y)), ["conv2d", "add"]),
        (lambda n, x: n.b(F.relu(y := n.a(x))) + y, ["conv2d", "add", "conv2d"]),
        (lambda n, x: n.one(n.a(x)) + n.two(n.a(x)), ["conv2d", "conv2d"]),
        (lambda n, x: n.one(x), ["conv2d"]),
        (lambda n, x: F.relu(n.one(x)), ["conv2d"]),
        (lambda n, x: F.relu(n.a(x)) * -2, ["conv2d", "conv2d"]),
        (lambda n, x: F.relu(n.a(x)) * 2, ["conv2d"]),
        (lambda n, x: F.relu(n.a(x)) + 2, ["conv2d", "conv2d"]),
        (lambda n, x: 3 - n.a(x) / 4, ["conv2d"]),
        (lambda n, x: F.max_pool2d(F.relu(n.one(n.a(x))), 2), ["stem"]),
        (lambda n, x: F.max_pool2d(n.a(x), 2), ["conv2d", "max_pool2d"]),
        (lambda n, x: F.max_pool2d(F.relu(n.a(x) + x), 2), ["conv2d", "max_pool2d"]),
        (lambda n, x: (F.max_pool2d(y := F.relu(n.a(x)), 2), y), ["conv2d", "max_pool2d"]),
        (lambda n, x: n.a(x) + F.interpolate(x[..., ::2, ::2], scale_factor=2), ["external", "external", "conv2d"]),
        (lambda n, x: n.a(x) + F.interpolate(F.max_pool2d(x, 2), scale_factor=2), ["max_pool2d", "conv2d"]),
        (lambda n, x: x + F.interpolate(F.max_pool2d(x, 2), scale_factor=2), ["max_pool2d", "resize"]),
        (lambda n, x: F.relu(x + F.interpolate(F.max_pool2d(x, 2), scale_factor=2)), ["max_pool2d", "resize", "add"]),
        (lambda n, x: F.silu(n.a(x)), ["conv2d"]),
        (lambda n, x: F.hardtanh(n.a(x), 0, 6) * F.gelu(n.b(x)), ["conv2d", "conv2d", "mul"]),
        (lambda n, x: F.leaky_relu(n.a(x), 0.1) * 2, ["conv2d"]),
        (lambda n, x: F.silu(n.a(x)) * 2, ["conv2d", "conv2d"]),
        (lambda n, x: F.max_pool2d(F.silu(n.a(x)), 2), ["conv2d", "max_pool2d"]),
        (lambda n, x: F.silu(F.group_norm(n.a(x), 2)), ["conv2d", "group_norm"]),
        (lambda n, x: F.group_norm(x, 1, x.mean((0, 2, 3)), x.amax((0, 2, 3))), ["external", "external", "external"]),
        (lambda n, x: n.a(x).square() + n.b(x) ** 2, ["conv2d", "mul", "conv2d", "mul", "add"]),
        (lambda n, x: x**3, ["external"]),
        (lambda n, x: F.tanh(F.silu(n.a(x))), ["conv2d", "add"]),
        (lambda n, x: F.gelu(x, approximate="tanh"), ["add"]),
        (lambda n, x: n.a(x).clamp(min=x.amax()), ["conv2d", "external", "external"]),
        (
            lambda n, x: F.silu(x * n.a(x.mean((2, 3), keepdim=True)).sigmoid()),
            ["plane_mean", "conv2d", "sigmoid", "mul"],
        ),
        (lambda n, x: n.a(x.mean((1, 2, 3), keepdim=True).expand(1, 2, 8, 8)), ["external", "external", "conv2d"]),
        (lambda n, x: n.a(F.adaptive_avg_pool2d(x, 1)), ["plane_mean", "conv2d"]),
        (lambda n, x: x * n.a(x).mean(1, keepdim=True), ["conv2d", "external", "external"]),
        (lambda n, x: [*n.a(x).chunk(2, 1)], ["conv2d", "take_channels", "take_channels"]),
        (lambda n, x: x[:, ::2], ["external"]),
        (lambda n, x: n.a(F.pad(x, (0, 1, 1, 0))), ["conv2d"]),
        (lambda n, x: (n.a(y := F.pad(x, (0, 1, 1, 0))), y), ["external", "conv2d"]),
        (lambda n, x: n.a(F.pad(x, (0, 1), value=1.0)), ["external", "conv2d"]),
        (lambda n, x: n.a(F.pad(x, (0, 9))), ["external", "conv2d"]),
        (lambda n, x: n.a(F.pad(x, (1, 1, 1, 1), mode="reflect")), ["external", "conv2d"]),
        (lambda n, x: n.a(x.view(1, 2, 8, 8).contiguous()), ["conv2d"]),
        (lambda n, x: F.dropout(n.a(x), 0.5, training=False), ["conv2d"]),
        (lambda n, x: n.a(x.transpose(2, 3)), ["external", "external"]),
        (lambda n, x: F.conv2d(x, x[0, :, :3, :3].expand(2, 2, 3, 3)), ["external"] * 5),
        (lambda n, x: torch.cat([x, n.a(x)], 2), ["conv2d", "external"]),
        (lambda n, x: torch.cat([x, n.a(x), x], 1), ["conv2d", "concat"]),
    ],
)
@pytest.mark.parametrize("fold_bn", [True, False])
def test_what_fuses(body: Callable[..., Any], ops: list[str], fold_bn: bool) -> None:
    model = randomised(Function(body))
    x = torch.randn(1, 2, 8, 8)
    schedule = lower(tracenet.trace(model, x, fold_bn=fold_bn).graph)
    check(schedule)
    assert [step.op for step in schedule.steps] == ops


def test_a_convolution_called_on_its_own_result_is_no_group() -> None:
    model = randomised(Function(lambda n, x: n.a(n.a(x)) + n.a(F.max_pool2d(x, 1))))
    schedule = lower(tracenet.trace(model, torch.randn(1, 2, 8, 8)).graph)
    check(schedule)
    assert sorted(step.group for step in schedule.steps if step.op == "conv2d") == [0, 1, 1]


def test_groups_that_wait_for_each_other_are_split() -> None:
    """a(x) -> b and b(y) -> a: either the calls of a or those of b can be together, not both."""

    def crossed(n: Function, x: Tensor) -> Tensor:
        y = F.avg_pool2d(x, 1)
        return n.b(F.relu(n.a(x))) * torch.sigmoid(n.a(F.relu(n.b(y))))

    schedule = lower(tracenet.trace(randomised(Function(crossed)), torch.randn(1, 2, 8, 8)).graph)
    check(schedule)
    assert sorted(step.group for step in schedule.steps if step.op == "conv2d") in ([0, 0, 0, 0], [0, 0, 1, 1])


def test_outputs_under_several_names_and_inputs_that_are_returned() -> None:
    class Names(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = F.relu(x)
            return {"y": y, "copy": y.clone(), "x": x}

    schedule = lower(tracenet.trace(Names().eval(), torch.randn(1, 2, 4, 4)).graph)
    check(schedule)
    assert schedule.outputs["y"] == schedule.outputs["copy"] and set(schedule.outputs) == {"y", "copy"}
    assert schedule.steps[0].nodes == ("relu", "clone")


class Mask(nn.Module):
    """A dynamic mask head with something changed."""

    def __init__(self, stride: int = 8, offset: int = 4, flip: bool = False, act: Any = F.relu, peek: str = "") -> None:
        super().__init__()
        self.stride, self.offset, self.flip, self.act, self.peek = stride, offset, flip, act, peek

    def forward(self, features: Tensor, theta: Tensor, origin: Tensor, size: Tensor) -> Any:
        (n, _, h, w), features = features.shape, F.relu(features)
        ys, xs = (torch.arange(m) * self.stride + self.offset for m in (h, w))
        x = (origin[:, 0].view(-1, 1, 1, 1) - xs.view(1, 1, 1, w)) / size.view(-1, 1, 1, 1)
        y = (origin[:, 1].view(-1, 1, 1, 1) - ys.view(1, 1, h, 1)) / size.view(-1, 1, 1, 1)
        where = [part.expand(n, 1, h, w) for part in ((y, x) if self.flip else (x, y))]
        w1, w2, w3, b1, b2, b3 = theta.split(THETA_SIZES, dim=1)
        first = self.act(F.conv2d(torch.cat([*where, features], 1), w1.reshape(8, 10, 1, 1), b1.reshape(8)))
        second = self.act(F.conv2d(first, w2.reshape(8, 8, 1, 1), b2.reshape(8)))
        out = F.conv2d(second, w3.reshape(1, 8, 1, 1), b3.reshape(1))
        extra = {"first": first, "theta": theta[:, :80] * 2, "features": features, "w1": w1}
        return (out, extra[self.peek]) if self.peek else out


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, 1),
        ({"stride": 16, "offset": 8}, 1),
        ({"peek": "theta"}, 1),
        ({"peek": "features"}, 1),
        ({"peek": "first"}, 0),
        ({"peek": "w1"}, 0),
        ({"offset": 0}, 0),
        ({"flip": True}, 0),
        ({"act": torch.sigmoid}, 0),
    ],
)
def test_mask_heads_are_told_from_what_looks_like_one(options: dict[str, Any], found: int) -> None:
    inputs = (torch.randn(1, 8, 5, 6), torch.randn(1, 169), torch.rand(1, 2) * 40, torch.full((1,), 64.0))
    traced = tracenet.trace(Mask(**options).eval(), inputs)
    schedule = lower(traced.graph)
    check(schedule)
    assert sum(step.op == "mask_head" for step in schedule.steps) == found
    got = run_schedule(schedule, inputs, graph_runner(traced.graph))
    for name, tensor in traced.run(inputs, traced.plan(dict.fromkeys(traced.output_names))).items():
        torch.testing.assert_close(got[str(name)], tensor, rtol=1e-5, atol=1e-5)


def test_networks_without_weights_are_refused() -> None:
    with torch.device("meta"):
        traced = tracenet.trace(nn.Conv2d(3, 4, 3).eval(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="meta device and has no values"):
        lower(traced.graph)


def test_table(bundled_kind: tuple[tracenet.TracedModel, Schedule]) -> None:
    traced, schedule = bundled_kind
    lines = schedule_table(schedule).splitlines()
    assert len(lines) == len(schedule.steps) + 2
    assert "139 steps" in lines[-1] and "13 groups" in lines[-1]
    assert lines[1].split()[:4] == ["0", "stem", "7x7/2", "3"]
    assert any("add fpn.lateral5 x2" in line for line in lines)
    plan = traced.plan({"logits3": Window(2, 3, 3, 4)})
    with_plan = schedule_table(schedule, plan).splitlines()
    shown = [step for step in schedule.steps if step.name in plan.windows]
    assert len(with_plan) == len(shown) + 3
    assert "[2, 3) x [3, 4)" in with_plan[-3]
    macs = [float(line[line.index("%") + 1 :].split()[0]) for line in with_plan[1:-2]]
    assert sum(macs) == pytest.approx(plan.macs / 1e6, rel=1e-2)


@pytest.mark.skipif(
    not (Path(tracenet.__file__).parent / "assets" / BUNDLED).is_file(), reason="the bundled checkpoint is absent"
)
def test_command_line() -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tracenet.engine", *args]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    result = run("--size", "128x96", "--click", "60,40", "--levels", "3-4", "--mask-cells", "4")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:6] == ["#", "op", "group", "kernel", "in", "out"]
    assert lines[-1].startswith("this request: ") and "0 external" in lines[-2]
    assert not any(line.split()[0] in ("61", "65") for line in lines[1:-2])  # P7 and the levels nobody asked for
    refused = run("--size", "100x96")
    assert refused.returncode == 2 and "32" in refused.stderr
