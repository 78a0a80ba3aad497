"""Augmentation as plain data: what was drawn, apart from drawing it and from rendering it.

An :class:`Augmentation` says what may happen; :func:`draw_view` and :func:`draw_pastes` draw a :class:`View` of a photo
and the :class:`Paste` of other photos' objects onto it; ``render_*`` turn them into pixels. Nothing here has a state:
the same generator gives the same view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from tracenet.data.segmentation import Box
from tracenet.inference import HALF
from tracenet_kernels.errors import InputError

MAX_AREA = 0.88
"""Largest view, in units of the squared working size: bounds the time and memory of a step."""
MIN_SAMPLES = 4
"""Objects with fewer half-resolution samples left inside the view are not trained on."""
MIN_VISIBLE = 0.3
"""Objects of which less than this share is left, inside the view or under what was pasted, are not trained on."""
MIN_SIDE = 64
"""Crops are not drawn smaller than this, in view pixels, where the photo has as much."""


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a photo. Every ingredient can be turned off by itself.

    Scales count in working sizes: at scale 1 the photo's longest side measures one working size.

    Attributes:
        working_sizes: the view's working size in pixels is one of these, each as likely. One size: no multi-scale.
        crop: share of views that are crops of the scaled photo; the others show all of it. 0 turns crops off.
        scale: range of the photo's scale behind a crop, uniform in its logarithm. (0.1, 2) is large-scale jitter;
            (1, 1) turns it off. A photo smaller than the view is shown whole.
        whole_scale: range of the scale of whole photos, uniform.
        crop_instance: share of crops that are placed around a random object, so that it is seen as far as it fits;
            the others lie anywhere. 0 turns it off.
        flip: share of views that are mirrored left to right. 0 turns it off.
        colour: share of views whose colours are changed, by the fields below. 0 turns it off.
        brightness, contrast, saturation: factors are uniform in 1 - value to 1 + value.
        hue: the hue turns by up to this share of the circle, either way.
        gamma: the exponent is e to a uniform number of at most this size.
        grey: share of the changed views that lose their colours.
        blur: largest standard deviation of a Gaussian blur in pixels; half of the changed views are blurred.
        noise: largest standard deviation of Gaussian noise in grey levels; half of the changed views are noisy.
        copy_paste: share of views onto which objects of another photo are pasted. 0 turns it off.
        pasted: most objects pasted at once.
        paste_scale: range of the scale of the photo they are cut from, uniform in its logarithm.

    Raises:
        InputError: a value is outside its range.
    """

    working_sizes: tuple[int, ...] = (640,)
    crop: float = 0.6
    scale: tuple[float, float] = (0.8, 2.0)
    whole_scale: tuple[float, float] = (0.7, 1.15)
    crop_instance: float = 0.0
    flip: float = 0.5
    colour: float = 0.6
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.0
    gamma: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    copy_paste: float = 0.0
    pasted: int = 3
    paste_scale: tuple[float, float] = (0.3, 1.5)

    def __post_init__(self) -> None:
        for name in ("working_sizes", "scale", "whole_scale", "paste_scale"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # TOML has lists
        if not self.working_sizes or any(type(s) is not int or s < MIN_SIDE for s in self.working_sizes):
            raise InputError(f"augmentation: working_sizes {self.working_sizes} must be integers >= {MIN_SIDE}")
        for name in ("scale", "whole_scale", "paste_scale"):
            limits = getattr(self, name)
            if len(limits) != 2 or not 0 < limits[0] <= limits[1] <= 16:
                raise InputError(f"augmentation: {name} {limits} must be two growing numbers above 0, at most 16")
        for name in ("crop", "crop_instance", "flip", "colour", "grey", "copy_paste", "brightness", "contrast"):
            self._check(name, 1)
        for name, most in (("saturation", 1), ("hue", 0.5), ("gamma", 2), ("blur", 16), ("noise", 128)):
            self._check(name, most)
        if type(self.pasted) is not int or not 1 <= self.pasted <= 64:
            raise InputError(f"augmentation: pasted {self.pasted} must be an integer from 1 to 64")

    def _check(self, name: str, most: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise InputError(f"augmentation: {name} {value!r} must be a number from 0 to {most}")


@dataclass(frozen=True)
class View:
    """Crop ``(x0, y0, x1, y1)`` of the photo, resized to ``width x height``, mirrored if ``flip``, then recoloured.

    ``brightness``, ``contrast``, ``colour`` (saturation) and ``gamma`` are 1 where nothing changes, ``hue`` (share of
    the circle), ``blur`` and ``noise`` (standard deviations in pixels and grey levels) 0.
    """

    crop: Box
    width: int
    height: int
    flip: bool
    brightness: float = 1.0
    contrast: float = 1.0
    colour: float = 1.0
    hue: float = 0.0
    gamma: float = 1.0
    grey: bool = False
    blur: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0

    @property
    def scale(self) -> tuple[float, float]:
        """View pixels per photo pixel, along x and y; they differ by rounding only."""
        x0, y0, x1, y1 = self.crop
        return self.width / (x1 - x0), self.height / (y1 - y0)

    def from_photo(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Positions ``[..., 2]`` (x, y) on the photo -> on the view; both are measured from the top-left corner, so
        pixel i spans ``[i, i + 1)``."""
        placed = (np.asarray(points, np.float64) - self.crop[:2]) * self.scale
        if self.flip:
            placed[..., 0] = self.width - placed[..., 0]
        return placed

    def to_photo(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """The inverse of :meth:`from_photo`."""
        placed = np.array(points, np.float64)
        if self.flip:
            placed[..., 0] = self.width - placed[..., 0]
        return placed / self.scale + self.crop[:2]

    def resized(self, factor: float) -> View:
        """The same crop at ``factor`` times the size; see :func:`divisible` for sizes that stay whole."""
        width, height = max(1, round(self.width * factor)), max(1, round(self.height * factor))
        return replace(self, width=width, height=height, blur=self.blur * factor)


@dataclass(frozen=True)
class Paste:
    """An object of another photo, pasted onto a view.

    ``crop`` of the other photo, resized to ``width x height`` and mirrored if ``flip``, with its corner at ``(x, y)``
    of the view. All four are multiples of :data:`HALF`.
    """

    instance: int
    crop: Box
    x: int
    y: int
    width: int
    height: int
    flip: bool

    def resized(self, factor: float) -> Paste:
        """For :meth:`View.resized` by the same factor."""
        x, y, w, h = (round(v * factor) for v in (self.x, self.y, self.width, self.height))
        return replace(self, x=x, y=y, width=w, height=h)


def draw_view(
    width: int,
    height: int,
    rng: np.random.Generator,
    augmentation: Augmentation | None = None,
    boxes: Sequence[Box] = (),
) -> View:
    """Random view of a ``width x height`` photo: the whole photo at some size, or a crop of it.

    Args:
        width, height: of the photo.
        rng: an ingredient that is off takes nothing from it, so that the others stay as they were.
        augmentation: what may happen; the defaults without.
        boxes: of the objects, for ``crop_instance``.
    """
    a = augmentation or Augmentation()
    size = a.working_sizes[0] if len(a.working_sizes) == 1 else int(rng.choice(a.working_sizes))
    longest = max(width, height)
    cropped = rng.random() < a.crop
    if cropped:
        scale = size / longest * math.exp(rng.uniform(math.log(a.scale[0]), math.log(a.scale[1])))
    else:
        scale = size * rng.uniform(*a.whole_scale) / longest
    shrink = min(1.0, math.sqrt(MAX_AREA * size**2 / (width * scale * height * scale)))
    if not a.crop:  # whole photos alone: smaller ones instead of a part
        scale, shrink = scale * shrink, 1.0
    w, h = width * scale, height * scale
    # Cutting both sides alike keeps the photo's aspect; limits leave room for a different one.
    aspect = math.exp(rng.uniform(-0.25, 0.25)) if shrink < 1 else 1.0
    out_w = min(w, max(float(MIN_SIDE), w * shrink * aspect))
    out_h = min(h, max(float(MIN_SIDE), w * h * shrink**2 / out_w))
    out_w, out_h = max(1.0, float(round(out_w))), max(1.0, float(round(out_h)))
    room_x, room_y = (0.0, max(0.0, w - out_w)), (0.0, max(0.0, h - out_h))
    if cropped and boxes and a.crop_instance and rng.random() < a.crop_instance:
        x0, y0, x1, y1 = (side * scale for side in boxes[int(rng.integers(len(boxes)))])
        room_x = _room(x0, x1, out_w, room_x[1])
        room_y = _room(y0, y1, out_h, room_y[1])
    x, y = rng.uniform(*room_x) / scale, rng.uniform(*room_y) / scale
    crop = (x, y, min(x + out_w / scale, width), min(y + out_h / scale, height))
    flip = bool(a.flip and rng.random() < a.flip)
    return _draw_colours(View(crop, int(out_w), int(out_h), flip), rng, a)


def _room(low: float, high: float, extent: float, most: float) -> tuple[float, float]:
    """Where a window of ``extent`` may start so that it holds ``[low, high)``, or as much of it as it can."""
    first, last = sorted((low, high - extent))
    return min(max(first, 0.0), most), min(max(last, 0.0), most)


def _draw_colours(view: View, rng: np.random.Generator, a: Augmentation) -> View:
    if not a.colour or rng.random() >= a.colour:
        return view
    ranges = ((1 - v, 1 + v) for v in (a.brightness, a.contrast, a.saturation))
    brightness, contrast, colour = (float(rng.uniform(*limits)) for limits in ranges)
    return replace(
        view,
        brightness=brightness,
        contrast=contrast,
        colour=colour,
        hue=float(rng.uniform(-a.hue, a.hue)) if a.hue else 0.0,
        gamma=math.exp(rng.uniform(-a.gamma, a.gamma)) if a.gamma else 1.0,
        grey=bool(a.grey and rng.random() < a.grey),
        blur=max(0.0, float(rng.uniform(-a.blur, a.blur))) if a.blur else 0.0,
        noise=max(0.0, float(rng.uniform(-a.noise, a.noise))) if a.noise else 0.0,
        noise_seed=int(rng.integers(2**31)) if a.noise else 0,
    )


def divisible(view: View, step: int) -> View:
    """The view cut at its right and bottom (before mirroring) so that both sides are multiples of ``step``.

    A side shorter than ``step`` is enlarged to it instead.
    """
    x0, y0, x1, y1 = view.crop
    width, height = max(step, view.width // step * step), max(step, view.height // step * step)
    x1 = x0 + (x1 - x0) * min(1.0, width / view.width)
    y1 = y0 + (y1 - y0) * min(1.0, height / view.height)
    return replace(view, crop=(x0, y0, x1, y1), width=width, height=height)


def draw_pastes(
    view: View,
    width: int,
    height: int,
    boxes: Sequence[Box],
    rng: np.random.Generator,
    augmentation: Augmentation,
    step: int = HALF,
) -> list[Paste]:
    """Random objects of a ``width x height`` photo, at random places, sizes and flips on ``view``.

    Args:
        view: what they are pasted onto; an object is made to fit into three quarters of its sides.
        width, height, boxes: the other photo and its objects.
        rng: drawn from.
        augmentation: see ``pasted``, ``paste_scale`` and ``flip``.
        step: positions and sizes are multiples of it; a multiple of :data:`HALF`.
    """
    count = min(len(boxes), int(rng.integers(1, augmentation.pasted + 1)))
    pastes = []
    for instance in rng.permutation(len(boxes))[:count]:
        low, high = (math.log(s) for s in augmentation.paste_scale)
        scale = max(augmentation.working_sizes) / max(width, height) * math.exp(rng.uniform(low, high))
        x0, y0, x1, y1 = boxes[instance]
        # A margin around the object, so that the resampled edge of its mask ends inside the patch.
        crop = (max(0.0, x0 - 2), max(0.0, y0 - 2), min(float(width), x1 + 2), min(float(height), y1 + 2))
        w, h = (crop[2] - crop[0]) * scale, (crop[3] - crop[1]) * scale
        fit = min(1.0, 0.75 * view.width / w, 0.75 * view.height / h)
        out_w, out_h = (max(step, round(side * fit / step) * step) for side in (w, h))
        spare_x, spare_y = (view.width - out_w) // step, (view.height - out_h) // step
        place_x, place_y = (rng.integers(max(0, spare) + 1) for spare in (spare_x, spare_y))
        flip = bool(augmentation.flip and rng.random() < augmentation.flip)
        if spare_x >= 0 and spare_y >= 0:
            pastes.append(Paste(int(instance), crop, int(place_x) * step, int(place_y) * step, out_w, out_h, flip))
    return pastes


def render_pixels(photo: Image.Image, view: View) -> Image.Image:
    """The view's pixels before its colours change, RGB ``width x height``."""
    image = photo.resize((view.width, view.height), Image.Resampling.BILINEAR, box=view.crop)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else image


def recolour(image: Image.Image, view: View) -> Image.Image:
    """The view's changes of colour, blur and noise."""
    for enhance, factor in (
        (ImageEnhance.Brightness, view.brightness),
        (ImageEnhance.Contrast, view.contrast),
        (ImageEnhance.Color, view.colour),
    ):
        if factor != 1.0:
            image = enhance(image).enhance(factor)
    if view.hue:
        hue, saturation, value = image.convert("HSV").split()
        turn = round(view.hue * 256)
        hue = hue.point([(level + turn) % 256 for level in range(256)])
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    if view.gamma != 1.0:
        image = image.point([round(255 * (level / 255) ** view.gamma) for level in range(256)] * 3)
    if view.grey:
        image = image.convert("L").convert("RGB")
    if view.blur:
        image = image.filter(ImageFilter.GaussianBlur(view.blur))
    if view.noise:
        pixels = np.asarray(image)
        grain = np.random.default_rng(view.noise_seed).standard_normal(pixels.shape, np.float32) * view.noise
        image = Image.fromarray((pixels + grain).round().clip(0, 255).astype(np.uint8))
    return image


def render_image(photo: Image.Image, view: View) -> Image.Image:
    """The view's pixels, RGB ``width x height``."""
    return recolour(render_pixels(photo, view), view)


def render_mask(mask: NDArray[np.bool_], view: View) -> NDArray[np.uint8]:
    """Coverage 0-255 of ``mask`` [H, W] at half the view's resolution: uint8 ``[ceil(height/2), ceil(width/2)]``."""
    size = (math.ceil(view.width / HALF), math.ceil(view.height / HALF))
    out = np.asarray(_as_image(mask).resize(size, Image.Resampling.BILINEAR, box=view.crop))
    return out[:, ::-1] if view.flip else out


def render_paste(image: Image.Image, photo: Image.Image, mask: NDArray[np.bool_], paste: Paste) -> NDArray[np.uint8]:
    """Paste the object ``mask`` [H, W] of ``photo`` onto ``image``, a view's pixels, in place.

    Returns:
        Its coverage 0-255 at half the view's resolution, uint8 ``[ceil(height/2), ceil(width/2)]``.
    """
    size, half = (paste.width, paste.height), (paste.width // HALF, paste.height // HALF)
    whole = _as_image(mask)
    patch = photo.resize(size, Image.Resampling.BILINEAR, box=paste.crop)
    alpha = whole.resize(size, Image.Resampling.BILINEAR, box=paste.crop)
    cover = whole.resize(half, Image.Resampling.BILINEAR, box=paste.crop)
    if paste.flip:
        patch, alpha, cover = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (patch, alpha, cover))
    image.paste(patch, (paste.x, paste.y), alpha)
    coverage = np.zeros((math.ceil(image.height / HALF), math.ceil(image.width / HALF)), np.uint8)
    x, y = paste.x // HALF, paste.y // HALF
    coverage[y : y + half[1], x : x + half[0]] = np.asarray(cover)
    return coverage


def _as_image(mask: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8, order="C") * np.uint8(255))


def view_box(mask: NDArray[np.bool_], view: View) -> tuple[NDArray[np.float32], float]:
    """Box of ``mask`` in view pixels, clipped to the view, and the share of its area that is left."""
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    x0, y0, _, _ = view.crop
    sx, sy = view.scale
    full = np.array([(xs[0] - x0) * sx, (ys[0] - y0) * sy, (xs[-1] + 1 - x0) * sx, (ys[-1] + 1 - y0) * sy])
    if view.flip:
        full[[0, 2]] = view.width - full[[2, 0]]
    box = full.clip(0, [view.width, view.height] * 2)
    left = (box[2] - box[0]) * (box[3] - box[1]) / ((full[2] - full[0]) * (full[3] - full[1]))
    return box.astype(np.float32), float(left)
