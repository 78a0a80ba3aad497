"""Feature Pyramid Network over C3..C5 with P6 and P7 (arXiv 1612.03144; P6/P7 as in FCOS)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tracenet_kernels.errors import InputError


class FPN(nn.Module):
    """``(C3, C4, C5)`` -> inner features 3..5 and pyramid levels P3..P7, all with ``channels`` channels.

    ``inner5 = lat5(C5)``, ``inner_l = lat_l(C_l) + nearest_x2(inner_{l+1})``, ``P_l = conv3x3(inner_l)``,
    ``P6 = conv3x3/2(P5)``, ``P7 = conv3x3/2(relu(P6))``.
    """

    def __init__(self, in_channels: tuple[int, int, int] = (512, 1024, 2048), channels: int = 256) -> None:
        super().__init__()
        for level, c in zip((3, 4, 5), in_channels, strict=True):
            self.add_module(f"lateral{level}", nn.Conv2d(c, channels, 1))
            self.add_module(f"output{level}", nn.Conv2d(channels, channels, 3, padding=1))
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        if c3.shape[-1] != 4 * c5.shape[-1] or c3.shape[-2] != 4 * c5.shape[-2]:
            raise InputError(
                f"C3 {tuple(c3.shape[-2:])} and C5 {tuple(c5.shape[-2:])} do not nest; "
                "pad the image right/bottom to multiples of 32"
            )
        inner = {5: self.lateral5(c5)}
        inner[4] = self.lateral4(c4) + F.interpolate(inner[5], scale_factor=2.0, mode="nearest")
        inner[3] = self.lateral3(c3) + F.interpolate(inner[4], scale_factor=2.0, mode="nearest")
        p = {3: self.output3(inner[3]), 4: self.output4(inner[4]), 5: self.output5(inner[5])}
        p[6] = self.p6(p[5])
        p[7] = self.p7(F.relu(p[6]))
        return inner, p
