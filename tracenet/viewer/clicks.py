"""What the computing thread does for one click: open the photo, predict, and say what came out and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tracenet import inference
from tracenet.conventions import LEVELS, SIZES_OF_INTEREST, STRIDES
from tracenet.inference import HEADS, Floats
from tracenet.predictor import Predictor
from tracenet.viewer.errors import ViewerError
from tracenet.viewer.layers import NetworkViews, graph_nodes, report
from tracenet.viewer.limits import Limits
from tracenet.viewer.messages import SegmentRequest
from tracenet.viewer.opened import OpenPhotos
from tracenet.viewer.outlines import encode_rle, polygons
from tracenet.viewer.photos import Photo
from tracenet.zoom import Scale, photo_scales
from tracenet_kernels.window import Window

WHOLE_NETWORK_BYTES = 1 << 34
"""Bound on what the whole network may keep between its two phases: none in effect."""


class Clicks:
    """Answers clicks with one network. All methods belong to the computing thread.

    Args:
        predictor: whose network and settings are used.
        opened: photos of all visitors.
        limits: of the server.
    """

    def __init__(self, predictor: Predictor, opened: OpenPhotos, limits: Limits) -> None:
        self.predictor, self.opened, self._limits = predictor, opened, limits
        self._views = NetworkViews(predictor.network)

    def segment(
        self, visitor: str, photo: Photo, asked: SegmentRequest, check: Callable[[], None], queued_ms: float
    ) -> dict[str, Any]:
        """The answer to a click, as :class:`tracenet.viewer.messages.SegmentAnswer` says it.

        Args:
            check: called between phases; what it raises ends the click.
            queued_ms: that the click waited.

        Raises:
            TraceNetError: as :meth:`tracenet.Predictor.predict` and ``set_image``.
        """
        self._check_memory(photo, asked)
        opened, set_image_ms = self.opened.get(visitor, photo)
        predictor = opened.predictor
        if asked.forget:
            predictor.forget_features()
        predictor.keep_features = asked.keep
        predictor.between_phases = check
        options = _options(asked)
        try:
            masks, scores, _ = predictor.predict(
                asked.points, asked.labels, multimask_output=asked.alternatives, **options
            )
            timing = dict(predictor.timings_ms)
            answer = _masks(predictor, masks, scores, asked.polygons)
            answer |= self._extras(predictor, asked, options)
        finally:
            predictor.between_phases = None
            self.opened.settle(opened)
        answer["timing_ms"] = {
            "queue": round(queued_ms, 3),
            "set_image": round(set_image_ms, 3),
            "capture": round(timing["capture"], 3),
            "predict": round(timing["predict"], 3),
        }
        return {"photo": photo.id, "width": photo.width, "height": photo.height, **answer}

    def _check_memory(self, photo: Photo, asked: SegmentRequest) -> None:
        """Raise ViewerError where scales or alternative masks would take too much memory."""
        settings, zoom = self.predictor.settings, _options(asked)["zoom"]
        scales = photo_scales(photo.width, photo.height, settings.zoom if zoom is None else zoom, settings)
        masks = len(LEVELS) * len(scales) if asked.alternatives else 1
        if masks * photo.width * photo.height > max(self._limits.mask_pixels, photo.width * photo.height):
            raise ViewerError(
                "bad_request",
                f"{masks} masks of {photo.width}x{photo.height} pixels may come; at most {self._limits.mask_pixels} "
                "pixels are answered",
                "leave out alternatives, or look at fewer scales",
            )
        for scale in scales if isinstance(asked.zoom, list) else []:
            pixels = scale.canvas.width * scale.canvas.height
            if scale.factor > 1 and pixels > self._limits.canvas_pixels:
                raise ViewerError(
                    "bad_request",
                    f"at zoom {scale.factor:g} the photo has {scale.canvas.width}x{scale.canvas.height} pixels; at "
                    f"most {self._limits.canvas_pixels} are looked at",
                    "pass a smaller factor",
                )

    def graph(self, photo: Photo) -> dict[str, Any]:
        """The network at a photo's working size, as :class:`tracenet.viewer.messages.Graph` says it."""
        canvas = inference.fit_canvas(photo.width, photo.height, self.predictor.settings.working_size)
        return {"nodes": graph_nodes(self._views.at(canvas))}

    def _extras(self, predictor: Predictor, asked: SegmentRequest, options: dict[str, Any]) -> dict[str, Any]:
        plan, scale = predictor.last_plan, predictor.last_scale
        assert plan is not None
        extras: dict[str, Any] = {
            "macs": plan.macs,
            "full_macs": plan.full_macs,
            "kept_bytes": predictor.kept_bytes,
        }
        if asked.trace:
            extras["trace"] = report(self._views, scale.canvas, scale.factor, plan.at(scale.factor))
        if asked.full:
            extras["full"] = compare_with_whole_network(predictor, asked.points, options)
        return extras


