"""The native backend against crop-and-pad: same values on any network and window, the same bits in any window."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tracenet
from tests.engine.networks import NETWORKS, randomised, tracenet_inputs, tracenet_model
from tracenet.crop_pad import Patch
from tracenet.engine.execute import NativeExecutor
from tracenet.rft.rules.pointwise import crop_output
from tracenet_kernels import backends, native
from tracenet_kernels.errors import BackendError, ExecutionError, InputError
from tracenet_kernels.testing import errors
from tracenet_kernels.window import Window

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())

EXAMPLES = int(os.environ.get("TRACENET_RANDOM_NETWORKS", "10"))
Request = dict[int | str, Window | None]


def poisoned_executor(traced: tracenet.TracedModel) -> NativeExecutor:
    """What ``backend="native"`` uses, but with memory that holds NaN before it is written."""
    traced._native = NativeExecutor(traced.graph, poison=True)
    return traced._native


def assert_native_equals_torch(
    traced: tracenet.TracedModel, inputs: tuple[Tensor, ...], request: Request, whole: dict[str, Tensor] | None = None
) -> None:
    """Every requested window, in 1e-5 of the largest value; in the bits of ``whole``, outputs of a full native run."""
    plan = traced.plan(request)
    wanted = traced.run(inputs, plan)
    got = traced.run(inputs, plan, backend="native")
    assert set(got) == set(wanted)
    for key, tensor in got.items():
        scale = float(wanted[key].abs().max()) if wanted[key].numel() else 0.0
        measured = errors(tensor, wanted[key])
        assert measured.max_abs <= 1e-5 * max(scale, 1e-3), f"{key}: {measured}"
        if whole is not None:
            node = traced.graph.outputs[str(key)]
            assert torch.equal(tensor, crop_output(node, whole[str(key)], plan.request[key])), f"{key}: other bits"


def full_run(traced: tracenet.TracedModel, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    outputs = traced.run(inputs, traced.plan(dict.fromkeys(traced.output_names)), backend="native")
    return {str(key): tensor for key, tensor in outputs.items()}


@pytest.fixture(scope="module")
def bundled_kind() -> tuple[tracenet.TracedModel, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = tracenet_model(tower_norm="bn_per_level", level_head=True)
    inputs = tracenet_inputs(model, 160, 96)
    traced = tracenet.trace(model, inputs)
    poisoned_executor(traced)
    return traced, inputs


def test_tracenet_whole_and_at_a_click(bundled_kind: tuple[tracenet.TracedModel, tuple[Tensor, ...]]) -> None:
    traced, inputs = bundled_kind
    assert_native_equals_torch(traced, inputs, dict.fromkeys(traced.output_names))
    whole = full_run(traced, inputs)
    heads = {f"{head}3": Window(5, 6, 7, 8) for head in ("logits", "reg", "ctr", "theta", "level")}
    for request in (
        heads,
        {"mask": Window(2, 9, 3, 12)},
        {"mask_half": Window(9, 31, 14, 39)},
        {"mask": Window(0, 3, 0, 3), "mask_half": Window(47, 48, 79, 80), **heads},
        {"C5": Window(0, 1, 1, 2), "inner3": Window(11, 12, 19, 20), "P6": Window(0, 1, 0, 1)},
    ):
        assert_native_equals_torch(traced, inputs, request, whole)


@pytest.mark.parametrize(
    "config",
    [
        {"stride_in_1x1": True, "mask_branch": "p3", "mask_order": "upsample_probabilities"},
        {"tower_norm": "gn", "mask_norm": "gn", "channels": 64},
    ],
    ids=["probabilities", "group norms"],
)
def test_other_tracenets(config: dict[str, Any]) -> None:
    model = tracenet_model(**config)
    inputs = tracenet_inputs(model)
    traced = tracenet.trace(model, inputs)
    poisoned_executor(traced)
    assert_native_equals_torch(traced, inputs, {"logits4": Window(1, 2, 2, 3), "mask_half": Window(3, 20, 5, 29)})
    assert_native_equals_torch(traced, inputs, {"theta3": None, "C4": Window(1, 3, 0, 2)})


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks(name: str) -> None:
    x = torch.randn(1, 3, 40, 56)
    traced = tracenet.trace(randomised(NETWORKS[name]()), x)
    poisoned_executor(traced)
    assert_native_equals_torch(traced, (x,), dict.fromkeys(traced.output_names))
    for key, node in traced.graph.outputs.items():
        if node.layout is not None:
            h, w = node.plane
            for window in (Window(0, 1, w - 1, w), Window(h // 2, h // 2 + 1, w // 3, w // 3 + 2)):
                assert_native_equals_torch(traced, (x,), {key: window})


OPERATIONS = ("conv", "depthwise", "pool", "mean", "add", "concat", "resize", "relu", "sigmoid", "pad", "gate",
              "silu", "gelu", "hardswish", "clip", "leaky", "slice", "times")  # fmt: skip


class Random(nn.Module):
    """Steps ``(operation, operand numbers, options)`` over values numbered in order."""

    def __init__(self, steps: list[tuple[str, tuple[int, ...], dict[str, Any]]]) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(**options), nn.BatchNorm2d(options["out_channels"]))
            if op in ("conv", "depthwise")
            else nn.Identity()
            for op, _, options in steps
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [x]
        for (op, operands, options), layer in zip(self.steps, self.layers, strict=True):
            values.append(self.step(op, [values[i] for i in operands], options, layer))
        return values[-3:]

    def step(self, op: str, x: list[Tensor], options: dict[str, Any], layer: nn.Module) -> Tensor:
        if op in ("conv", "depthwise"):
            return layer(x[0])
        functions: dict[str, Any] = {
            "pool": lambda: F.max_pool2d(x[0], **options),
            "mean": lambda: F.avg_pool2d(x[0], **options),
            "add": lambda: x[0] + x[1],
            "concat": lambda: torch.cat(x, 1),
            "resize": lambda: F.interpolate(x[0], **options),
            "relu": lambda: F.relu(x[0]),
            "sigmoid": lambda: x[0].sigmoid(),
            "silu": lambda: F.silu(x[0]),
            "gelu": lambda: F.gelu(x[0]),
            "hardswish": lambda: F.hardswish(x[0]),
            "clip": lambda: x[0].clamp(-0.3, 0.6),
            "leaky": lambda: F.leaky_relu(x[0], 0.2),
            "slice": lambda: x[0][:, options["first"] : options["last"]],
            "times": lambda: x[0] * x[1],
            "pad": lambda: F.pad(x[0], options["pads"]),
            "gate": lambda: x[0] * x[0].mean((2, 3), keepdim=True).sigmoid(),
        }
        return functions[op]()


@st.composite
def networks(draw: st.DrawFn) -> tuple[Random, Tensor]:
    shapes = [(draw(st.integers(1, 4)), draw(st.integers(5, 20)), draw(st.integers(5, 20)))]
    given_shape, steps = shapes[0], []
    for _ in range(draw(st.integers(2, 8))):
        a = draw(st.sampled_from(range(len(shapes))))
        c, h, w = shapes[a]
        op = draw(st.sampled_from(OPERATIONS)) if max(h, w) <= 40 and c <= 24 else "conv"
        operands, options = (a,), {}
        if op in ("conv", "depthwise"):
            k, s, d, p = (draw(st.integers(*span)) for span in ((1, 4), (1, 2), (1, 2), (0, 3)))
            sides = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n in (h, w)]
            if min(sides) < 1:
                continue
            out, groups = (c, c) if op == "depthwise" else (draw(st.integers(1, 9)), 1)
            options = {"in_channels": c, "out_channels": out, "kernel_size": k, "stride": s, "padding": p,
                       "dilation": d, "groups": groups, "bias": draw(st.booleans())}  # fmt: skip
            shapes.append((out, *sides))
        elif op in ("pool", "mean"):
            k = draw(st.integers(1, min(3, h, w)))
            options = {"kernel_size": k, "stride": draw(st.integers(1, 2)), "padding": draw(st.integers(0, k // 2)),
                       "ceil_mode": draw(st.booleans())}  # fmt: skip
            if op == "mean":
                options["count_include_pad"] = draw(st.booleans())
            pool = F.max_pool2d if op == "pool" else F.avg_pool2d
            shapes.append((c, *pool(torch.zeros(1, 1, h, w), **options).shape[-2:]))
        elif op == "slice":
            first = draw(st.integers(0, c - 1))
            options = {"first": first, "last": draw(st.integers(first + 1, c))}
            shapes.append((options["last"] - first, h, w))
        elif op in ("add", "concat", "times"):
            fits = [i for i, s in enumerate(shapes) if s[1:] == (h, w) and (op == "concat" or s[0] == c)]
            operands = (a, draw(st.sampled_from(fits)))
            shapes.append((c + (shapes[operands[1]][0] if op == "concat" else 0), h, w))
        elif op == "resize":
            mode = draw(st.sampled_from(("nearest", "bilinear")))
            size = draw(st.one_of(st.just((2 * h, 2 * w)), st.tuples(st.integers(1, 2 * h), st.integers(1, 2 * w))))
            options = {"size": size, "mode": mode}
            if mode == "bilinear":
                options["align_corners"] = draw(st.booleans())
            shapes.append((c, *size))
        elif op == "pad":
            options = {"pads": draw(st.tuples(*[st.integers(0, 2)] * 4))}
            shapes.append((c, h + sum(options["pads"][2:]), w + sum(options["pads"][:2])))
        else:
            shapes.append((c, h, w))
        steps.append((op, operands, options))
    torch.manual_seed(draw(st.integers(0, 100)))
    return randomised(Random(steps)), torch.randn(1, *given_shape)  # type: ignore[return-value]


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(networks(), st.data())
def test_random_networks_and_windows(network: tuple[Random, Tensor], data: st.DataObject) -> None:
    model, x = network
    traced = tracenet.trace(model, x)
    executor = poisoned_executor(traced)
    assume(any(step.op != "external" for step in executor.schedule.steps))  # else native is refused, rightly
    assert_native_equals_torch(traced, (x,), dict.fromkeys(traced.output_names))
    kernels_alone = all(step.op != "external" for step in executor.schedule.steps)
    whole = full_run(traced, (x,)) if kernels_alone else None
    for _ in range(2):
        request: Request = {}
        for name in data.draw(st.sets(st.sampled_from(traced.output_names), min_size=1)):
            h, w = traced.graph.outputs[name].plane
            y0, x0 = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
            request[name] = Window(y0, data.draw(st.integers(y0 + 1, h)), x0, data.draw(st.integers(x0 + 1, w)))
        assert_native_equals_torch(traced, (x,), request, whole)
        computed = {name: window for name, window in request.items() if name in executor.schedule.outputs}
        if kernels_alone and computed:
            planned = executor._session.plan(computed).windows
            wanted = traced.plan(computed).windows
            assert {name: wanted[name] for name in planned} == planned


class Plain(nn.Module):
    """A kernel, an operation without one, and a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor, shift: Tensor) -> dict[str, Tensor]:
        y = F.relu(self.a(x))
        out = self.b(torch.roll(y, 1, 3).sin() + shift.view(1, -1, 1, 1))
        return {"y": y, "out": out, "shift": shift, "sum": shift.sum()}


