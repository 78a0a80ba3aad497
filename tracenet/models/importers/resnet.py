"""ResNet weights in torchvision's names (timm uses the same) into our backbone."""

from __future__ import annotations

import re

from tracenet.models.importers.state import COUNTER, Source, check_state, read_state, shapes_of
from tracenet.models.resnet import ResNet
from tracenet.models.tracenet import TraceNet
from tracenet_kernels.errors import CheckpointError

CLASSIFIER = r"(fc|classifier|head)\."
_ANCHOR = re.compile(r"(.*\.)?layer4\.0\.(conv2\.weight|bn2\.running_var)")


def load_backbone(model: TraceNet | ResNet, source: Source) -> list[str]:
    """Fill the backbone from a torchvision or timm ResNet-50/101, alone or inside a larger checkpoint.

    The ResNet is found under whatever prefix it has (``module.``, ``backbone.body.``, ...); keys outside of the prefix
    belong to other parts and are not read. A state dict does not tell where the stride sits: ``stride_in_1x1`` of the
    model has to match the weights (torchvision and timm: False; the original MSRA/Caffe weights: True), and so have
    the config's ``mean``, ``std`` and ``channel_order``.

    Args:
        model: a TraceNet or its backbone; keeps its dtype and device.
        source: state dict or file.

    Returns:
        keys that were there and not used, such as the classifier's.

    Raises:
        CheckpointError: keys or shapes do not fit, all of them listed; the model is as it was before.
    """
    resnet = model.backbone if isinstance(model, TraceNet) else model
    state = read_state(source)
    prefixes = sorted({match.group(1) or "" for key in state if (match := _ANCHOR.fullmatch(key))})
    if len(prefixes) > 1:
        raise CheckpointError(f"the checkpoint holds {len(prefixes)} ResNets, under {prefixes}; pass one of them")
    prefix = prefixes[0] if prefixes else ""
    inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    shapes = shapes_of(resnet)
    skipped = check_state(inner, shapes, what=f"a ResNet-{_depth(resnet)}", ignored=CLASSIFIER)
    counters = {key: value for key, value in resnet.state_dict().items() if key.endswith(COUNTER)}
    resnet.load_state_dict({**counters, **{key: inner[key] for key in shapes}})
    return [f"{prefix}{key}" for key in skipped] + [key for key in state if not key.startswith(prefix)]


def _depth(resnet: ResNet) -> int:
    return 3 * sum(len(getattr(resnet, f"layer{stage}")) for stage in range(1, 5)) + 2
