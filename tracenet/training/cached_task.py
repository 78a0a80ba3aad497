"""Train everything above C4 on a small machine: cached backbone planes, towers only at clicks.

Stem and stages 2-4 stay frozen and run once per augmented view (:mod:`tracenet.training.feature_cache`). Stage 5, FPN,
towers and mask branch are trained; the towers run on windows around the clicks (:mod:`tracenet.training.windows`).
Their BatchNorm is trained by batch renormalisation, so training and inference compute the same function.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracenet.conventions import LEVELS
from tracenet.data import ImageRecord
from tracenet.data.clicks import training_clicks
from tracenet.data.mixture import Mixture, Source
from tracenet.distributed import Ranks
from tracenet.inference import normalise
from tracenet.models import TraceNet
from tracenet.models.mask import MaskBranch, PlainMaskBranch
from tracenet.models.resnet import Bottleneck
from tracenet.training.click_objective import ClickTargets, ViewLosses, click_losses, view_losses
from tracenet.training.config import TrainConfig, source_name
from tracenet.training.feature_cache import CachedView, FeatureCache
from tracenet.training.windows import Moments, block_forward, fold, heads_at
from tracenet_kernels.errors import InputError
from tracenet_kernels.ops import aligned_bilinear

FROZEN_STAGES = 4
"""Stem and stages 2-4, whose output is cached."""
CALIBRATION_VIEWS = 8


def frozen_planes(model: TraceNet, bf16: bool) -> Callable[[Tensor], dict[str, Tensor]]:
    """Function of an uint8 RGB image ``[H, W, 3]`` -> ``{"C3", "C4"}``, the frozen part of the backbone."""
    backbone = model.backbone
    layer1, layer2, layer3 = (backbone.get_submodule(f"layer{i}") for i in (1, 2, 3))

    @torch.no_grad()
    def run(image: Tensor) -> dict[str, Tensor]:
        x = torch.from_numpy(normalise(image.numpy(), model.config)).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            x = backbone.maxpool(F.relu(backbone.bn1(backbone.conv1(x))))
            c3 = layer2(layer1(x))
            return {"C3": c3, "C4": layer3(c3)}

    return run


def stage5(model: TraceNet, x: Tensor) -> Tensor:
    """C4 -> C5 with BatchNorm folded into the convolutions (stored statistics)."""
    for block in model.backbone.get_submodule("layer4").children():
        assert isinstance(block, Bottleneck)
        y = x
        for conv, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2), (block.conv3, block.bn3)):
            y = F.conv2d(y, *fold(conv, norm), stride=conv.stride, padding=conv.padding)
            y = F.relu(y) if conv is not block.conv3 else y
        if block.downsample is not None:
            projection = block.downsample[0]
            assert isinstance(projection, nn.Conv2d)
            x = F.conv2d(x, *fold(projection, block.downsample[1]), stride=projection.stride)
        x = F.relu(x + y)
    return x


def pyramid(model: TraceNet, planes: dict[str, Tensor], dtype: torch.dtype) -> dict[int, Tensor]:
    """Cached C3 and C4 -> P3..P7."""
    c3, c4 = (planes[k].to(dtype, memory_format=torch.channels_last) for k in ("C3", "C4"))
    trained = any(p.requires_grad for p in model.backbone.get_submodule("layer4").parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        c5 = stage5(model, c4)
    return model.fpn(c3, c4, c5)[1]


def mask_features(branch: nn.Module, p: dict[int, Tensor], moments: Moments | None = None) -> Tensor:
    """:class:`MaskBranch` with :func:`tracenet.training.windows.renorm`, or :class:`PlainMaskBranch`."""
    if isinstance(branch, PlainMaskBranch):
        return branch(p)
    assert isinstance(branch, MaskBranch)
    x = block_forward(branch.get_submodule("refine3"), p[3], moments)
    for level in (4, 5):
        refined = block_forward(branch.get_submodule(f"refine{level}"), p[level], moments)
        x = x + aligned_bilinear(refined, 2 ** (level - 3))
    for block in branch.tower:
        x = block_forward(block, x, moments)
    return branch.out(x)


@torch.no_grad()
def calibrate(model: TraceNet, views: Sequence[CachedView]) -> None:
    """Set the new layers' BatchNorm statistics to the average over ``views``, layer by layer as they run."""
    norms = [
        m
        for part in (model.heads, model.mask_branch)
        if part is not None
        for m in part.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    for view in views:
        p = pyramid(model, view.planes, torch.float32)
        for level in LEVELS:
            # A plane of one cell has no variance.
            if p[level].shape[-2] * p[level].shape[-1] > 1:
                model.heads(p[level], level)
        if model.mask_branch is not None:
            model.mask_branch(p)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


class CachedTask:
    """Gradients of the one-click objective from cached planes, one single-threaded task per sample.

    Threads that need not wait for each other at every operation keep their speed on a machine that others use too.
    Sums are formed in the samples' order, whoever is first, so a run repeats bit for bit.

    Args:
        model: stage 5 and everything above is trained.
        config: of the run.
        sources: datasets in the mix, in the order of ``config.data``.
        cache: of the frozen planes.
        ranks: this process among all.
    """

    def __init__(
        self, model: TraceNet, config: TrainConfig, sources: Sequence[Source], cache: FeatureCache, ranks: Ranks
    ) -> None:
        self.model, self.config, self.cache, self.ranks = model, config, cache, ranks
        self.mixture = Mixture(sources, config.augmentation, config.run.seed)
        self.count = ranks.even_share(config.run.images_per_step, "[run] images_per_step")
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.pool = ThreadPoolExecutor(max(1, config.run.workers), initializer=torch.set_num_threads, initargs=(1,))
        self.drawn: tuple[int, list[Future[list[CachedView]]]] = (-1, [])
        self.moments: list[Moments] = []
        self.norm_layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        self.norms = {id(m): k for k, m in enumerate(self.norm_layers)}

    def draw(self, rng: np.random.Generator) -> list[CachedView]:
        """Views of a random photo with at least one object in it: one, or a pair for the zoom pyramid."""
        clicks = self.config.clicks

        def make(k: int, record: ImageRecord) -> list[CachedView] | None:
            source, most = self.mixture.sources[k], self.config.data[k].views
            number = int(rng.integers(most))
            paired = number < round(clicks.zoom_pairs * most)
            scales = (1.0, clicks.zoom_factor) if paired else (1.0,)
            views = self.cache.get(source.name, source.dataset, record, number, scales)
            return views if len(views[0].sample) else None

        return self.mixture.usable(rng, make)

    def prepare(self) -> None:
        """Measure BatchNorm statistics on the first views, unless the run starts from a trained network."""
        if self.config.init.checkpoint:
            return
        rng = np.random.default_rng([self.config.run.seed, 0, 1])
        calibrate(self.model, [self.draw(rng)[0] for _ in range(CALIBRATION_VIEWS)])

    def _submit(self, step: int) -> list[Future[list[CachedView]]]:
        seed, first = self.config.run.seed, self.ranks.rank * self.count
        return [self.pool.submit(self.draw, np.random.default_rng([seed, step, first + i])) for i in range(self.count)]

    def sample_losses(
        self, views: Sequence[CachedView], rng: np.random.Generator, moments: Moments | None
    ) -> dict[str, Tensor]:
        """Losses and figures of one sample: its clicks on every view, and the choice among all their levels."""
        table, first = self.config.clicks, views[0].sample
        instance, points, full = training_clicks(
            first.masks, first.depth, rng, table.per_image, table.level_only, table.per_instance, table.where
        )
        return click_losses(
            [
                self._view_losses(view, instance, points * (view.sample.scale / first.scale), full, moments)
                for view in views
            ]
        )

    def _view_losses(
        self, view: CachedView, instance: Tensor, points: Tensor, full: int, moments: Moments | None
    ) -> ViewLosses:
        model, sample, objective = self.model, view.sample, self.config.objective.clicks
        assert model.mask_branch is not None
        bf16 = self.config.run.precision == "bf16"
        weight = sample.loss_weights(self.config.teacher.weight)
        targets = ClickTargets(
            points, sample.masks[instance].float() / 255, sample.boxes[instance], full, weight[instance]
        )
        _, pairs = targets.level_weights(objective)
        # The cache of cast weights is one for all threads and cleared by whoever leaves first: sums would depend on
        # luck.
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            p = pyramid(model, view.planes, torch.bfloat16 if bf16 else torch.float32)
            features = mask_features(model.mask_branch, p, moments).float()
            heads = heads_at(model.heads, p, points, pairs > 0, moments)
        return view_losses(model, heads, features, targets, objective)

    def _gradients(
        self, step: int, index: int, drawn: Future[list[CachedView]], scale: float
    ) -> tuple[tuple[Tensor | None, ...], dict[str, float], Moments]:
        moments = Moments()
        config = self.config
        moving = config.norm.kind != "frozen" and step < config.norm.frozen_from * config.run.steps
        rng = np.random.default_rng([config.run.seed, step, self.ranks.rank * self.count + index, 1])
        values = self.sample_losses(drawn.result(), rng, moments if moving else None)
        total = config.objective.clicks.total(values)
        gradients = torch.autograd.grad(total * (scale / self.count), self.trained, allow_unused=True)
        return gradients, {k: float(v.detach()) for k, v in {"loss": total, **values}.items()}, moments

    def gradients(self, step: int, scale: float) -> dict[str, float]:
        at, drawn = self.drawn if self.drawn[0] == step else (step, self._submit(step))
        tasks = [self.pool.submit(self._gradients, step, i, one, scale) for i, one in enumerate(drawn)]
        # The next step's views fill the time until the slower sample of this one is done.
        self.drawn = (at + 1, self._submit(at + 1))
        log: dict[str, float] = {}
        for gradients, values, moments in [task.result() for task in tasks]:
            # Statistics must not change while another sample's gradients still depend on them.
            self.moments.append(moments)
            for parameter, gradient in zip(self.trained, gradients, strict=True):
                if gradient is None:
                    continue
                if parameter.grad is None:
                    # Fused optimisers read a gradient by its parameter's layout.
                    parameter.grad = torch.empty_like(parameter).copy_(gradient)
                else:
                    parameter.grad.add_(gradient)
            for name, value in values.items():
                log[name] = log.get(name, 0.0) + value / self.count
        self.ranks.average_gradients(self.trained)
        return log

    def after_step(self, step: int) -> None:
        """Move the stored statistics by what all processes met, in order of rank, so that they stay the same on all."""
        seen = [[(self.norms[id(norm)], mean, var) for norm, mean, var in moments.seen] for moments in self.moments]
        for found in self.ranks.gather(seen):
            for one in found:
                Moments([(self.norm_layers[k], mean, var) for k, mean, var in one]).apply(self.config.norm.momentum)
        self.moments.clear()


def check_config(config: TrainConfig) -> None:
    """Refuse what cannot be trained from cached planes.

    Raises:
        InputError: says which setting, and what it must be.
    """
    wrong = []
    if config.optimizer.frozen_stages < FROZEN_STAGES:
        wrong.append(f"[optimizer] frozen_stages = {config.optimizer.frozen_stages}, at least {FROZEN_STAGES}")
    if config.objective.detection != "clicks" or config.objective.masks != "clicks":
        wrong.append("[objective] detection and masks, both 'clicks'")
    if config.norm.kind not in ("renorm", "frozen"):
        wrong.append(f"[norm] kind = {config.norm.kind!r}, 'renorm' or 'frozen'")
    if config.run.precision == "fp16":
        wrong.append("[run] precision = 'fp16', 'fp32' or 'bf16'")
    if config.run.device == "cuda":
        wrong.append("[run] device = 'cuda', 'auto' or 'cpu'")
    if not config.model.tower_norm.startswith("bn") or config.model.mask_norm != "bn":
        wrong.append("[model] tower_norm and mask_norm, BatchNorm")
    if wrong:
        raise InputError(f"[run] task = 'cached' needs other settings: {'; '.join(wrong)}")


def fingerprint(model: TraceNet, config: TrainConfig) -> str:
    """Name for all that cached views depend on: frozen weights, precision, seed, augmentation, annotations, teacher."""
    plain = [config.run.precision, config.run.seed, asdict(config.augmentation), asdict(config.teacher)]
    digest = hashlib.sha256(repr(plain).encode())
    for entry in config.data:
        digest.update(repr((source_name(entry), entry.images, entry.hold_out)).encode())
        for path in (entry.annotations, entry.proposals if config.teacher.enabled else ""):
            digest.update(Path(path).read_bytes() if path else b"")
    for name, value in model.backbone.state_dict().items():
        if not name.startswith("layer4") and not name.endswith("num_batches_tracked"):
            digest.update(value.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def cached_task(
    model: TraceNet,
    config: TrainConfig,
    sources: Sequence[Source],
    out: Path,
    ranks: Ranks,
) -> CachedTask:
    """The task of ``[run] task = "cached"``; planes are cached below ``[run] cache``.

    Raises:
        InputError: the configuration asks for what this task cannot do.
    """
    check_config(config)
    folder = Path(config.run.cache) if config.run.cache else out / "cache"
    cache = FeatureCache(
        folder / fingerprint(model, config),
        frozen_planes(model, config.run.precision == "bf16"),
        config.run.seed,
        config.augmentation,
    )
    return CachedTask(model, config, sources, cache, ranks)
