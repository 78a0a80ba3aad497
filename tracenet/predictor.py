"""The predictor: one image, one click, one mask, with the shape that Segment-Anything users know.

Two phases per click. *Locate* runs the heads at the click's cell of every level asked for: score, box, mask
parameters. *Segment* runs the mask branch and the mask head on the predicted box plus a margin only, reusing every
window the first phase already computed. With zoom the first phase looks at the photo at several scales, and only the
scale that answers is segmented (:mod:`tracenet.zoom`).
"""

from __future__ import annotations

import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tracenet import inference
from tracenet.click_plan import ClickPlan
from tracenet.crop_pad import Patch
from tracenet.image_io import as_image
from tracenet.inference import Canvas, PredictorSettings
from tracenet.kept import FeatureStore, kept_names
from tracenet.models import TraceNet, TraceNetConfig
from tracenet.models.fpn import LEVELS
from tracenet.models.heads import THETA
from tracenet.models.mask import SIZES_OF_INTEREST
from tracenet.models.weights import BUNDLED, bundled_checkpoint, load_checkpoint
from tracenet.points import check_points
from tracenet.resize import ResizedPhoto
from tracenet.rft import costs
from tracenet.rft.trace import Plan
from tracenet.traced import TracedModel, trace
from tracenet.zoom import Scale, photo_scales, prepare_scale, rank_candidates, settle, zoom_settings
from tracenet_kernels.errors import BackendError, InputError
from tracenet_kernels.window import EMPTY, Window, hull

BACKENDS = ("auto", "torch")
MAX_SIZES = 2 * inference.MAX_FACTORS
"""Captured graphs kept, one per padded image size, least recently used dropped first; they share their weights."""


class _View:
    """The current photo at one scale: how the network's input is made, and what is kept of its features."""

    def __init__(self, scale: Scale, source: Tensor | ResizedPhoto, max_kept_bytes: int) -> None:
        self.scale = scale
        self.source = source
        self.store = FeatureStore(max_kept_bytes)

    @property
    def canvas(self) -> Canvas:
        return self.scale.canvas

    def input(self, plan: Plan, config: TraceNetConfig) -> Tensor | Patch:
        """The network's input, or of a scale that is not prepared whole the part that a plan reads."""
        if isinstance(self.source, Tensor):
            return self.source
        entry = plan.by_node.get(plan.graph.inputs[0])
        window = EMPTY if entry is None else entry.window  # kept features may be all it needs
        return Patch(window, inference.prepare_window(self.source, self.canvas, config, window))


@dataclass(frozen=True)
class _Located:
    """Head outputs of one click at one scale: tensors over the five levels; levels not asked for are NaN."""

    view: _View
    click: Tensor
    predictions: dict[str, Tensor]


@dataclass(frozen=True)
class _Part:
    """The mask logits that one candidate gives for one click, on the half-resolution plane of its scale."""

    one: _Located
    level: int
    plane: Tensor
    plan: Plan


@dataclass(frozen=True)
class _Answer:
    """One mask of one object. ``plane`` lies on the canvas ``on``."""

    plane: Tensor
    on: Canvas
    score: float
    box: np.ndarray
    level: int
    factor: float


