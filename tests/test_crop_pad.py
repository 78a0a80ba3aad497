"""The crop-and-pad executor: what it reads, what it frees, and how it fails."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn

import tracenet
from tracenet import Demand, Rule
from tracenet.graph import Layout, Node
from tracenet.rft.rules import Pointwise
from tracenet.rft.rules.registry import _RULES, Reader
from tracenet_kernels.errors import ExecutionError, InputError, UnsupportedOpError
from tracenet_kernels.window import Window

library = torch.library.Library("tracenet_test", "DEF")
library.define("blur(Tensor x) -> Tensor")
library.impl("blur", lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1), "CPU")
library.impl("blur", torch.empty_like, "Meta")


class Blur(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.tracenet_test.blur(x * 2) + 1


@pytest.fixture
def clean_registry() -> Iterator[None]:
    before = dict(_RULES)
    yield
    _RULES.clear()
    _RULES.update(before)


def test_an_operation_without_a_rule_is_named_and_a_few_lines_add_one(clean_registry: None) -> None:
    x = torch.rand(1, 1, 8, 9)
    traced = tracenet.trace(Blur().eval(), x)
    with pytest.raises(UnsupportedOpError, match=r"node 'blur' is tracenet_test.blur.*register_rule") as caught:
        traced.plan({0: Window(0, 1, 0, 1)})
    assert "Pointwise" in str(caught.value)

    @tracenet.register_rule("tracenet_test.blur")
    class BlurRule(Rule):
        def layout(self, node: Node) -> Layout | None:
            return node.args[0].layout

        def demands(self, node: Node, window: Window) -> Iterable[Demand]:
            grown = Window(window.y0 - 1, window.y1 + 1, window.x0 - 1, window.x1 + 1)
            yield Demand(node.args[0], grown, node.args[0].layout.axes)

        def run(self, node: Node, window: Window, read: Reader) -> Tensor:
            (demand,) = self.demands(node, window)
            return torch.nn.functional.avg_pool2d(read(demand, fill=0.0), 3, 1)

    traced = tracenet.trace(Blur().eval(), x)
    for window in (Window(0, 8, 0, 9), Window(0, 1, 3, 5), Window(7, 8, 8, 9)):
        got = traced.run(x, traced.plan({0: window}))[0]
        torch.testing.assert_close(got, Blur()(x)[(..., *window.slices)])
    with pytest.raises(InputError, match=r"tracenet_test.blur already has a rule \(BlurRule\); pass replace=True"):
        tracenet.register_rule("tracenet_test.blur")(Pointwise())
    tracenet.register_rule("tracenet_test.blur", replace=True)(Pointwise())


def test_a_rule_that_gives_the_wrong_shape_or_fails_is_named(clean_registry: None) -> None:
    class Wrong(Pointwise):
        def run(self, node: Node, window: Window, read: Reader) -> Tensor:
            return super().run(node, window, read)[..., :1]

    class Failing(Pointwise):
        def run(self, node: Node, window: Window, read: Reader) -> Tensor:
            raise ValueError("no memory left")

    class Greedy(Pointwise):
        def run(self, node: Node, window: Window, read: Reader) -> Tensor:
            return read.whole(node.args[0])

    x = torch.rand(1, 1, 6, 6)
    for rule, words in (
        (Wrong(), r"node 'blur' \(tracenet_test.blur\) gave \[1, 1, 2, 1\] .* must give \[1, 1, 2, 3\]"),
        (Failing(), r"node 'blur' \(tracenet_test.blur\) failed on window \[1, 3\) x \[2, 5\): no memory left"),
        (Greedy(), r"of 'mul' is read, but .* neither computed nor"),
    ):
        tracenet.register_rule("tracenet_test.blur", replace=True)(rule)
        traced = tracenet.trace(Blur().eval(), x)
        with pytest.raises(ExecutionError, match=words):
            traced.run(x, traced.plan({0: Window(1, 3, 2, 5)}))


def test_every_tensor_is_freed_after_its_last_use(clean_registry: None) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class Watching(Pointwise):
        def run(self, node: Node, window: Window, read: Reader) -> Tensor:
            nonlocal most
            tensor = super().run(node, window, read)
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            return tensor

    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(10):
                x = torch.ops.aten.relu(x)
            return x

    tracenet.register_rule("aten.relu", replace=True)(Watching())
    x = torch.rand(1, 1, 4, 4)
    traced = tracenet.trace(Chain().eval(), x)
    out = traced.run(x, traced.plan({0: None}))
    gc.collect()
    assert len(alive) == 10
    assert most <= 2
    assert sum(ref() is not None for ref in alive) <= 1
    assert torch.equal(out[0], x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_agree_with_the_full_network_in_float64(dtype: torch.dtype) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(4, 2, 3, 1, 1), nn.AvgPool2d(3, 1, 1),
    ).eval()  # fmt: skip
    x = torch.rand(1, 3, 16, 18)
    want = model.double()(x.double())[:, :, 2:9, 0:5].detach()
    model.to(dtype)
    traced = tracenet.trace(model, x.to(dtype))
    got = traced.run(x.to(dtype), traced.plan({0: Window(2, 9, 0, 5)}))[0]
    assert got.dtype == dtype
    assert float((got.double() - want).norm() / want.norm()) < 1e-2


def test_runs_are_bit_identical_and_leave_the_input_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3, 2, 1)).eval()
    x = torch.rand(1, 3, 33, 31)
    before = x.clone()
    traced = tracenet.trace(model, x)
    plan = traced.plan({0: Window(3, 9, 0, 16)})
    first = traced.run(x, plan)[0]
    assert all(torch.equal(traced.run(x, plan)[0], first) for _ in range(3))
    assert torch.equal(x, before)
    assert not first.requires_grad
