"""AdelaiDet's CondInst R-50/R-101 (detectron2 names) as a TraceNet."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from tracenet.config import TraceNetConfig
from tracenet.conventions import LEVELS, SIZES_OF_INTEREST
from tracenet.models.importers.state import (
    Source,
    check_state,
    depth_of,
    empty_model,
    filled,
    read_state,
    rows_of,
    shapes_of,
)
from tracenet.models.tracenet import TraceNet
from tracenet_kernels.errors import CheckpointError

MEAN = (103.53, 116.28, 123.675)
"""Blue, green, red on 0-255 pixels; the standard deviation is 1 because the weights' first layer absorbs it."""

_HEAD = "proposal_generator.fcos_head"
_BODY = "backbone.bottom_up"
_SIZES = "mask_head.sizes_of_interest"
_IGNORED = r"mask_branch\.(seg_head|logits)\.|mask_head\.(_iter|sizes_of_interest)$|pixel_(mean|std)$"
"""The auxiliary semantic loss, a training counter, constants that are compared, statistics that go to the config."""

_NAMES = (
    (r"backbone\.conv1\.(.*)", rf"{_BODY}.stem.conv1.\1"),
    (r"backbone\.bn1\.(.*)", rf"{_BODY}.stem.conv1.norm.\1"),
    (r"fpn\.(lateral|output)(\d)\.(.*)", r"backbone.fpn_\1\2.\3"),
    (r"fpn\.p(6|7)\.(.*)", r"backbone.top_block.p\1.\2"),
    (r"heads\.logits\.(.*)", rf"{_HEAD}.cls_logits.\1"),
    (r"heads\.reg\.(.*)", rf"{_HEAD}.bbox_pred.\1"),
    (r"heads\.ctr\.(.*)", rf"{_HEAD}.ctrness.\1"),
    (r"mask_branch\.tower\.(\d)\.conv\.(.*)", r"mask_branch.tower.\1.0.\2"),
    (r"mask_branch\.tower\.(\d)\.norm\.(.*)", r"mask_branch.tower.\1.1.\2"),
    (r"mask_branch\.out\.(.*)", r"mask_branch.tower.4.\1"),
)
_BLOCK = re.compile(r"backbone\.layer(\d)\.(\d+)\.(conv\d|bn\d|downsample\.0|downsample\.1)\.(.*)")
_TOWER = re.compile(r"heads\.(cls|box)_tower\.(\d)\.(conv|norm)\.(.*)")
_REFINE = re.compile(r"mask_branch\.refine(\d)\.(conv|norm)\.(.*)")


def import_adelaidet_condinst(source: Source, *, stride_in_1x1: bool = True) -> TraceNet:
    """A TraceNet with the weights of AdelaiDet's CondInst.

    Depth, classes and the norm of the towers (``GN``, per-level ``BN``/``SyncBN``, or none) and of the mask branch are
    read off the keys. GroupNorm towers, CondInst's default, read whole planes: traced, each is a barrier. A bias in
    front of a BatchNorm moves into its running mean. Masks start from the cell's centre (``rel_to="cell"``); up to the
    stride-8 logits they are CondInst's, which then upsamples x2, takes the sigmoid and upsamples the probabilities x4.

    Args:
        source: state dict or ``torch.save``/safetensors file. detectron2's ``.pkl`` files are refused.
        stride_in_1x1: where downsampling blocks have their stride, which no key tells: True is detectron2's default and
            goes with its MSRA weights, on which CondInst's published models start.

    Raises:
        CheckpointError: keys or shapes do not fit; all of them are listed.
    """
    state = read_state(source)
    tower_norm, step = _tower_norm(state)
    config = TraceNetConfig(
        depth=depth_of(state, f"{_BODY}.res4."),
        stride_in_1x1=stride_in_1x1,
        num_classes=rows_of(state, f"{_HEAD}.cls_logits.weight"),
        tower_norm=tower_norm,
        mask_norm=_mask_norm(state),
        rel_to="cell",
        mean=_statistic(state, "pixel_mean", MEAN),
        std=_statistic(state, "pixel_std", (1.0, 1.0, 1.0)),
        channel_order="bgr",
    )
    model = empty_model(config)
    inside = "proposal_generator.controller.weight" in state
    controller = "proposal_generator.controller" if inside else "controller"
    shapes = shapes_of(model)
    names = {own: _foreign(own, step, controller) for own in shapes if own != "heads.scales"}
    biases = _optional_biases(names, config)
    scales = [f"{_HEAD}.scales.{i}.scale" for i in range(len(LEVELS))]
    expected = {foreign: shapes[own] for own, foreign in names.items()}
    expected |= dict.fromkeys(scales, (1,))
    expected |= {foreign: shapes[own.removesuffix("bias") + "weight"][:1] for own, foreign in biases.items()}
    optional = [foreign for own, foreign in biases.items() if own not in shapes or own.startswith("mask_branch.")]
    what = f"AdelaiDet's CondInst on ResNet-{config.depth}"
    check_state(state, expected, what=what, optional=optional, ignored=_IGNORED)
    _check_sizes(state)
    values = {own: state[foreign] for own, foreign in names.items() if foreign in state}
    values["heads.scales"] = torch.cat([state[key] for key in scales])
    return filled(model, _with_biases(values, biases, state))


