"""Train everything above C4 on a small machine: cached backbone planes, towers only at clicks.

    python -m tracenet.training.heads --dataset IMAGES ANNOTATIONS WEIGHT VIEWS --backbone F --out FOLDER

The ImageNet stem and stages 2-4 stay frozen and run once per augmented view (:mod:`tracenet.training.variants`);
stage 5 is fine-tuned at a lower rate, FPN, towers and mask branch are trained from scratch. Their BatchNorm is trained
by batch renormalisation and its statistics are frozen for the last part of the run, so training and inference compute
the same function.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from torch import Tensor, nn

from tracenet.data.coco import CocoDataset
from tracenet.files import save_json, write_whole
from tracenet.inference import HALF, normalise
from tracenet.models import TraceNet, TraceNetConfig
from tracenet.models.fpn import LEVELS, STRIDES
from tracenet.models.heads import THETA, THETA_SIZES, ConvNormAct
from tracenet.models.mask import SIZES_OF_INTEREST, MaskBranch, upsample_logits
from tracenet.models.resnet import Bottleneck
from tracenet.training import losses
from tracenet.training.variants import FeatureCache, Sample
from tracenet.training.windows import Moments, block_forward, fold, heads_at
from tracenet_kernels.errors import CheckpointError, InputError
from tracenet_kernels.ops import aligned_bilinear

CONFIG = TraceNetConfig(depth=50, stride_in_1x1=True, num_classes=1, tower_norm="bn_per_level", level_head=True)
LOSS_WEIGHTS = {"dice": 1.0, "bce": 1.0, "level": 1.0, "choice": 2.0, "box": 0.5, "score": 0.25, "centerness": 0.25}
EMA_EVERY = 5
TRAINED_LEVELS = 3
"""Levels of every click that learn box and mask: a choice one level off should still give a mask."""


@dataclass(frozen=True)
class Recipe:
    """What one run does; stored in its checkpoints. ``steps`` may be changed when resuming."""

    steps: int = 6000
    images_per_step: int = 2
    clicks: int = 12
    level_clicks: int = 16
    clicks_per_instance: int = 3
    lr: float = 5e-4
    norm_momentum: float = 0.02
    norm_frozen_from: float = 0.65
    backbone_lr_factor: float = 0.1
    weight_decay: float = 0.02
    warmup: int = 120
    clip: float = 2.0
    ema: float = 0.998
    working_size: int = 640
    crop_probability: float = 0.6
    calibration_images: int = 8
    bf16: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """A dataset in the mix: how often it is drawn, and how many different views of each image are used."""

    name: str
    dataset: CocoDataset
    weight: float
    views: int


def build_model(backbone: str | Path, seed: int, config: TraceNetConfig = CONFIG) -> TraceNet:
    """TraceNet with an ImageNet backbone and He-initialised layers above it, in evaluation mode."""
    torch.manual_seed(seed)
    model = TraceNet(config)
    state = overflow_silenced({k: v.float() for k, v in load_file(backbone).items()})
    try:
        missing, unexpected = model.backbone.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{backbone} does not fit ResNet-{config.depth}: {error}") from error
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise CheckpointError(f"{backbone} does not fit ResNet-{config.depth}: missing {missing}, extra {unexpected}")
    for part in (model.fpn, model.heads, model.mask_branch):
        for module in part.modules() if part is not None else ():
            if isinstance(module, ConvNormAct):
                nn.init.kaiming_normal_(module.conv.weight, nonlinearity="relu")
    for module in model.fpn.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    heads = model.heads
    assert heads.theta is not None
    theta_bias, reg_bias, score_bias = heads.theta.bias, heads.reg.bias, heads.logits.bias
    assert theta_bias is not None
    assert reg_bias is not None
    assert score_bias is not None
    # The mask head starts as one ordinary small network for everyone; the filters' prediction adds to it.
    start = torch.zeros(THETA)
    at = 0
    for size, fan_in in zip(THETA_SIZES[:3], (10, 8, 8), strict=True):
        start[at : at + size] = torch.randn(size) * math.sqrt(2 / fan_in)
        at += size
    with torch.no_grad():
        theta_bias.copy_(start)
        reg_bias.fill_(3.0)  # boxes of about six cells; a ReLU that starts at zero would not learn
        score_bias.zero_()
    # NHWC is the faster layout for convolutions on a CPU; torch leaves this overload untyped.
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def overflow_silenced(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function in finite numbers: a BatchNorm channel whose variance overflowed to infinity gives its bias.

    Half precision ends at 65504, which the stem's variance on 0-255 images can exceed.
    """
    out = dict(state)
    for key, variance in state.items():
        if not key.endswith("running_var") or bool(torch.isfinite(variance).all()):
            continue
        lost = torch.isinf(variance)
        out[key] = variance.masked_fill(lost, 1.0)
        for name in ("weight", "running_mean"):
            other = key.replace("running_var", name)
            out[other] = state[other].masked_fill(lost, 0.0)
    return out


