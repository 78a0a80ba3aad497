"""Training samples: an augmented view of a photo with its objects, as tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tracenet.data.augment import (
    MIN_SAMPLES,
    MIN_VISIBLE,
    Augmentation,
    Paste,
    View,
    divisible,
    draw_pastes,
    draw_view,
    recolour,
    render_mask,
    render_paste,
    render_pixels,
    view_box,
)
from tracenet.data.clicks import interior_depth
from tracenet.data.coco import CocoDataset, ImageRecord, Instance
from tracenet.inference import HALF
from tracenet_kernels.errors import InputError

MAX_INSTANCES = 64
"""Views with more objects show a random choice of them: bounds the time and memory of a step."""
UNKNOWN_CLASS = -1
"""Class of an object whose category is not known, such as a proposal's."""
_DENOMINATOR = 16

ClassOf = Callable[[CocoDataset, Instance], int]


@dataclass
class TrainingSample:
    """One view with its objects.

    Attributes:
        image: uint8 ``[H, W, 3]`` RGB, not padded.
        masks: uint8 ``[n, ceil(H/2), ceil(W/2)]`` coverage 0-255: sample i spans view pixels ``[2i, 2i + 2)``.
        depth: uint8, same shape: distance to the mask's edge in samples, at most 255, 0 outside.
        boxes: float32 ``[n, 4]`` (x0, y0, x1, y1) in view pixels.
        categories: int64 ``[n]`` class index, 0 when class-agnostic, :data:`UNKNOWN_CLASS` where it is not known.
        proposal: bool ``[n]``, proposed by another model.
        weight: float32 ``[n]``, 1 for true masks, the score of proposals.
        crowd: uint8 ``[ceil(H/2), ceil(W/2)]`` coverage of regions of many objects not told apart: not background.
        scale: view pixels per photo pixel.
        image_id: of the photo.
        source: name of the dataset the photo is from.
    """

    image: Tensor
    masks: Tensor
    depth: Tensor
    boxes: Tensor
    categories: Tensor
    proposal: Tensor
    weight: Tensor
    crowd: Tensor
    scale: float
    image_id: int
    source: str

    def __len__(self) -> int:
        return len(self.masks)

    def loss_weights(self, proposal_weight: float) -> Tensor:
        """``[n]`` weights of the objects' losses: 1 for true masks, ``proposal_weight`` times the score for others."""
        return torch.where(self.proposal, self.weight * proposal_weight, torch.ones_like(self.weight))


@dataclass(frozen=True)
class VisibleInstance:
    """An object of which enough lies inside a view: its mask ``[H, W]`` on the photo, and in the view."""

    instance: Instance
    mask: NDArray[np.bool_]
    box: NDArray[np.float32]
    coverage: NDArray[np.uint8]


def class_agnostic(dataset: CocoDataset, instance: Instance) -> int:
    """Class 0 for everything."""
    return 0


def by_category(dataset: CocoDataset, instance: Instance) -> int:
    """:meth:`CocoDataset.class_index` of the object's category."""
    return UNKNOWN_CLASS if instance.category_id is None else dataset.class_index(instance.category_id)


def visible_instances(
    dataset: CocoDataset, record: ImageRecord, view: View, instances: Sequence[Instance] | None = None
) -> list[VisibleInstance]:
    """Usable objects of which at least :data:`MIN_VISIBLE` of the box and :data:`MIN_SAMPLES` samples are in the view.

    Masks of objects that lie outside the view are not decoded.
    """
    found = []
    for instance in record.instances if instances is None else instances:
        if not _meets(instance, view):
            continue
        mask = dataset.usable_mask(record, instance)
        if mask is None:
            continue
        box, left = view_box(mask, view)
        if left < MIN_VISIBLE:
            continue
        coverage = render_mask(mask, view)
        if int((coverage >= 128).sum()) >= MIN_SAMPLES:
            found.append(VisibleInstance(instance, mask, box, coverage))
    return found


def _meets(instance: Instance, view: View) -> bool:
    (x0, y0, x1, y1), (left, top, right, bottom) = instance.box, view.crop
    # Polygons are drawn up to a pixel beyond their corners.
    return x0 < right + 1 and x1 > left - 1 and y0 < bottom + 1 and y1 > top - 1


def stack_masks(coverages: Sequence[NDArray[np.uint8]], view: View) -> tuple[Tensor, Tensor]:
    """``masks`` and ``depth`` of :class:`TrainingSample`, ``[n, ceil(H/2), ceil(W/2)]``; n may be 0."""
    masks = np.zeros((len(coverages), math.ceil(view.height / HALF), math.ceil(view.width / HALF)), np.uint8)
    depth = np.zeros_like(masks)
    for i, coverage in enumerate(coverages):
        masks[i] = coverage
        depth[i] = np.ceil(interior_depth(coverage >= 128)).clip(0, 255)
    return torch.from_numpy(masks), torch.from_numpy(depth)


