"""The predictor: one image, one click, one mask, with the shape that Segment-Anything users know.

Two phases per click. *Locate* runs the heads at the click's cell of every level asked for: score, box, mask
parameters. *Segment* runs the mask branch and the mask head on the predicted box plus a margin only, reusing every
window the first phase already computed.
"""

from __future__ import annotations

import math
import os
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracenet import inference
from tracenet.image_io import as_image
from tracenet.inference import Canvas, PredictorSettings
from tracenet.kept import FeatureStore, kept_names
from tracenet.models import TraceNet
from tracenet.models.fpn import LEVELS
from tracenet.models.heads import THETA
from tracenet.models.mask import SIZES_OF_INTEREST
from tracenet.models.weights import BUNDLED, bundled_checkpoint, load_checkpoint
from tracenet.rft.trace import Plan
from tracenet.traced import TracedModel, trace
from tracenet_kernels.errors import BackendError, ClickError, InputError
from tracenet_kernels.window import Window, hull

BACKENDS = ("auto", "torch")
MAX_SIZES = 4
"""Captured graphs kept, one per padded image size, least recently used dropped first."""


@dataclass(frozen=True)
class ClickPlan:
    """What one call of ``predict`` computed: the plans of both phases, and views of them as one.

    Attributes:
        locate: heads at the clicks, one plan per object.
        segment: mask windows, one plan per mask and click, without what earlier plans had already computed.
    """

    locate: list[Plan]
    segment: list[Plan]

    @property
    def plans(self) -> list[Plan]:
        return [*self.locate, *self.segment]

    @property
    def macs(self) -> int:
        """Multiply-adds computed in both phases."""
        return sum(plan.macs for plan in self.plans)

    @property
    def full_macs(self) -> int:
        """Multiply-adds of the whole network."""
        return self.locate[0].full_macs

    @property
    def windows(self) -> dict[str, Window]:
        """Name -> hull of what either phase computed."""
        names = dict.fromkeys(name for plan in self.plans for name in plan.windows)
        return {name: hull(plan.windows[name] for plan in self.plans if name in plan.windows) for name in names}

    @property
    def planning_ms(self) -> float:
        return sum(plan.planning_ms for plan in self.plans)

    def table(self, full: bool = False) -> str:
        """The phases' tables one after the other; see :meth:`tracenet.Plan.table`."""
        titles = ["locate"] * len(self.locate) + ["segment"] * len(self.segment)
        return "\n\n".join(f"{title}\n{plan.table(full)}" for title, plan in zip(titles, self.plans, strict=True))


