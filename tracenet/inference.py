"""What stands between a photo with a click and the network: small pure functions.

The predictor and the evaluation both call these, so that what is scored is what ``predict`` returns.

Coordinates. A click ``(x, y)`` on the photo counts pixels: integers are pixel centres. On the working image
positions are measured from its top-left corner, so pixel ``i`` spans ``[i, i + 1)``; P3 cell ``i`` spans
``[8i, 8i + 8)`` with centre ``8i + 4`` and sample ``i`` of the half-resolution mask spans ``[2i, 2i + 2)``.
"""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tracenet.models.fpn import LEVELS, STRIDES
from tracenet.models.mask import SIZES_OF_INTEREST
from tracenet.models.tracenet import TraceNet, TraceNetConfig
from tracenet.plain_data import from_plain
from tracenet.resize import ResizedPhoto
from tracenet_kernels.errors import ClickError, InputError
from tracenet_kernels.window import Window

PAD_TO = 32
HALF = 2
"""Stride of the mask that the network returns, relative to the working image."""
OUTSIDE_LOGIT = -10.0
"""Mask logit everywhere outside the mask window: background."""
MASK_WINDOWS = ("box", "full")
LEVEL_CHOICES = ("level", "score")
SCORES = ("score", "score_centerness")
ZOOMS = ("off", "auto")
ZOOM_CHOICES = ("score", "level", "product", "level_score")
NATIVE = "native"
"""The zoom factor at which one working pixel is one photo pixel."""
MAX_FACTOR = 256.0
MAX_FACTORS = 8
"""Scales of one photo: each holds a captured graph and kept features."""
Factor = float | str


