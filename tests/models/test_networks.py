"""Shapes, parameters and options of the networks; the mask formulas against slow per-pixel references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tracenet.conventions import cell_of
from tracenet.models import TraceNet, TraceNetConfig, create_model, list_models, register_model
from tracenet.models.fpn import FPN
from tracenet.models.heads import ConvNormAct, Heads
from tracenet.models.mask import MaskHead, relative_coordinates, upsample_logits, upsample_probabilities
from tracenet.models.resnet import ResNet
from tracenet_kernels.errors import InputError
from tracenet_kernels.ops import aligned_bilinear


def on_meta(**config) -> TraceNet:
    """A model that has shapes but no values: running it checks shapes at no cost."""
    with torch.device("meta"):
        return TraceNet(TraceNetConfig(**config)).eval()


def shapes(model: TraceNet, height: int, width: int, masks: int = 0) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        extra = (torch.zeros(masks, 169), torch.zeros(masks, 2), torch.zeros(masks)) if masks else ()
        image = torch.zeros(1, 3, height, width)
    return {name: tuple(plane.shape) for name, plane in model(image, *extra).items()}


@pytest.mark.parametrize(("depth", "stride_in_1x1"), [(50, False), (50, True), (101, False)])
def test_plane_shapes(depth: int, stride_in_1x1: bool) -> None:
    model = on_meta(depth=depth, num_classes=80, stride_in_1x1=stride_in_1x1)
    for height, width in ((32, 32), (96, 64), (608, 800)):
        check_shapes(shapes(model, height, width, masks=3), height, width)


def check_shapes(got: dict[str, tuple[int, ...]], height: int, width: int) -> None:
    sizes = {level: (math.ceil(height / 2**level), math.ceil(width / 2**level)) for level in range(2, 8)}
    for level, channels in ((2, 256), (3, 512), (4, 1024), (5, 2048)):
        assert got[f"C{level}"] == (1, channels, *sizes[level])
    for level in range(3, 8):
        assert got[f"P{level}"] == (1, 256, *sizes[level])
        for head, channels in (("logits", 80), ("reg", 4), ("ctr", 1), ("theta", 169)):
            assert got[f"{head}{level}"] == (1, channels, *sizes[level])
    assert got["inner3"] == got["P3"]
    assert got["maskfeat"] == (1, 8, *sizes[3])
    assert got["mask"] == (3, 1, *sizes[3])
    assert got["mask_half"] == (3, 1, height // 2, width // 2)


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        ({"num_classes": 80}, 34.2),
        ({"num_classes": 1}, 34.0),
        ({"depth": 101, "num_classes": 80}, 53.2),
        ({"num_classes": 80, "mask_branch": "none", "filter_head": False}, 32.3),
    ],
)
def test_parameter_counts(config: dict, millions: float) -> None:
    assert round(sum(p.numel() for p in on_meta(**config).parameters()) / 1e6, 1) == millions


def test_stride_placements() -> None:
    for placement, (first, second) in ((False, (1, 2)), (True, (2, 1))):
        with torch.device("meta"):
            resnet = ResNet(50, stride_in_1x1=placement)
        for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
            assert (stage[0].conv1.stride[0], stage[0].conv2.stride[0]) == (first, second)
            assert stage[0].downsample[0].stride == (2, 2)
            assert stage[1].conv1.stride == stage[1].conv2.stride == (1, 1)
        assert resnet.layer1[0].conv2.stride == (1, 1)


def test_mask_branches() -> None:
    plain = on_meta(mask_branch="p3")
    assert tuple(plain.mask_branch.out.weight.shape) == (8, 256, 1, 1)
    assert shapes(plain, 64, 96)["maskfeat"] == (1, 8, 8, 12)
    none = on_meta(mask_branch="none")
    got = shapes(none, 64, 96)
    assert "maskfeat" not in got
    assert "theta3" in got
    with pytest.raises(InputError, match="mask_branch='none'"):
        shapes(none, 64, 96, masks=1)


def test_optional_heads() -> None:
    assert {f"level{n}" for n in range(3, 8)} <= set(shapes(on_meta(level_head=True), 64, 64))
    assert shapes(on_meta(level_head=True), 64, 64)["level4"] == (1, 1, 4, 4)
    assert not any("theta" in name for name in shapes(on_meta(mask_branch="none", filter_head=False), 64, 64))
    assert "level3" not in shapes(on_meta(), 64, 64)


def test_class_agnostic_prior() -> None:
    heads = Heads(64, num_classes=1)
    assert heads.logits.bias.sigmoid().item() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("norm", "kind", "count", "bias"),
    [
        ("bn", nn.BatchNorm2d, 8, False),
        ("bn_per_level", nn.BatchNorm2d, 40, False),
        ("gn", nn.GroupNorm, 8, True),
        ("none", nn.Identity, 8, True),
    ],
)
def test_tower_norms(norm: str, kind: type, count: int, bias: bool) -> None:
    heads = Heads(64, norm=norm).eval()
    assert sum(isinstance(module, kind) for module in heads.modules()) == count
    assert (heads.cls_tower[0].conv.bias is not None) == bias
    assert heads(torch.randn(1, 64, 2, 3), 4)["theta"].shape == (1, 169, 2, 3)


def test_levels_have_their_own_norm_scale_and_stride() -> None:
    block = ConvNormAct(32, 32, "bn_per_level").eval()
    x = torch.randn(1, 32, 4, 4)
    nn.init.constant_(block.norm[1].bias, 3.0)
    with torch.no_grad():
        assert torch.equal(block(x, 3), block(x, 5))
        assert not torch.equal(block(x, 3), block(x, 4))
    heads = Heads(64, norm="none").eval()
    with torch.no_grad():
        heads.reg.bias.fill_(1.0)
        heads.reg.weight.zero_()
        heads.scales.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5, 1.0]))
        reg = [heads(torch.zeros(1, 64, 1, 1), level)["reg"][0, 0, 0, 0].item() for level in range(3, 8)]
    assert reg == [8.0, 32.0, 0.0, 32.0, 128.0]  # relu(scale) * stride


def naive_mask(features: torch.Tensor, theta: torch.Tensor, origin: torch.Tensor, soi: float) -> torch.Tensor:
    """One instance, pixel by pixel in float64: ``features [8, h, w]``, ``theta [169]``."""
    w1, w2, w3 = theta[:80].view(8, 10), theta[80:144].view(8, 8), theta[144:152]
    b1, b2, b3 = theta[152:160], theta[160:168], theta[168]
    out = torch.empty(features.shape[1:], dtype=torch.float64)
    for i in range(features.shape[1]):
        for j in range(features.shape[2]):
            rel = torch.stack([(origin[0] - (8 * j + 4)) / soi, (origin[1] - (8 * i + 4)) / soi])
            x = torch.cat([rel, features[:, i, j]])
            x = (w1 @ x + b1).clamp(min=0)
            x = (w2 @ x + b2).clamp(min=0)
            out[i, j] = w3 @ x + b3
    return out


def test_mask_head_equals_per_pixel_reference() -> None:
    features = torch.randn(1, 8, 5, 7, dtype=torch.float64)
    theta = torch.randn(3, 169, dtype=torch.float64)
    origin = torch.tensor([[0.0, 0.0], [20.5, 33.25], [55.0, 39.0]], dtype=torch.float64)
    soi = torch.tensor([64.0, 256.0, 1024.0], dtype=torch.float64)
    masks = MaskHead()(features, theta, origin, soi)
    assert masks.shape == (3, 1, 5, 7)
    for n in range(3):
        expected = naive_mask(features[0], theta[n], origin[n], soi[n].item())
        torch.testing.assert_close(masks[n, 0], expected, rtol=1e-12, atol=1e-12)


def test_mask_head_refuses_other_sizes() -> None:
    with pytest.raises(InputError, match=r"theta has shape \(1, 170\); pass \[N, 169\]"):
        MaskHead()(torch.zeros(1, 8, 2, 2), torch.zeros(1, 170), torch.zeros(1, 2), torch.ones(1))


def test_relative_coordinates() -> None:
    rel = relative_coordinates(2, 3, torch.tensor([[12.0, 4.0], [0.0, 100.0]]), torch.tensor([64.0, 128.0]))
    assert rel[0, 0].tolist() == [[8 / 64, 0.0, -8 / 64]] * 2  # pixel centres 4, 12, 20
    assert rel[0, 1].tolist() == [[0.0] * 3, [-8 / 64] * 3]
    assert rel[1, 1].tolist() == [[96 / 128] * 3, [88 / 128] * 3]


@pytest.mark.parametrize("factor", [1, 2, 4, 3])
def test_aligned_bilinear(factor: int) -> None:
    x = torch.randn(1, 2, 3, 5, dtype=torch.float64)
    out = aligned_bilinear(x, factor)
    assert out.shape == (1, 2, 3 * factor, 5 * factor)

    def taps(i: int, size: int) -> list[tuple[int, float]]:
        t = min(max((i - factor // 2) / factor, 0), size - 1)
        low = math.floor(t)
        return [(low, 1 - (t - low)), (min(low + 1, size - 1), t - low)]

    for i in range(3 * factor):
        for j in range(5 * factor):
            expected = sum(wy * wx * x[..., y, z] for y, wy in taps(i, 3) for z, wx in taps(j, 5))
            torch.testing.assert_close(out[..., i, j], expected)


def test_mask_orders() -> None:
    logits = torch.randn(2, 1, 3, 4) * 3
    assert torch.equal(upsample_logits(logits), aligned_bilinear(logits, 4))
    probabilities = upsample_probabilities(logits)
    assert probabilities.shape == (2, 1, 12, 16)
    assert 0 < probabilities.min() < probabilities.max() < 1
    # half-pixel centres: output 5 lies at (5 + 0.5) / 4 - 0.5 = 0.875 between samples 0 and 1
    p = logits.sigmoid()[0, 0]
    row = p[0] * 0.125 + p[1] * 0.875
    assert probabilities[0, 0, 5, 5].item() == pytest.approx((row[0] * 0.125 + row[1] * 0.875).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "level", "cell"), [(0, 0, 3, (0, 0)), (639.9, 8, 3, (1, 79)), (127, 128, 7, (1, 0))]
)
def test_cell_of(x: float, y: float, level: int, cell: tuple[int, int]) -> None:
    assert cell_of(x, y, level) == cell


def test_registry() -> None:
    assert {"tracenet_r50_fpn", "tracenet_r101_fpn"} <= set(list_models())
    with torch.device("meta"):
        model = create_model("tracenet_r101_fpn", num_classes=80)
    assert (model.config.depth, model.config.num_classes, model.training) == (101, 80, False)
    with pytest.raises(InputError, match=r"no model is named 'r50'; choose one of \['tracenet_r101_fpn'"):
        create_model("r50")

    def tracenet_r50_fpn() -> TraceNet:
        raise AssertionError

    with pytest.raises(InputError, match="already registered"):
        register_model(tracenet_r50_fpn)


def test_config_round_trip() -> None:
    config = TraceNetConfig(depth=101, mean=(1, 2, 3), channel_order="bgr", anchor_offset="zero")
    assert TraceNetConfig.from_dict(config.to_dict()) == config
    assert TraceNetConfig.from_dict({**config.to_dict(), "mean": [1, 2, 3]}) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mask_branch": "yolact"}, r"mask_branch='yolact' is not known; choose one of \('condinst', 'p3', 'none'\)"),
        ({"tower_norm": "ln"}, "tower_norm='ln'"),
        ({"mask_norm": "ln"}, "mask_norm='ln'"),
        ({"rel_to": "box"}, "rel_to='box'"),
        ({"mask_order": "none"}, "mask_order='none'"),
        ({"channel_order": "grb"}, "channel_order='grb'"),
        ({"anchor_offset": 0.5}, "anchor_offset=0.5"),
        ({"num_classes": 0}, "num_classes=0; it must be at least 1"),
        ({"filter_head": False}, "needs filter_head=True"),
        ({"width": 3}, r"unknown fields \['width'\]"),
    ],
)
def test_config_errors(config: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TraceNetConfig.from_dict(config)


def test_construction_errors() -> None:
    with pytest.raises(InputError, match=r"depth 34 is not available; choose one of \[50, 101\]"):
        TraceNet(TraceNetConfig(depth=34))
    with pytest.raises(InputError, match="tower norm 'ln'"):
        ConvNormAct(8, 8, "ln")
    with pytest.raises(InputError, match="image is 70x64; zero-pad it"):
        shapes(on_meta(), 64, 70)
    with pytest.raises(InputError, match="do not nest"):
        FPN((8, 8, 8), 8)(torch.zeros(1, 8, 7, 8), torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 2))