def frozen_planes(model: TraceNet, bf16: bool) -> Callable[[Image.Image], dict[str, Tensor]]:
    """Function RGB image -> ``{"C3", "C4"}``, the frozen part of the backbone."""
    backbone = model.backbone
    layer1, layer2, layer3 = (backbone.get_submodule(f"layer{i}") for i in (1, 2, 3))

    @torch.no_grad()
    def run(image: Image.Image) -> dict[str, Tensor]:
        x = normalise(torch.from_numpy(np.array(image)), model.config).to(memory_format=torch.channels_last)
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
    trained = next(model.backbone.get_submodule("layer4").parameters()).requires_grad
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        c5 = stage5(model, c4)
    return model.fpn(c3, c4, c5)[1]


def mask_features(branch: MaskBranch, p: dict[int, Tensor], moments: Moments | None = None) -> Tensor:
    """:class:`MaskBranch` with :func:`tracenet.training.windows.renorm`."""
    x = block_forward(branch.get_submodule("refine3"), p[3], moments)
    for level in (4, 5):
        refined = block_forward(branch.get_submodule(f"refine{level}"), p[level], moments)
        x = x + aligned_bilinear(refined, 2 ** (level - 3))
    for block in branch.tower:
        x = block_forward(block, x, moments)
    return branch.out(x)


@torch.no_grad()
def calibrate(model: TraceNet, samples: Sequence[Sample]) -> None:
    """Set the new layers' BatchNorm statistics to the average over ``samples``, layer by layer as they run."""
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
    for sample in samples:
        p = pyramid(model, sample.planes, torch.float32)
        for level in LEVELS:
            # A plane of one cell has no variance.
            if p[level].shape[-2] * p[level].shape[-1] > 1:
                model.heads(p[level], level)
        if model.mask_branch is not None:
            model.mask_branch(p)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