@pytest.fixture
def plain() -> tuple[tracenet.TracedModel, tuple[Tensor, Tensor]]:
    inputs = (torch.randn(1, 3, 12, 14), torch.randn(4))
    traced = tracenet.trace(randomised(Plain()), inputs)
    poisoned_executor(traced)
    return traced, inputs


def test_kernels_and_external_steps_take_turns(plain: tuple[tracenet.TracedModel, tuple[Tensor, Tensor]]) -> None:
    traced, inputs = plain
    for request in (
        {"out": Window(2, 4, 3, 5)},
        {"out": None, "y": Window(0, 1, 0, 1), "shift": None, "sum": None},
        {"y": Window(3, 5, 2, 9), 0: Window(0, 12, 0, 1)},
        {"shift": None},
        {"sum": None},
    ):
        assert_native_equals_torch(traced, inputs, request)  # type: ignore[arg-type]


def test_inputs_may_be_the_parts_that_a_plan_reads(plain: tuple[tracenet.TracedModel, tuple[Tensor, Tensor]]) -> None:
    traced, (x, shift) = plain
    for request in ({"y": Window(5, 6, 5, 8)}, {"out": Window(5, 6, 5, 8)}):
        plan = traced.plan(request)
        window = plan.windows["x"]
        patch = Patch(window, crop_output(traced.graph.inputs[0], x, window))
        wanted = traced.run((x, shift), plan, backend="native")
        got = traced.run((patch, shift), plan, backend="native")
        assert all(torch.equal(got[key], wanted[key]) for key in request)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == backends.__name__]


