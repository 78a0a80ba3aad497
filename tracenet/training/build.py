"""The network a run starts from: an ImageNet backbone or a checkpoint, and freshly drawn layers for the rest."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tracenet.conventions import THETA, THETA_SIZES
from tracenet.models import TraceNet, TraceNetConfig
from tracenet.models.heads import ConvNormAct
from tracenet.models.weights import load_checkpoint
from tracenet.training.dense_objective import prior_bias
from tracenet_kernels.errors import CheckpointError

CELLS_OF_FIRST_BOX = 3.0
"""First box distances in cells: a ReLU that starts at zero would not learn."""
MASK_HEAD_INPUTS = (10, 8, 8)


def build_model(
    config: TraceNetConfig, seed: int, backbone: str | Path = "", checkpoint: str | Path = "", detector: bool = False
) -> TraceNet:
    """TraceNet in evaluation mode, ready to be trained.

    Args:
        config: of the architecture.
        seed: of what is drawn (He initialisation).
        backbone: safetensors of an ImageNet ResNet under torchvision's names; ``fc.*`` is left out.
        checkpoint: a TraceNet checkpoint of the same architecture; it wins over ``backbone``.
        detector: scores start at a probability of 0.01 (focal loss) instead of one half.

    Raises:
        CheckpointError: a file that cannot be read or does not fit.
    """
    torch.manual_seed(seed)
    model = TraceNet(config)
    if str(checkpoint):
        loaded, info = load_checkpoint(checkpoint)
        if info.config != config:
            own, theirs = config.to_dict(), info.config.to_dict()
            changed = [f"{k} = {theirs[k]!r} there, {v!r} here" for k, v in own.items() if theirs[k] != v]
            raise CheckpointError(f"{checkpoint} is of another model: {'; '.join(changed)}; change [model] to match")
        model.load_state_dict(loaded.state_dict())
    else:
        _draw(model, prior_bias() if detector else 0.0)
        if str(backbone):
            load_backbone(model, backbone)
    # NHWC is the faster layout for convolutions on most devices; torch leaves this overload untyped.
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _draw(model: TraceNet, score_bias: float) -> None:
    for part in (model.heads, model.mask_branch):
        for module in part.modules() if part is not None else ():
            if isinstance(module, ConvNormAct):
                nn.init.kaiming_normal_(module.conv.weight, nonlinearity="relu")
    for module in model.fpn.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    heads = model.heads
    with torch.no_grad():
        if heads.theta is not None:
            _set_bias(heads.theta, _first_mask_head())
        _set_bias(heads.reg, torch.full((4,), CELLS_OF_FIRST_BOX))
        _set_bias(heads.logits, torch.full((model.config.num_classes,), score_bias))


def _set_bias(conv: nn.Conv2d, value: Tensor) -> None:
    assert conv.bias is not None
    conv.bias.copy_(value)


def _first_mask_head() -> Tensor:
    """Mask parameters ``[169]``: one ordinary small network for everyone, to which the filters' prediction adds."""
    start = torch.zeros(THETA)
    at = 0
    for size, inputs in zip(THETA_SIZES[:3], MASK_HEAD_INPUTS, strict=True):
        start[at : at + size] = torch.randn(size) * math.sqrt(2 / inputs)
        at += size
    return start


def load_backbone(model: TraceNet, path: str | Path) -> None:
    """Fill the backbone from a safetensors file under torchvision's names.

    Raises:
        CheckpointError: the file cannot be read or does not fit.
    """
    depth = model.config.depth
    try:
        raw = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    state = overflow_silenced({k: v.float() for k, v in raw.items() if not k.startswith("fc.")})
    try:
        missing, unexpected = model.backbone.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit ResNet-{depth}: {error}") from error
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise CheckpointError(f"{path} does not fit ResNet-{depth}: missing {missing}, extra {unexpected}")


def overflow_silenced(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function in finite numbers: a BatchNorm channel whose variance overflowed to infinity gives its bias.

    Half precision ends at 65504, which the stem's variance on 0-255 images can exceed.
    """
    out = dict(state)
    for key, variance in state.items():
        if not key.endswith("running_var") or bool(torch.isfinite(variance).all()):
            continue
        lost = torch.isinf(variance)
        out[key] = variance.masked_fill(lost, 1.0)
        for name in ("weight", "running_mean"):
            other = key.replace("running_var", name)
            out[other] = state[other].masked_fill(lost, 0.0)
    return out