def _options(asked: SegmentRequest) -> dict[str, Any]:
    return {
        "levels": None if asked.levels is None else tuple(asked.levels),
        "mask_window": asked.mask_window,
        "zoom": tuple(asked.zoom) if isinstance(asked.zoom, list) else asked.zoom,
    }


def _masks(predictor: Predictor, masks: Any, scores: Any, with_polygons: bool) -> dict[str, Any]:
    boxes, levels, factors = predictor.last_boxes, predictor.last_levels, predictor.last_zoom
    assert boxes is not None and levels is not None and factors is not None
    found = []
    for mask, score, box, level, factor in zip(masks, scores, boxes, levels, factors, strict=True):
        one = {
            "rle": encode_rle(mask),
            "score": round(float(score), 6),
            "box": [round(float(v), 3) for v in box],
            "level": int(level),
            "zoom": float(factor),
            "area": int(np.count_nonzero(mask)),
        }
        found.append(one | {"polygons": polygons(mask)} if with_polygons else one)
    return {"masks": found}


def compare_with_whole_network(predictor: Predictor, points: Any, options: dict[str, Any]) -> dict[str, float]:
    """Run the whole network where the clicks were answered, and compare mask logits inside their mask windows.

    Args:
        predictor: that was just clicked at ``points``; each is predicted again, alone, from what is kept.
        options: of that click.

    Returns:
        ``ms`` of the whole network: all heads, and the mask of the first click on the whole photo; ``max_error`` and
        ``max_logit`` over all clicks.
    """
    runs: dict[float, _WholeNetwork] = {}
    elapsed, errors, peaks = [], [], []
    for point in points:
        _, _, logits = predictor.predict([point], None, **options)
        plan, levels, scale = predictor.last_plan, predictor.last_levels, predictor.last_scale
        assert plan is not None and levels is not None
        if scale.factor not in runs:
            runs[scale.factor] = _WholeNetwork(predictor, scale)
        expected, milliseconds = runs[scale.factor].mask(point, int(levels[0]))
        window = plan.masks[0].request["mask_half"].slices
        errors.append(float(np.abs(logits[0][window] - expected[window]).max()))
        peaks.append(float(np.abs(expected[window]).max()))
        elapsed.append(milliseconds)
    return {"ms": round(elapsed[0], 3), "max_error": max(errors), "max_logit": max(peaks)}


class _WholeNetwork:
    """All of the network's outputs at one scale of the predictor's photo."""

    def __init__(self, predictor: Predictor, scale: Scale) -> None:
        self._config, self._canvas = predictor.config, scale.canvas
        self._session = predictor.new_session(scale, WHOLE_NETWORK_BYTES)
        names = [name for name in HEADS if name != "level" or self._config.level_head]
        request = {"maskfeat": self._plane(STRIDES[LEVELS[0]])}
        for level, stride in STRIDES.items():
            request |= {f"{name}{level}": self._plane(stride) for name in names}
        start = time.perf_counter()
        _, self._heads = self._session.run(request)
        self._milliseconds = (time.perf_counter() - start) * 1e3

    def mask(self, point: Any, level: int) -> tuple[Floats, float]:
        """Half-resolution mask logits that a level gives for a click, and the milliseconds that all of it took."""
        click = inference.to_working(np.array([point], np.float64), self._canvas).astype(np.float32)
        row, column = inference.cells_of(click, level)[0]
        parameters = {
            "theta": np.ascontiguousarray(self._heads[f"theta{level}"][:, :, row, column]),
            "origin": inference.mask_origin(click, level, self._config.rel_to),
            "size_of_interest": np.array([SIZES_OF_INTEREST[level]], np.float32),
        }
        start = time.perf_counter()
        _, outputs = self._session.run({"mask_half": Window.full(*inference.half_size(self._canvas))}, parameters)
        milliseconds = self._milliseconds + (time.perf_counter() - start) * 1e3
        return inference.as_logits(outputs["mask_half"][0, 0], self._config), milliseconds

    def _plane(self, stride: int) -> Window:
        return Window.full(-(-self._canvas.padded_height // stride), -(-self._canvas.padded_width // stride))
