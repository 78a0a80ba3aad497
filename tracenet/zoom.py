"""The zoom pyramid: one photo at several scales, and which scale and level answers a click.
A click asked of levels P3-P5 reads a bounded window of each scale, whatever the photo's size: large things are seen
small instead of on P6 and P7, which read the whole image, and small things are seen large. The predictor and the
evaluation both call the functions here, so that what is scored is what ``predict`` returns.

A *candidate* is a scale and a level. Candidate ``s * L + k`` is level ``first + k`` of scale ``s``, with L levels per
scale. It is made for things of a size of about ``2**level / factor``, so ``level - log2(factor)`` is its *octave*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tracenet.config import TraceNetConfig
from tracenet.conventions import LEVELS
from tracenet.inference import (
    NATIVE,
    PAD_TO,
    Canvas,
    Floats,
    PredictorSettings,
    best_first,
    check_factors,
    click_scores,
    fit_canvas,
    prepare_image,
    prepare_window,
    rank_levels,
    resample_plane,
    softmax,
)
from tracenet.resize import ResizedPhoto
from tracenet_kernels.errors import InputError
from tracenet_kernels.window import Window

MAX_CANVAS_PIXELS = 64 * 1024 * 1024
"""Scales of more pixels are refused: a mask over all of one would take gigabytes of features."""


@dataclass(frozen=True)
class Scale:
    """A photo at one factor of the working size."""

    factor: float
    canvas: Canvas


def photo_scales(width: int, height: int, zoom: Any, settings: PredictorSettings) -> list[Scale]:
    """Scales at which a photo is looked at.

    Args:
        width, height: of the photo.
        zoom: ``"off"``: factor 1. ``"auto"``: the settings' factors, without those whose canvas would be narrower than
            32 pixels, larger than :data:`MAX_CANVAS_PIXELS`, or too much enlarged (``zoom_enlarge``); factor 1 where
            none is left. Or a sequence of factors and ``"native"``, all of which must be possible.
        settings: of the checkpoint.

    Returns:
        coarsest first; of factors that round to the same canvas the one nearest to 1.

    Raises:
        InputError: ``zoom`` is none of these, or a factor's canvas is too small or too large.
    """
    whole = Scale(1.0, fit_canvas(width, height, settings.working_size))
    if isinstance(zoom, str) and zoom == "off":
        return [whole]
    automatic = isinstance(zoom, str) and zoom == "auto"
    if isinstance(zoom, str) and not automatic:
        raise InputError(f"zoom is {zoom!r}; pass 'off', 'auto', or a sequence of factors such as (0.5, 1, 2)")
    native = max(width, height) / settings.working_size
    found: dict[Canvas, Scale] = {}
    for given in settings.zoom_factors if automatic else check_factors(zoom):
        factor = native if given == NATIVE else float(given)
        if automatic and factor > max(1.0, settings.zoom_enlarge * native):
            continue
        canvas = fit_canvas(width, height, max(1, round(settings.working_size * factor)))
        problem = _impossible(canvas, whole.canvas)
        if problem is None:
            old = found.get(canvas)
            if old is None or abs(math.log(factor)) < abs(math.log(old.factor)):
                found[canvas] = Scale(factor, canvas)
        elif not automatic:
            raise InputError(f"zoom factor {given!r} makes the photo of {width}x{height} {problem}")
    return sorted(found.values(), key=lambda scale: scale.factor) or [whole]


def zoom_settings(
    zoom: Any, settings: PredictorSettings, levels: tuple[int, int] | None = None
) -> tuple[bool, PredictorSettings]:
    """Whether scales are chosen from at all, and the settings with the levels that are then asked of each.

    Args:
        zoom: as :func:`photo_scales` takes it; even one factor in a sequence is asked like several.
        levels: instead of the settings' ``zoom_levels``, or with ``"off"`` their ``levels``.
    """
    zoomed = not (isinstance(zoom, str) and zoom == "off")
    if levels is None:
        levels = settings.zoom_levels if zoomed else settings.levels
    return zoomed, settings if levels == settings.levels else replace(settings, levels=levels)


def _impossible(canvas: Canvas, whole: Canvas) -> str | None:
    size = f"{canvas.width}x{canvas.height}"
    if min(canvas.width, canvas.height) < PAD_TO and canvas != whole:
        return f"{size}; both sides must keep {PAD_TO} pixels, pass a larger factor"
    if canvas.width * canvas.height > MAX_CANVAS_PIXELS:
        return f"{size}; at most {MAX_CANVAS_PIXELS} pixels are looked at, pass a smaller factor"
    return None


def prepare_scale(
    photo: Image.Image, scale: Scale, settings: PredictorSettings, config: TraceNetConfig
) -> NDArray[np.float32]:
    """The whole network input of one scale, ``[1, 3, padded_height, padded_width]``, as the predictor sees parts of it.

    The working size itself is resized in one call of Pillow, other scales as :mod:`tracenet.resize` says.
    """
    canvas = scale.canvas
    if canvas == fit_canvas(photo.width, photo.height, settings.working_size):
        return prepare_image(photo, canvas, config)
    resized = ResizedPhoto(photo.convert("RGB"), canvas.width, canvas.height)
    return prepare_window(resized, canvas, config, Window.full(canvas.padded_height, canvas.padded_width))


def octaves(factors: Sequence[float], levels: tuple[int, int]) -> NDArray[np.float32]:
    """``level - log2(factor)`` of every candidate, ``[S * L]``."""
    steps = [level - math.log2(f) for f in factors for level in range(levels[0], levels[1] + 1)]
    return np.array(steps, np.float32)


def lend(probability: Floats, octave: Floats, share: float) -> Floats:
    """Every candidate lends ``share`` of its probability ``[N, C]`` to those of about its size.

    To the full within one octave, falling to nothing at two. At one scale these are its neighbouring levels.
    """
    if share == 0:
        return probability
    near = np.clip(2 - np.abs(octave[:, None] - octave[None]), 0, 1)
    np.fill_diagonal(near, 0)
    return probability + share * probability @ near


def candidate_ratings(
    predictions: Sequence[Mapping[str, Floats]], factors: Sequence[float], settings: PredictorSettings, choice: str
) -> Floats:
    """How likely each candidate is to give the best mask: ``[N, S * L]``, not negative.

    Args:
        predictions: of N clicks at each of S scales, as :func:`tracenet.inference.predictions_at` returns them.
        factors: of the scales.
        settings: its ``levels`` are those asked, its ``level_smoothing`` is what candidates lend to one another (not
            with ``"score"``).
        choice: ``"score"``, or as ``zoom_choice`` of the settings says; ``q`` is the predicted quality of a mask
            (:func:`tracenet.inference.click_scores`) and ``v`` the level head's logit: ``q``; ``softmax_{s,k} v``
            (``"level"``); ``q * softmax_k v`` (``"product"``); ``q * softmax_{s,k} v`` (``"level_score"``).

    Raises:
        InputError: the choice needs a level head that the model does not have.
    """
    asked = slice(settings.levels[0] - LEVELS[0], settings.levels[1] - LEVELS[0] + 1)
    quality = np.concatenate([click_scores(at, settings.score)[:, asked] for at in predictions], 1)
    if choice == "score":
        return quality
    if any("level" not in at for at in predictions):
        raise InputError(f"choosing by {choice!r} needs a model with level_head=True; use 'score' for this one")
    logits = [at["level"][:, asked] for at in predictions]
    octave = octaves(factors, settings.levels)
    if choice == "product":
        apart = octave.reshape(len(logits), -1)
        own = [lend(softmax(v), o, settings.level_smoothing) for v, o in zip(logits, apart, strict=True)]
        return np.concatenate(own, 1) * quality
    joint = lend(softmax(np.concatenate(logits, 1)), octave, settings.level_smoothing)
    return joint * quality if choice == "level_score" else joint


def rank_candidates(
    predictions: Sequence[Mapping[str, Floats]], factors: Sequence[float], settings: PredictorSettings, zoomed: bool
) -> tuple[NDArray[np.int64], Floats]:
    """Candidates best first, ``[N, S * L]``, and their ratings in that order; of equals the first comes first.

    Args:
        predictions, factors, settings: as :func:`candidate_ratings` takes them.
        zoomed: choose by ``zoom_choice``; else by ``level_choice``, for the one scale there is.
    """
    choice = settings.zoom_choice if zoomed else settings.level_choice
    ratings = candidate_ratings(predictions, factors, settings, choice)
    if zoomed:
        order = best_first(ratings)
    else:
        order = rank_levels(predictions[0], settings) - settings.levels[0]
    return order, np.take_along_axis(ratings, order, 1)


def settle(
    order: NDArray[np.int64],
    ratings: Floats,
    plane_of: Callable[[int], tuple[Floats, Canvas]],
    settings: PredictorSettings,
) -> list[int]:
    """Candidates of one click, best first, after the likeliest of them have compared their masks.

    With ``agreement`` K of the settings, the first K are sorted by ``sum_j p_j IoU(mask_i, mask_j)``, the IoU expected
    of taking mask i where mask j is right with probability ``p_j`` (minimum Bayes risk); p is the ratings' share. A
    safe mask between several likely ones wins over a lone peak. Masks are compared on the pixels of the working size.

    Args:
        order, ratings: one row of :func:`rank_candidates`.
        plane_of: half-resolution mask logits of a candidate, and the canvas of its scale.
    """
    ranked: list[int] = order.tolist()
    count = min(settings.agreement, len(ranked))
    if count < 2:
        return ranked
    masks = []
    for candidate in ranked[:count]:
        plane, canvas = plane_of(candidate)
        grid = fit_canvas(canvas.photo_width, canvas.photo_height, settings.working_size)
        onto = replace(canvas, photo_width=grid.width, photo_height=grid.height)
        masks.append((resample_plane(plane, onto) > 0).ravel())
    first = best_first(expected_iou(np.stack(masks), ratings[:count])).tolist()
    return [ranked[i] for i in first] + ranked[count:]


def expected_iou(masks: NDArray[np.bool_], weights: Floats) -> Floats:
    """``sum_j w_j IoU(i, j) / sum_j w_j`` of masks ``[K, pixels]`` (bool), weights ``[K]``; two empty masks agree."""
    values = masks.astype(np.float32)
    common = values @ values.T
    area = common.diagonal()
    union = area[:, None] + area[None] - common
    iou = np.where(union > 0, common / np.maximum(union, 1), np.float32(1))
    share = weights.astype(np.float32)
    return iou @ share / share.sum()