class Predictor:
    """Segment the clicked thing of an image.

    ::

        p = tracenet.Predictor.from_pretrained()
        p.set_image(photo)
        masks, scores, logits = p.predict(point_coords=[[x, y]], point_labels=[1])

    Args:
        model: a :class:`tracenet.models.TraceNet` with a mask branch, in evaluation mode.
        settings: how the checkpoint wants to be used (working size, levels, mask window); by default those of
            :class:`PredictorSettings`, with the level choice that the model's heads allow.
        backend: ``"auto"`` or ``"torch"`` (crop-and-pad).
        keep_features: keep block outputs and pyramid windows between clicks of one image.
        max_kept_bytes: bound on what is kept, at all scales together.

    Attributes:
        last_plan: what the last call of :meth:`predict` computed.
        last_boxes: predicted boxes (x0, y0, x1, y1) in photo pixels, ``(C, 4)``, or ``(B, C, 4)`` for B objects; of
            several clicks on one object, the box of the one with the best score.
        last_levels: the levels that predicted the masks, ``(C,)`` or ``(B, C)``, likewise.
        last_zoom: the zoom factors at which they did, likewise; 1 without zoom.
        timings_ms: of the last ``set_image``, and of the last ``predict`` without and with ``capture``.
    """

    def __init__(
        self,
        model: TraceNet,
        settings: PredictorSettings | None = None,
        backend: str = "auto",
        keep_features: bool = True,
        max_kept_bytes: int = 1 << 30,
    ) -> None:
        if backend not in BACKENDS:
            raise BackendError(f"backend {backend!r} is not available; choose one of {BACKENDS}")
        if model.mask_head is None:
            raise InputError("the model has mask_branch='none' and predicts no masks; use 'condinst' or 'p3'")
        if model.training:
            raise InputError("the model is in training mode; call model.eval() first")
        if settings is None:
            settings = PredictorSettings(level_choice="level" if model.config.level_head else "score")
        if settings.level_choice == "level" and not model.config.level_head:
            raise InputError("level_choice='level' needs a model with level_head=True; use 'score' for this one")
        self.model = model
        if settings.zoom != "off":
            self._check_choice(settings)
        self.settings = settings
        self.backend = "torch" if backend == "auto" else backend
        self.keep_features = keep_features
        self.max_kept_bytes = max_kept_bytes
        self.last_plan: ClickPlan | None = None
        self.last_boxes: np.ndarray | None = None
        self.last_levels: np.ndarray | None = None
        self.last_zoom: np.ndarray | None = None
        self.timings_ms: dict[str, float] = {}
        self._captured: OrderedDict[tuple[int, int], TracedModel] = OrderedDict()
        self._keep: list[str] = []
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
        path = bundled_checkpoint() if bundled else Path(str(name_or_path))
        model, info = load_checkpoint(path)
        return cls(model, info.predictor, backend, **options)

    @property
    def canvas(self) -> Canvas:
        """Geometry of the current image at the working size. Raises InputError before :meth:`set_image`."""
        return self._base.canvas

    @property
    def image(self) -> Tensor:
        """The current network input at the working size, ``[1, 3, H, W]``: resized, normalised, padded."""
        source = self._base.source
        assert isinstance(source, Tensor)
        return source

    @property
    def last_scale(self) -> Scale:
        """The scale of the last first mask. Raises InputError before :meth:`predict`."""
        if self.last_plan is None:
            raise InputError("nothing was predicted on this image yet; call predict first")
        factor = self.last_plan.factor
        return next(view.scale for view in self._views.values() if view.scale.factor == factor)

    def input_at(self, scale: Scale) -> Tensor:
        """All of the network's input ``[1, 3, H, W]`` at a scale of the current image."""
        if self._photo is None:
            raise InputError("no image is set; call set_image(image) before predict")
        return prepare_scale(self._photo, scale, self.settings, self.model.config)

    @property
    def _base(self) -> _View:
        """The view at factor 1, the first that an image gets."""
        if not self._views:
            raise InputError("no image is set; call set_image(image) before predict")
        return next(iter(self._views.values()))

    @property
    def kept_bytes(self) -> int:
        """Bytes of the features kept for the current image."""
        return sum(view.store.bytes for view in self._views.values())

    def set_image(self, image: Any) -> None:
        """Take an image: ``[H, W, 3]`` uint8 RGB, a PIL image (EXIF orientation is applied), or a path.

        Nothing is computed yet but resizing and normalising; features are computed by the clicks that need them.

        Raises:
            ImageError: empty, enormous, corrupt, or of a type or dtype that is not allowed.
        """
        start = time.perf_counter()
        photo = as_image(image)
        scale = Scale(1.0, inference.fit_canvas(photo.width, photo.height, self.settings.working_size))
        prepared = inference.prepare_image(photo, scale.canvas, self.model.config)
        self.reset_image()
        self._photo = photo
        self._views[scale.canvas] = _View(scale, prepared, self.max_kept_bytes)
        self.timings_ms["set_image"] = (time.perf_counter() - start) * 1e3

    def reset_image(self) -> None:
        """Forget the image and everything kept for it."""
        self._photo = self.last_plan = self.last_boxes = self.last_levels = self.last_zoom = None
        self._views.clear()

    def forget_features(self) -> None:
        """Drop the features kept for the current image; the next click computes everything it needs."""
        for view in self._views.values():
            view.store.clear()

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
        clicks = [[inference.to_working(p, view.canvas).float() for view in views] for p in points]
        start = time.perf_counter()
        for view in views:
            self._traced(view.canvas)
        captured = time.perf_counter()
        done = ClickPlan(count_full=self._full_macs(canvas))
        answers = [self._object(views, c, settings, zoomed, window_rule, multimask_output, done) for c in clicks]
        if not self.keep_features:
            self.forget_features()
        masks, scores, logits, boxes, chosen, factors = (
            np.stack(part) if batched else part[0] for part in zip(*_stacked(answers), strict=True)
        )
        self.last_plan, self.last_boxes, self.last_levels, self.last_zoom = done, boxes, chosen, factors
        self.timings_ms.update(capture=(captured - start) * 1e3, predict=(time.perf_counter() - captured) * 1e3)
        return masks, scores, logits

    def _check_choice(self, settings: PredictorSettings) -> None:
        if settings.zoom_choice != "score" and not self.model.config.level_head:
            raise InputError(
                f"zoom_choice={settings.zoom_choice!r} needs a model with level_head=True; use 'score' for this one"
            )

    def _view(self, scale: Scale) -> _View:
        assert self._photo is not None
        if scale.canvas not in self._views:
            canvas = scale.canvas
            resized = ResizedPhoto(self._photo, canvas.width, canvas.height)
            self._views[canvas] = _View(scale, resized, self.max_kept_bytes)
        return self._views[scale.canvas]

    def _full_macs(self, canvas: Canvas) -> Callable[[], int]:
        def count() -> int:
            return costs.full_macs(self._traced(canvas).graph)

        return count

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

    def _traced(self, canvas: Canvas) -> TracedModel:
        size = (canvas.padded_height, canvas.padded_width)
        if size not in self._captured:
            # Only shapes and types are looked at: memory that is never touched costs nothing, however large the scale.
            inputs = (torch.empty(1, 3, *size), torch.zeros(1, THETA), torch.zeros(1, 2), torch.ones(1))
            traced = trace(self.model, inputs)
            if self._captured:
                traced.share_weights(next(iter(self._captured.values())))
            self._captured[size] = traced
            while len(self._captured) > MAX_SIZES:
                self._captured.popitem(last=False)
        self._captured.move_to_end(size)
        return self._captured[size]

    def _object(
        self,
        views: list[_View],
        clicks: list[Tensor],
        settings: PredictorSettings,
        zoomed: bool,
        window_rule: str | float,
        multimask: bool,
        done: ClickPlan,
    ) -> list[_Answer]:
        """The masks of one object, best first, from its clicks ``[N, 2]`` on the canvas of each view."""
        if not self.keep_features:
            self.forget_features()
        located = [self._locate(view, at, settings, done) for view, at in zip(views, clicks, strict=True)]
        factors = [view.scale.factor for view in views]
        levels = settings.levels[1] - settings.levels[0] + 1
        parts: dict[tuple[int, int], _Part] = {}

        def part(click: int, candidate: int) -> _Part:
            scale, step = divmod(candidate, levels)
            if (click, candidate) not in parts:
                one = located[scale][click]
                parts[click, candidate] = self._segment(one, settings.levels[0] + step, window_rule, settings, done)
            return parts[click, candidate]

        ranked = []
        for i in range(len(clicks[0])):

            def plane_of(candidate: int, click: int = i) -> tuple[Tensor, Canvas]:
                found = part(click, candidate)
                return found.plane, found.one.view.canvas

            at = [found[i].predictions for found in located]
            order, ratings = rank_candidates(at, factors, settings, zoomed)
            ranked.append(settle(order[0], ratings[0], plane_of, settings))
        count = len(ranked[0]) if multimask else 1
        answers = []
        for rank in range(count):
            together = [part(i, candidates[rank]) for i, candidates in enumerate(ranked)]
            done.masks.extend(one.plan for one in together)
            answers.append(_united(together, settings))
        return answers

    def _run(
        self, view: _View, request: dict[int | str, Window], parameters: tuple[Tensor, ...], done: ClickPlan
    ) -> tuple[Plan, dict[int | str, Tensor]]:
        traced = self._traced(view.canvas)
        if not self._keep:
            self._keep = kept_names(traced.graph)  # the same at every size
        plan = traced.plan(request, view.store.windows())
        done.factors[plan] = view.scale.factor
        image = view.input(plan, self.model.config)
        outputs, patches = traced.run_keeping((image, *parameters), plan, view.store.patches, self._keep, self.backend)
        view.store.add(patches)
        if self.kept_bytes > self.max_kept_bytes:
            for other in self._views.values():
                if other is not view:
                    other.store.clear()
        return plan, outputs

    def _locate(self, view: _View, clicks: Tensor, settings: PredictorSettings, done: ClickPlan) -> list[_Located]:
        """Heads at every click, in one plan for all of them (the hull, per level, of their cells)."""
        traced = self._traced(view.canvas)
        lo, hi = settings.levels
        names = [n for n in ("logits", "reg", "ctr", "theta", "level") if f"{n}{lo}" in traced.graph.outputs]
        cells = {level: inference.cells_of(clicks, level) for level in range(lo, hi + 1)}
        request: dict[int | str, Window] = {}
        for level, at in cells.items():
            window = hull(Window.of_cell(*cell) for cell in at.tolist())
            request.update({f"{name}{level}": window for name in names})
        parameters = (torch.zeros(1, THETA), torch.zeros(1, 2), torch.ones(1))
        plan, outputs = self._run(view, request, parameters, done)
        done.locate.append(plan)
        located = []
        for i in range(len(clicks)):
            values: dict[str, list[Tensor]] = {name: [] for name in names}
            for level in LEVELS:
                for name in names:
                    if level in cells:
                        y, x = cells[level][i].tolist()
                        origin = request[f"{name}{level}"]
                        values[name].append(outputs[f"{name}{level}"][:, :, y - origin.y0, x - origin.x0])
                    else:
                        channels = traced.graph.outputs[f"{name}{lo}"].shape[1]
                        values[name].append(torch.full((1, channels), math.nan))
            predictions = inference.gather_predictions(values, clicks[i : i + 1], self.model.config.anchor_offset)
            located.append(_Located(view, clicks[i], predictions))
        return located

    def _segment(
        self, one: _Located, level: int, window_rule: str | float, settings: PredictorSettings, done: ClickPlan
    ) -> _Part:
        column, canvas = level - LEVELS[0], one.view.canvas
        window = _mask_window(one.predictions["boxes"][0, column], one.click, canvas, window_rule, settings)
        theta = one.predictions["theta"][:, column]
        origin = inference.mask_origin(one.click[None], level, self.model.config.rel_to)
        parameters = (theta, origin, torch.tensor([SIZES_OF_INTEREST[level]]))
        plan, outputs = self._run(one.view, {"mask_half": window}, parameters, done)
        done.segment.append(plan)
        logits = inference.as_logits(outputs["mask_half"][0, 0], self.model.config)
        return _Part(one, level, inference.half_plane(logits, window, canvas), plan)