@dataclass(frozen=True)
class PredictorSettings:
    """How a checkpoint wants to be used; travels in its metadata.

    Attributes:
        working_size: longest side in pixels to which photos are resized.
        levels: first and last pyramid level asked at the click, inclusive.
        level_choice: ``"level"`` (the level head's softmax over the cells at the click) or ``"score"``.
        level_smoothing: share of its probability that each level lends to its neighbours before the best is taken
            (with ``"level"``): a level between two likely ones is a safer choice than a lone peak.
        mask_window: ``"box"`` (predicted box and margin) or ``"full"``.
        mask_margin: share of the box's sides by which each side of the window moves out.
        mask_margin_pixels: working pixels by which each side moves out besides.
        score: ``"score"`` = sigmoid(logits), ``"score_centerness"`` = sqrt(sigmoid(logits) * sigmoid(ctr)).
        agreement: of so many best candidates (levels; with zoom, scales and levels) the masks are computed, and the one
            whose expected IoU with the others is largest is taken; 0 or 1 takes the best candidate. See
            :mod:`tracenet.zoom`.
        zoom: ``"off"`` looks at the photo at ``working_size`` only, ``"auto"`` at every factor of ``zoom_factors``.
        zoom_factors: scales relative to ``working_size``; ``"native"`` is the photo's own resolution.
        zoom_enlarge: ``"auto"`` leaves out factors above 1 that make the photo larger than so many times its own sides.
        zoom_levels: first and last pyramid level asked at each scale, inclusive. P6 and P7 would look at all of it.
        zoom_choice: what scale and level are chosen by: ``"score"``, ``"level"`` (one softmax over the level head's
            cells of all scales), ``"product"`` (a softmax per scale, times the score) or ``"level_score"`` (one
            softmax, times the score).
    """

    working_size: int = 640
    levels: tuple[int, int] = (3, 7)
    level_choice: str = "level"
    level_smoothing: float = 0.0
    mask_window: str = "box"
    mask_margin: float = 0.15
    mask_margin_pixels: float = 4.0
    score: str = "score"
    agreement: int = 0
    zoom: str = "off"
    zoom_factors: tuple[Factor, ...] = (0.5, 1.0, 2.0)
    zoom_enlarge: float = 2.0
    zoom_levels: tuple[int, int] = (3, 5)
    zoom_choice: str = "level_score"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _level_pair(self.levels))
        object.__setattr__(self, "zoom_levels", _level_pair(self.zoom_levels))
        object.__setattr__(self, "zoom_factors", check_factors(self.zoom_factors))
        if not isinstance(self.working_size, int) or self.working_size < 1:
            raise InputError(f"working_size is {self.working_size!r}; it must be at least 1 pixel, an integer")
        for name, allowed in (
            ("level_choice", LEVEL_CHOICES),
            ("mask_window", MASK_WINDOWS),
            ("score", SCORES),
            ("zoom", ZOOMS),
            ("zoom_choice", ZOOM_CHOICES),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}={getattr(self, name)!r} is not known; choose one of {allowed}")
        if not 0 <= self.level_smoothing <= 1:
            raise InputError(f"level_smoothing is {self.level_smoothing!r}; it is a share between 0 and 1")
        if not (math.isfinite(self.mask_margin) and math.isfinite(self.mask_margin_pixels)):
            raise InputError("mask margins must be finite")
        if isinstance(self.agreement, bool) or not isinstance(self.agreement, int) or self.agreement < 0:
            raise InputError(f"agreement is {self.agreement!r}; it is a number of candidates, 0 or more")
        if not (math.isfinite(self.zoom_enlarge) and self.zoom_enlarge >= 1):
            raise InputError(f"zoom_enlarge is {self.zoom_enlarge!r}; it must be at least 1 and finite")

    def to_dict(self) -> dict[str, Any]:
        """Plain data (JSON-ready) that :meth:`from_dict` restores."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PredictorSettings:
        return from_plain(cls, data, "predictor settings have")


def _level_pair(levels: Any) -> tuple[int, int]:
    try:
        first, last = (operator.index(level) for level in levels)
    except (TypeError, ValueError):
        first, last = 0, 0
    if not LEVELS[0] <= first <= last <= LEVELS[-1]:
        raise InputError(f"levels {levels!r}: give first and last level, two integers with 3 <= first <= last <= 7")
    return first, last


def check_factors(factors: Any) -> tuple[Factor, ...]:
    """Zoom factors as floats and ``"native"``, in the order given.

    Raises:
        InputError: none or too many, not a sequence, or one that is not a positive finite number.
    """
    if isinstance(factors, (str, bytes)) or not hasattr(factors, "__iter__"):
        raise InputError(f"zoom factors are {factors!r}; pass a sequence such as (0.5, 1, 2), or 'native' among them")
    found: list[Factor] = []
    for factor in itertools.islice(factors, MAX_FACTORS + 1):
        number = isinstance(factor, Real) and not isinstance(factor, bool)
        if factor == NATIVE:
            found.append(NATIVE)
        elif number and 0 < factor <= MAX_FACTOR:
            found.append(float(factor))
        else:
            raise InputError(
                f"zoom factor {factor!r}: pass positive numbers of at most {MAX_FACTOR} (1 is the working size) "
                f"or {NATIVE!r}"
            )
    if not 1 <= len(found) <= MAX_FACTORS:
        raise InputError(f"{len(found) or 'no'} zoom factors or more; pass 1 to {MAX_FACTORS}")
    return tuple(found)


@dataclass(frozen=True)
class Canvas:
    """A photo of ``photo_width x photo_height`` resized to ``width x height`` and padded right/bottom."""

    photo_width: int
    photo_height: int
    width: int
    height: int

    @property
    def padded_width(self) -> int:
        return math.ceil(self.width / PAD_TO) * PAD_TO

    @property
    def padded_height(self) -> int:
        return math.ceil(self.height / PAD_TO) * PAD_TO

    @property
    def scale_x(self) -> float:
        """Working pixels per photo pixel, horizontally."""
        return self.width / self.photo_width

    @property
    def scale_y(self) -> float:
        """Working pixels per photo pixel, vertically."""
        return self.height / self.photo_height


def fit_canvas(photo_width: int, photo_height: int, working_size: int) -> Canvas:
    """Canvas whose longest side is ``working_size``; photos are enlarged or reduced alike, sides rounded."""
    if photo_width < 1 or photo_height < 1 or working_size < 1:
        raise InputError(f"photo {photo_width}x{photo_height} at working size {working_size}: all must be positive")
    scale = working_size / max(photo_width, photo_height)
    return Canvas(photo_width, photo_height, max(1, round(photo_width * scale)), max(1, round(photo_height * scale)))


def normalise(pixels: Tensor, config: TraceNetConfig) -> Tensor:
    """uint8 RGB ``[H, W, 3]`` -> ``(pixel - mean) / std``, zero-padded to multiples of 32: ``[1, 3, H32, W32]``."""
    height, width = pixels.shape[:2]
    return _normalised(pixels, config, height + -height % PAD_TO, width + -width % PAD_TO)


def _normalised(pixels: Tensor, config: TraceNetConfig, height: int, width: int) -> Tensor:
    x = pixels.permute(2, 0, 1).float()
    if config.channel_order == "bgr":
        x = x.flip(0)
    x = (x - x.new_tensor(config.mean).view(3, 1, 1)) / x.new_tensor(config.std).view(3, 1, 1)
    return torch.nn.functional.pad(x, (0, width - x.shape[2], 0, height - x.shape[1]))[None]


def prepare_image(photo: Image.Image, canvas: Canvas, config: TraceNetConfig) -> Tensor:
    """RGB photo -> network input ``[1, 3, padded_height, padded_width]``; Pillow's bilinear resize."""
    resized = photo.convert("RGB").resize((canvas.width, canvas.height), Image.Resampling.BILINEAR)
    return normalise(torch.from_numpy(np.array(resized)), config)


