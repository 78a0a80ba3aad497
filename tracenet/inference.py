"""What stands between a photo with a click and the network: small pure functions.

The predictor and the evaluation both call these, so that what is scored is what ``predict`` returns. NumPy alone: a
predictor whose network runs natively never imports PyTorch.

Coordinates. A click ``(x, y)`` on the photo counts pixels: integers are pixel centres. On the working image
positions are measured from its top-left corner, so pixel ``i`` spans ``[i, i + 1)``; P3 cell ``i`` spans
``[8i, 8i + 8)`` with centre ``8i + 4`` and sample ``i`` of the half-resolution mask spans ``[2i, 2i + 2)``.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tracenet.config import TraceNetConfig
from tracenet.conventions import LEVELS, STRIDES
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
HEADS = ("logits", "ctr", "level", "theta", "reg")
"""Outputs of the network per level, with the level's number after their name."""


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


Floats = NDArray[np.floating[Any]]


def normalise(pixels: NDArray[np.uint8], config: TraceNetConfig) -> NDArray[np.float32]:
    """uint8 RGB ``[H, W, 3]`` -> ``(pixel - mean) / std``, zero-padded to multiples of 32: ``[1, 3, H32, W32]``."""
    height, width = pixels.shape[:2]
    return _normalised(pixels, config, height + -height % PAD_TO, width + -width % PAD_TO)


def _normalised(pixels: NDArray[np.uint8], config: TraceNetConfig, height: int, width: int) -> NDArray[np.float32]:
    out = np.zeros((1, 3, height, width), np.float32)
    order = (2, 1, 0) if config.channel_order == "bgr" else (0, 1, 2)
    for plane, channel, mean, std in zip(out[0], order, config.mean, config.std, strict=True):
        x = pixels[:, :, channel].astype(np.float32)
        x -= np.float32(mean)
        np.divide(x, np.float32(std), out=plane[: x.shape[0], : x.shape[1]])
    return out


def resize_photo(photo: Image.Image, canvas: Canvas) -> Image.Image:
    """RGB photo at the canvas' un-padded size: one call of Pillow's bilinear resize."""
    return photo.convert("RGB").resize((canvas.width, canvas.height), Image.Resampling.BILINEAR)


def prepare_image(photo: Image.Image, canvas: Canvas, config: TraceNetConfig) -> NDArray[np.float32]:
    """RGB photo -> network input ``[1, 3, padded_height, padded_width]``; see :func:`resize_photo`."""
    return normalise(np.asarray(resize_photo(photo, canvas)), config)


def prepare_window(
    resized: ResizedPhoto, canvas: Canvas, config: TraceNetConfig, window: Window
) -> NDArray[np.float32]:
    """``window`` of the network input that the whole resized photo would give: ``[1, 3, window.height, window.width]``.

    Args:
        resized: the photo at the canvas' un-padded size.
        canvas: of the scale; zeros stand right of and below its un-padded size.
        window: rows and columns of the padded canvas.
    """
    inside = window.clip(canvas.height, canvas.width)
    if inside.is_empty:
        return np.zeros((1, 3, window.height, window.width), np.float32)
    return _normalised(resized.window(inside), config, window.height, window.width)


def to_working(points: Floats, canvas: Canvas) -> Floats:
    """Clicks ``[N, 2]`` (x, y) in photo pixels -> positions on the working image: ``(x + 0.5) * scale``.

    Raises:
        ClickError: a click is not finite or lies outside the photo's pixels.
    """
    centred = points + 0.5
    inside = (np.isfinite(points) & (centred >= 0) & (centred < (canvas.photo_width, canvas.photo_height))).all(1)
    if not inside.all():
        bad = [tuple(p) for p in points[~inside][:4].tolist()]
        raise ClickError(
            f"clicks {bad} lie outside the photo of {canvas.photo_width}x{canvas.photo_height} pixels; "
            f"x runs from 0 to {canvas.photo_width - 1}, y from 0 to {canvas.photo_height - 1}"
        )
    # Rounding, here or in a later conversion to float32, must not carry a click past the last pixel.
    last = np.nextafter(np.array([canvas.width, canvas.height], np.float32), np.float32(0))
    scale = np.array([canvas.scale_x, canvas.scale_y], points.dtype)
    return np.minimum(centred * scale, last.astype(points.dtype))


def cells_of(clicks: Floats, level: int) -> NDArray[np.int64]:
    """Cells ``[N, 2]`` (row, column) of pyramid level ``level`` that hold ``clicks`` [N, 2] (x, y)."""
    return np.floor(clicks[:, ::-1] / STRIDES[level]).astype(np.int64)