def _tower_norm(state: Mapping[str, Tensor]) -> tuple[str, int]:
    """Norm of the towers, and how many layers of theirs make one block."""
    first = f"{_HEAD}.cls_tower.1"
    if f"{first}.0.running_mean" in state or f"{first}.0.weight" in state:
        return "bn_per_level", 3
    if f"{first}.running_mean" in state:
        return "bn", 3
    return ("none", 2) if f"{_HEAD}.cls_tower.2.weight" in state else ("gn", 3)


def _mask_norm(state: Mapping[str, Tensor]) -> str:
    if "mask_branch.refine.0.1.weight" not in state:
        return "none" if "mask_branch.refine.0.0.bias" in state else "bn"
    return "bn" if "mask_branch.refine.0.1.running_mean" in state else "gn"


def _statistic(
    state: Mapping[str, Tensor], key: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    if key not in state:
        return default
    values = [round(float(value), 4) for value in state[key].flatten()]
    if len(values) != 3:
        raise CheckpointError(f"{key} has {len(values)} values; three were expected, blue, green and red")
    return (values[0], values[1], values[2])


def _foreign(own: str, step: int, controller: str) -> str:
    """AdelaiDet's name of one of our parameters."""
    if match := _BLOCK.fullmatch(own):
        stage, block, layer, rest = match.groups()
        theirs = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}.get(layer)
        theirs = theirs or (f"conv{layer[-1]}.norm" if layer.startswith("bn") else layer)
        return f"{_BODY}.res{int(stage) + 1}.{block}.{theirs}.{rest}"
    if match := _TOWER.fullmatch(own):
        tower, block, part, rest = match.groups()
        name = "cls_tower" if tower == "cls" else "bbox_tower"
        return f"{_HEAD}.{name}.{step * int(block) + (part == 'norm')}.{rest}"  # conv, norm, ReLU
    if match := _REFINE.fullmatch(own):
        level, part, rest = match.groups()
        return f"mask_branch.refine.{int(level) - 3}.{int(part == 'norm')}.{rest}"
    if own.startswith("heads.theta."):
        return f"{controller}.{own.removeprefix('heads.theta.')}"
    return next(match.expand(theirs) for ours, theirs in _NAMES if (match := re.fullmatch(ours, own)))


def _optional_biases(names: Mapping[str, str], config: TraceNetConfig) -> dict[str, str]:
    """Our name -> theirs of the convolution biases in front of a norm; either side may lack them."""
    normed = [own for own in names if own.endswith(".conv.weight")]
    if config.tower_norm == "none":
        normed = [own for own in normed if not own.startswith("heads.")]
    if config.mask_norm == "none":
        normed = [own for own in normed if not own.startswith("mask_branch.")]
    return {own.removesuffix("weight") + "bias": names[own].removesuffix("weight") + "bias" for own in normed}


def _check_sizes(state: Mapping[str, Tensor]) -> None:
    ours = [SIZES_OF_INTEREST[level] for level in LEVELS]
    if _SIZES in state and state[_SIZES].flatten().tolist() != ours:
        raise CheckpointError(f"{_SIZES} is {state[_SIZES].tolist()}; the mask head here divides by {ours}")


def _with_biases(
    values: dict[str, Tensor], biases: Mapping[str, str], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Biases that our side lacks move into the running mean; those that their side lacks are zero.

    ``norm(x + b)`` with mean ``m`` is ``norm(x)`` with mean ``m - b``.
    """
    for own, foreign in biases.items():
        block = own.removesuffix("conv.bias")
        means = [key for key in values if key.startswith(f"{block}norm.") and key.endswith("running_mean")]
        if foreign in state:
            for key in means:
                values[key] = values[key].double() - state[foreign].double()
            if means:
                values.pop(own, None)
        elif not means:
            values[own] = torch.zeros(values[f"{block}conv.weight"].shape[0])
    return values
