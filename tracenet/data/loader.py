"""Training samples by step, made by worker processes, sharded over ranks; may start at any step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tracenet.data.coco import Problem
from tracenet.data.mixture import Mixture
from tracenet.data.samples import TrainingSample
from tracenet_kernels.errors import InputError, TraceNetError

_ALIGN = 16
_TENSORS = tuple(f.name for f in fields(TrainingSample) if f.type == "Tensor")
Group = list[TrainingSample]
"""One sample: a view, or a pair of views of the same thing."""


class SampleLoader:
    """The samples of each step that belong to one rank: those whose index modulo ``world`` is ``rank``.

    What comes out does not depend on the number of workers, and together not on the number of ranks. What workers skip
    is collected in the ``problems`` of this process's datasets.

    Args:
        mixture: makes the samples.
        images_per_step: samples of a step, over all ranks.
        rank, world: this process among all.
        workers: processes that make samples ahead of time; 0 makes them when asked for.
        prefetch: steps that each worker is ahead.

    Raises:
        InputError: a rank would get no sample, or an option is outside its range.
    """

    def __init__(
        self,
        mixture: Mixture,
        images_per_step: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        prefetch: int = 2,
    ) -> None:
        if not 0 <= rank < world:
            raise InputError(f"rank {rank} of {world}; ranks count from 0")
        if images_per_step < world:
            raise InputError(f"{images_per_step} images a step cannot be shared by {world} processes; ask for more")
        if workers < 0 or prefetch < 1:
            raise InputError(f"{workers} workers, {prefetch} steps ahead; use at least 0 and 1")
        self.mixture = mixture
        self.indices = range(rank, images_per_step, world)
        self.workers = workers
        self.prefetch = prefetch
        self._next = -1
        self._batches: Iterator[_Packed | TraceNetError] | None = None

    def samples(self, step: int) -> list[Group]:
        """This rank's samples of ``step``. Steps in a row are made ahead; any other step starts anew from there.

        Raises:
            ImageError, InputError: as :meth:`Mixture.sample`, also from workers.
        """
        if not self.workers:
            return [self.mixture.sample(step, index) for index in self.indices]
        if self._batches is None or step != self._next:
            self.close()
            self._batches = iter(self._loader(step))
        self._next = step + 1
        batch = next(self._batches)
        if isinstance(batch, TraceNetError):
            self.close()
            raise batch
        for number, problem in batch.problems:
            self.mixture.sources[number].dataset.collect(problem)
        return batch.groups()

    def close(self) -> None:
        """End the workers."""
        self._batches = None

    def _loader(self, start: int) -> DataLoader[Any]:
        return DataLoader(
            _Samples(self.mixture),
            batch_sampler=_Steps(start, self.indices),
            num_workers=self.workers,
            prefetch_factor=self.prefetch,
            collate_fn=_collate,
            # Without one of its own it would draw from the global generator, and change what the training draws.
            generator=torch.Generator(),
        )


@dataclass
class _Made:
    """A sample, or why there is none, and the problems found on the way, by number of the source.

    The error is a value, so that it arrives as it was raised and not inside a traceback.
    """

    group: Group | TraceNetError
    problems: list[tuple[int, Problem]]


class _Samples(Dataset[_Made]):
    """By (step, index)."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture

    def __getitem__(self, at: tuple[int, int]) -> _Made:
        datasets = [source.dataset for source in self.mixture.sources]
        known = [len(dataset.problems) for dataset in datasets]
        group: Group | TraceNetError
        try:
            group = self.mixture.sample(*at)
        except TraceNetError as error:
            group = error
        new = [(k, p) for k, dataset in enumerate(datasets) for p in dataset.problems[known[k] :]]
        return _Made(group, new)


class _Steps(Sampler[list[tuple[int, int]]]):
    """(step, index) of one rank's samples, step after step without end."""

    def __init__(self, start: int, indices: range) -> None:
        self.start, self.indices = start, indices

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start
        while True:
            yield [(step, index) for index in self.indices]
            step += 1


@dataclass
class _Packed:
    """Samples with all their tensors in one: each tensor that crosses processes keeps a file open."""

    data: Tensor
    sizes: list[int]
    plain: list[dict[str, Any]]
    problems: list[tuple[int, Problem]]

    def groups(self) -> list[Group]:
        at, views = 0, []
        for plain in self.plain:
            tensors = {}
            for name in _TENSORS:
                shape, dtype = plain[name]
                end = at + dtype.itemsize * shape.numel()
                tensors[name] = self.data[at:end].view(dtype).view(shape)
                at = end + -end % _ALIGN
            views.append(TrainingSample(**{**plain, **tensors}))
        out, first = [], 0
        for size in self.sizes:
            out.append(views[first : first + size])
            first += size
        return out


def _collate(made: list[_Made]) -> _Packed | TraceNetError:
    groups = []
    for one in made:
        if isinstance(one.group, TraceNetError):
            return one.group
        groups.append(one.group)
    parts, plain = [], []
    for view in (view for group in groups for view in group):
        entry = dict(vars(view))
        for name in _TENSORS:
            tensor = entry[name].contiguous()
            entry[name] = tensor.shape, tensor.dtype
            raw = tensor.flatten().view(torch.uint8)
            parts += [raw, raw.new_zeros(-len(raw) % _ALIGN)]
        plain.append(entry)
    problems = [problem for one in made for problem in one.problems]
    return _Packed(torch.cat(parts), [len(group) for group in groups], plain, problems)