def prepare_window(resized: ResizedPhoto, canvas: Canvas, config: TraceNetConfig, window: Window) -> Tensor:
    """``window`` of the network input that the whole resized photo would give: ``[1, 3, window.height, window.width]``.

    Args:
        resized: the photo at the canvas' un-padded size.
        canvas: of the scale; zeros stand right of and below its un-padded size.
        window: rows and columns of the padded canvas.
    """
    inside = window.clip(canvas.height, canvas.width)
    if inside.is_empty:
        return torch.zeros(1, 3, window.height, window.width)
    return _normalised(torch.from_numpy(resized.window(inside)), config, window.height, window.width)


def to_working(points: Tensor, canvas: Canvas) -> Tensor:
    """Clicks ``[N, 2]`` (x, y) in photo pixels -> positions on the working image: ``(x + 0.5) * scale``.

    Raises:
        ClickError: a click is not finite or lies outside the photo's pixels.
    """
    size = points.new_tensor([canvas.photo_width, canvas.photo_height])
    centred = points + 0.5
    inside = torch.isfinite(points).all(1) & (centred >= 0).all(1) & (centred < size).all(1)
    if not bool(inside.all()):
        bad = [tuple(p) for p in points[~inside][:4].tolist()]
        raise ClickError(
            f"clicks {bad} lie outside the photo of {canvas.photo_width}x{canvas.photo_height} pixels; "
            f"x runs from 0 to {canvas.photo_width - 1}, y from 0 to {canvas.photo_height - 1}"
        )
    # Rounding, here or in a later conversion to float32, must not carry a click past the last pixel.
    last = torch.nextafter(torch.tensor([canvas.width, canvas.height], dtype=torch.float32), torch.zeros(2))
    return torch.minimum(centred * points.new_tensor([canvas.scale_x, canvas.scale_y]), last.to(points))


def cells_of(clicks: Tensor, level: int) -> Tensor:
    """Cells ``[N, 2]`` (row, column) of pyramid level ``level`` that hold ``clicks`` [N, 2] (x, y)."""
    return (clicks.flip(1) / STRIDES[level]).floor().long()


