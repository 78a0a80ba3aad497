"""Rates, groups and averages."""

from __future__ import annotations

import pytest
import torch

from tracenet.models import TraceNet, TraceNetConfig
from tracenet.training.config import OptimizerTable, ScheduleTable
from tracenet.training.optim import AVERAGE_EVERY, Average, freeze, make_optimizer, rate_at, set_rate


@pytest.fixture(scope="module")
def model() -> TraceNet:
    return TraceNet(TraceNetConfig(channels=16))


def test_steps_follow_warm_up_and_milestones() -> None:
    table = ScheduleTable(shape="step", warmup=10, warmup_start=0.1, milestones=(0.5, 0.8), gamma=0.1)
    rates = [rate_at(step, 100, 1.0, table) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 + 0.9 / 10)
    assert rates[9] == rates[10] == rates[49] == 1
    assert rates[50] == rates[79] == pytest.approx(0.1)
    assert rates[80] == rates[99] == pytest.approx(0.01)


def test_cosine_falls_from_the_peak_to_its_final_share() -> None:
    table = ScheduleTable(shape="cosine", warmup=10, final=0.02)
    rates = [rate_at(step, 110, 2.0, table) for step in range(111)]
    assert rates[10] == 2 and rates[60] == pytest.approx(2 * (0.02 + 0.98 / 2)) and rates[110] == pytest.approx(0.04)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_frozen_stages_and_backbone_norms_do_not_learn(model: TraceNet) -> None:
    freeze(model, OptimizerTable(frozen_stages=2))
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any(n.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1")) for n in learning)
    assert "backbone.layer2.0.conv1.weight" in learning
    assert not any(".bn" in n for n in learning if n.startswith("backbone"))
    assert "heads.cls_tower.0.norm.weight" in learning
    freeze(model, OptimizerTable(frozen_stages=0, backbone_factor=0))
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.startswith("backbone."))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_groups_have_their_rates_and_decays(model: TraceNet, name: str) -> None:
    table = OptimizerTable(name=name, lr=0.5, weight_decay=0.1, norm_decay=0.01, backbone_factor=0.2, frozen_stages=4)
    freeze(model, table)
    optimizer = make_optimizer(model, table)
    set_rate(optimizer, 0.5)
    seen = {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert seen == {(0.1, 0.1), (0.5, 0.1), (0.5, 0.01)}
    count = sum(len(g["params"]) for g in optimizer.param_groups)
    assert count == sum(p.requires_grad for p in model.parameters())


def test_average_follows_and_stands_in_for_parameters() -> None:
    layer = torch.nn.Linear(1, 1)
    average = Average([layer.weight], 0.9)
    start = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1
    average.update(1)
    assert torch.equal(average.values[0], start)  # only every few steps
    average.update(1000 * AVERAGE_EVERY)
    torch.testing.assert_close(average.values[0], start + 1 - 0.9**AVERAGE_EVERY)
    none = Average([layer.weight], 0.0)
    with torch.no_grad():
        layer.weight += 1
    none.update(7)
    assert torch.equal(none.values[0], layer.weight)  # without an average, the weights themselves
    average.update(1000 * AVERAGE_EVERY + 2, last=True)
    assert not torch.equal(average.values[0], start + 1 - 0.9**AVERAGE_EVERY)  # brought up to date at the end
    state = average.state_of(layer)
    assert torch.equal(state["weight"], average.values[0])
    assert torch.equal(state["bias"], layer.bias)