def make_sample(
    dataset: CocoDataset,
    record: ImageRecord,
    rng: np.random.Generator,
    augmentation: Augmentation,
    partner: tuple[CocoDataset, ImageRecord] | None = None,
    class_of: ClassOf = class_agnostic,
    source: str = "",
    max_instances: int = MAX_INSTANCES,
) -> TrainingSample:
    """One augmented view of ``record``; it may show no object.

    Args:
        dataset, record: the photo.
        rng: the sample depends on its state alone.
        augmentation: what may happen.
        partner: photo whose true objects may be pasted onto the view, with probability ``augmentation.copy_paste``.
        class_of: class index of an object.
        source: name of the dataset.
        max_instances: more objects than this are thinned out at random.

    Raises:
        ImageError, InputError: an image, or with ``on_error="raise"`` a mask, cannot be used; named by file and id.
    """
    return make_samples(dataset, record, rng, augmentation, (1.0,), partner, class_of, source, max_instances)[0]


def zoom_pair(
    dataset: CocoDataset,
    record: ImageRecord,
    rng: np.random.Generator,
    augmentation: Augmentation,
    factor: float = 0.5,
    partner: tuple[CocoDataset, ImageRecord] | None = None,
    class_of: ClassOf = class_agnostic,
    source: str = "",
) -> tuple[TrainingSample, TrainingSample]:
    """A view, and the same part of the photo with the same objects at ``factor`` times its scale."""
    first, second = make_samples(dataset, record, rng, augmentation, (1.0, factor), partner, class_of, source)
    return first, second


def make_samples(
    dataset: CocoDataset,
    record: ImageRecord,
    rng: np.random.Generator,
    augmentation: Augmentation,
    scales: Sequence[float],
    partner: tuple[CocoDataset, ImageRecord] | None = None,
    class_of: ClassOf = class_agnostic,
    source: str = "",
    max_instances: int = MAX_INSTANCES,
) -> list[TrainingSample]:
    """One view at several scales: the same part of the photo, the same objects in the same order.

    The view's sides are cut so that they are whole, even numbers of pixels at every scale: a position (x, y) of the
    first sample is (x, y) * scales[k] / scales[0] on sample k. Which objects are shown is decided on the first; on
    smaller ones a mask may have no sample of 128 left.

    Args:
        scales: relative to the view that is drawn, fractions of denominators up to 16.

    Other arguments and errors are those of :func:`make_sample`; InputError also for scales that are no such fractions.
    """
    photo = dataset.image(record)
    true = [i for i in record.instances if not i.proposal] or record.instances
    base = draw_view(record.width, record.height, rng, augmentation, [i.box for i in true])
    step = HALF
    if tuple(scales) != (1.0,):
        step = _whole_step(scales)
        base = divisible(base, step)
    near = [i for i in record.instances if _meets(i, base)]
    if len(near) > max_instances:
        near = [near[k] for k in sorted(rng.permutation(len(near))[:max_instances])]
    first = base.resized(scales[0])
    objects = visible_instances(dataset, record, first, near)
    crowds = [dataset.usable_mask(record, crowd) for crowd in record.crowds if _meets(crowd, base)]
    pasted = _draw_pasted(base, partner, rng, augmentation, step) if partner is not None else []
    layers = []
    for number, scale in enumerate(scales):
        view = base.resized(scale)
        coverages = [render_mask(o.mask, view) if number else o.coverage for o in objects]
        layers.append(_render(photo, view, coverages, [c for c in crowds if c is not None], pasted, scale))
    boxes, kept = _after_pasting(layers[0], objects, len(pasted))
    donor = partner[0] if partner is not None else dataset
    shown = [(dataset, o.instance) for o in objects] + [(donor, one.instance) for one in pasted]
    shown = [shown[k] for k in kept]
    samples = []
    for scale, layer in zip(scales, layers, strict=True):
        masks, depth = stack_masks([layer.coverages[k] for k in kept], layer.view)
        samples.append(
            TrainingSample(
                image=torch.from_numpy(np.array(layer.image)),
                masks=masks,
                depth=depth,
                boxes=torch.from_numpy(boxes[kept]) * (scale / scales[0]),
                categories=torch.tensor([class_of(owner, i) for owner, i in shown], dtype=torch.int64),
                proposal=torch.tensor([i.proposal for _, i in shown], dtype=torch.bool),
                weight=torch.tensor([i.score for _, i in shown], dtype=torch.float32),
                crowd=torch.from_numpy(layer.crowd),
                scale=layer.view.scale[0],
                image_id=record.id,
                source=source,
            )
        )
    return samples


