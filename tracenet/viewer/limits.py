"""What one server gives to all who use it, and to each of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
OPEN_SHARE = 4
"""Open photos may take one part in so many of the machine's memory by default,"""
MOST_OPEN_BYTES = 4096 * MIB
"""and not more than this."""
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        max_bytes: of one photo that is sent.
        max_pixels: of any photo, before it is decoded.
        photos_per_visitor, bytes_per_visitor: photos that a visitor may have sent, and their bytes together.
        visitors: those whose photos are kept; the one that was away for the longest time is forgotten first.
        sent_bytes: photos that all visitors have sent; beyond it visitors are forgotten, likewise.
        open_bytes: decoded photos and kept features of all visitors; beyond it the least recently clicked are closed.
        kept_bytes: kept features of one photo of one visitor.
        canvas_pixels: of the photo as the network sees it at a zoom factor that a request names; a click that needs all
            of it takes some 600 bytes for each of them while it runs.
        queue: clicks that wait, of all visitors.
        queue_per_visitor: clicks of one visitor that wait, where older ones are not superseded.
        tolerance_jobs: click tolerances that are not done, of all visitors; each may have one.
        tolerance_clicks: of one of them.
        mask_pixels: of all masks of one answer, one of them apart.
        points: of one request.
        json_bytes: of a request, an image in it apart.
        receiving_bytes: bodies of all requests that are being received.
        body_seconds, idle_seconds: for a whole body, and between two pieces of it.
        head_seconds: for the head of a request.
        connections: open at once.
        reading: photos that wait for being decoded, thumbnails among them.
        picture_bytes: thumbnails, and photos that browsers cannot be shown as they are, made and kept.
        folder_photos: of a folder, the first by name.
    """

    max_bytes: int = 32 * MIB
    max_pixels: int = 50_000_000
    photos_per_visitor: int = 16
    bytes_per_visitor: int = 128 * MIB
    visitors: int = 256
    sent_bytes: int = 512 * MIB
    open_bytes: int = 1536 * MIB
    kept_bytes: int = 512 * MIB
    canvas_pixels: int = 1_750_000
    queue: int = 32
    queue_per_visitor: int = 4
    tolerance_jobs: int = 8
    tolerance_clicks: int = 2000
    mask_pixels: int = 250_000_000
    points: int = 32
    json_bytes: int = 256 << 10
    receiving_bytes: int = 256 * MIB
    body_seconds: float = 60.0
    idle_seconds: float = 10.0
    head_seconds: float = 10.0
    connections: int = 512
    reading: int = 64
    picture_bytes: int = 64 * MIB
    folder_photos: int = 2000


def default_open_bytes() -> int:
    """Of :attr:`Limits.open_bytes`, for this machine or the container this process is in."""
    memory = _machine_bytes()
    return Limits.open_bytes if memory is None else max(64 * MIB, min(memory // OPEN_SHARE, MOST_OPEN_BYTES))


def _machine_bytes() -> int | None:
    """Memory that this process may use, as far as the system tells."""
    found = []
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in _CGROUPS:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            found.append(int(text))
    return min((one for one in found if one > 0), default=None)
