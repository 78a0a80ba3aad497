"""torchvision's ``fcos_resnet50_fpn`` as a TraceNet without masks."""

from __future__ import annotations

import re

from tracenet.config import TraceNetConfig
from tracenet.conventions import LEVELS
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

MEAN = (123.675, 116.28, 103.53)
"""ImageNet's mean (0.485, 0.456, 0.406) on 0-255 pixels; RGB."""
STD = (58.395, 57.12, 57.375)

_NAMES = (
    (r"backbone\.(.*)", r"backbone.body.\1"),
    (r"fpn\.p(6|7)\.(.*)", r"backbone.fpn.extra_blocks.p\1.\2"),
    (r"heads\.logits\.(.*)", r"head.classification_head.cls_logits.\1"),
    (r"heads\.reg\.(.*)", r"head.regression_head.bbox_reg.\1"),
    (r"heads\.ctr\.(.*)", r"head.regression_head.bbox_ctrness.\1"),
)
_LATERAL = re.compile(r"fpn\.(lateral|output)(\d)\.(.*)")
_TOWER = re.compile(r"heads\.(cls|box)_tower\.(\d)\.(conv|norm)\.(.*)")


def import_torchvision_fcos(source: Source) -> TraceNet:
    """A TraceNet with the weights of torchvision's FCOS.

    What differs from our own models is in the config: 91 classes (0 is unused), GroupNorm towers (which read whole
    planes: traced, each is a barrier), no filter head and no masks, box distances ``relu(x) * stride`` (all scales 1)
    from the anchor centre ``cell * stride`` (``anchor_offset="zero"``). torchvision takes an anchor's stride from the
    sizes of image and plane, so its P6 and P7 anchors are off ``cell * 64`` and ``cell * 128`` where the image is not a
    multiple of 128; this model keeps the nominal strides.

    Args:
        source: state dict or file; either form of the FPN's keys (``inner_blocks.0.0.weight`` and the older
            ``inner_blocks.0.weight``), BatchNorm or FrozenBatchNorm.

    Raises:
        CheckpointError: keys or shapes do not fit; all of them are listed.
    """
    state = read_state(source)
    config = TraceNetConfig(
        depth=depth_of(state, "backbone.body.layer3."),
        num_classes=rows_of(state, "head.classification_head.cls_logits.weight"),
        mask_branch="none",
        filter_head=False,
        tower_norm="gn",
        mean=MEAN,
        std=STD,
        anchor_offset="zero",
    )
    model = empty_model(config)
    old_form = any(re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.\d\.(weight|bias)", key) for key in state)
    shapes = shapes_of(model)
    scales = model.heads.scales.new_ones(len(LEVELS), device="cpu")
    names = {own: _foreign(own, old_form) for own in shapes if own != "heads.scales"}
    expected = {foreign: shapes[own] for own, foreign in names.items()}
    check_state(state, expected, what=f"torchvision's FCOS on ResNet-{config.depth}", ignored=r"backbone\.body\.fc\.")
    return filled(model, {"heads.scales": scales, **{own: state[foreign] for own, foreign in names.items()}})


def _foreign(own: str, old_form: bool) -> str:
    """torchvision's name of one of our parameters."""
    if match := _LATERAL.fullmatch(own):
        kind, level, rest = match.groups()
        blocks = "inner_blocks" if kind == "lateral" else "layer_blocks"
        return f"backbone.fpn.{blocks}.{int(level) - 3}.{rest if old_form else f'0.{rest}'}"
    if match := _TOWER.fullmatch(own):
        tower, block, part, rest = match.groups()
        head = "classification_head" if tower == "cls" else "regression_head"
        return f"head.{head}.conv.{3 * int(block) + (part == 'norm')}.{rest}"  # conv, norm, ReLU
    return next(match.expand(theirs) for ours, theirs in _NAMES if (match := re.fullmatch(ours, own)))