def _whole_step(scales: Sequence[float]) -> int:
    """What a view's sides must be multiples of, so that they are multiples of :data:`HALF` at every scale."""
    parts = [Fraction(scale).limit_denominator(_DENOMINATOR) for scale in scales]
    if not parts or any(part <= 0 or abs(float(part) - s) > 1e-9 for part, s in zip(parts, scales, strict=True)):
        raise InputError(f"scales {tuple(scales)}; use positive fractions of a denominator up to {_DENOMINATOR}")
    return HALF * math.lcm(*(part.denominator for part in parts))


@dataclass(frozen=True)
class _Pasted:
    instance: Instance
    photo: Image.Image
    mask: NDArray[np.bool_]
    paste: Paste


def _draw_pasted(
    view: View,
    partner: tuple[CocoDataset, ImageRecord],
    rng: np.random.Generator,
    augmentation: Augmentation,
    step: int,
) -> list[_Pasted]:
    """True objects of the partner; its pixels are only read where something is pasted."""
    dataset, record = partner
    true = [i for i in record.instances if not i.proposal]
    if not true or rng.random() >= augmentation.copy_paste:
        return []
    pastes = draw_pastes(view, record.width, record.height, [i.box for i in true], rng, augmentation, step)
    photo = dataset.usable_image(record) if pastes else None
    if photo is None:
        return []
    masks = [dataset.usable_mask(record, true[paste.instance]) for paste in pastes]
    return [
        _Pasted(true[paste.instance], photo, mask, paste)
        for paste, mask in zip(pastes, masks, strict=True)
        if mask is not None
    ]


@dataclass(frozen=True)
class _Layers:
    """A view at one scale: ``coverages`` of its own objects, then of pasted ones, as far as they are seen; ``whole``
    is what each would cover were nothing in front of it."""

    view: View
    image: Image.Image
    coverages: list[NDArray[np.uint8]]
    whole: list[int]
    crowd: NDArray[np.uint8]


def _render(
    photo: Image.Image,
    view: View,
    coverages: list[NDArray[np.uint8]],
    crowds: Sequence[NDArray[np.bool_]],
    pasted: Sequence[_Pasted],
    scale: float,
) -> _Layers:
    image = render_pixels(photo, view)
    crowd = np.zeros((math.ceil(view.height / HALF), math.ceil(view.width / HALF)), np.uint8)
    for mask in crowds:
        crowd = np.maximum(crowd, render_mask(mask, view))
    whole = [int(coverage.sum(dtype=np.int64)) for coverage in coverages]
    for one in pasted:
        front = render_paste(image, one.photo, one.mask, one.paste.resized(scale))
        coverages = [_behind(coverage, front) for coverage in coverages]
        crowd = _behind(crowd, front)
        coverages.append(front)
        whole.append(int(front.sum(dtype=np.int64)))
    return _Layers(view, recolour(image, view), coverages, whole, crowd)


def _behind(coverage: NDArray[np.uint8], front: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What is left of a coverage behind another: their product with the front's complement."""
    return (coverage.astype(np.uint16) * (255 - front.astype(np.uint16)) // 255).astype(np.uint8)


def _after_pasting(
    layer: _Layers, objects: Sequence[VisibleInstance], pasted: int
) -> tuple[NDArray[np.float32], list[int]]:
    """Boxes ``[n, 4]`` of all objects, and the indices of those of which enough is left."""
    boxes = np.zeros((len(objects) + pasted, 4), np.float32)
    for k, one in enumerate(objects):
        boxes[k] = one.box
    kept = []
    for k, (coverage, whole) in enumerate(zip(layer.coverages, layer.whole, strict=True)):
        own = k < len(objects)
        left = int(coverage.sum(dtype=np.int64))
        if own and left == whole:
            kept.append(k)
            continue
        seen = coverage >= 128
        if left < MIN_VISIBLE * whole or int(seen.sum()) < MIN_SAMPLES:
            continue
        ys, xs = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        box = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32) * HALF
        low, high = (boxes[k, :2], boxes[k, 2:]) if own else (0.0, (layer.view.width, layer.view.height))
        boxes[k, :2], boxes[k, 2:] = np.maximum(box[:2], low), np.minimum(box[2:], high)
        kept.append(k)
    return boxes, kept


def padded_batch(samples: Sequence[TrainingSample], multiple: int = 32) -> tuple[Tensor, Tensor]:
    """Images of several samples as one tensor, zeros to the right and at the bottom.

    Returns:
        uint8 ``[B, H, W, 3]`` with H and W multiples of ``multiple``, and the sizes ``[B, 2]`` int64 (height, width).
    """
    if not samples:
        raise InputError("a batch needs at least one sample")
    sizes = torch.tensor([sample.image.shape[:2] for sample in samples])
    height, width = (int(size) + -int(size) % multiple for size in sizes.amax(0))
    batch = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8)
    for row, sample in zip(batch, samples, strict=True):
        row[: sample.image.shape[0], : sample.image.shape[1]] = sample.image
    return batch, sizes
