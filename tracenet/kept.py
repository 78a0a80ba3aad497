"""Features kept for one image: patches of node outputs that later plans need not compute again."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from tracenet.crop_pad import Patch
from tracenet.graph.graph import INPUT, Graph
from tracenet_kernels.window import Window

MAX_PATCHES = 24
_BLOCK = re.compile(r"(backbone\.layer\d+\.\d+|backbone\.maxpool|fpn\.(lateral|output)\d|fpn\.p\d|mask_branch\.out)$")


def kept_names(graph: Graph) -> list[str]:
    """Nodes worth keeping: block outputs, laterals, pyramid levels and mask features.

    The insides of blocks are not kept, their halos are recomputed.
    """
    last: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != INPUT and node.layout is not None and _BLOCK.match(node.module):
            last[node.module] = node.name
    named = [node.name for name, node in graph.outputs.items() if re.match(r"(inner|P)\d$", name)]
    return sorted({*last.values(), *named})


class FeatureStore:
    """Patches by node name, bounded in bytes; when the bound is passed everything is dropped at once.

    A bound evicts the whole image because a half-evicted pyramid would save little and cost planning time.
    """

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        self.max_bytes = max_bytes
        self.patches: dict[str, list[Patch]] = {}

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return sum(p.tensor.numel() * p.tensor.element_size() for patches in self.patches.values() for p in patches)

    def windows(self) -> dict[str, list[Window]]:
        """Name -> kept windows, as :meth:`tracenet.TracedModel.plan` takes them."""
        return {name: [patch.window for patch in patches] for name, patches in self.patches.items()}

    def add(self, patches: dict[str, list[Patch]]) -> None:
        """Keep new patches; one that an older patch covers is not kept, older ones that it covers are dropped.

        Of more than :data:`MAX_PATCHES` patches of a node the oldest go: planning looks at each of them.
        """
        for name, patch in ((name, patch) for name, several in patches.items() for patch in several):
            held = self.patches.setdefault(name, [])
            if any(old.window.contains(patch.window) for old in held):
                continue
            held[:] = [old for old in held if not patch.window.contains(old.window)][1 - MAX_PATCHES :]
            held.append(_own(patch))
        if self.bytes > self.max_bytes:
            self.clear()

    def clear(self, names: Iterable[str] | None = None) -> None:
        """Forget everything, or the given nodes."""
        if names is None:
            self.patches.clear()
        else:
            for name in names:
                self.patches.pop(name, None)


def _own(patch: Patch) -> Patch:
    """The patch, copied where its tensor is part of a larger one that it would keep alive."""
    tensor = patch.tensor
    if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size():
        return Patch(patch.window, tensor.clone(memory_format=torch.contiguous_format))
    return patch
