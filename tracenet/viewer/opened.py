"""Photos that are open for clicks: one predictor each, on one shared network, within a bound of bytes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from tracenet.predictor import Predictor
from tracenet.viewer.limits import Limits
from tracenet.viewer.photos import Photo

PAGES = 1.2
"""Memory that kept windows take, relative to their cells: pages are touched whole, and windows that were merged or
dropped leave theirs behind. Seen as what the process grows by per photo."""
Key = tuple[str, str]
"""Visitor and photo."""


@dataclass
class OpenPhoto:
    """A photo that was clicked.

    Attributes:
        version: of the photo's content.
        pixels: bytes of the decoded photo.
        workspace: bytes of memory that its runs took besides what they keep, the most so far.
        kept: bytes of kept features after the last click.
    """

    predictor: Predictor
    version: str
    pixels: int
    workspace: int = 0
    kept: int = 0

    @property
    def bytes(self) -> int:
        return self.pixels + self.workspace + round(PAGES * self.kept)


class OpenPhotos:
    """The least recently clicked photo is closed first when all together pass the bound.

    Photos are opened and clicked by the computing thread; any thread may close them and read the totals.

    Args:
        predictor: whose network all share.
        limits: of the server.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self._predictor, self._limits = predictor, limits
        self._lock = threading.Lock()
        self._open: OrderedDict[Key, OpenPhoto] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def bytes(self) -> int:
        """Of all open photos, as of the last click."""
        return self._bytes

    def get(self, visitor: str, photo: Photo) -> tuple[OpenPhoto, float]:
        """A visitor's photo, opened if it is not, and the milliseconds that opening it took.

        Raises:
            ImageError: it cannot be decoded.
        """
        start = time.perf_counter()
        key = (visitor, photo.id)
        with self._lock:
            found = self._open.get(key)
            if found is not None and found.version == photo.version:
                self._open.move_to_end(key)
                return found, 0.0
        image = photo.load(self._limits.max_pixels)
        predictor = self._predictor.another()
        predictor.max_kept_bytes = min(self._limits.kept_bytes, self._limits.open_bytes)
        predictor.set_image(image)
        opened = OpenPhoto(predictor, photo.version, 3 * image.width * image.height)
        with self._lock:
            self._open[key] = opened
            self._open.move_to_end(key)
        return opened, (time.perf_counter() - start) * 1e3

    def settle(self, used: OpenPhoto) -> None:
        """After a click: count what is held, and close what is too much, ``used`` last."""
        plan = used.predictor.last_plan
        for part in [] if plan is None else plan.plans:
            used.workspace = max(used.workspace, int(getattr(part, "workspace_bytes", 0)))
        used.kept = used.predictor.kept_bytes
        with self._lock:
            self._count()
            while self._bytes > self._limits.open_bytes and len(self._open) > 1:
                self._open.popitem(last=False)
                self._count()
            alone = self._bytes > self._limits.open_bytes
        if alone:
            used.predictor.forget_features()
            used.kept = 0
            with self._lock:
                self._count()

    def close(self, visitor: str, photo_id: str) -> None:
        """Close a photo, if it is open."""
        with self._lock:
            if self._open.pop((visitor, photo_id), None) is not None:
                self._count()

    def clear(self) -> None:
        """Close all."""
        with self._lock:
            self._open.clear()
            self._count()

    def _count(self) -> None:
        self._bytes = sum(one.bytes for one in self._open.values())