def _mask_window(box: Tensor, click: Tensor, canvas: Canvas, rule: str | float, settings: PredictorSettings) -> Window:
    if isinstance(rule, str):
        return inference.box_window(box, click, canvas, replace(settings, mask_window=rule))
    reach = torch.tensor([rule * canvas.scale_x, rule * canvas.scale_y])
    around = torch.cat([click - reach, click + reach])
    exact = replace(settings, mask_window="box", mask_margin=0.0, mask_margin_pixels=0.0)
    return inference.box_window(around, click, canvas, exact)


def _finest(canvases: list[Canvas]) -> Canvas:
    return max(canvases, key=lambda canvas: canvas.width * canvas.height)


def _united(parts: list[_Part], settings: PredictorSettings) -> _Answer:
    """One mask from the parts of all clicks on an object: their union, and what the part with the best score says."""
    on = _finest([part.one.view.canvas for part in parts])
    union: Tensor | None = None
    scores = []
    for part in parts:
        plane = inference.move_plane(part.plane, part.one.view.canvas, on)
        union = plane if union is None else torch.maximum(union, plane)
        quality = inference.click_scores(part.one.predictions, settings.score)
        scores.append(float(quality[0, part.level - LEVELS[0]]))
    assert union is not None
    best = int(np.argmax(scores))
    chosen = parts[best]
    view = chosen.one.view
    box = _photo_box(chosen.one.predictions["boxes"][0, chosen.level - LEVELS[0]], view.canvas)
    return _Answer(union, on, scores[best], box, chosen.level, view.scale.factor)


def _stacked(objects: list[list[_Answer]]) -> list[tuple[np.ndarray, ...]]:
    """Per object: masks, scores, logits, boxes, levels and factors; logits of all of them on one plane."""
    finest = _finest([answer.on for answers in objects for answer in answers])
    return [
        (
            np.stack([(inference.resample_plane(one.plane, one.on) > 0).numpy() for one in answers]),
            np.array([one.score for one in answers], dtype=np.float32),
            np.stack([inference.move_plane(one.plane, one.on, finest).numpy() for one in answers]),
            np.stack([one.box for one in answers]),
            np.array([one.level for one in answers]),
            np.array([one.factor for one in answers]),
        )
        for answers in objects
    ]


def _photo_box(box: Tensor, canvas: Canvas) -> np.ndarray:
    """Box (x0, y0, x1, y1) on the working image -> photo pixels, clipped to the photo."""
    scale = torch.tensor([canvas.scale_x, canvas.scale_y] * 2)
    limit = torch.tensor([canvas.photo_width, canvas.photo_height] * 2, dtype=torch.float32)
    return torch.minimum((box / scale).clamp(min=0), limit).numpy()
