"""The predictor: one image, one click, one mask, with the shape that Segment-Anything users know.

Two phases per click. *Locate* runs the heads at the click's cell of every level asked for: score, box, mask
parameters. *Segment* runs the mask branch and the mask head on the predicted box plus a margin only, reusing every
window the first phase already computed. With zoom the first phase looks at the photo at several scales, and only the
scale that answers is segmented (:mod:`tracenet.zoom`).
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tracenet import inference
from tracenet.checkpoint import BUNDLED, Checkpoint, bundled_checkpoint
from tracenet.click_plan import ClickPlan
from tracenet.conventions import LEVELS, SIZES_OF_INTEREST, THETA
from tracenet.image_io import as_image
from tracenet.inference import Canvas, Floats, PredictorSettings
from tracenet.points import check_points
from tracenet.resize import ResizedPhoto
from tracenet.sessions import Parameters, PhasePlan, Session, open_network
from tracenet.zoom import Scale, photo_scales, prepare_scale, rank_candidates, settle, zoom_settings
from tracenet_kernels.backends import choose
from tracenet_kernels.errors import InputError
from tracenet_kernels.window import Window, hull

if TYPE_CHECKING:
    from tracenet.models import TraceNet

HEAD_REACH = 5
"""Cells around a click that its predictions read of a pyramid level: five 3x3 convolutions in a row."""


@dataclass(frozen=True)
class _View:
    """The current photo at one scale."""

    scale: Scale
    photo: ResizedPhoto
    session: Session

    @property
    def canvas(self) -> Canvas:
        return self.scale.canvas


@dataclass(frozen=True)
class _Located:
    """Head outputs of clicks ``[N, 2]`` at one scale: arrays over the five levels; levels not asked for are NaN."""

    view: _View
    clicks: Floats
    predictions: dict[str, Floats]


@dataclass(frozen=True)
class _Part:
    """The mask logits that one candidate gives for one click, on a window of its scale's half-resolution plane."""

    view: _View
    level: int
    logits: Floats
    window: Window
    score: float
    box: NDArray[np.float32]
    plan: PhasePlan

    def plane(self) -> Floats:
        return inference.half_plane(self.logits, self.window, self.view.canvas)


@dataclass(frozen=True)
class _Answer:
    """One mask of one object: logits of a window of the half-resolution plane of the canvas ``on``."""

    logits: Floats
    window: Window
    on: Canvas
    score: float
    box: NDArray[np.float32]
    level: int
    factor: float


