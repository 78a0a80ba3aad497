"""BatchNorm while training: every kind against what it should equal."""

from __future__ import annotations

import torch
from torch import nn

from tracenet.training.norms import TrainingNorm, use_training_norms
from tracenet.training.windows import Moments


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ModuleDict({"a": nn.BatchNorm2d(4)})["a"])


def test_layers_are_replaced_with_their_weights_and_names() -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    norms = use_training_norms(model, "batch", 0.2)
    assert len(norms) == 2 and all(isinstance(model[i], TrainingNorm) for i in (1, 2))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert norms[0].momentum == 0.2


def test_batch_is_batchnorm() -> None:
    x = torch.randn(2, 4, 5, 6)
    own, reference = TrainingNorm(4), nn.BatchNorm2d(4)
    own.train()
    reference.train()
    torch.testing.assert_close(own(x), reference(x))
    torch.testing.assert_close(own.running_var, reference.running_var)
    torch.testing.assert_close(own.eval()(x), reference.eval()(x))


def test_a_single_value_is_normalised_with_stored_statistics() -> None:
    norm = TrainingNorm(4).train()
    norm.running_mean.fill_(1.0)
    torch.testing.assert_close(norm(torch.ones(1, 4, 1, 1)), torch.zeros(1, 4, 1, 1))


def test_frozen_and_renorm_compute_the_stored_function() -> None:
    x = torch.randn(2, 4, 5, 6)
    for kind in ("frozen", "renorm"):
        norm = TrainingNorm(4).train()
        norm.kind = kind
        norm.moments = Moments()
        norm.running_mean.uniform_(-0.2, 0.2)
        expected = norm.eval()(x)
        before = norm.running_mean.clone()
        torch.testing.assert_close(norm.train()(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(norm.running_mean, before)
        assert len(norm.moments.seen) == (kind == "renorm")


def test_sync_in_one_process_is_batchnorm() -> None:
    x = torch.randn(2, 4, 5, 6)
    own, reference = TrainingNorm(4).train(), nn.BatchNorm2d(4).train()
    own.kind = "sync"
    torch.testing.assert_close(own(x), reference(x))
