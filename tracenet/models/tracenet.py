"""TraceNet: ResNet-FPN, shared heads, mask branch and dynamic mask head as one network.

FullNet, the paper's ablation, is this same module executed without tracing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from tracenet.models.fpn import FPN, LEVELS, STRIDES
from tracenet.models.heads import THETA, TOWER_NORMS, Heads
from tracenet.models.mask import (
    MaskBranch,
    MaskHead,
    PlainMaskBranch,
    upsample_logits,
    upsample_probabilities,
)
from tracenet.models.resnet import ResNet
from tracenet.plain_data import from_plain
from tracenet_kernels.errors import InputError

MASK_BRANCHES = ("condinst", "p3", "none")
REL_TO = ("click", "cell")
MASK_ORDERS = ("upsample_logits", "upsample_probabilities")
ANCHOR_OFFSETS = ("half", "zero")


@dataclass(frozen=True)
class TraceNetConfig:
    """Everything that fixes the architecture and how images and clicks are fed to it.

    ``mean``/``std``/``channel_order`` act on 0-255 pixels: ``(pixel - mean) / std``.
    ``rel_to``: origin of the relative coordinates, the click itself (the paper) or the centre of its cell (CondInst).
    ``mask_order``: upsample logits then sigmoid, or the paper's sigmoid then upsample.
    ``filter_head``: predict the mask head's parameters ``theta``; only a network without masks does without.
    ``anchor_offset``: a cell's box distances start at ``cell * s + s // 2`` (``"half"``) or ``cell * s`` (``"zero"``).
    """

    depth: int = 50
    stride_in_1x1: bool = False
    num_classes: int = 1
    channels: int = 256
    mask_branch: str = "condinst"
    tower_norm: str = "bn"
    mask_norm: str = "bn"
    level_head: bool = False
    rel_to: str = "click"
    mask_order: str = "upsample_logits"
    mean: tuple[float, float, float] = (123.68, 116.779, 103.939)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_order: str = "rgb"
    filter_head: bool = True
    anchor_offset: str = "half"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("mask_branch", MASK_BRANCHES),
            ("tower_norm", TOWER_NORMS),
            ("mask_norm", TOWER_NORMS),
            ("rel_to", REL_TO),
            ("mask_order", MASK_ORDERS),
            ("channel_order", ("rgb", "bgr")),
            ("anchor_offset", ANCHOR_OFFSETS),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}={getattr(self, name)!r} is not known; choose one of {allowed}")
        if self.num_classes < 1:
            raise InputError(f"num_classes={self.num_classes}; it must be at least 1")
        if not self.filter_head and self.mask_branch != "none":
            raise InputError(
                f"mask_branch={self.mask_branch!r} needs filter_head=True; masks are made of its parameters"
            )
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data (JSON-ready) that :meth:`from_dict` restores."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TraceNetConfig:
        return from_plain(cls, data, "model config has")


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


def cell_of(x: float, y: float, level: int) -> tuple[int, int]:
    """Cell ``(row, column)`` of pyramid level ``level`` that holds the click: ``floor(click / stride)``."""
    s = STRIDES[level]
    return int(y // s), int(x // s)