def test_what_has_no_kernel_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_said", set())
    inputs = (torch.randn(1, 3, 12, 14), torch.randn(4))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            traced = tracenet.trace(randomised(Plain()), inputs)
            traced.run(inputs, traced.plan({"out": None}), backend="native")
    (message,) = said(caplog)
    assert "no kernel for aten.add, " in message and "aten.roll" in message and "run in PyTorch" in message


def test_auto_says_once_why_it_takes_torch(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_said", set())
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    x = torch.randn(2, 3, 8, 8)
    for inputs in (x, x[:1].double()):
        traced = tracenet.trace(model.to(inputs.dtype), inputs)
        plan = traced.plan({0: None})
        with caplog.at_level(logging.WARNING):
            outs = [traced.run(inputs, plan, backend="auto")[0] for _ in range(2)]
        assert torch.equal(outs[0], traced.run(inputs, plan)[0])
        with pytest.raises(BackendError, match="no step of the network has a kernel"):
            traced.run(inputs, plan, backend="native")
    assert len(said(caplog)) == 1
    traced = tracenet.trace(model.float(), x[:1])
    assert traced.run(x[:1], traced.plan({0: None}), backend="auto")[0].shape == (1, 4, 6, 6)
    assert traced._native is not None and len(said(caplog)) == 1


def test_plans_that_do_not_fit(plain: tuple[tracenet.TracedModel, tuple[Tensor, Tensor]]) -> None:
    traced, inputs = plain
    with pytest.raises(BackendError, match="'a' lies inside a step"):
        traced.run(inputs, traced.plan({"a": None}), backend="native")
    kept = traced.plan({"out": None}, kept={"relu": [Window(0, 12, 0, 14)]})
    with pytest.raises(BackendError, match="reads kept values"):
        traced.run(inputs, kept, backend="native")
    with pytest.raises(BackendError, match="kept by the caller"):
        traced.run_keeping(inputs, traced.plan({"out": None}), keep=["relu"], backend="native")
    with pytest.raises(InputError, match="was made for"):
        traced.run((inputs[0][..., 1:], inputs[1]), traced.plan({"out": None}), backend="native")
    with torch.device("meta"):
        empty = tracenet.trace(nn.Conv2d(3, 4, 3).eval(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="is on the meta device"):
        empty.run(torch.zeros(1, 3, 8, 8), empty.plan({0: None}), backend="native")


def test_a_failed_external_step_is_named_and_the_next_run_works() -> None:
    inputs = (torch.randn(1, 3, 12, 14), torch.randn(4))
    traced = tracenet.trace(randomised(Plain()), inputs)
    plan = traced.plan({"out": None})
    wanted = traced.run(inputs, plan, backend="native")["out"]
    node = next(node for node in traced.graph.nodes if node.op == "aten.sin")
    target, node.target = node.target, lambda *_: 1 / 0
    with pytest.raises(ExecutionError, match=r"node 'sin' \(aten.sin\) failed on window"):
        traced.run(inputs, plan, backend="native")
    node.target = target
    assert torch.equal(traced.run(inputs, plan, backend="native")["out"], wanted)


def test_one_program_per_model_and_a_new_one_after_a_move(plain: Any) -> None:
    traced, inputs = plain
    plan = traced.plan({"out": None})
    before = traced._executor(plan)
    traced.run(inputs, plan, backend="native")
    assert traced._executor(plan) is before
    assert traced.to("cpu")._executor(plan) is not before


def test_captures_at_several_sizes_share_packed_weights() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    other = randomised(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    small, large = torch.randn(1, 3, 8, 10), torch.randn(1, 3, 16, 14)
    first = tracenet.trace(model, small)
    assert_native_equals_torch(first, (small,), {"output": None})
    for twin, shared in ((model, True), (other, False)):
        second = tracenet.trace(twin, large)
        second.share_weights(first)
        assert_native_equals_torch(second, (large,), {"output": None})
        assert second._native is not None and first._native is not None
        packed = [executor.program.native.packed.ctypes.data for executor in (first._native, second._native)]
        assert (packed[0] == packed[1]) == shared
