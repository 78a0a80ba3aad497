"""Reading photos beside the event loop, and pictures made of them for browsers."""

from __future__ import annotations

import asyncio
import functools
import io
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from PIL import Image

from tracenet.viewer.errors import ViewerError
from tracenet.viewer.photos import Photo

WHOLE_QUALITY, THUMBNAIL_QUALITY = 92, 82
Result = TypeVar("Result")


class Reader:
    """One thread that reads files for the event loop; so many may wait."""

    def __init__(self, most: int, name: str) -> None:
        self._most, self._pending = most, 0
        self._pool = ThreadPoolExecutor(1, name)

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function there. Raises ViewerError ``busy``."""
        if self._pending >= self._most:
            raise ViewerError("busy", f"{self._pending} photos wait to be read already", "try again in a moment")
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(function, *arguments))
        finally:
            self._pending -= 1

    def stop(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Pictures:
    """Pictures that were made of photos, bounded in bytes; the least recently shown goes first."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[str, str, int]) -> bytes | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def add(self, key: tuple[str, str, int], data: bytes) -> None:
        self._bytes += len(data) - len(self._kept.pop(key, b""))
        self._kept[key] = data
        while self._bytes > self._most_bytes:
            self._bytes -= len(self._kept.popitem(last=False)[1])


def as_jpeg(photo: Photo, max_pixels: int, side: int | None = None) -> bytes:
    """A photo as a JPEG file, upright and without transparency; ``side``: reduced so that its longest side is that.

    Raises:
        ImageError: it cannot be decoded.
    """
    image = photo.load(max_pixels, reduced_to=side)
    if side is not None:
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=WHOLE_QUALITY if side is None else THUMBNAIL_QUALITY)
    return buffer.getvalue()
