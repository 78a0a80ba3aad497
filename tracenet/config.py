"""What fixes a TraceNet's architecture, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tracenet.plain_data import from_plain
from tracenet_kernels.errors import InputError

TOWER_NORMS = ("bn", "bn_per_level", "gn", "none")
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
