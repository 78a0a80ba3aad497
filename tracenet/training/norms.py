"""BatchNorm while training: of one process, of all, renormalised, or frozen; see ``[norm]`` in the configuration.

The class replaces ``nn.BatchNorm2d`` in place, keeps its parameters and buffers under the same names, and computes the
same function in evaluation mode.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from tracenet.training.windows import Moments, renorm, stored_norm


class TrainingNorm(nn.BatchNorm2d):
    """BatchNorm2d whose training mode is chosen by ``kind``: ``batch``, ``sync``, ``renorm`` or ``frozen``.

    A plane with one value per channel has no variance: it is normalised with the stored statistics.
    """

    kind: str = "batch"
    moments: Moments | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.kind == "frozen":
            return stored_norm(self, x)
        if self.kind == "sync" and dist.is_initialized() and dist.get_world_size() > 1:
            return self._synchronised(x)  # also of single values: together they have a variance
        if x.numel() == x.shape[1]:
            return stored_norm(self, x)
        return renorm(self, x, self.moments) if self.kind == "renorm" else super().forward(x)

    def _synchronised(self, x: Tensor) -> Tensor:
        """Mean and variance over the values of all processes, with gradients through both.

        ``mean = sum(x) / n``, ``var = sum(x^2) / n - mean^2`` in float32, ``n`` summed over processes too.
        """
        values = x.float()
        count = values.new_full((1,), x.numel() / x.shape[1])
        sums = all_reduce(torch.cat([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), count]))
        channels = x.shape[1]
        n = sums[-1].detach()
        mean = sums[:channels] / n
        var = (sums[channels : 2 * channels] / n - mean.square()).clamp(min=0)
        assert self.running_mean is not None and self.running_var is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean.detach(), float(self.momentum or 0.1))
            self.running_var.lerp_(var.detach() * n / (n - 1).clamp(min=1), float(self.momentum or 0.1))
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return (values * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).to(x.dtype)


def use_training_norms(module: nn.Module, kind: str, momentum: float) -> list[TrainingNorm]:
    """Replace every ``nn.BatchNorm2d`` below ``module``; returns the new layers, in order."""
    found = []
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                new = TrainingNorm(child.num_features, child.eps, momentum)
                new.load_state_dict(child.state_dict())
                new.kind = kind
                new.train(child.training)
                setattr(parent, name, new)
                found.append(new)
    return found