class Predictor:
    """Segment the clicked thing of an image.

    ::

        p = tracenet.Predictor.from_pretrained()
        p.set_image(photo)
        masks, scores, logits = p.predict(point_coords=[[x, y]], point_labels=[1])

    Args:
        model: a :class:`tracenet.models.TraceNet` with a mask branch, in evaluation mode, or a
            :class:`tracenet.checkpoint.Checkpoint`, of which only what the backend needs is loaded.
        settings: how the checkpoint wants to be used (working size, levels, mask window); by default those of
            :class:`PredictorSettings`, with the level choice that the model's heads allow.
        backend: ``"triton"`` (Triton kernels on an NVIDIA GPU, replayed from captured graphs), ``"native"`` (C++
            kernels on the CPU, fp32, no PyTorch once a checkpoint's program is cached), ``"torch"`` (crop-and-pad), or
            ``"auto"``: the first of them that is available and fits the model.
        keep_features: keep block outputs and pyramid windows between clicks of one image.
        max_kept_bytes: bound on what is kept, at all scales together.
        device: of the triton backend.
        dtype: that the network computes in: ``"float32"``, and with the triton backend ``"float16"`` (its default) or
            ``"bfloat16"``.

    Attributes:
        last_plan: what the last call of :meth:`predict` computed.
        last_boxes: predicted boxes (x0, y0, x1, y1) in photo pixels, ``(C, 4)``, or ``(B, C, 4)`` for B objects; of
            several clicks on one object, the box of the one with the best score.
        last_levels: the levels that predicted the masks, ``(C,)`` or ``(B, C)``, likewise.
        last_zoom: the zoom factors at which they did, likewise; 1 without zoom.
        timings_ms: of the last ``set_image``, and of the last ``predict`` without and with ``capture``.
        between_phases: called before every run of the network within ``predict``, if set. What it raises ends the call;
            what was computed so far stays kept.
    """

    def __init__(
        self,
        model: TraceNet | Checkpoint,
        settings: PredictorSettings | None = None,
        backend: str = "auto",
        keep_features: bool = True,
        max_kept_bytes: int = 1 << 30,
        device: str = "cuda",
        dtype: str | None = None,
    ) -> None:
        self.config = model.config
        if self.config.mask_branch == "none":
            raise InputError("the model has mask_branch='none' and predicts no masks; use 'condinst' or 'p3'")
        if not isinstance(model, Checkpoint) and model.training:
            raise InputError("the model is in training mode; call model.eval() first")
        if settings is None:
            settings = PredictorSettings(level_choice="level" if self.config.level_head else "score")
        if settings.level_choice == "level" and not self.config.level_head:
            raise InputError("level_choice='level' needs a model with level_head=True; use 'score' for this one")
        if settings.zoom != "off":
            self._check_choice(settings)
        self.network = open_network(model, backend, device, dtype)
        self.settings = settings
        self.keep_features = keep_features
        self.max_kept_bytes = max_kept_bytes
        self.last_plan: ClickPlan | None = None
        self.last_boxes: np.ndarray | None = None
        self.last_levels: np.ndarray | None = None
        self.last_zoom: np.ndarray | None = None
        self.timings_ms: dict[str, float] = {}
        self.between_phases: Callable[[], None] | None = None
        self._source = model
        self._photo: Image.Image | None = None
        self._views: dict[Canvas, _View] = {}

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path | None = None, backend: str = "auto", **options: Any
    ) -> Predictor:
        """Load a checkpoint: a file, or (without a name, or by its model's name) the one that ships with the package.

        Raises:
            CheckpointError: the file is missing, truncated, foreign or does not fit its model.
            InputError: ``name_or_path`` is neither a name nor a path; the model predicts no masks.
            BackendError: the backend is not available.
        """
        if not isinstance(name_or_path, (str, os.PathLike, type(None))):
            raise InputError(f"from_pretrained got a {type(name_or_path).__name__}; pass a name or the path of a file")
        bundled = name_or_path is None or str(name_or_path) == Path(BUNDLED).stem
        choose(backend)  # a wrong name is refused before anything is read
        checkpoint = Checkpoint(bundled_checkpoint() if bundled else Path(str(name_or_path)))
        return cls(checkpoint, checkpoint.info.predictor, backend, **options)

    def another(self) -> Predictor:
        """A predictor on the same network and settings, with an image and kept features of its own.

        Weights and captured graphs are shared, so it costs nothing. Predictors on one network may take turns; with the
        torch backend they must not predict at the same time.
        """
        other = copy.copy(self)
        other._views, other.timings_ms = {}, {}
        other.reset_image()
        return other

    @property
    def backend(self) -> str:
        """The backend that runs the network."""
        return self.network.backend

    @property
    def model(self) -> TraceNet:
        """The network as a PyTorch module; of a checkpoint on another backend it is loaded now."""
        return self._source.model if isinstance(self._source, Checkpoint) else self._source

    @property
    def canvas(self) -> Canvas:
        """Geometry of the current image at the working size. Raises InputError before :meth:`set_image`."""
        return self._base.canvas

    @property
    def image(self) -> NDArray[np.float32]:
        """The current network input at the working size, ``[1, 3, H, W]``: resized, normalised, padded."""
        view = self._base
        window = Window.full(view.canvas.padded_height, view.canvas.padded_width)
        return inference.prepare_window(view.photo, view.canvas, self.config, window)

    @property
    def last_scale(self) -> Scale:
        """The scale of the last first mask. Raises InputError before :meth:`predict`."""
        if self.last_plan is None:
            raise InputError("nothing was predicted on this image yet; call predict first")
        factor = self.last_plan.factor
        return next(view.scale for view in self._views.values() if view.scale.factor == factor)

    def input_at(self, scale: Scale) -> NDArray[np.float32]:
        """All of the network's input ``[1, 3, H, W]`` at a scale of the current image."""
        if self._photo is None:
            raise InputError("no image is set; call set_image(image) before predict")
        return prepare_scale(self._photo, scale, self.settings, self.config)

    def new_session(self, scale: Scale, max_kept_bytes: int) -> Session:
        """A session of its own at a scale of the current image that was looked at: nothing is kept in it yet."""
        return self.network.session(self._view(scale).photo, scale.canvas, max_kept_bytes)

    @property
    def _base(self) -> _View:
        """The view at factor 1, the first that an image gets."""
        if not self._views:
            raise InputError("no image is set; call set_image(image) before predict")
        return next(iter(self._views.values()))

    @property
    def kept_bytes(self) -> int:
        """Bytes of the features kept for the current image."""
        return sum(view.session.kept_bytes for view in self._views.values())

    def set_image(self, image: Any) -> None:
        """Take an image: ``[H, W, 3]`` uint8 RGB, a PIL image (EXIF orientation is applied), or a path.

        Nothing is computed yet but resizing and normalising; features are computed by the clicks that need them.

        Raises:
            ImageError: empty, enormous, corrupt, or of a type or dtype that is not allowed.
        """
        start = time.perf_counter()
        photo = as_image(image)
        scale = Scale(1.0, inference.fit_canvas(photo.width, photo.height, self.settings.working_size))
        whole = inference.resize_photo(photo, scale.canvas)
        self.reset_image()
        self._photo = photo
        self._add_view(scale, ResizedPhoto(photo, scale.canvas.width, scale.canvas.height, whole))
        self.timings_ms["set_image"] = (time.perf_counter() - start) * 1e3

    def reset_image(self) -> None:
        """Forget the image and everything kept for it."""
        self._photo = self.last_plan = self.last_boxes = self.last_levels = self.last_zoom = None
        self._views.clear()

    def forget_features(self) -> None:
        """Drop the features kept for the current image; the next click computes everything it needs."""
        for view in self._views.values():
            view.session.forget()

    def predict(
        self,
        point_coords: Any,
        point_labels: Any = None,
        multimask_output: bool = False,
        levels: tuple[int, int] | None = None,
        mask_window: str | float | None = None,
        zoom: Any = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks of the clicked objects.

        Args:
            point_coords: ``(N, 2)`` clicks (x, y) in photo pixels on one object, or ``(B, N, 2)`` for B objects;
                integers are pixel centres. Several clicks on one object: the union of their masks.
            point_labels: ``(N,)`` or ``(B, N)`` of ones; negative clicks are not supported yet.
            multimask_output: also return the masks of the other levels, best first (C = number of levels, times the
                number of scales that the photo is looked at).
            levels: first and last pyramid level asked at the click, inclusive, within 3..7; with zoom, at each scale.
            mask_window: ``"box"`` (predicted box and margin), ``"full"``, or a radius around the click in photo pixels.
            zoom: scales at which the photo is looked at: ``"off"``, ``"auto"`` (the checkpoint's factors), or a
                sequence of factors of the working size and ``"native"``; see :func:`tracenet.zoom.photo_scales`.

        Returns:
            ``masks`` bool ``(C, H, W)`` at photo size, ``scores`` ``(C,)`` in 0..1, and ``logits`` ``(C, h, w)`` at
            half the working size (un-padded; outside the mask window they are the constant background value). With zoom
            they are at half the size of the scale that answered, ``last_zoom`` times as large; of several masks, at the
            finest of their scales, to which the others are resampled. For ``(B, N, 2)`` each has a leading axis B.

        Raises:
            ClickError: a click outside the photo, not finite, of the wrong shape, or a label other than 1.
            InputError: no image is set; unknown levels, mask window or zoom; a factor that makes the photo too small or
                too large; a choice of scales that the model's heads do not allow.
        """
        canvas = self.canvas
        points, batched = check_points(point_coords, point_labels)
        given = self.settings.zoom if zoom is None else zoom
        scales = photo_scales(canvas.photo_width, canvas.photo_height, given, self.settings)
        zoomed, settings = zoom_settings(given, self.settings, levels)
        if zoomed:
            self._check_choice(settings)
        window_rule = self._window_rule(mask_window)
        views = [self._view(scale) for scale in scales]
        every = np.concatenate(points)
        clicks = [inference.to_working(every, view.canvas).astype(np.float32) for view in views]
        start = time.perf_counter()
        for view in views:
            self.network.prepare(view.canvas)
        captured = time.perf_counter()
        network = self.network  # a plan that held the predictor would keep it and its features until a collection
        done = ClickPlan(count_full=lambda: network.full_macs(canvas))
        if not self.keep_features:
            self.forget_features()
        located = [self._locate(view, at, settings, done) for view, at in zip(views, clicks, strict=True)]
        answers = self._answers(located, len(points), settings, zoomed, window_rule, multimask_output, done)
        if not self.keep_features:
            self.forget_features()
        masks, scores, logits, boxes, chosen, factors = (
            _stack(part) if batched else part[0] for part in zip(*_stacked(answers), strict=True)
        )
        self.last_plan, self.last_boxes, self.last_levels, self.last_zoom = done, boxes, chosen, factors
        self.timings_ms.update(capture=(captured - start) * 1e3, predict=(time.perf_counter() - captured) * 1e3)
        return masks, scores, logits

    def _check_choice(self, settings: PredictorSettings) -> None:
        if settings.zoom_choice != "score" and not self.config.level_head:
            raise InputError(
                f"zoom_choice={settings.zoom_choice!r} needs a model with level_head=True; use 'score' for this one"
            )

    def _view(self, scale: Scale) -> _View:
        assert self._photo is not None
        canvas = scale.canvas
        if canvas not in self._views:
            self._add_view(scale, ResizedPhoto(self._photo, canvas.width, canvas.height))
        return self._views[canvas]

    def _add_view(self, scale: Scale, photo: ResizedPhoto) -> None:
        session = self.network.session(photo, scale.canvas, self.max_kept_bytes)
        self._views[scale.canvas] = _View(scale, photo, session)

    def _window_rule(self, mask_window: str | float | None) -> str | float:
        rule: Any = self.settings.mask_window if mask_window is None else mask_window
        if isinstance(rule, str) and rule in ("box", "full"):
            return rule
        if (
            isinstance(rule, (int, float, np.integer, np.floating))
            and not isinstance(rule, bool)
            and 0 < rule < math.inf
        ):
            # A longer radius reaches no further than the photo, and would overflow.
            return float(min(rule, self.canvas.photo_width + self.canvas.photo_height))
        raise InputError(f"mask_window is {rule!r}; pass 'box', 'full', or a radius in photo pixels greater than 0")

    def _answers(
        self,
        located: list[_Located],
        objects: int,
        settings: PredictorSettings,
        zoomed: bool,
        window_rule: str | float,
        multimask: bool,
        done: ClickPlan,
    ) -> list[list[_Answer]]:
        """The masks of every object, best first; each has the same number of consecutive clicks."""
        factors = [one.view.scale.factor for one in located]
        order, ratings = rank_candidates([one.predictions for one in located], factors, settings, zoomed)
        levels = settings.levels[1] - settings.levels[0] + 1
        parts: dict[tuple[int, int], _Part] = {}

        def part(click: int, candidate: int) -> _Part:
            scale, step = divmod(candidate, levels)
            if (click, candidate) not in parts:
                parts[click, candidate] = self._segment(
                    located[scale], click, settings.levels[0] + step, window_rule, settings, done
                )
            return parts[click, candidate]

        def ranked(click: int) -> list[int]:
            def plane_of(candidate: int) -> tuple[Floats, Canvas]:
                found = part(click, candidate)
                return found.plane(), found.view.canvas

            return settle(order[click], ratings[click], plane_of, settings)

        each = len(order) // objects
        answers = []
        for first in range(0, len(order), each):
            clicks = range(first, first + each)
            candidates = [ranked(click) for click in clicks]
            masks = []
            for rank in range(order.shape[1] if multimask else 1):
                together = [part(click, c[rank]) for click, c in zip(clicks, candidates, strict=True)]
                done.masks.extend(one.plan for one in together)
                masks.append(_united(together))
            answers.append(masks)
        return answers

    def _run(
        self, view: _View, request: dict[str, Window], parameters: Parameters | None, done: ClickPlan
    ) -> tuple[PhasePlan, dict[str, NDArray[np.float32]]]:
        if self.between_phases is not None:
            self.between_phases()
        plan, outputs = view.session.run(request, parameters)
        done.factors[plan] = view.scale.factor
        if len(self._views) > 1 and self.kept_bytes > self.max_kept_bytes:
            for other in self._views.values():
                if other is not view:
                    other.session.forget()
        return plan, outputs

    def _locate(self, view: _View, clicks: Floats, settings: PredictorSettings, done: ClickPlan) -> _Located:
        """Heads at every click. Each request asks, per level, for the hull of the cells of one group of clicks."""
        channels = {"logits": self.config.num_classes, "reg": 4, "ctr": 1, "theta": THETA}
        if self.config.level_head:
            channels["level"] = 1
        asked = range(settings.levels[0], settings.levels[1] + 1)
        cells = {level: inference.cells_of(clicks, level) for level in asked}
        groups = {level: group_cells(at) for level, at in cells.items()}
        found = np.full((len(LEVELS), len(clicks), sum(channels.values())), math.nan, np.float32)
        parts = np.split(found, np.cumsum(list(channels.values()))[:-1], axis=2)
        values = {name: list(part) for name, part in zip(channels, parts, strict=True)}  # name -> five [N, c]
        for step in range(max(map(len, groups.values()))):
            windows = {level: several[step][0] for level, several in groups.items() if step < len(several)}
            request = {f"{name}{level}": window for level, window in windows.items() for name in channels}
            plan, outputs = self._run(view, request, None, done)
            done.locate.append(plan)
            for level, window in windows.items():
                members, row = groups[level][step][1], level - LEVELS[0]
                y, x = (cells[level][members] - (window.y0, window.x0)).T
                for name in channels:
                    plane = outputs[f"{name}{level}"][0]
                    values[name][row][members] = plane[:, 0, 0] if window.area == 1 else plane[:, y, x].T
        predictions = inference.gather_predictions(values, clicks, self.config.anchor_offset)
        return _Located(view, clicks, predictions)

    def _segment(
        self,
        one: _Located,
        click: int,
        level: int,
        window_rule: str | float,
        settings: PredictorSettings,
        done: ClickPlan,
    ) -> _Part:
        column, canvas, at = level - LEVELS[0], one.view.canvas, one.clicks[click : click + 1]
        box = one.predictions["boxes"][click, column]
        window = _mask_window(box, at[0], canvas, window_rule, settings)
        parameters = {
            "theta": one.predictions["theta"][click : click + 1, column],
            "origin": inference.mask_origin(at, level, self.config.rel_to),
            "size_of_interest": np.array([SIZES_OF_INTEREST[level]], np.float32),
        }
        plan, outputs = self._run(one.view, {"mask_half": window}, parameters, done)
        done.segment.append(plan)
        logits = inference.as_logits(outputs["mask_half"][0, 0], self.config)
        row = {name: value[click : click + 1] for name, value in one.predictions.items()}
        score = float(inference.click_scores(row, settings.score)[0, column])
        return _Part(one.view, level, logits, window, score, _photo_box(box, canvas), plan)


def group_cells(cells: NDArray[np.int64]) -> list[tuple[Window, list[int]]]:
    """Cells ``[N, 2]`` (row, column) of one level that are computed together: their hulls, and which they are.

    Two groups become one where the heads then read no more cells than apart, :data:`HEAD_REACH` around each hull.
    """
    where: dict[tuple[int, int], list[int]] = {}
    for i, (y, x) in enumerate(cells.tolist()):
        where.setdefault((y, x), []).append(i)
    groups: list[tuple[Window, list[int]]] = []
    for (y, x), members in where.items():
        window = Window(y, y + 1, x, x + 1)
        merged = True
        while merged:
            merged = False
            for other in groups:
                both = hull((other[0], window))
                if _read_cells(both) <= _read_cells(other[0]) + _read_cells(window):
                    groups.remove(other)
                    window, members, merged = both, [*other[1], *members], True
                    break
        groups.append((window, members))
    return groups


def _read_cells(window: Window) -> int:
    return (window.height + 2 * HEAD_REACH) * (window.width + 2 * HEAD_REACH)


def _mask_window(box: Floats, click: Floats, canvas: Canvas, rule: str | float, settings: PredictorSettings) -> Window:
    if isinstance(rule, str):
        if rule != settings.mask_window:
            settings = replace(settings, mask_window=rule)
        return inference.box_window(box, click, canvas, settings)
    reach = np.array([rule * canvas.scale_x, rule * canvas.scale_y], np.float32)
    around = np.concatenate([click - reach, click + reach])
    exact = replace(settings, mask_window="box", mask_margin=0.0, mask_margin_pixels=0.0)
    return inference.box_window(around, click, canvas, exact)


def _finest(canvases: list[Canvas]) -> Canvas:
    return max(canvases, key=lambda canvas: canvas.width * canvas.height)


def _united(parts: list[_Part]) -> _Answer:
    """One mask from the parts of all clicks on an object: their union, and what the part with the best score says."""
    on = _finest([part.view.canvas for part in parts])
    best = max(parts, key=lambda part: part.score)
    logits, window = parts[0].logits, parts[0].window
    if len(parts) > 1:
        planes = [inference.move_plane(part.plane(), part.view.canvas, on) for part in parts]
        moved = any(part.view.canvas != on for part in parts)
        window = Window.full(*inference.half_size(on)) if moved else hull(part.window for part in parts)
        logits = np.maximum.reduce(planes)[window.slices]
    return _Answer(logits, window, on, best.score, best.box, best.level, best.view.scale.factor)


def _stacked(objects: list[list[_Answer]]) -> list[tuple[np.ndarray, ...]]:
    """Per object: masks, scores, logits, boxes, levels and factors; logits of all of them on one plane."""
    finest = _finest([answer.on for answers in objects for answer in answers])

    def plane(one: _Answer) -> Floats:
        return inference.move_plane(inference.half_plane(one.logits, one.window, one.on), one.on, finest)

    return [
        (
            _stack([inference.photo_mask(one.logits, one.window, one.on) for one in answers]),
            np.array([one.score for one in answers], dtype=np.float32),
            _stack([plane(one) for one in answers]),
            np.stack([one.box for one in answers]),
            np.array([one.level for one in answers]),
            np.array([one.factor for one in answers]),
        )
        for answers in objects
    ]


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The arrays along a new first axis; a single one is not copied."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _photo_box(box: Floats, canvas: Canvas) -> NDArray[np.float32]:
    """Box (x0, y0, x1, y1) on the working image -> photo pixels, clipped to the photo."""
    scale = np.array([canvas.scale_x, canvas.scale_y] * 2, np.float32)
    limit = np.array([canvas.photo_width, canvas.photo_height] * 2, np.float32)
    return np.minimum(np.maximum(box / scale, 0), limit).astype(np.float32)