def decode_boxes(reg: Tensor, cells: Tensor, level: int, anchor_offset: str = "half") -> Tensor:
    """Distances ``[N, 4]`` (left, top, right, bottom) from the cells' centres -> boxes ``[N, 4]`` (x0, y0, x1, y1).

    The centre of cell ``i`` is ``i * s + s // 2``, or ``i * s`` for models with ``anchor_offset="zero"``.
    """
    stride = STRIDES[level]
    centre = (cells.flip(1) * stride + (stride // 2 if anchor_offset == "half" else 0)).to(reg.dtype)
    return torch.cat([centre - reg[:, :2], centre + reg[:, 2:]], 1)


def predictions_at(outputs: dict[str, Tensor], clicks: Tensor, anchor_offset: str = "half") -> dict[str, Tensor]:
    """Head outputs at the clicks' cells on every level.

    Args:
        outputs: planes of one image as :class:`tracenet.models.TraceNet` returns them.
        clicks: ``[N, 2]`` (x, y) on the working image.
        anchor_offset: of the model's config.

    Returns:
        ``logits``, ``ctr`` and (with a level head) ``level`` as ``[N, 5]``, ``theta`` ``[N, 5, 169]`` and
        ``boxes`` ``[N, 5, 4]``; the second axis runs over P3..P7.
    """
    names = [name for name in ("logits", "ctr", "level", "theta", "reg") if f"{name}{LEVELS[0]}" in outputs]
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for level in LEVELS:
        cells = cells_of(clicks, level)
        for name in names:
            found[name].append(outputs[f"{name}{level}"][0, :, cells[:, 0], cells[:, 1]].T)  # [N, c]
    return gather_predictions(found, clicks, anchor_offset)


def gather_predictions(
    values: dict[str, list[Tensor]], clicks: Tensor, anchor_offset: str = "half"
) -> dict[str, Tensor]:
    """Per-level head values at the clicks (name -> five tensors ``[N, c]``) as :func:`predictions_at` returns them."""
    boxes = [
        decode_boxes(reg, cells_of(clicks, level), level, anchor_offset)
        for level, reg in zip(LEVELS, values["reg"], strict=True)
    ]
    out = {"theta": torch.stack(values["theta"], 1), "boxes": torch.stack(boxes, 1)}
    for name in ("ctr", "level"):
        if name in values:
            out[name] = torch.cat(values[name], 1)
    out["logits"] = torch.stack([x.amax(1) for x in values["logits"]], 1)
    return out


def click_scores(predictions: dict[str, Tensor], score: str = "score") -> Tensor:
    """Predicted quality ``[N, 5]`` in [0, 1] of the mask each level would give; see :class:`PredictorSettings`."""
    quality = predictions["logits"].sigmoid()
    return quality if score == "score" else (quality * predictions["ctr"].sigmoid()).sqrt()


def rank_levels(predictions: dict[str, Tensor], settings: PredictorSettings) -> Tensor:
    """Levels asked for, best first: ``[N, hi - lo + 1]``, values 3..7. Ties go to the finer level."""
    if settings.level_choice == "level":
        if "level" not in predictions:
            raise InputError("level_choice='level' needs a model with level_head=True; use 'score' for this one")
        rating = predictions["level"]
    else:
        rating = click_scores(predictions, settings.score)
    lo, hi = settings.levels
    rating = rating[:, lo - LEVELS[0] : hi - LEVELS[0] + 1]
    if settings.level_choice == "level" and settings.level_smoothing > 0:
        own = rating.softmax(1)
        rating = own.clone()
        rating[:, 1:] += settings.level_smoothing * own[:, :-1]
        rating[:, :-1] += settings.level_smoothing * own[:, 1:]
    return rating.argsort(dim=1, descending=True, stable=True) + lo


def mask_origin(clicks: Tensor, level: int, rel_to: str) -> Tensor:
    """Origin ``[N, 2]`` of the relative coordinates: the click, or the centre ``cell * s + s // 2`` of its cell."""
    if rel_to == "click":
        return clicks
    stride = STRIDES[level]
    return (clicks / stride).floor() * stride + stride // 2


def half_logits(model: TraceNet, features: Tensor, theta: Tensor, clicks: Tensor, level: int) -> Tensor:
    """Mask logits ``[N, h/2, w/2]`` of the padded working image for filters predicted at one level.

    Args:
        model: gives the mask head and the conventions.
        features: ``maskfeat`` ``[1, 8, h/8, w/8]``.
        theta: ``[N, 169]``.
        clicks: ``[N, 2]`` (x, y) on the working image.
        level: the level that predicted ``theta``.
    """
    if model.mask_head is None:
        raise InputError("the model has mask_branch='none'; it predicts no masks")
    origin = mask_origin(clicks, level, model.config.rel_to)
    low = model.mask_head(features, theta, origin, theta.new_full((len(theta),), SIZES_OF_INTEREST[level]))
    return as_logits(model.upsample_mask(low)[:, 0], model.config)


def as_logits(half: Tensor, config: TraceNetConfig) -> Tensor:
    """Values of the network's half-resolution mask as logits: in the paper's order they are probabilities."""
    return half if config.mask_order == "upsample_logits" else torch.logit(half, eps=1e-6)


def box_window(box: Tensor, click: Tensor, canvas: Canvas, settings: PredictorSettings) -> Window:
    """Samples of the half-resolution mask that are computed and kept.

    The box ``[4]`` (x0, y0, x1, y1), each side moved out by ``mask_margin * side + mask_margin_pixels``, rounded
    outwards and clipped to the un-padded image; it always holds the click ``[2]``. The whole image for ``"full"``.
    """
    height, width = math.ceil(canvas.height / HALF), math.ceil(canvas.width / HALF)
    if settings.mask_window == "full":
        return Window.full(height, width)
    x0, y0, x1, y1 = torch.nan_to_num(box, nan=0.0, posinf=1e9, neginf=-1e9).tolist()
    grow_x = (x1 - x0) * settings.mask_margin + settings.mask_margin_pixels
    grow_y = (y1 - y0) * settings.mask_margin + settings.mask_margin_pixels
    x, y = (int(v) for v in (click / HALF).floor().tolist())

    def span(low: float, high: float, at: int, size: int) -> tuple[int, int]:
        start = min(max(math.floor(low / HALF), 0), at)
        return start, max(min(math.ceil(high / HALF), size), at + 1)

    return Window(*span(y0 - grow_y, y1 + grow_y, y, height), *span(x0 - grow_x, x1 + grow_x, x, width))


def photo_logits(logits: Tensor, window: Window, canvas: Canvas) -> Tensor:
    """Mask logits of one window -> logits ``[photo_height, photo_width]``; a pixel is in the mask where they exceed 0.

    Bilinear between half-resolution samples, whose centres lie at ``2i + 1`` on the working image; photo pixel ``x``
    lies at ``(x + 0.5) * scale``. Samples outside the window count as :data:`OUTSIDE_LOGIT`.

    Args:
        logits: ``[window.height, window.width]``, the part of the half-resolution plane inside ``window``.
    """
    return resample_plane(half_plane(logits, window, canvas), canvas)


def half_plane(logits: Tensor, window: Window, canvas: Canvas) -> Tensor:
    """Mask logits of one window placed on the un-padded half-resolution plane, :data:`OUTSIDE_LOGIT` around it."""
    if tuple(logits.shape) != (window.height, window.width):
        raise InputError(f"logits have shape {tuple(logits.shape)}; the window is {window.height}x{window.width}")
    plane = logits.new_full((math.ceil(canvas.height / HALF), math.ceil(canvas.width / HALF)), OUTSIDE_LOGIT)
    plane[window.y0 : window.y1, window.x0 : window.x1] = logits
    return plane


def resample_plane(plane: Tensor, canvas: Canvas) -> Tensor:
    """Half-resolution plane -> photo size, by the coordinates of :func:`photo_logits`."""
    rows = _resample(plane, canvas.photo_height, canvas.scale_y)
    return _resample(rows.T, canvas.photo_width, canvas.scale_x).T


def move_plane(plane: Tensor, canvas: Canvas, target: Canvas) -> Tensor:
    """Half-resolution plane of one scale -> half-resolution plane of another, whose sample ``i`` lies at ``2i + 1``."""
    if canvas == target:
        return plane
    rows = _resample(plane, math.ceil(target.height / HALF), HALF * canvas.height / target.height)
    return _resample(rows.T, math.ceil(target.width / HALF), HALF * canvas.width / target.width).T


def _resample(plane: Tensor, size: int, scale: float) -> Tensor:
    """Linear interpolation of ``plane`` [n, m] along its first axis to ``size`` photo pixels."""
    position = (torch.arange(size, dtype=torch.float64) + 0.5) * (scale / HALF) - 0.5
    position = position.clamp(0, plane.shape[0] - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=plane.shape[0] - 1)
    weight = (position - low).to(plane.dtype)[:, None]
    return torch.lerp(plane[low], plane[high], weight)
