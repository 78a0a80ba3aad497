"""Train the whole network on whole views: detector losses at every cell, one-click losses at clicks, or both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tracenet.conventions import LEVELS
from tracenet.data.clicks import training_clicks
from tracenet.data.loader import SampleLoader
from tracenet.data.mixture import Mixture, Source, class_names
from tracenet.data.samples import UNKNOWN_CLASS, TrainingSample
from tracenet.distributed import Ranks
from tracenet.inference import normalise
from tracenet.models import TraceNet
from tracenet.training import dense_objective
from tracenet.training.click_objective import ClickTargets, HeadsAtClicks, ViewLosses, click_losses, view_losses
from tracenet.training.config import ClicksTable, ObjectiveTable, TrainConfig
from tracenet.training.dense_objective import ObjectTargets
from tracenet.training.norms import TrainingNorm, use_training_norms
from tracenet.training.windows import Moments, cells_at
from tracenet_kernels.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class View:
    """One image of a batch with its objects and the clicks on them (None where there is nothing to click)."""

    objects: ObjectTargets
    clicks: ClickTargets | None


@dataclass(frozen=True)
class Batch:
    """Images of one pass.

    Attributes:
        images: ``[B, 3, H, W]`` normalised, zero-padded right and bottom.
        views: of each image.
        groups: indices of the images that show the same clicks, a group for each sample.
        seeds: of what is drawn while the losses of each image are computed.
    """

    images: Tensor
    views: list[View]
    groups: list[list[int]]
    seeds: list[int]


def make_batch(
    samples: Sequence[Sequence[TrainingSample]],
    model: TraceNet,
    clicks: ClicksTable,
    proposal_weight: float,
    seeds: Sequence[Sequence[int]],
    device: torch.device,
) -> Batch:
    """Normalise and pad views, draw clicks.

    Args:
        samples: one or (for the zoom pyramid) two views of each sample; all show the same objects in the same order.
        model: gives the normalisation.
        clicks: which clicks to draw.
        proposal_weight: of a proposal's losses relative to an annotated mask's.
        seeds: of each sample's clicks.
        device: of the result.
    """
    images: list[Tensor] = []
    views: list[View] = []
    groups: list[list[int]] = []
    numbers: list[int] = []
    for seed, group in zip(seeds, samples, strict=True):
        rng = np.random.default_rng(list(seed))
        first = group[0]
        drawn = None
        if len(first.boxes):
            drawn = training_clicks(
                first.masks, first.depth, rng, clicks.per_image, clicks.level_only, clicks.per_instance, clicks.where
            )
        groups.append(list(range(len(images), len(images) + len(group))))
        for sample in group:
            images.append(torch.from_numpy(normalise(sample.image.numpy(), model.config))[0])
            masks = sample.masks.to(device).float() / 255
            weight = sample.loss_weights(proposal_weight)
            objects = ObjectTargets(
                sample.boxes.to(device),
                sample.categories.to(device),
                masks,
                (sample.proposal | (sample.categories == UNKNOWN_CLASS)).to(device),
                sample.crowd.to(device),
            )
            targets = None
            if drawn is not None:
                instance, points, full = drawn
                at = instance.to(device)
                targets = ClickTargets(
                    (points * (sample.scale / first.scale)).to(device),
                    masks[at],
                    objects.boxes[at],
                    full,
                    weight.to(device)[at],
                )
            views.append(View(objects, targets))
            numbers.append(int(rng.integers(2**31)))
    height, width = (max(image.shape[i] for image in images) for i in (-2, -1))
    padded = torch.zeros(len(images), 3, height, width)
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[-2], : image.shape[-1]] = image
    batch = padded.to(device).contiguous(memory_format=torch.channels_last)
    return Batch(batch, views, groups, numbers)


def heads_at_clicks(outputs: dict[str, Tensor], image: int, clicks: Tensor, wanted: Tensor) -> HeadsAtClicks:
    """What the one-click losses need of whole planes; of several classes the best one's score.

    Args:
        outputs: planes of the network.
        image: index in the batch.
        clicks: ``[N, 2]`` (x, y).
        wanted: ``[N, 5]`` bool, pairs that learn box and mask.
    """
    logits, level = [], []
    pairs: dict[str, list[Tensor]] = {"reg": [], "ctr": [], "theta": [], "click_of": [], "level_of": []}
    for i, number in enumerate(LEVELS):
        at = cells_at(clicks, number)
        scores = outputs[f"logits{number}"][image][:, at[:, 0], at[:, 1]].float()  # [c, N]
        logits.append(scores.amax(0))
        if f"level{number}" in outputs:
            level.append(outputs[f"level{number}"][image, 0, at[:, 0], at[:, 1]].float())
        index = wanted[:, i].nonzero()[:, 0]
        cell = at[index]
        for name in ("reg", "ctr", "theta"):
            pairs[name].append(outputs[f"{name}{number}"][image][:, cell[:, 0], cell[:, 1]].T.float())
        pairs["click_of"].append(index)
        pairs["level_of"].append(torch.full_like(index, number))
    found = {name: torch.cat(parts) for name, parts in pairs.items()}
    return HeadsAtClicks(
        torch.stack(logits, 1),
        torch.stack(level, 1) if level else None,
        found["reg"],
        found["ctr"][:, 0],
        found["theta"],
        found["click_of"],
        found["level_of"],
    )


class NetworkObjective(nn.Module):
    """The network and its losses as one module, so that data parallelism sees a single forward pass.

    ``forward(batch)`` returns the total loss and its parts.
    """

    def __init__(self, model: TraceNet, table: ObjectiveTable, precision: str, ranks: Ranks) -> None:
        super().__init__()
        self.model, self.table, self.dtype, self.ranks = model, table, DTYPES[precision], ranks

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        device = batch.images.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            outputs = self.model(batch.images)
        # Every parameter takes part in every pass, whatever the batch holds: data parallelism waits for all of them.
        heads = [v for k, v in outputs.items() if k.rstrip("34567") in ("logits", "reg", "ctr", "theta", "level")]
        total = torch.stack([p.float().sum() for p in [*heads, outputs["maskfeat"]]]).sum() * 0.0
        parts: dict[str, Tensor] = {}
        if self.table.detection == "fcos":
            total = total + self._dense(outputs, batch, parts)
        if self.table.masks == "clicks" or self.model.config.level_head:
            total = total + self._clicks(outputs, batch, parts)
        return total, parts

    def _dense(self, outputs: dict[str, Tensor], batch: Batch, parts: dict[str, Tensor]) -> Tensor:
        objective = self.table.dense
        targets = [view.objects for view in batch.views]
        values, cells, assignments = dense_objective.dense_losses(outputs, targets, objective, self.ranks.mean)
        if self.table.masks == "assigned":
            masks = [
                dense_objective.mask_losses(
                    self.model, outputs, b, cells, one, target, objective, torch.Generator().manual_seed(batch.seeds[b])
                )
                for b, (one, target) in enumerate(zip(assignments, targets, strict=True))
            ]
            found = [one for one in masks if one is not None]
            for name in found[0] if found else ():
                values[name] = torch.stack([one[name] for one in found]).sum() / len(batch.views)
        parts.update(values)
        return objective.total(values)

    def _clicks(self, outputs: dict[str, Tensor], batch: Batch, parts: dict[str, Tensor]) -> Tensor:
        objective = self.table.clicks
        dense = self.table.detection == "fcos"
        totals, logged = [], []
        for group in batch.groups:
            views: list[ViewLosses] = []
            for image in group:
                targets = batch.views[image].clicks
                if targets is None:
                    continue
                _, weights = targets.level_weights(objective)
                heads = heads_at_clicks(outputs, image, targets.clicks, weights > 0)
                features = outputs["maskfeat"][image : image + 1].float()
                views.append(view_losses(self.model, heads, features, targets, objective))
            if not views:
                continue
            values = click_losses(views)
            if dense:  # learned by the detector
                for name in ("score", "centerness"):
                    del values[name]
            if self.table.masks == "assigned":
                # Boxes are kept where masks are learned: the predictor cuts a click's mask by its own cell's box.
                for name in ("dice", "bce", "box"):
                    del values[name]
            totals.append(objective.total(values))
            logged.append(values)
        if not totals:
            return outputs["maskfeat"].new_zeros(())
        for name in dict.fromkeys(k for one in logged for k in one):
            key = f"click_{name}" if name in parts else name
            parts[key] = torch.stack([one[name] for one in logged if name in one]).mean()
        return torch.stack(totals).sum() / len(batch.groups)


class NetworkTask:
    """Batches from the loader, gradients of :class:`NetworkObjective`.

    Args:
        model: with :class:`tracenet.training.norms.TrainingNorm` layers.
        config: of the run.
        loader: of this process's samples.
        norms: the layers whose statistics move.
        ranks: this process among all.
    """

    def __init__(
        self, model: TraceNet, config: TrainConfig, loader: SampleLoader, norms: list[TrainingNorm], ranks: Ranks
    ) -> None:
        self.model, self.config, self.loader, self.norms, self.ranks = model, config, loader, norms, ranks
        objective: nn.Module = NetworkObjective(model, config.objective, config.run.precision, ranks)
        if ranks.world > 1:
            ids = [ranks.device.index] if ranks.device.type == "cuda" else None
            objective = DistributedDataParallel(objective, ids, broadcast_buffers=config.norm.kind != "sync")
        self.objective = objective
        self.moments = Moments()
        for norm in norms:
            norm.moments = self.moments

    def prepare(self) -> None:
        """Nothing: statistics settle while training."""

    def gradients(self, step: int, scale: float) -> dict[str, float]:
        run = self.config.run
        moving = step < self.config.norm.frozen_from * run.steps
        for norm in self.norms:
            norm.train(moving)
        samples = self.loader.samples(step)
        size = run.images_at_once or len(samples)
        # By a sample's number among all: clicks do not depend on how samples are shared out.
        seeds = [(run.seed, step, index, 1) for index in self.loader.indices]
        pieces = [(samples[i : i + size], seeds[i : i + size]) for i in range(0, len(samples), size)]
        log: dict[str, list[float]] = {}
        for number, (piece, own) in enumerate(pieces):
            table, weight = self.config.clicks, self.config.teacher.weight
            batch = make_batch(piece, self.model, table, weight, own, self.ranks.device)
            last = number == len(pieces) - 1
            whole = self.objective
            # Processes exchange gradients once, after the last piece.
            with whole.no_sync() if isinstance(whole, DistributedDataParallel) and not last else nullcontext():
                total, parts = self.objective(batch)
                (total * (scale / len(pieces))).backward()
            for name, value in {"loss": total, **parts}.items():
                log.setdefault(name, []).append(float(value.detach()))
        return {name: sum(values) / len(values) for name, values in log.items()}

    def after_step(self, step: int) -> None:
        """Move renormalised statistics: only now does no gradient depend on them."""
        self.moments.apply(self.config.norm.momentum)
        self.moments.seen.clear()


def network_task(
    model: TraceNet,
    config: TrainConfig,
    sources: Sequence[Source],
    ranks: Ranks,
) -> NetworkTask:
    """The task of ``[run] task = "network"``.

    Raises:
        InputError: the configuration asks for what this task cannot do.
    """
    classes = None
    if config.model.num_classes > 1:
        classes = class_names([source.dataset for source in sources])
        if len(classes) != config.model.num_classes:
            raise InputError(
                f"[model] num_classes = {config.model.num_classes}, but the annotations name {len(classes)} "
                "categories; use that number, or 1 to learn without classes"
            )
    ranks.even_share(config.run.images_per_step, "[run] images_per_step")  # refuses what cannot be shared out
    mixture = Mixture(
        sources,
        config.augmentation,
        config.run.seed,
        classes,
        config.clicks.zoom_pairs,
        config.clicks.zoom_factor,
    )
    loader = SampleLoader(mixture, config.run.images_per_step, ranks.rank, ranks.world, config.run.workers)
    norms = []
    for part in (model.heads, model.mask_branch):
        if part is not None:
            norms += use_training_norms(part, config.norm.kind, config.norm.momentum)
    model.to(ranks.device)
    return NetworkTask(model, config, loader, norms, ranks)
