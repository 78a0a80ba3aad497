"""Who uses the server, and the photos they sent. Used by the event loop's thread alone."""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracenet.viewer.errors import ViewerError
from tracenet.viewer.limits import Limits
from tracenet.viewer.photos import Photo

if TYPE_CHECKING:
    from tracenet.viewer.tolerance import ToleranceJob

INLINE_PHOTOS = 2
"""Photos of one visitor that came inside a request of /segment; a further one takes the place of the oldest."""
JOBS = 4
"""Click tolerances that a visitor can still ask about."""
_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")


def new_visitor_id() -> str:
    """An id that cannot be guessed."""
    return secrets.token_urlsafe(24)


def is_visitor_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


@dataclass
class Visitor:
    """What one visitor left here.

    Attributes:
        photos: those sent, by id.
        inline: ids of those that came inside a request, oldest first.
        jobs: click tolerances by id, oldest first.
    """

    photos: dict[str, Photo] = field(default_factory=dict)
    inline: list[str] = field(default_factory=list)
    jobs: OrderedDict[str, ToleranceJob] = field(default_factory=OrderedDict)

    @property
    def bytes(self) -> int:
        return sum(photo.sent_bytes for photo in self.photos.values())

    def cancel_jobs(self) -> None:
        """Stop those that are not done."""
        for job in self.jobs.values():
            job.cancel()


class Visitors:
    """Visitors that left something; the one that was away for the longest time is forgotten first.

    Args:
        limits: of the server.
        dropped: told of every photo that is no longer there, with its visitor's id.
    """

    def __init__(self, limits: Limits, dropped: Callable[[str, str], None]) -> None:
        self._limits, self._dropped = limits, dropped
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._visitors)

    @property
    def bytes(self) -> int:
        """Of all photos that were sent."""
        return sum(visitor.bytes for visitor in self._visitors.values())

    def find(self, visitor_id: str) -> Visitor:
        """A visitor; an empty one, which is not kept, where nothing is known of it."""
        if visitor_id in self._visitors:
            self._visitors.move_to_end(visitor_id)
            return self._visitors[visitor_id]
        return Visitor()

    def add_photo(self, visitor_id: str, photo: Photo, inline: bool = False) -> Photo:
        """Keep a photo that a visitor sent; one that is there already is returned.

        Raises:
            ViewerError: ``too_many`` photos or bytes of this visitor.
        """
        visitor = self._keep(visitor_id)
        if photo.id in visitor.photos:
            if not inline and photo.id in visitor.inline:
                visitor.inline.remove(photo.id)
            return visitor.photos[photo.id]
        limits, size = self._limits, photo.sent_bytes
        while inline and visitor.inline and (len(visitor.inline) >= INLINE_PHOTOS or self._full(visitor, size)):
            self.drop_photo(visitor_id, visitor.inline[0])
        if self._full(visitor, size):
            raise ViewerError(
                "too_many",
                f"this visitor has sent {len(visitor.photos)} photos of {visitor.bytes} bytes; at most "
                f"{limits.photos_per_visitor} and {limits.bytes_per_visitor} bytes are kept",
                "delete one first",
            )
        visitor.photos[photo.id] = photo
        if inline:
            visitor.inline.append(photo.id)
        while self.bytes > limits.sent_bytes and len(self._visitors) > 1:
            self._forget(next(iter(self._visitors)))
        return photo

    def drop_photo(self, visitor_id: str, photo_id: str) -> bool:
        """Forget a photo; False where there is none."""
        visitor = self.find(visitor_id)
        if visitor.photos.pop(photo_id, None) is None:
            return False
        if photo_id in visitor.inline:
            visitor.inline.remove(photo_id)
        for job in visitor.jobs.values():
            if job.photo_id == photo_id:
                job.cancel()
        self._dropped(visitor_id, photo_id)
        return True

    def add_job(self, visitor_id: str, job: ToleranceJob) -> None:
        """Keep a job, and the last few before it."""
        visitor = self._keep(visitor_id)
        visitor.jobs[job.id] = job
        while len(visitor.jobs) > JOBS:
            visitor.jobs.popitem(last=False)

    def _full(self, visitor: Visitor, size: int) -> bool:
        limits = self._limits
        return len(visitor.photos) >= limits.photos_per_visitor or visitor.bytes + size > limits.bytes_per_visitor

    def _keep(self, visitor_id: str) -> Visitor:
        self._visitors.setdefault(visitor_id, Visitor())
        self._visitors.move_to_end(visitor_id)
        while len(self._visitors) > self._limits.visitors:
            self._forget(next(iter(self._visitors)))
        return self._visitors[visitor_id]

    def _forget(self, visitor_id: str) -> None:
        visitor = self._visitors.pop(visitor_id)
        visitor.cancel_jobs()
        for photo_id in visitor.photos:
            self._dropped(visitor_id, photo_id)
