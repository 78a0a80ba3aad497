"""Small networks for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tracenet import create_model
from tracenet.models import TraceNet


def randomised(**config: Any) -> TraceNet:
    """A small network whose heads spread: both signs of mask logits, boxes of many sizes, several levels chosen."""
    torch.manual_seed(0)
    model = create_model("tracenet_r50_fpn", channels=32, **config)
    for block in model.modules():
        if isinstance(block, nn.BatchNorm2d):
            nn.init.uniform_(block.weight, 0.7, 1.3)
            nn.init.normal_(block.bias, std=0.2)
    spread = {"logits": 2.0, "reg": 2.0, "ctr": 1.0, "theta": 1.0, "level": 1.0}
    with torch.no_grad():
        image = torch.randn(2, 3, 96, 128) * 60
        model.train()
        for _ in range(3):  # stored statistics near the real ones keep activations in range
            model(image)
        model.eval()
        features = model(image)
        for name, scale in spread.items():
            head = getattr(model.heads, name)
            if head is not None:
                planes = torch.cat([features[f"{name}{level}"].flatten() for level in (3, 4)])
                unit = planes.std() / (8 if name == "reg" else 1)
                head.weight *= scale / unit
        head = model.heads.reg
        head.bias += 1.5
        features = model(image)
        out = model.mask_branch.out
        out.weight *= 1 / features["maskfeat"].std()
    return model.eval()
