"""The processes of one evaluation: those that ``torchrun`` started, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's number among ``count``."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of ``items``, which are the same on all of them."""
        return list(items[self.rank :: self.count])

    def gather(self, item: T) -> list[T]:
        """Every process's ``item`` in order of rank, on all of them."""
        if self.count == 1:
            return [item]
        items: list[Any] = [None] * self.count
        dist.all_gather_object(items, item)
        return items


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the process group that ``torchrun`` describes in the environment (gloo), and leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    # Images take unequal time, and a rank may wait for hours for the last of another's.
    dist.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