@dataclass(frozen=True)
class _Located:
    """Head outputs of one click: tensors over the five levels; levels not asked for are NaN."""

    click: Tensor
    predictions: dict[str, Tensor]


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
        max_kept_bytes: bound on what is kept.

    Attributes:
        last_plan: what the last call of :meth:`predict` computed.
        last_boxes: predicted boxes (x0, y0, x1, y1) in photo pixels, ``(C, 4)``, or ``(B, C, 4)`` for B objects; of
            several clicks on one object, the box of the one with the best score.
        last_levels: the levels that predicted the masks, ``(C,)`` or ``(B, C)``, likewise.
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
        self.settings = settings
        self.backend = "torch" if backend == "auto" else backend
        self.keep_features = keep_features
        self.last_plan: ClickPlan | None = None
        self.last_boxes: np.ndarray | None = None
        self.last_levels: np.ndarray | None = None
        self.timings_ms: dict[str, float] = {}
        self._captured: OrderedDict[tuple[int, int], TracedModel] = OrderedDict()
        self._keep: list[str] = []
        self._store = FeatureStore(max_kept_bytes)
        self._canvas: Canvas | None = None
        self._image: Tensor | None = None

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
        """Geometry of the current image. Raises InputError before :meth:`set_image`."""
        if self._canvas is None:
            raise InputError("no image is set; call set_image(image) before predict")
        return self._canvas

    @property
    def image(self) -> Tensor:
        """The current network input ``[1, 3, H, W]``: resized, normalised, padded."""
        if self._image is None:
            raise InputError("no image is set; call set_image(image) before predict")
        return self._image

    def set_image(self, image: Any) -> None:
        """Take an image: ``[H, W, 3]`` uint8 RGB, a PIL image (EXIF orientation is applied), or a path.

        Nothing is computed yet but resizing and normalising; features are computed by the clicks that need them.

        Raises:
            ImageError: empty, enormous, corrupt, or of a type or dtype that is not allowed.
        """
        start = time.perf_counter()
        photo = as_image(image)
        canvas = inference.fit_canvas(photo.width, photo.height, self.settings.working_size)
        prepared = inference.prepare_image(photo, canvas, self.model.config)
        self.reset_image()
        self._canvas, self._image = canvas, prepared
        self.timings_ms["set_image"] = (time.perf_counter() - start) * 1e3

    def reset_image(self) -> None:
        """Forget the image and everything kept for it."""
        self._canvas = self._image = self.last_plan = self.last_boxes = self.last_levels = None
        self._store.clear()

    def forget_features(self) -> None:
        """Drop the features kept for the current image; the next click computes everything it needs."""
        self._store.clear()

    def predict(
        self,
        point_coords: Any,
        point_labels: Any = None,
        multimask_output: bool = False,
        levels: tuple[int, int] | None = None,
        mask_window: str | float | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks of the clicked objects.

        Args:
            point_coords: ``(N, 2)`` clicks (x, y) in photo pixels on one object, or ``(B, N, 2)`` for B objects;
                integers are pixel centres. Several clicks on one object: the union of their masks.
            point_labels: ``(N,)`` or ``(B, N)`` of ones; negative clicks are not supported yet.
            multimask_output: also return the masks of the other levels, best first (C = number of levels).
            levels: first and last pyramid level asked at the click, inclusive, within 3..7.
            mask_window: ``"box"`` (predicted box and margin), ``"full"``, or a radius around the click in photo pixels.

        Returns:
            ``masks`` bool ``(C, H, W)`` at photo size, ``scores`` ``(C,)`` in 0..1, and ``logits`` ``(C, h, w)`` at
            half the working size (un-padded; outside the mask window they are the constant background value). For
            ``(B, N, 2)`` each has a leading axis B.

        Raises:
            ClickError: a click outside the photo, not finite, of the wrong shape, or a label other than 1.
            InputError: no image is set; unknown levels or mask window.
        """
        canvas = self.canvas
        points, batched = _check_points(point_coords, point_labels)
        settings = self._settings(levels)
        window_rule = self._window_rule(mask_window)
        clicks = [inference.to_working(p, canvas).float() for p in points]
        start = time.perf_counter()
        traced = self._traced(canvas)
        captured = time.perf_counter()
        done = ClickPlan([], [])
        results = [self._object(traced, c, settings, window_rule, multimask_output, done) for c in clicks]
        if not self.keep_features:
            self._store.clear()
        masks, scores, logits, boxes, chosen = (
            np.stack(part) if batched else part[0] for part in zip(*results, strict=True)
        )
        self.last_plan, self.last_boxes, self.last_levels = done, boxes, chosen
        self.timings_ms.update(capture=(captured - start) * 1e3, predict=(time.perf_counter() - captured) * 1e3)
        return masks, scores, logits

    def _settings(self, levels: tuple[int, int] | None) -> PredictorSettings:
        if levels is None:
            return self.settings
        return replace(self.settings, levels=levels)

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
            inputs = (torch.zeros(1, 3, *size), torch.zeros(1, THETA), torch.zeros(1, 2), torch.ones(1))
            self._captured[size] = trace(self.model, inputs)
            while len(self._captured) > MAX_SIZES:
                self._captured.popitem(last=False)
        self._captured.move_to_end(size)
        return self._captured[size]

    def _object(
        self,
        traced: TracedModel,
        clicks: Tensor,
        settings: PredictorSettings,
        window_rule: str | float,
        multimask: bool,
        done: ClickPlan,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Masks, scores, logits, boxes and levels of one object from its clicks ``[N, 2]`` on the working image."""
        canvas = self.canvas
        if not self.keep_features:
            self._store.clear()
        located, locate_plan = self._locate(traced, clicks, settings)
        done.locate.append(locate_plan)
        count = settings.levels[1] - settings.levels[0] + 1 if multimask else 1
        masks, scores, logits, boxes, chosen = [], [], [], [], []
        for rank in range(count):
            union: Tensor | None = None
            rank_scores, rank_boxes, rank_levels = [], [], []
            for one in located:
                level = int(inference.rank_levels(one.predictions, settings)[0, rank])
                column = level - LEVELS[0]
                box = one.predictions["boxes"][0, column]
                window = self._mask_window(box, one.click, window_rule, settings)
                part, plan = self._segment(traced, one, level, window)
                done.segment.append(plan)
                plane = inference.half_plane(part, window, canvas)
                union = plane if union is None else torch.maximum(union, plane)
                rank_scores.append(float(inference.click_scores(one.predictions, settings.score)[0, column]))
                rank_boxes.append(box)
                rank_levels.append(level)
            assert union is not None
            logits.append(union.numpy())
            masks.append((inference.resample_plane(union, canvas) > 0).numpy())
            best = int(np.argmax(rank_scores))
            scores.append(rank_scores[best])
            boxes.append(_photo_box(rank_boxes[best], canvas))
            chosen.append(rank_levels[best])
        quality = np.array(scores, dtype=np.float32)
        return np.stack(masks), quality, np.stack(logits), np.stack(boxes), np.array(chosen)

    def _run(self, traced: TracedModel, request: dict[int | str, Window], parameters: tuple[Tensor, ...]) -> Any:
        if not self._keep:
            self._keep = kept_names(traced.graph)  # the same at every size
        plan = traced.plan(request, self._store.windows())
        outputs, patches = traced.run_keeping(
            (self.image, *parameters), plan, self._store.patches, self._keep, self.backend
        )
        self._store.add(patches)
        return plan, outputs

    def _locate(self, traced: TracedModel, clicks: Tensor, settings: PredictorSettings) -> tuple[list[_Located], Plan]:
        """Heads at every click, in one plan for all of them (the hull, per level, of their cells)."""
        lo, hi = settings.levels
        names = [n for n in ("logits", "reg", "ctr", "theta", "level") if f"{n}{lo}" in traced.graph.outputs]
        cells = {level: inference.cells_of(clicks, level) for level in range(lo, hi + 1)}
        request: dict[int | str, Window] = {}
        for level, at in cells.items():
            window = hull(Window.of_cell(*cell) for cell in at.tolist())
            request.update({f"{name}{level}": window for name in names})
        parameters = (torch.zeros(1, THETA), torch.zeros(1, 2), torch.ones(1))
        plan, outputs = self._run(traced, request, parameters)
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
            located.append(_Located(clicks[i], predictions))
        return located, plan

    def _mask_window(self, box: Tensor, click: Tensor, rule: str | float, settings: PredictorSettings) -> Window:
        if isinstance(rule, str):
            return inference.box_window(box, click, self.canvas, replace(settings, mask_window=rule))
        reach = torch.tensor([rule * self.canvas.scale_x, rule * self.canvas.scale_y])
        around = torch.cat([click - reach, click + reach])
        exact = replace(settings, mask_window="box", mask_margin=0.0, mask_margin_pixels=0.0)
        return inference.box_window(around, click, self.canvas, exact)

    def _segment(self, traced: TracedModel, one: _Located, level: int, window: Window) -> tuple[Tensor, Plan]:
        theta = one.predictions["theta"][:, level - LEVELS[0]]
        origin = inference.mask_origin(one.click[None], level, self.model.config.rel_to)
        parameters = (theta, origin, torch.tensor([SIZES_OF_INTEREST[level]]))
        plan, outputs = self._run(traced, {"mask_half": window}, parameters)
        return inference.as_logits(outputs["mask_half"][0, 0], self.model.config), plan


def _photo_box(box: Tensor, canvas: Canvas) -> np.ndarray:
    """Box (x0, y0, x1, y1) on the working image -> photo pixels, clipped to the photo."""
    scale = torch.tensor([canvas.scale_x, canvas.scale_y] * 2)
    limit = torch.tensor([canvas.photo_width, canvas.photo_height] * 2, dtype=torch.float32)
    return torch.minimum((box / scale).clamp(min=0), limit).numpy()


def _check_points(coords: Any, labels: Any) -> tuple[list[Tensor], bool]:
    """Clicks as a list of ``[N, 2]`` float64 tensors, and whether they came as (B, N, 2)."""
    points = _numbers(coords)
    if points is None:
        raise ClickError(f"point_coords are {_shown(coords)}, not numbers; pass [[x, y]] in photo pixels")
    if points.ndim not in (2, 3) or points.shape[-1] != 2 or 0 in points.shape:
        raise ClickError(f"point_coords have shape {points.shape}; pass (N, 2) or (B, N, 2) with at least one click")
    if labels is not None:
        given = _array(labels)
        if given is None or given.dtype.kind not in "biu":
            raise ClickError(
                f"point_labels are {_shown(labels)}, not integers; pass 1 for each click, shaped {points.shape[:-1]}"
            )
        if given.shape != points.shape[:-1]:
            raise ClickError(f"point_labels have shape {given.shape}; the clicks ask for {points.shape[:-1]}")
        if not (given == 1).all():
            bad = sorted({int(v) for v in given[given != 1]})[:8]
            raise ClickError(
                f"point_labels hold {bad}; only 1 (a click on the object) is supported, negative clicks are not yet"
            )
    batched = points.ndim == 3
    return [torch.from_numpy(p.copy()) for p in (points if batched else points[None])], batched


def _array(values: Any) -> np.ndarray | None:
    """As an array of whatever type; None for ragged lists and what NumPy cannot hold."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        return None


def _numbers(values: Any) -> np.ndarray | None:
    """Real numbers as float64, integers too large for it as infinity; None for anything else (text, None, ragged)."""
    raw = _array(values)
    if raw is None or raw.dtype.kind not in "iufO":
        return None
    if raw.dtype.kind != "O":
        return raw.astype(np.float64)
    if not all(isinstance(value, Real) for value in raw.flat):
        return None
    return np.array([_saturated(value) for value in raw.flat]).reshape(raw.shape)


def _saturated(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _shown(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python refuses to print very large integers
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
