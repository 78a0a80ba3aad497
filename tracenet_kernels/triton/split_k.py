"""Deterministic split-K: several programs share the sum of one tile, in one launch.

Each program stores its partial sum and takes a ticket of the tile's counter. The one that comes last adds all partial
sums in the order of the splits, whatever the order of arrival, so results do not depend on timing. It also sets the
counter back to zero, so that the launch can be repeated or replayed in a graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


class Scratch:
    """Memory for partial sums and tickets, shared by all launches of one stream.

    It grows by new allocations. A launch keeps the tensors it was bound to, so growing never disturbs a captured graph.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._partials = torch.empty(0, dtype=torch.float32, device=self.device)
        self._counters = torch.zeros(0, dtype=torch.int32, device=self.device)

    def partials(self, elements: int) -> Tensor:
        """At least ``elements`` fp32 numbers of any value."""
        if self._partials.numel() < elements:
            self._partials = torch.empty(elements, dtype=torch.float32, device=self.device)
        return self._partials

    def counters(self, count: int) -> Tensor:
        """At least ``count`` int32 zeros; who counts with them leaves zeros behind."""
        if self._counters.numel() < count:
            self._counters = torch.zeros(count, dtype=torch.int32, device=self.device)
        return self._counters


@triton.jit
def hand_in(partials, counters, tile, split, acc, SPLIT: tl.constexpr):
    """Store the partial sum of ``split`` of ``tile``; how many splits had done so before."""
    ROWS: tl.constexpr = acc.shape[0]
    COLUMNS: tl.constexpr = acc.shape[1]
    cells = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    base = partials + (tile.to(tl.int64) * SPLIT + split) * (ROWS * COLUMNS)
    tl.store(base + cells, acc, cache_modifier=".cg")
    tl.debug_barrier()  # the ticket releases what all threads have stored
    return tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")


@triton.jit
def sum_of_partials(partials, counters, tile, acc, SPLIT: tl.constexpr):
    """The sum of all partial sums of ``tile``, in the shape of ``acc``; for the program that came last."""
    tl.store(counters + tile, 0)
    ROWS: tl.constexpr = acc.shape[0]
    COLUMNS: tl.constexpr = acc.shape[1]
    cells = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    base = partials + tile.to(tl.int64) * (SPLIT * ROWS * COLUMNS)
    total = tl.load(base + cells, cache_modifier=".cg")
    for split in tl.static_range(1, SPLIT):
        total += tl.load(base + split * (ROWS * COLUMNS) + cells, cache_modifier=".cg")
    return total
