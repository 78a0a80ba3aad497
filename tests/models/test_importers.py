"""Importers against small reference networks written from the original projects' names and formulas."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import tracenet
from tracenet.models import TraceNet, TraceNetConfig
from tracenet.models.importers import import_adelaidet_condinst, import_torchvision_fcos, load_backbone
from tracenet.models.resnet import ResNet
from tracenet_kernels.errors import CheckpointError

State = dict[str, torch.Tensor]
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
HEAD = "proposal_generator.fcos_head"


@lru_cache(maxsize=1)
def pool() -> torch.Tensor:
    """Random numbers that all weights are cut from, which is much faster than drawing each."""
    return torch.randn(5_000_000, generator=torch.Generator().manual_seed(0))


def conv_(state: State, name: str, out: int, cin: int, k: int, bias: bool = True) -> None:
    count = out * cin * k * k
    start = int(torch.randint(len(pool()) - count, ()))
    state[f"{name}.weight"] = pool()[start : start + count].view(out, cin, k, k) * (2 / (cin * k * k)) ** 0.5
    if bias:
        state[f"{name}.bias"] = torch.randn(out) * 0.3


def norm_(state: State, name: str, channels: int, kind: str = "frozen") -> None:
    state[f"{name}.weight"] = torch.rand(channels) + 0.5
    state[f"{name}.bias"] = torch.randn(channels) * 0.3
    if kind != "gn":
        state[f"{name}.running_mean"] = torch.randn(channels) * 0.3
        state[f"{name}.running_var"] = torch.rand(channels) + 0.5
    if kind == "bn":
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def block_names(style: str, prefix: str, stage: int, block: int) -> tuple[list[str], list[str]]:
    """Names of the four convolutions (the last: the shortcut) of one bottleneck, and of their norms."""
    if style == "torchvision":
        base = f"{prefix}layer{stage}.{block}"
        return (
            [f"{base}.conv{i}" for i in (1, 2, 3)] + [f"{base}.downsample.0"],
            [f"{base}.bn{i}" for i in (1, 2, 3)] + [f"{base}.downsample.1"],
        )
    base = f"{prefix}res{stage + 1}.{block}"
    convs = [f"{base}.conv{i}" for i in (1, 2, 3)] + [f"{base}.shortcut"]
    return convs, [f"{name}.norm" for name in convs]


def stem_names(style: str, prefix: str) -> tuple[str, str]:
    if style == "torchvision":
        return f"{prefix}conv1", f"{prefix}bn1"
    return f"{prefix}stem.conv1", f"{prefix}stem.conv1.norm"


def resnet_state(style: str, prefix: str, depth: int = 50, kind: str = "frozen") -> State:
    state: State = {}
    stem, stem_norm = stem_names(style, prefix)
    conv_(state, stem, 64, 3, 7, bias=False)
    norm_(state, stem_norm, 64, kind)
    cin = 64
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        width = 32 * 2**stage
        for block in range(blocks):
            convs, norms = block_names(style, prefix, stage, block)
            shapes = [(width, cin, 1), (width, width, 3), (4 * width, width, 1), (4 * width, cin, 1)]
            for name, norm, shape in list(zip(convs, norms, shapes, strict=True))[: 4 if block == 0 else 3]:
                conv_(state, name, *shape, bias=False)
                norm_(state, norm, shape[0], kind)
            cin = 4 * width
    return state


def reference_norm(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    w, b, m, v = (
        state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - m) / torch.sqrt(v + 1e-5) * w + b


def reference_conv(x: torch.Tensor, state: State, name: str, stride: int = 1) -> torch.Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)


def reference_resnet(
    x: torch.Tensor, state: State, style: str, prefix: str, stride_in_1x1: bool, depth: int = 50
) -> list[torch.Tensor]:
    stem, stem_norm = stem_names(style, prefix)
    x = F.relu(reference_norm(reference_conv(x, state, stem, 2), state, stem_norm))
    x = F.max_pool2d(x, 3, 2, 1)
    planes = []
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            convs, norms = block_names(style, prefix, stage, block)
            stride = 2 if stage > 1 and block == 0 else 1
            strides = (stride, 1, 1) if stride_in_1x1 else (1, stride, 1)
            y = x
            for i in range(3):
                y = reference_norm(reference_conv(y, state, convs[i], strides[i]), state, norms[i])
                y = F.relu(y) if i < 2 else y
            if block == 0:
                x = reference_norm(reference_conv(x, state, convs[3], stride), state, norms[3])
            x = F.relu(x + y)
        planes.append(x)
    return planes


def reference_fpn(
    planes: list[torch.Tensor], state: State, lateral: str, output: str, p6: str, p7: str
) -> list[torch.Tensor]:
    """``lateral`` and ``output`` are format strings of the level."""
    c3, c4, c5 = planes[1:]
    inner5 = reference_conv(c5, state, lateral.format(5))
    inner4 = reference_conv(c4, state, lateral.format(4)) + inner5.repeat_interleave(2, 2).repeat_interleave(2, 3)
    inner3 = reference_conv(c3, state, lateral.format(3)) + inner4.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p = [reference_conv(x, state, output.format(i)) for i, x in ((3, inner3), (4, inner4), (5, inner5))]
    p.append(reference_conv(p[2], state, p6, 2))
    p.append(reference_conv(F.relu(p[3]), state, p7, 2))
    return p


def group_norm(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def assert_planes(ours: State, theirs: State) -> None:
    """Each head against the largest value it has on any level."""
    for head in {key.rstrip("34567") for key in theirs}:
        keys = [key for key in theirs if key.rstrip("34567") == head]
        assert all(ours[key].shape == theirs[key].shape for key in keys)
        assert_close(*(torch.cat([planes[key].flatten() for key in keys]) for planes in (ours, theirs)))


def fcos_state(classes: int = 91) -> State:
    state = resnet_state("torchvision", "backbone.body.")
    for i, cin in enumerate((512, 1024, 2048)):
        conv_(state, f"backbone.fpn.inner_blocks.{i}.0", 256, cin, 1)
        conv_(state, f"backbone.fpn.layer_blocks.{i}.0", 256, 256, 3)
    conv_(state, "backbone.fpn.extra_blocks.p6", 256, 256, 3)
    conv_(state, "backbone.fpn.extra_blocks.p7", 256, 256, 3)
    for head in ("classification_head", "regression_head"):
        for i in (0, 3, 6, 9):
            conv_(state, f"head.{head}.conv.{i}", 256, 256, 3)
            norm_(state, f"head.{head}.conv.{i + 1}", 256, "gn")
    conv_(state, "head.classification_head.cls_logits", classes, 256, 3)
    conv_(state, "head.regression_head.bbox_reg", 4, 256, 3)
    conv_(state, "head.regression_head.bbox_ctrness", 1, 256, 3)
    return state


def fcos_reference(image: torch.Tensor, state: State) -> dict[str, torch.Tensor]:
    renamed = dict(state)
    for i in range(3):
        for part in ("weight", "bias"):
            renamed[f"lat{i + 3}.{part}"] = state[f"backbone.fpn.inner_blocks.{i}.0.{part}"]
            renamed[f"out{i + 3}.{part}"] = state[f"backbone.fpn.layer_blocks.{i}.0.{part}"]
    planes = reference_resnet(image, state, "torchvision", "backbone.body.", stride_in_1x1=False)
    extra = "backbone.fpn.extra_blocks"
    out = {}
    for level, p in enumerate(reference_fpn(planes, renamed, "lat{}", "out{}", f"{extra}.p6", f"{extra}.p7"), 3):
        tower = {}
        for head in ("classification_head", "regression_head"):
            x = p
            for i in (0, 3, 6, 9):
                x = reference_conv(x, state, f"head.{head}.conv.{i}")
                x = F.relu(group_norm(x, state, f"head.{head}.conv.{i + 1}"))
            tower[head] = x
        out[f"logits{level}"] = reference_conv(
            tower["classification_head"], state, "head.classification_head.cls_logits"
        )
        box = tower["regression_head"]
        out[f"reg{level}"] = F.relu(reference_conv(box, state, "head.regression_head.bbox_reg")) * 2**level
        out[f"ctr{level}"] = reference_conv(box, state, "head.regression_head.bbox_ctrness")
    return out


def condinst_state(
    norm: str = "gn", depth: int = 50, mask_norm: str = "bn", controller: str = "controller", classes: int = 80
) -> State:
    state = resnet_state("detectron2", "backbone.bottom_up.", depth)
    for level, cin in ((3, 512), (4, 1024), (5, 2048)):
        conv_(state, f"backbone.fpn_lateral{level}", 256, cin, 1)
        conv_(state, f"backbone.fpn_output{level}", 256, 256, 3)
    conv_(state, "backbone.top_block.p6", 256, 256, 3)
    conv_(state, "backbone.top_block.p7", 256, 256, 3)
    step = 2 if norm == "none" else 3
    for tower in ("cls_tower", "bbox_tower"):
        for i in range(4):
            conv_(state, f"{HEAD}.{tower}.{step * i}", 256, 256, 3)
            name = f"{HEAD}.{tower}.{3 * i + 1}"
            if norm == "bn_per_level":
                for level in range(5):
                    norm_(state, f"{name}.{level}", 256, "bn")
            elif norm != "none":
                norm_(state, name, 256, norm)
    conv_(state, f"{HEAD}.cls_logits", classes, 256, 3)
    conv_(state, f"{HEAD}.bbox_pred", 4, 256, 3)
    conv_(state, f"{HEAD}.ctrness", 1, 256, 3)
    for level in range(5):
        state[f"{HEAD}.scales.{level}.scale"] = torch.rand(1) + 0.5
    conv_(state, controller, 169, 256, 3)
    blocks = [(f"mask_branch.refine.{i}", 256) for i in range(3)] + [(f"mask_branch.tower.{i}", 128) for i in range(4)]
    for name, cin in blocks:
        conv_(state, f"{name}.0", 128, cin, 3, bias=mask_norm == "none")
        if mask_norm != "none":
            norm_(state, f"{name}.1", 128, mask_norm)
    conv_(state, "mask_branch.tower.4", 8, 128, 1)
    state["mask_head.sizes_of_interest"] = torch.tensor([64, 128, 256, 512, 1024])
    state["mask_head._iter"] = torch.zeros(1)
    return state


def condinst_norm(x: torch.Tensor, state: State, name: str, kind: str, level: int = 3) -> torch.Tensor:
    if kind == "none":
        return x
    if kind == "gn":
        return group_norm(x, state, name)
    return reference_norm(x, state, f"{name}.{level - 3}" if kind == "bn_per_level" else name)


def reference_aligned(x: torch.Tensor, factor: int) -> torch.Tensor:
    h, w = x.shape[-2:]
    x = F.pad(x, (0, 1, 0, 1), mode="replicate")
    x = F.interpolate(x, size=(factor * h + 1, factor * w + 1), mode="bilinear", align_corners=True)
    x = F.pad(x, (factor // 2, 0, factor // 2, 0), mode="replicate")
    return x[..., : factor * h, : factor * w]


def condinst_reference(
    image: torch.Tensor,
    state: State,
    norm: str = "gn",
    depth: int = 50,
    mask_norm: str = "bn",
    controller: str = "controller",
    stride_in_1x1: bool = True,
) -> dict[str, torch.Tensor]:
    planes = reference_resnet(image, state, "detectron2", "backbone.bottom_up.", stride_in_1x1, depth)
    top = "backbone.top_block"
    p = reference_fpn(planes, state, "backbone.fpn_lateral{}", "backbone.fpn_output{}", f"{top}.p6", f"{top}.p7")
    step = 2 if norm == "none" else 3
    out = {}
    for level, plane in enumerate(p, 3):
        tower = {}
        for kind in ("cls_tower", "bbox_tower"):
            x = plane
            for i in range(4):
                x = reference_conv(x, state, f"{HEAD}.{kind}.{step * i}")
                x = F.relu(condinst_norm(x, state, f"{HEAD}.{kind}.{3 * i + 1}", norm, level))
            tower[kind] = x
        out[f"logits{level}"] = reference_conv(tower["cls_tower"], state, f"{HEAD}.cls_logits")
        reg = reference_conv(tower["bbox_tower"], state, f"{HEAD}.bbox_pred")
        out[f"reg{level}"] = F.relu(reg * state[f"{HEAD}.scales.{level - 3}.scale"]) * 2**level
        out[f"ctr{level}"] = reference_conv(tower["bbox_tower"], state, f"{HEAD}.ctrness")
        out[f"theta{level}"] = reference_conv(tower["bbox_tower"], state, controller)

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.relu(condinst_norm(reference_conv(x, state, f"{name}.0"), state, f"{name}.1", mask_norm))

    x = block(p[0], "mask_branch.refine.0")
    x = x + reference_aligned(block(p[1], "mask_branch.refine.1"), 2)
    x = x + reference_aligned(block(p[2], "mask_branch.refine.2"), 4)
    for i in range(4):
        x = block(x, f"mask_branch.tower.{i}")
    out["maskfeat"] = reference_conv(x, state, "mask_branch.tower.4")
    return out


def reference_mask(features: torch.Tensor, theta: torch.Tensor, cell: tuple[int, int], level: int) -> torch.Tensor:
    """CondInst's dynamic head for one instance found in ``cell`` (row, column), written with matrix products."""
    h, w = features.shape[-2:]
    stride = 2**level
    location = torch.tensor([cell[1] * stride + stride // 2, cell[0] * stride + stride // 2])
    ys, xs = torch.meshgrid(torch.arange(h) * 8 + 4, torch.arange(w) * 8 + 4, indexing="ij")
    relative = torch.stack([location[0] - xs, location[1] - ys]).float() / (64.0 * 2 ** (level - 3))
    x = torch.cat([relative, features[0]]).flatten(1)  # [10, h * w]
    w1, w2, w3, b1, b2, b3 = theta.split((80, 64, 8, 8, 8, 1))
    x = F.relu(w1.view(8, 10) @ x + b1[:, None])
    x = F.relu(w2.view(8, 8) @ x + b2[:, None])
    return (w3.view(1, 8) @ x + b3[:, None]).view(h, w)


@pytest.mark.parametrize(("depth", "prefix", "kind"), [(50, "", "bn"), (101, "module.backbone.body.", "frozen")])
def test_backbone_equals_reference(depth: int, prefix: str, kind: str) -> None:
    state = resnet_state("torchvision", prefix, depth, kind)
    head = f"{prefix}fc.weight"
    state[head] = torch.randn(1000, 2048)
    resnet = ResNet(depth).eval()
    assert load_backbone(resnet, state) == [head.removeprefix("module.")]
    image = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        for ours, theirs in zip(
            resnet(image), reference_resnet(image, state, "torchvision", prefix, False, depth), strict=True
        ):
            assert_close(ours, theirs)


@pytest.mark.parametrize("form", ["safetensors", "pt", "wrapped"])
def test_backbone_from_file(tmp_path, form: str) -> None:
    state = {key: value.half() for key, value in resnet_state("torchvision", "").items()}
    path = tmp_path / ("r50.safetensors" if form == "safetensors" else "r50.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "iteration": 3} if form == "wrapped" else state, path)
    model = TraceNet(TraceNetConfig(mask_branch="none"))
    heads = model.heads.logits.weight.clone()
    load_backbone(model, path)
    assert model.backbone.conv1.weight.dtype == torch.float32
    assert torch.equal(model.backbone.layer4[2].bn3.running_var, state["layer4.2.bn3.running_var"].float())
    assert torch.equal(model.heads.logits.weight, heads)


def test_backbone_error_lists_everything_and_changes_nothing() -> None:
    resnet = ResNet(50)
    before = {key: value.clone() for key, value in resnet.state_dict().items()}
    state = resnet_state("torchvision", "")
    del state["conv1.weight"], state["layer3.5.bn2.running_mean"]
    state["layer1.0.conv2.weight"] = torch.zeros(64, 64, 1, 1)
    state["layer2.0.bn1.bias"] = torch.zeros(128, dtype=torch.int32)
    state["stem.extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        load_backbone(resnet, state)
    message = str(error.value)
    assert "2 missing: conv1.weight, layer3.5.bn2.running_mean" in message
    assert "1 unexpected: stem.extra" in message
    assert "1 mis-shaped: layer1.0.conv2.weight (64, 64, 1, 1) instead of (64, 64, 3, 3)" in message
    assert "1 not floating-point: layer2.0.bn1.bias torch.int32" in message
    assert all(torch.equal(before[key], value) for key, value in resnet.state_dict().items())


def test_backbone_of_another_depth() -> None:
    with pytest.raises(CheckpointError, match=r"not a ResNet-101\. 255 missing: layer3\.10\.bn1\.bias"):
        load_backbone(ResNet(101), resnet_state("torchvision", ""))
    two = {f"{p}.layer4.0.conv2.weight": torch.zeros(1) for p in ("student", "teacher")}
    with pytest.raises(CheckpointError, match=r"2 ResNets, under \['student\.', 'teacher\.'\]"):
        load_backbone(ResNet(50), two)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no tensors by name"),
        ({"conv1.weight": [1.0, 2.0]}, "not named tensors: conv1.weight"),
        ({"state_dict": {"a": torch.zeros(1)}}, "none of that one's 265 keys is there; the keys are a"),
    ],
)
def test_state_dicts_that_are_none(content: dict, message: str) -> None:
    for load in (lambda s: load_backbone(ResNet(50), s), import_torchvision_fcos, import_adelaidet_condinst):
        with pytest.raises(CheckpointError, match=message.replace("265", r"\d+")):
            load(content)


def test_files_that_cannot_be_read(tmp_path) -> None:
    resnet = ResNet(50)
    with pytest.raises(CheckpointError, match="is not a file"):
        load_backbone(resnet, tmp_path / "absent.pth")
    pkl = tmp_path / "R-50.pkl"
    pkl.write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(CheckpointError, match="unrestricted pickle"):
        import_adelaidet_condinst(pkl)
    torch.save(resnet, tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match=r"module\.pth .* cannot be read as plain tensors"):
        load_backbone(resnet, tmp_path / "module.pth")
    for name in ("cut.pth", "cut.safetensors"):
        path = tmp_path / name
        (torch.save if name.endswith("pth") else save_file)({"a": torch.zeros(100)}, path)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(CheckpointError, match=r"cannot be read as plain tensors"):
            load_backbone(resnet, path)


def test_torchvision_fcos_equals_reference() -> None:
    state = fcos_state()
    model = import_torchvision_fcos(state)
    assert not model.training
    assert (model.config.num_classes, model.config.depth, model.config.tower_norm) == (91, 50, "gn")
    assert (model.config.anchor_offset, model.config.mask_branch, model.config.stride_in_1x1) == ("zero", "none", False)
    pixels = torch.rand(1, 3, 32, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    own_mean, own_std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.mean, model.config.std))
    image, own_image = (pixels - mean) / std, (pixels * 255 - own_mean) / own_std
    assert_close(own_image, image)
    with torch.no_grad():
        ours, theirs = model(own_image), fcos_reference(image, state)
    assert not any(key.startswith(("theta", "mask")) for key in ours)
    assert_planes(ours, theirs)
    older = {re.sub(r"(_blocks\.\d)\.0\.", r"\1.", key): value for key, value in state.items()}
    assert older.keys() != state.keys()
    again = import_torchvision_fcos(older).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


def test_group_norm_towers_report_barriers() -> None:
    model = import_torchvision_fcos(fcos_state(classes=3))
    traced = tracenet.trace(model, torch.zeros(1, 3, 32, 64))
    image = torch.randn(1, 3, 32, 64)
    request = {"logits3": (2, 3, 4, 5), "reg4": (1, 2, 1, 2)}
    plan = traced.plan(request)
    assert len(plan.barriers) == 8  # four GroupNorms of one tower on each of the two levels
    assert all("norm" in barrier.name for barrier in plan.barriers)
    with torch.no_grad():
        full = model(image)
    outputs = traced.run(image, plan)
    for key, (y0, y1, x0, x1) in request.items():
        assert_close(outputs[key], full[key][..., y0:y1, x0:x1])


def test_torchvision_fcos_errors() -> None:
    state = fcos_state()
    del state["head.regression_head.conv.4.weight"]
    state["head.classification_head.conv.12.weight"] = torch.zeros(256, 256, 3, 3)
    state["backbone.fpn.extra_blocks.p6.weight"] = torch.zeros(256, 2048, 3, 3)
    with pytest.raises(CheckpointError) as error:
        import_torchvision_fcos(state)
    message = str(error.value)
    assert "1 missing: head.regression_head.conv.4.weight" in message
    assert "1 unexpected: head.classification_head.conv.12.weight" in message
    assert "p6.weight (256, 2048, 3, 3) instead of (256, 256, 3, 3)" in message


@pytest.mark.parametrize(
    ("options", "stride_in_1x1"),
    [
        ({"norm": "gn"}, True),
        ({"norm": "bn_per_level", "mask_norm": "frozen", "controller": "proposal_generator.controller"}, False),
        ({"norm": "bn", "mask_norm": "gn", "classes": 1}, True),
        ({"norm": "none", "mask_norm": "none"}, True),
        ({"norm": "gn", "depth": 101}, True),
    ],
    ids=["gn", "per-level-bn", "bn", "none", "r101"],
)
def test_condinst_equals_reference(options: dict, stride_in_1x1: bool) -> None:
    state = condinst_state(**options)
    model = import_adelaidet_condinst(state, stride_in_1x1=stride_in_1x1)
    classes = options.pop("classes", 80)
    config = model.config
    assert (config.depth, config.num_classes, config.tower_norm) == (options.get("depth", 50), classes, options["norm"])
    assert (config.channel_order, config.rel_to, config.anchor_offset) == ("bgr", "cell", "half")
    assert (config.mean, config.std) == ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
    image = torch.randn(1, 3, 32, 64)
    level, cell = 4, (1, 2)
    with torch.no_grad():
        theirs = condinst_reference(image, state, stride_in_1x1=stride_in_1x1, **options)
        theta = theirs["theta4"][0, :, cell[0], cell[1]]
        origin = torch.tensor([[cell[1] * 16 + 8.0, cell[0] * 16 + 8.0]])
        ours = model(image, theta[None], origin, torch.tensor([128.0]))
    assert_planes(ours, theirs)
    assert_close(ours["mask"][0, 0], reference_mask(theirs["maskfeat"], theta, cell, level))


def without(key: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(key)


def with_(key: str, value: torch.Tensor) -> Callable[[State], None]:
    return lambda state: state.__setitem__(key, value)


@pytest.fixture(scope="module")
def gn_state() -> State:
    return condinst_state()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("controller.bias"), "1 missing: controller.bias"),
        (without(f"{HEAD}.scales.2.scale"), f"1 missing: {HEAD}.scales.2.scale"),
        (without(f"{HEAD}.bbox_tower.3.bias"), f"1 missing: {HEAD}.bbox_tower.3.bias"),
        (without("backbone.bottom_up.res4.5.conv2.norm.running_var"), "1 missing: backbone.bottom_up.res4.5.conv2"),
        (with_(f"{HEAD}.share_tower.0.weight", torch.zeros(1)), f"1 unexpected: {HEAD}.share_tower.0.weight"),
        (
            with_("mask_branch.tower.4.weight", torch.zeros(16, 128, 1, 1)),
            r"4.weight \(16, 128, 1, 1\) instead of \(8,",
        ),
        (with_("mask_head.sizes_of_interest", torch.tensor([32, 64, 128, 256, 512])), r"is \[32, 64, 128, 256, 512\]"),
        (with_("pixel_mean", torch.zeros(1)), "pixel_mean has 1 values"),
    ],
)
def test_condinst_errors(gn_state: State, change: Callable[[State], None], message: str) -> None:
    state = dict(gn_state)
    change(state)
    with pytest.raises(CheckpointError, match=message):
        import_adelaidet_condinst(state)


def test_condinst_training_leftovers(gn_state: State, tmp_path) -> None:
    extra = {
        "mask_branch.seg_head.0.0.weight": torch.zeros(128, 256, 3, 3),
        "mask_branch.logits.bias": torch.zeros(80),
        "pixel_mean": torch.tensor([102.9801, 115.9465, 122.7717]).view(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
    }
    path = tmp_path / "model_final.pth"
    torch.save({"model": gn_state | extra, "iteration": 90000}, path)
    model = import_adelaidet_condinst(path)
    assert model.config.mean == (102.9801, 115.9465, 122.7717)
    assert all(not value.is_meta for value in model.state_dict().values())
    gn_state["controller.weight"].add_(1)  # the model has its own copies
    assert not torch.equal(model.heads.theta.weight, gn_state["controller.weight"])
