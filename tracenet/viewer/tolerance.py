"""The click tolerance of one thing, click by click, between the clicks of people (the paper's figure 1b)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from tracenet.evaluation.dense import Overlap, dense_points
from tracenet.evaluation.metrics import HIT
from tracenet.viewer.errors import ViewerError, as_viewer_error
from tracenet.viewer.opened import OpenPhotos
from tracenet.viewer.outlines import Mask
from tracenet.viewer.photos import Photo


class ToleranceJob:
    """A job: advanced by the computing thread, read and cancelled by others.

    Args:
        visitor: whose photo it is.
        mask: of the thing, at photo size, not empty.
        most: clicks at most.
    """

    def __init__(self, opened: OpenPhotos, visitor: str, photo: Photo, mask: Mask, most: int) -> None:
        self.id = secrets.token_urlsafe(12)
        self.state = "waiting"
        self.total = 0
        self._opened, self._visitor, self._photo = opened, visitor, photo
        self._mask: Mask | None = mask
        self._most = most
        self._points: list[list[float]] = []
        self._step = 0
        self._error: ViewerError | None = None

    @property
    def photo_id(self) -> str:
        return self._photo.id

    def cancel(self) -> None:
        """Stop after the click that runs; a job that is done stays done."""
        if self.state in ("waiting", "running"):
            self.state = "cancelled"

    def steps(self) -> Iterator[None]:
        """Advance by one click per step. Whatever fails is the job's own state; nothing is raised."""
        try:
            yield from self._clicks()
        except Exception as error:
            self._error = as_viewer_error(error)
            self.state = "failed"
        finally:
            self._mask = None
            if self.state in ("waiting", "running"):
                self.state = "cancelled"

    def _clicks(self) -> Iterator[None]:
        if self._mask is None or self.state == "cancelled":
            return
        self.state = "running"
        points, self._step = dense_points(self._mask, self._most)
        overlap = Overlap(self._mask)
        self.total = len(points)
        yield
        for x, y in points.tolist():
            if self.state == "cancelled":
                return
            opened, _ = self._opened.get(self._visitor, self._photo)
            opened.predictor.keep_features = True
            masks, _, _ = opened.predictor.predict([[x, y]])
            self._opened.settle(opened)
            intersection, union = overlap(masks[0])
            self._points.append([float(x), float(y), round(intersection / union, 4)])
            yield
        self.state = "done"

    def report(self) -> dict[str, Any]:
        """Where the job is, as :class:`tracenet.viewer.messages.JobState` says it."""
        state = self.state
        found: dict[str, Any] = {"state": state, "done": len(self._points), "total": self.total}
        if self._error is not None:
            found["error"] = self._error.body["error"]
        if state == "done":
            hits = sum(iou >= HIT for _, _, iou in self._points)
            found["result"] = {
                "step": self._step,
                "clicks": len(self._points),
                "share": hits / len(self._points),
                "points": self._points,
            }
        return found
