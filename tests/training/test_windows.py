"""Towers computed only at clicks equal the whole planes, at the border too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tracenet.conventions import LEVELS
from tracenet.models.heads import Heads
from tracenet.training.windows import Moments, cells_at, gather_windows, heads_at, inside_plane, renorm
from tracenet_kernels.errors import InputError


def small_heads(norm: str = "bn") -> Heads:
    heads = Heads(channels=16, norm=norm, level_head=True)
    for module in heads.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            # Random statistics: what lies outside the plane is then not zero after a block unless reset.
            nn.init.normal_(module.bias)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return heads.eval()


@pytest.mark.parametrize("norm", ["bn", "bn_per_level"])
@pytest.mark.parametrize("size", [(160, 224), (640, 480)])
def test_heads_at_clicks_equal_whole_planes(size: tuple[int, int], norm: str) -> None:
    height, width = size
    heads = small_heads(norm)
    planes = {n: torch.randn(1, 16, -(-height // 2**n), -(-width // 2**n)) for n in LEVELS}
    clicks = torch.tensor(
        [[0.0, 0.0], [width - 0.1, height - 0.1], [width - 1.0, 3.0], [width / 2, height / 2], [70.0, height - 9.0]]
    )
    box_levels = torch.rand(len(clicks), 5) < 0.6
    box_levels[0] = True
    with torch.no_grad():
        out = heads_at(heads, planes, clicks, box_levels)
        assert len(out.click_of) == int(box_levels.sum())
        for i, level in enumerate(LEVELS):
            full = heads(planes[level], level)
            at = cells_at(clicks, level)
            for name in ("logits", "level"):
                torch.testing.assert_close(
                    getattr(out, name)[:, i], full[name][0, 0, at[:, 0], at[:, 1]], rtol=1e-4, atol=1e-4
                )
            here = out.level_of == level
            assert set(out.click_of[here].tolist()) == set(box_levels[:, i].nonzero().flatten().tolist())
            at = at[out.click_of[here]]
            for name in ("reg", "theta", "ctr"):
                expected = full[name][0][:, at[:, 0], at[:, 1]].T
                got = getattr(out, name)[here].view(expected.shape)
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3, msg=f"{name} on P{level}")


def test_gradients_equal_whole_planes() -> None:
    heads = small_heads()
    planes = {n: torch.randn(1, 16, 320 // 2**n + 1, 320 // 2**n, requires_grad=True) for n in LEVELS}
    clicks = torch.tensor([[1.0, 1.0], [200.0, 130.0]])
    out = heads_at(heads, planes, clicks, torch.ones(2, 5, dtype=torch.bool))
    assert out.level is not None
    weight = heads.cls_tower[0].conv.weight
    ours = torch.autograd.grad(out.level.sum(), [weight, planes[3]])
    total = torch.zeros(())
    for level in LEVELS:
        at = cells_at(clicks, level)
        total = total + heads(planes[level], level)["level"][0, 0, at[:, 0], at[:, 1]].sum()
    full = torch.autograd.grad(total, [weight, planes[3]])
    for a, b in zip(ours, full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gather_windows_outside_is_zero() -> None:
    plane = torch.arange(1.0, 13.0).view(1, 1, 3, 4)
    cells = torch.tensor([[0, 0], [2, 3]])
    windows = gather_windows(plane, cells, 1)
    assert windows[0, 0].tolist() == [[0, 0, 0], [0, 1, 2], [0, 5, 6]]
    assert windows[1, 0].tolist() == [[7, 8, 0], [11, 12, 0], [0, 0, 0]]
    assert torch.equal(inside_plane(cells, 3, 4, 1), windows != 0)


def test_other_norms_are_refused() -> None:
    heads = Heads(channels=32, norm="gn")
    planes = {n: torch.randn(1, 32, 20, 20) for n in LEVELS}
    with pytest.raises(InputError, match="GroupNorm"):
        heads_at(heads, planes, torch.tensor([[1.0, 1.0]]), torch.ones(1, 5, dtype=torch.bool))


def test_renorm_computes_stored_statistics_forward_and_batchnorm_backward() -> None:
    norm = nn.BatchNorm2d(4)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.uniform_(-0.2, 0.2)
    norm.running_var.uniform_(0.5, 1.5)
    before = norm.running_mean.clone()
    x = torch.randn(2, 4, 6, 5, requires_grad=True)
    expected = norm.eval()(x)
    moments = Moments()
    y = renorm(norm, x, moments)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(norm.running_mean, before)
    # Through batch statistics, a shift or a scaling of the input has no effect to first order.
    gradient = torch.autograd.grad(y, x, torch.randn_like(y))[0]
    torch.testing.assert_close(gradient.sum((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(renorm(norm, x, None), norm(x))
    moments.apply(0.1)
    torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * x.detach().mean((0, 2, 3)))