def decode_boxes(reg: Floats, cells: NDArray[np.int64], level: int, anchor_offset: str = "half") -> Floats:
    """Distances ``[N, 4]`` (left, top, right, bottom) from the cells' centres -> boxes ``[N, 4]`` (x0, y0, x1, y1).

    The centre of cell ``i`` is ``i * s + s // 2``, or ``i * s`` for models with ``anchor_offset="zero"``.
    """
    stride = STRIDES[level]
    centre = (cells[:, ::-1] * stride + (stride // 2 if anchor_offset == "half" else 0)).astype(reg.dtype)
    return np.concatenate([centre - reg[:, :2], centre + reg[:, 2:]], 1)


def predictions_at(outputs: Mapping[str, Floats], clicks: Floats, anchor_offset: str = "half") -> dict[str, Floats]:
    """Head outputs at the clicks' cells on every level.

    Args:
        outputs: planes of one image as :class:`tracenet.models.TraceNet` returns them, as arrays.
        clicks: ``[N, 2]`` (x, y) on the working image.
        anchor_offset: of the model's config.

    Returns:
        ``logits``, ``ctr`` and (with a level head) ``level`` as ``[N, 5]``, ``theta`` ``[N, 5, 169]`` and
        ``boxes`` ``[N, 5, 4]``; the second axis runs over P3..P7.
    """
    names = [name for name in HEADS if f"{name}{LEVELS[0]}" in outputs]
    found: dict[str, list[Floats]] = {name: [] for name in names}
    for level in LEVELS:
        cells = cells_of(clicks, level)
        for name in names:
            found[name].append(outputs[f"{name}{level}"][0][:, cells[:, 0], cells[:, 1]].T)  # [N, c]
    return gather_predictions(found, clicks, anchor_offset)


def gather_predictions(
    values: Mapping[str, Sequence[Floats]], clicks: Floats, anchor_offset: str = "half"
) -> dict[str, Floats]:
    """Per-level head values at the clicks (name -> five arrays ``[N, c]``) as :func:`predictions_at` returns them."""
    boxes = [
        decode_boxes(reg, cells_of(clicks, level), level, anchor_offset)
        for level, reg in zip(LEVELS, values["reg"], strict=True)
    ]
    out: dict[str, Floats] = {"theta": np.stack(values["theta"], 1), "boxes": np.stack(boxes, 1)}
    for name in ("ctr", "level"):
        if name in values:
            out[name] = np.concatenate(values[name], 1)
    out["logits"] = np.stack([x.max(1) for x in values["logits"]], 1)
    return out


def sigmoid(x: Floats) -> Floats:
    """``1 / (1 + exp(-x))``, without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def softmax(x: Floats) -> Floats:
    """``exp(x) / sum exp(x)`` over the last axis."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def best_first(rating: Floats) -> NDArray[np.int64]:
    """Positions along the last axis, largest rating first; of equals the first comes first."""
    return np.argsort(-rating, axis=-1, kind="stable")


def click_scores(predictions: Mapping[str, Floats], score: str = "score") -> Floats:
    """Predicted quality ``[N, 5]`` in [0, 1] of the mask each level would give; see :class:`PredictorSettings`."""
    quality = sigmoid(predictions["logits"])
    return quality if score == "score" else np.sqrt(quality * sigmoid(predictions["ctr"]))


def rank_levels(predictions: Mapping[str, Floats], settings: PredictorSettings) -> NDArray[np.int64]:
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
        own = softmax(rating)
        rating = own.copy()
        rating[:, 1:] += settings.level_smoothing * own[:, :-1]
        rating[:, :-1] += settings.level_smoothing * own[:, 1:]
    return best_first(rating) + lo


def mask_origin(clicks: Floats, level: int, rel_to: str) -> Floats:
    """Origin ``[N, 2]`` of the relative coordinates: the click, or the centre ``cell * s + s // 2`` of its cell."""
    if rel_to == "click":
        return clicks
    stride = STRIDES[level]
    return np.floor(clicks / stride) * stride + stride // 2


def as_logits(half: Floats, config: TraceNetConfig) -> Floats:
    """Values of the network's half-resolution mask as logits: in the paper's order they are probabilities."""
    if config.mask_order == "upsample_logits":
        return half
    inside = np.clip(half, 1e-6, 1 - 1e-6)
    return np.log(inside / (1 - inside))


def box_window(box: Floats, click: Floats, canvas: Canvas, settings: PredictorSettings) -> Window:
    """Samples of the half-resolution mask that are computed and kept.

    The box ``[4]`` (x0, y0, x1, y1), each side moved out by ``mask_margin * side + mask_margin_pixels``, rounded
    outwards and clipped to the un-padded image; it always holds the click ``[2]``. The whole image for ``"full"``.
    """
    height, width = half_size(canvas)
    if settings.mask_window == "full":
        return Window.full(height, width)
    x0, y0, x1, y1 = (0.0 if math.isnan(v) else min(max(v, -1e9), 1e9) for v in box.tolist())
    grow_x = (x1 - x0) * settings.mask_margin + settings.mask_margin_pixels
    grow_y = (y1 - y0) * settings.mask_margin + settings.mask_margin_pixels
    x, y = (int(v // HALF) for v in click.tolist())

    def span(low: float, high: float, at: int, size: int) -> tuple[int, int]:
        start = min(max(math.floor(low / HALF), 0), at)
        return start, max(min(math.ceil(high / HALF), size), at + 1)

    return Window(*span(y0 - grow_y, y1 + grow_y, y, height), *span(x0 - grow_x, x1 + grow_x, x, width))


def half_size(canvas: Canvas) -> tuple[int, int]:
    """Rows and columns of the un-padded half-resolution plane."""
    return math.ceil(canvas.height / HALF), math.ceil(canvas.width / HALF)


def photo_logits(logits: Floats, window: Window, canvas: Canvas) -> Floats:
    """Mask logits of one window -> logits ``[photo_height, photo_width]``; a pixel is in the mask where they exceed 0.

    Bilinear between half-resolution samples, whose centres lie at ``2i + 1`` on the working image; photo pixel ``x``
    lies at ``(x + 0.5) * scale``. Samples outside the window count as :data:`OUTSIDE_LOGIT`.

    Args:
        logits: ``[window.height, window.width]``, the part of the half-resolution plane inside ``window``.
    """
    return resample_plane(half_plane(logits, window, canvas), canvas)


def half_plane(logits: Floats, window: Window, canvas: Canvas) -> Floats:
    """Mask logits of one window placed on the un-padded half-resolution plane, :data:`OUTSIDE_LOGIT` around it."""
    if logits.shape != (window.height, window.width):
        raise InputError(f"logits have shape {logits.shape}; the window is {window.height}x{window.width}")
    plane = np.full(half_size(canvas), OUTSIDE_LOGIT, logits.dtype)
    plane[window.y0 : window.y1, window.x0 : window.x1] = logits
    return plane


def resample_plane(plane: Floats, canvas: Canvas) -> Floats:
    """Half-resolution plane -> photo size, by the coordinates of :func:`photo_logits`."""
    rows = _resample(plane, canvas.photo_height, canvas.scale_y)
    return _resample(rows.T, canvas.photo_width, canvas.scale_x).T


def move_plane(plane: Floats, canvas: Canvas, target: Canvas) -> Floats:
    """Half-resolution plane of one scale -> half-resolution plane of another, whose sample ``i`` lies at ``2i + 1``."""
    if canvas == target:
        return plane
    height, width = half_size(target)
    rows = _resample(plane, height, HALF * canvas.height / target.height)
    return _resample(rows.T, width, HALF * canvas.width / target.width).T


def _resample(plane: Floats, size: int, scale: float) -> Floats:
    """Linear interpolation of ``plane`` [n, m] along its first axis to ``size`` photo pixels."""
    low, weight = _taps(size, scale, plane.shape[0])
    high = np.minimum(low + 1, plane.shape[0] - 1)
    return _between(plane[low], plane[high], weight[:, None])


@functools.lru_cache(maxsize=64)
def _taps(size: int, scale: float, samples: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The sample before each of ``size`` pixels and the weight of the one after it, of ``samples`` along an axis."""
    position = np.clip((np.arange(size) + 0.5) * (scale / HALF) - 0.5, 0, samples - 1)
    low = np.floor(position).astype(np.int64)
    weight = (position - low).astype(np.float32)
    low.flags.writeable = weight.flags.writeable = False
    return low, weight


def _between(low: Floats, high: Floats, weight: Floats) -> Floats:
    return low + (high - low) * weight


def photo_mask(logits: Floats, window: Window, canvas: Canvas) -> NDArray[np.bool_]:
    """``photo_logits(logits, window, canvas) > 0``: bool ``[photo_height, photo_width]``.

    Only pixels that the window reaches are interpolated; most windows are small beside the photo.

    Args:
        logits: ``[window.height, window.width]`` on the half-resolution plane.
    """
    mask = np.zeros((canvas.photo_height, canvas.photo_width), np.bool_)
    height, width = half_size(canvas)
    rows, low, high, weight = _reach(window.y0, window.y1, height, canvas.photo_height, canvas.scale_y)
    around = np.full((window.height + 2, window.width + 2), OUTSIDE_LOGIT, logits.dtype)
    around[1:-1, 1:-1] = logits
    part = np.ascontiguousarray(_between(around[low], around[high], weight[:, None]).T)  # [window.width + 2, rows]
    columns, low, high, weight = _reach(window.x0, window.x1, width, canvas.photo_width, canvas.scale_x)
    mask[rows, columns] = (_between(part[low], part[high], weight[:, None]) > 0).T
    return mask


def _reach(
    start: int, stop: int, samples: int, size: int, scale: float
) -> tuple[slice, NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """One axis: the photo's pixels between whose two samples one of ``start..stop`` is, and where they lie.

    Returns:
        The pixels; the sample before each and the one after it, counted from ``start - 1``; the second's weight.
    """
    low, weight = _taps(size, scale, samples)
    first, beyond = np.searchsorted(low, [start - 1, stop])  # positions never fall
    low, weight = low[first:beyond], weight[first:beyond]
    before = start - 1
    return slice(first, beyond), low - before, np.minimum(low + 1, samples - 1) - before, weight
