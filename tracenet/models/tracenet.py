"""TraceNet: ResNet-FPN, shared heads, mask branch and dynamic mask head as one network.

FullNet, the paper's ablation, is this same module executed without tracing.
"""

from __future__ import annotations

from torch import Tensor, nn

from tracenet.config import TraceNetConfig
from tracenet.conventions import LEVELS, THETA
from tracenet.models.fpn import FPN
from tracenet.models.heads import Heads
from tracenet.models.mask import (
    MaskBranch,
    MaskHead,
    PlainMaskBranch,
    upsample_logits,
    upsample_probabilities,
)
from tracenet.models.resnet import ResNet
from tracenet_kernels.errors import InputError

__all__ = ["TraceNet", "TraceNetConfig"]


class TraceNet(nn.Module):
    """Image to features, head predictions, mask features, and the mask of given parameters.

    ``forward(image [N, 3, H, W] normalised, H and W multiples of 32)`` returns a dict of planes:
    ``C2..C5``, ``inner3..inner5``, ``P3..P7``, and for each level ``l`` in 3..7 ``logits{l}``, ``reg{l}``,
    ``ctr{l}``, ``theta{l}`` (with a filter head) and ``level{l}`` (with a level head); ``maskfeat [N, 8, H/8, W/8]``.

    With ``theta [M, 169]``, ``origin [M, 2]`` and ``size_of_interest [M]`` it adds ``mask [M, 1, H/8, W/8]`` (logits)
    and ``mask_half [M, 1, H/2, W/2]`` (logits, or probabilities in the paper's order). The mask parameters are inputs
    because which level predicts them is known only after the first phase.
    """

    def __init__(self, config: TraceNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TraceNetConfig()
        self.backbone = ResNet(config.depth, config.stride_in_1x1)
        self.fpn = FPN(channels=config.channels)
        has_mask = config.mask_branch != "none"
        theta = THETA if config.filter_head else 0
        self.heads = Heads(config.channels, config.num_classes, config.tower_norm, config.level_head, theta)
        self.mask_branch: nn.Module | None = None
        if config.mask_branch == "condinst":
            self.mask_branch = MaskBranch(config.channels, norm=config.mask_norm)
        elif config.mask_branch == "p3":
            self.mask_branch = PlainMaskBranch(config.channels)
        self.mask_head = MaskHead() if has_mask else None

    def forward(
        self,
        image: Tensor,
        theta: Tensor | None = None,
        origin: Tensor | None = None,
        size_of_interest: Tensor | None = None,
    ) -> dict[str, Tensor]:
        h, w = image.shape[-2:]
        if h % 32 or w % 32:
            raise InputError(f"image is {w}x{h}; zero-pad it right/bottom to multiples of 32 after normalising")
        c2, c3, c4, c5 = self.backbone(image)
        inner, p = self.fpn(c3, c4, c5)
        out = {"C2": c2, "C3": c3, "C4": c4, "C5": c5}
        out.update({f"inner{level}": inner[level] for level in (3, 4, 5)})
        out.update({f"P{level}": p[level] for level in LEVELS})
        for level in LEVELS:
            for name, plane in self.heads(p[level], level).items():
                out[f"{name}{level}"] = plane
        if self.mask_branch is not None:
            out["maskfeat"] = self.mask_branch(p)
        if theta is not None and origin is not None and size_of_interest is not None:
            if self.mask_head is None:
                raise InputError("the model has mask_branch='none'; create it with 'condinst' or 'p3' to predict masks")
            out["mask"] = self.mask_head(out["maskfeat"], theta, origin, size_of_interest)
            out["mask_half"] = self.upsample_mask(out["mask"])
        return out

    def upsample_mask(self, logits: Tensor) -> Tensor:
        """Mask logits ``[M, 1, h, w]`` -> ``[M, 1, 4h, 4w]``: logits, or probabilities in the paper's order."""
        upsample = upsample_logits if self.config.mask_order == "upsample_logits" else upsample_probabilities
        return upsample(logits)
