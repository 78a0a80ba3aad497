"""Several processes started by ``torchrun`` as one job; a single process needs none of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Its functions take the group of the moment they are defined as a default. Were it imported later, as torch.export
# does, they would hold the group for ever, and its threads would abort the process while it exits.
import torch.distributed.nn.functional
from torch import Tensor

from tracenet_kernels.errors import InputError

T = TypeVar("T")

WAIT = timedelta(days=7)
"""How long a process waits for another: images take unequal time, and the first process selects and proposes alone."""


@dataclass(frozen=True)
class Ranks:
    """This process among all: number ``rank`` of ``world``, computing on ``device``."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Average of a tensor over processes, without gradient."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of ``items``, which are the same on all of them."""
        return list(items[self.rank :: self.world])

    def gather(self, item: T) -> list[T]:
        """Every process's ``item`` in order of rank, on all of them."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def even_share(self, count: int, what: str) -> int:
        """``count`` divided by the number of processes; ``what`` names it in the error.

        Raises:
            InputError: it cannot be divided evenly.
        """
        if count % self.world:
            raise InputError(f"{what} = {count} cannot be shared by {self.world} processes; use a multiple")
        return count // self.world

    def average_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over processes; one without a gradient counts as zero."""
        if self.world == 1:
            return
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for own, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            own.copy_(part.view_as(own))


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` is the process's GPU where there is one.

    Raises:
        InputError: a device that is not known or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise InputError("device 'cuda' is asked for, but this PyTorch sees no GPU; use 'auto' or 'cpu'")
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    if name != "cpu":
        raise InputError(f"device {name!r} is not known; choose auto, cpu or cuda")
    return torch.device("cpu")


@contextmanager
def processes(device: str = "cpu") -> Iterator[Ranks]:
    """Join the process group that ``torchrun`` describes in the environment, and leave it at the end.

    ``nccl`` on GPUs, ``gloo`` elsewhere; this process alone where none was launched.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        yield Ranks(device=chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=WAIT)
    try:
        yield Ranks(dist.get_rank(), world, chosen)
    finally:
        dist.destroy_process_group()
