"""The Python on the page about barriers runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

import tracenet

PAGE = Path(__file__).parent.parent / "docs" / "barriers.md"


class Gated(nn.Module):
    """A convolution, a gate, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True))))


def test_the_example() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    torch.manual_seed(0)
    scope = {"tracenet": tracenet, "model": Gated().eval(), "image": torch.rand(1, 3, 64, 96)}
    exec(compile(code, str(PAGE), "exec"), scope)
    assert scope["click"].exact
    assert not scope["near"].exact
    assert not scope["window"].exact
    assert scope["click"].macs < 0.1 * scope["exact"].macs
