"""Peak bytes of the tensors that a PyTorch run has alive at once.

Every tensor that an operator returns is counted from then until its storage is freed; weights, inputs and whatever else
was alive before are not. Scratch memory inside an operator is not seen, so the figure is a lower bound.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts while it is active.

    Args:
        foreign: tensors that are not counted, such as weights and inputs; neither are views of them.

    Attributes:
        live, peak: bytes now, and the most so far.
    """

    def __init__(self, foreign: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._held = {tensor.untyped_storage()._cdata: 0 for tensor in foreign}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return
        self._held[key] = storage.nbytes()
        self.live += self._held[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.live -= self._held.pop(key)


def peak_live_bytes(run: Callable[[], Any], foreign: Iterable[Tensor]) -> int:
    """Peak of one call; what it returns is part of it."""
    with torch.no_grad(), LiveBytes(foreign) as counter:
        run()
    return counter.peak