def draw_clicks(sample: Sample, recipe: Recipe, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Instances ``[N]`` and clicks ``[N, 2]`` (x, y) on the view: half anywhere inside, half in the inner part.

    The first ``recipe.clicks`` are for all losses, up to ``recipe.level_clicks`` more for the choice of the level only.
    """
    rounds = math.ceil(recipe.clicks_per_instance * (recipe.clicks + recipe.level_clicks) / recipe.clicks)
    order = np.concatenate([rng.permutation(len(sample.masks)) for _ in range(rounds)])
    chosen = order[: recipe.clicks + recipe.level_clicks].astype(np.int64)
    clicks = np.empty((len(chosen), 2), np.float32)
    for i, instance in enumerate(chosen):
        depth = sample.depth[instance].numpy()
        least = 1 if rng.random() < 0.5 else max(1, depth.max() // 2)
        ys, xs = np.nonzero(depth >= least)
        k = rng.integers(len(ys))
        clicks[i] = HALF * (xs[k] + rng.random()), HALF * (ys[k] + rng.random())
    return torch.from_numpy(chosen), torch.from_numpy(clicks)


def sample_losses(
    model: TraceNet, sample: Sample, instance: Tensor, clicks: Tensor, recipe: Recipe, moments: Moments | None = None
) -> dict[str, Tensor]:
    """Mean losses over the clicks of one view, and ``iou`` of the masks at each click's likeliest level.

    Every click trains box, score, centerness and mask at its likeliest levels, weighted by their likelihood. The level
    head learns the size of the object (``level``, cross-entropy) and to choose the level whose mask is best
    (``choice``, one minus the expected IoU under its softmax).
    """
    assert isinstance(model.mask_branch, MaskBranch)
    assert model.mask_head is not None
    bf16, full = recipe.bf16, min(recipe.clicks, recipe.clicks_per_instance * len(sample.masks))
    boxes = sample.boxes[instance]
    wanted = losses.level_targets(boxes)
    top = wanted.topk(TRAINED_LEVELS, dim=1)
    share = (top.values / top.values.sum(1, keepdim=True)).clamp(min=0.15)
    pair_weight = torch.zeros_like(wanted).scatter_(1, top.indices, share)
    pair_weight[full:] = 0
    # The cache of cast weights is one for all threads and cleared by whoever leaves first: sums would depend on luck.
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
        p = pyramid(model, sample.planes, torch.bfloat16 if bf16 else torch.float32)
        features = mask_features(model.mask_branch, p, moments).float()
        out, click_of, level_of = heads_at(model.heads, p, clicks, pair_weight > 0, moments)
    weight = pair_weight[click_of, level_of - LEVELS[0]]
    weight = weight / weight.sum()
    sizes = torch.tensor([SIZES_OF_INTEREST[int(level)] for level in level_of])
    low = model.mask_head(features, out["theta"], clicks[click_of], sizes)
    h, w = sample.masks.shape[-2:]
    logits = upsample_logits(low)[:, 0, :h, :w]  # [M, h, w]
    target = sample.masks[instance[click_of]].float() / 255
    pair_boxes = boxes[click_of]
    with torch.no_grad():
        # What inference keeps: the mask inside the box and a margin.
        quality = losses.hard_iou(logits, target, losses.box_samples(pair_boxes, h, w, HALF, 0.15, 4))
    stride = torch.tensor([STRIDES[int(level)] for level in level_of])
    centres = (clicks[click_of] / stride[:, None]).floor() * stride[:, None] + (stride // 2)[:, None]
    predicted = torch.cat([centres - out["reg"][:, :2], centres + out["reg"][:, 2:]], 1)
    score = out["logits"][click_of, level_of - LEVELS[0]]
    middle = losses.centerness(centres, pair_boxes)
    level_log = F.log_softmax(out["level"], 1)
    each = {
        "dice": losses.dice_loss(logits, target),
        "bce": losses.window_bce(logits, target, pair_boxes, HALF),
        "box": losses.giou_loss(predicted, pair_boxes),
        "score": F.binary_cross_entropy_with_logits(score, quality, reduction="none"),
        "centerness": F.binary_cross_entropy_with_logits(out["ctr"], middle, reduction="none"),
    }
    result = {name: (value * weight).sum() for name, value in each.items()}
    result["level"] = -(wanted * level_log).sum(1).mean()
    reached = torch.zeros_like(wanted).index_put((click_of, level_of - LEVELS[0]), quality)
    result["choice"] = 1 - (level_log.exp() * reached)[:full].sum(1).mean()
    best = top.indices[:, 0][click_of] + LEVELS[0] == level_of
    result["iou"] = quality[best].mean()
    result["level_hit"] = (out["level"].argmax(1) == top.indices[:, 0]).float().mean()
    return result


class Trainer:
    """The state of one run: model, average of its weights, optimiser and step; saved and restored as a whole."""

    def __init__(
        self, model: TraceNet, recipe: Recipe, sources: Sequence[Source], cache: FeatureCache, workers: int = 2
    ) -> None:
        self.model, self.recipe, self.sources, self.cache = model, recipe, list(sources), cache
        if not any(len(s.dataset) for s in sources):
            raise InputError("no dataset holds a usable instance; give at least one annotated image")
        self.step = 0
        frozen = ("backbone.conv1", "backbone.bn1", "backbone.layer1", "backbone.layer2", "backbone.layer3")
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            in_backbone = name.startswith("backbone.")
            parameter.requires_grad_(not name.startswith(frozen) and (not in_backbone or recipe.backbone_lr_factor > 0))
            if parameter.requires_grad:
                groups.setdefault((in_backbone, parameter.ndim > 1), []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "factor": recipe.backbone_lr_factor if in_backbone else 1.0,
                    "weight_decay": recipe.weight_decay if decay else 0.0,
                }
                for (in_backbone, decay), parameters in groups.items()
            ],
            lr=recipe.lr,
            fused=True,
        )
        self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        self.drawn: tuple[int, list[Future[tuple[Sample, Tensor, Tensor]]]] = (-1, [])
        self.trained = [p for parameters in groups.values() for p in parameters]
        self.average = [p.detach().clone() for p in self.trained]

    def rate(self) -> float:
        """Learning rate of the current step: linear warm-up, then cosine to 1 %."""
        r = self.recipe
        if self.step < r.warmup:
            return r.lr * (self.step + 1) / r.warmup
        t = min(1.0, (self.step - r.warmup) / max(1, r.steps - r.warmup))
        return r.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * t)))

    def draw(self, rng: np.random.Generator) -> Sample:
        """A random view of a random image with at least one instance in it."""
        weights = np.array([s.weight for s in self.sources])
        while True:
            source = self.sources[rng.choice(len(self.sources), p=weights / weights.sum())]
            record = source.dataset.records[rng.integers(len(source.dataset))]
            sample = self.cache.get(source.name, source.dataset, record, int(rng.integers(source.views)))
            if len(sample.masks):
                return sample

    def calibrate(self) -> None:
        """Measure BatchNorm statistics on the first views; call once, before the first step."""
        rng = np.random.default_rng([self.recipe.seed, 0, 1])
        calibrate(self.model, [self.draw(rng) for _ in range(self.recipe.calibration_images)])

    def _draw(self, step: int, index: int) -> tuple[Sample, Tensor, Tensor]:
        rng = np.random.default_rng([self.recipe.seed, step, index])
        sample = self.draw(rng)
        return sample, *draw_clicks(sample, self.recipe, rng)

    def _gradients(
        self, drawn: Future[tuple[Sample, Tensor, Tensor]]
    ) -> tuple[tuple[Tensor | None, ...], dict[str, Tensor], Moments]:
        moments = Moments()
        moving = self.step < self.recipe.norm_frozen_from * self.recipe.steps
        values = sample_losses(self.model, *drawn.result(), self.recipe, moments if moving else None)
        total = torch.stack([LOSS_WEIGHTS[k] * v for k, v in values.items() if k in LOSS_WEIGHTS]).sum()
        gradients = torch.autograd.grad(total / self.recipe.images_per_step, self.trained, allow_unused=True)
        return gradients, {"loss": total.detach(), **{k: v.detach() for k, v in values.items()}}, moments

    def _submit_draws(self, step: int) -> list[Future[tuple[Sample, Tensor, Tensor]]]:
        return [self.pool.submit(self._draw, step, i) for i in range(self.recipe.images_per_step)]

    def advance(self) -> dict[str, float]:
        """One optimiser step. Returns the step's mean losses.

        Each image is one single-threaded task: threads that need not wait for each other at every operation keep
        their speed on a machine that others use too. Sums are formed in the images' order, whoever is first.
        """
        r = self.recipe
        rate = self.rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        step, drawn = self.drawn if self.drawn[0] == self.step else (self.step, self._submit_draws(self.step))
        tasks = [self.pool.submit(self._gradients, one) for one in drawn]
        # The next step's views fill the time until the slower image of this one is done.
        self.drawn = (step + 1, self._submit_draws(step + 1))
        for parameter in self.trained:
            parameter.grad = None
        log: dict[str, float] = {}
        # Statistics must not change while another image's gradients still depend on them.
        for gradients, values, moments in [task.result() for task in tasks]:
            moments.apply(r.norm_momentum)
            for parameter, gradient in zip(self.trained, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            for name, value in values.items():
                log[name] = log.get(name, 0.0) + float(value) / r.images_per_step
        norm = nn.utils.clip_grad_norm_([p for p in self.trained if p.grad is not None], r.clip)
        if not bool(torch.isfinite(norm)):
            raise InputError(f"step {self.step}: the gradient is not finite; lower the learning rate {rate:g}")
        self.optimizer.step()
        self.step += 1
        if self.step % EMA_EVERY == 0:
            # Early averages follow quickly, so that the random start is forgotten.
            decay = min(r.ema, self.step / (self.step + 10)) ** EMA_EVERY
            torch._foreach_lerp_(self.average, [p.detach() for p in self.trained], 1 - decay)
        log["grad_norm"], log["lr"] = float(norm), rate
        return log

    def averaged_state(self) -> dict[str, Tensor]:
        """State dict of the model with averaged weights in place of the trained ones."""
        replaced = {id(p): a for p, a in zip(self.trained, self.average, strict=True)}
        state = dict(self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            state[name] = replaced.get(id(parameter), parameter.detach())
        return state

    def save(self, path: Path) -> None:
        """Write everything to ``path``; a kill at any moment leaves the old or the new file, never half of one."""
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        write_whole(path, lambda file: torch.save(state, file))

    def restore(self, path: Path) -> None:
        """Continue where :meth:`save` left off."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for own, saved in zip(self.average, state["average"], strict=True):
            own.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def hold_back(annotations: Path, count: int, out: Path) -> set[int]:
    """Pick ``count`` evenly spaced images of a COCO json for selection and write their annotations to ``out``."""
    data = json.loads(annotations.read_text())
    ids = sorted({a["image_id"] for a in data["annotations"]})
    chosen = {ids[i * len(ids) // count] for i in range(count)}
    data["images"] = [image for image in data["images"] if image["id"] in chosen]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in chosen]
    save_json(data, out)
    return chosen


def run(trainer: Trainer, out: Path, save_minutes: float, log_every: int = 20) -> None:
    """Train to ``recipe.steps``, writing ``state.pt`` and ``log.jsonl`` in ``out``."""
    state = out / "state.pt"
    if state.exists():
        trainer.restore(state)
    else:
        trainer.calibrate()
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    recent: list[dict[str, float]] = []
    saved = started = time.monotonic()
    with Progress(*columns) as progress, (out / "log.jsonl").open("a") as log:
        task = progress.add_task("", total=trainer.recipe.steps, completed=trainer.step)
        while trainer.step < trainer.recipe.steps:
            recent.append(trainer.advance())
            if trainer.step % log_every == 0:
                mean = {k: round(sum(r[k] for r in recent) / len(recent), 5) for k in recent[0]}
                mean |= {"step": trainer.step, "seconds_per_step": (time.monotonic() - started) / len(recent)}
                log.write(json.dumps(mean) + "\n")
                log.flush()
                recent, started = [], time.monotonic()
                progress.update(task, description=f"loss {mean['loss']:.3f} iou {mean['iou']:.3f}")
            progress.update(task, completed=trainer.step)
            if time.monotonic() - saved > save_minutes * 60:
                trainer.save(state)
                saved = time.monotonic()
    trainer.save(state)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset",
        nargs=4,
        action="append",
        required=True,
        metavar=("IMAGES", "ANNOTATIONS", "WEIGHT", "VIEWS"),
        help="COCO json with its folder, how often it is drawn, and how many views of each image are cached",
    )
    parser.add_argument("--backbone", type=Path, required=True, help="ImageNet ResNet-50, safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder of cached planes; OUT/cache by default")
    parser.add_argument("--holdout", type=int, default=25, help="images of the first dataset kept for selection")
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--lr", type=float, default=Recipe.lr)
    parser.add_argument(
        "--backbone-lr-factor", type=float, default=Recipe.backbone_lr_factor, help="of stage 5; 0 freezes it"
    )
    parser.add_argument("--clicks", type=int, default=Recipe.clicks)
    parser.add_argument("--images-per-step", type=int, default=Recipe.images_per_step)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--fp32", action="store_true", help="train in fp32 instead of bf16 autocast")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    held: set[int] = set()
    if args.holdout:
        held = hold_back(Path(args.dataset[0][1]), args.holdout, args.out / "holdout.json")
    sources = [
        Source(f"d{i}", CocoDataset(images, annotations, without=held if i == 0 else ()), float(weight), int(views))
        for i, (images, annotations, weight, views) in enumerate(args.dataset)
    ]
    recipe = Recipe(
        steps=args.steps,
        lr=args.lr,
        backbone_lr_factor=args.backbone_lr_factor,
        clicks=args.clicks,
        images_per_step=args.images_per_step,
        seed=args.seed,
        bf16=not args.fp32,
    )
    model = build_model(args.backbone, args.seed)
    cache = FeatureCache(
        args.cache or args.out / "cache",
        frozen_planes(model, recipe.bf16),
        args.seed,
        recipe.working_size,
        recipe.crop_probability,
    )
    run(Trainer(model, recipe, sources, cache), args.out, args.save_minutes)


if __name__ == "__main__":
    main()
