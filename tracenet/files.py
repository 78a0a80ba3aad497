"""Write files whole or not at all."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from tracenet_kernels.errors import InputError


def write_whole(path: str | Path, write: Callable[[BinaryIO], None]) -> Path:
    """Call ``write`` on a temporary file beside ``path``, then rename it into place; on an error nothing is left.

    Raises:
        InputError: the folder does not exist or cannot be written to, ``path`` is a folder, or the disk is full.
    """
    target = Path(path)
    _write_all({target: write})
    return target


def _write_all(writers: Mapping[Path, Callable[[BinaryIO], None]]) -> None:
    """Every temporary file is written before the first is renamed, so that a full disk leaves all targets alone."""
    temporaries: dict[Path, Path] = {}
    target = Path()
    try:
        for target, write in writers.items():
            check_target(target)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=".tracenet-")
            temporaries[target] = Path(name)
            with os.fdopen(handle, "wb") as file:
                write(file)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
        for target, temporary in temporaries.items():
            os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror or error}); choose another path") from error
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def check_target(path: str | Path) -> None:
    """Raise InputError where a file cannot be written to ``path``: no such folder, a folder itself, not writable."""
    target = Path(path)
    if "\0" in str(target):
        raise InputError(f"{str(target)!r} is not a path")
    try:
        if not target.parent.is_dir():
            raise InputError(f"the folder of {target} does not exist; create it or choose another path")
        if target.is_dir():
            raise InputError(f"{target} is a folder; give the path of a file in it")
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror or error}); choose another path") from error
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"the folder of {target} is not writable; choose another path")


def check_picture_target(path: str | Path) -> str:
    """Pillow's name of the format that the suffix of ``path`` asks for (PNG without one).

    Raises:
        InputError: Pillow cannot write that format, or no file can be written there.
    """
    suffix = Path(path).suffix.lower() or ".png"
    Image.preinit()  # the usual formats; all others are only loaded for the sake of an unusual suffix
    kind = Image.EXTENSION.get(suffix) or Image.registered_extensions().get(suffix)
    if kind is None or kind not in Image.SAVE:
        raise InputError(f"{path}: pictures cannot be written as {suffix!r}; use .png or .jpg")
    check_target(path)
    return kind


def save_picture(picture: Image.Image, path: str | Path) -> Path:
    """Save a picture whole or not at all, in the format of the suffix (PNG without one).

    Raises:
        InputError: Pillow cannot write that format or this picture in it; see also :func:`write_whole`.
    """
    save_pictures({Path(path): picture})
    return Path(path)


def save_pictures(pictures: Mapping[Path, Image.Image]) -> None:
    """Save several pictures; where one cannot be encoded or written, none of the targets is touched.

    Raises:
        InputError: as :func:`save_picture`.
    """
    _write_all({path: _encoded(picture, path) for path, picture in pictures.items()})


def _encoded(picture: Image.Image, path: Path) -> Callable[[BinaryIO], None]:
    kind = check_picture_target(path)
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format=kind)
    except Exception as error:  # every encoder refuses what it cannot hold in its own way
        raise InputError(
            f"{path}: a {picture.mode} picture of {picture.width}x{picture.height} cannot be written as {kind} "
            f"({error}); use .png"
        ) from error

    def write(file: BinaryIO) -> None:
        file.write(buffer.getbuffer())

    return write


def save_json(data: Any, path: str | Path) -> Path:
    """Save plain data as indented JSON, whole or not at all.

    Raises:
        InputError: the data holds NaN or something JSON has no word for; see also :func:`write_whole`.
    """
    try:
        text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: the data cannot be written as JSON ({error})") from error
    return save_text(text, path)


def save_text(text: str, path: str | Path) -> Path:
    """Save text as UTF-8, whole or not at all.

    Raises:
        InputError: see :func:`write_whole`.
    """

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    return write_whole(path, write)
