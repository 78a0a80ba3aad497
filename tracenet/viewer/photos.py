"""Photos that can be clicked: of a folder, bundled ones, and those that visitors sent. No id is a path."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from tracenet.image_io import decoding, load_image
from tracenet_kernels.errors import ImageError, InputError

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
"""What is read; Pillow knows more, some of which start other programs."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SHOWN_AS_IS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
"""Formats whose files browsers show as the server reads them, if they are upright and plain RGB."""
MAX_FILE_BYTES = 1 << 28
"""Larger files of a folder are not listed."""
MAX_DEPTH = 8
RESCAN_SECONDS = 1.0
"""A folder is not looked through more often for the sake of ids that are not known."""
_TRANSPOSED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


@dataclass(frozen=True)
class Header:
    """What a photo's first bytes say.

    Attributes:
        width, height: of the upright photo.
        media_type: of the file, where it can be shown as it is; else None.
    """

    width: int
    height: int
    media_type: str | None


@dataclass(frozen=True)
class Photo:
    """One photo.

    Attributes:
        id: for programs; not a path.
        name: for people.
        source: ``"bundled"``, ``"folder"`` or ``"upload"``.
        version: another for another content.
        content: path of the file, or its bytes.
    """

    id: str
    name: str
    header: Header
    source: str
    version: str
    content: Path | bytes

    @property
    def width(self) -> int:
        return self.header.width

    @property
    def height(self) -> int:
        return self.header.height

    def load(self, max_pixels: int, reduced_to: int | None = None) -> Image.Image:
        """The upright RGB photo. Raises as :func:`tracenet.image_io.load_image`, whose arguments these are."""
        try:
            return load_image(self.content, max_pixels, known_formats(), reduced_to)
        except ImageError as error:
            said = "the given bytes" if isinstance(self.content, bytes) else str(self.content)
            raise ImageError(str(error).replace(said, self.name)) from error

    @property
    def sent_bytes(self) -> int:
        """Bytes that are kept of it in memory."""
        return len(self.content) if isinstance(self.content, bytes) else 0


def known_formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def read_header(content: Path | bytes, label: str, max_pixels: int) -> Header:
    """Size and kind of a photo; nothing is decoded.

    Raises:
        ImageError: it is no photo of a known format, or has too many pixels.
    """
    try:
        file = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
    except OSError as error:
        raise ImageError(f"{label} cannot be opened ({error.strerror or error}); choose another photo") from error
    with file, decoding(label, max_pixels), Image.open(file, formats=known_formats()) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(f"{label} has {width}x{height} pixels; at most {max_pixels} are read, reduce it first")
        # For PNG, asking the image itself would decode it: orientation may stand after its pixels.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        plain = image.mode == "RGB" and "transparency" not in image.info and orientation in (None, 1)
        media_type = SHOWN_AS_IS.get(image.format or "") if plain else None
    if orientation in _TRANSPOSED:
        width, height = height, width
    return Header(width, height, media_type)


class PhotoFolder:
    """The photos of a folder and of folders in it, as they are now.

    Files are found by ids that are made of their paths; a file is only opened where its real path lies in the folder,
    so links that lead out of it are not followed. Calls may come from several threads.

    Args:
        folder: where they are.
        source: ``"bundled"`` or ``"folder"``.
        max_pixels: photos with more are not listed.
        most: photos listed, the first by name.
    """

    def __init__(self, folder: Path, source: str, max_pixels: int, most: int) -> None:
        try:
            self._root = folder.resolve(strict=True)
            os.listdir(self._root)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{folder} cannot be listed ({reason}); pass a folder of photos") from error
        self._source, self._max_pixels, self._most = source, max_pixels, most
        self._lock = threading.Lock()
        self._scanned = -RESCAN_SECONDS
        self._ids: dict[str, Path] = {}
        self._headers: dict[Path, tuple[str, Header | None]] = {}

    def photos(self) -> list[Photo]:
        """All photos by name; files that cannot be read are left out."""
        with self._lock:
            paths = self._scan()
            present = set(paths)
            self._headers = {path: entry for path, entry in self._headers.items() if path in present}
            self._ids = {self._id(path): path for path in paths}
            return [photo for path in paths if (photo := self._photo(path)) is not None]

    def get(self, photo_id: str) -> Photo | None:
        """A photo by its id, or None."""
        with self._lock:
            if photo_id not in self._ids and time.monotonic() > self._scanned + RESCAN_SECONDS:
                self._ids = {self._id(path): path for path in self._scan()}  # it may have appeared since
            path = self._ids.get(photo_id)
            return None if path is None else self._photo(path)

    def _id(self, path: Path) -> str:
        if self._source == "bundled":
            return path.stem
        return f"folder-{hashlib.sha256(os.fsencode(path.relative_to(self._root))).hexdigest()[:16]}"

    def _scan(self) -> list[Path]:
        self._scanned = time.monotonic()
        found: list[Path] = []
        for folder, folders, files in os.walk(self._root):
            depth = len(Path(folder).relative_to(self._root).parts)
            folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < MAX_DEPTH else []
            found += [
                Path(folder, name)
                for name in sorted(files)
                if name.lower().endswith(SUFFIXES) and not name.startswith(".")
            ]
            if len(found) >= self._most:
                break
        return found[: self._most]

    def _photo(self, path: Path) -> Photo | None:
        """The photo of a file, None where it is none: gone, outside the folder, no file, unreadable or too large."""
        try:
            real = path.resolve(strict=True)
            status = real.stat()
        except (OSError, ValueError, RuntimeError):
            return None
        regular = stat.S_ISREG(status.st_mode) and 0 < status.st_size <= MAX_FILE_BYTES
        if not regular or not real.is_relative_to(self._root):
            return None
        version = f"{status.st_mtime_ns:x}-{status.st_size:x}"
        if self._headers.get(path, ("",))[0] != version:
            try:
                header = read_header(real, path.name, self._max_pixels)
            except ImageError:
                header = None
            self._headers[path] = (version, header)
        header = self._headers[path][1]
        if header is None:
            return None
        name = str(path.relative_to(self._root))
        return Photo(self._id(path), _printable(name), header, self._source, version, real)


def check_upload(data: bytes, name: str, max_pixels: int) -> Photo:
    """A photo that was sent, decoded once to see that it can be.

    Raises:
        ImageError: it is no photo, damaged, or has too many pixels.
    """
    label = name or "the photo"
    header = read_header(data, label, max_pixels)
    digest = hashlib.sha256(data).hexdigest()
    photo = Photo(f"upload-{digest[:24]}", label, header, "upload", digest[:24], data)
    decoded = photo.load(max_pixels)
    if decoded.size != (header.width, header.height):  # an orientation that only decoding shows
        photo = Photo(photo.id, label, Header(*decoded.size, None), "upload", photo.version, data)
    return photo


def clean_name(name: str) -> str:
    """A file name that a visitor sent, without its folders and what cannot be printed."""
    return _printable(name.replace("\\", "/").rsplit("/", 1)[-1]).strip()[:120]


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() and not "\ud800" <= c <= "\udfff" else "?" for c in name)
