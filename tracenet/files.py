"""Write files whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from tracenet_kernels.errors import InputError


def write_whole(path: str | Path, write: Callable[[BinaryIO], None]) -> Path:
    """Call ``write`` on a temporary file beside ``path``, then rename it into place; on an error nothing is left.

    Raises:
        InputError: the folder does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"the folder of {target} does not exist; create it or choose another path")
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def save_picture(picture: Image.Image, path: str | Path) -> Path:
    """Save a picture whole or not at all, in the format of the suffix (PNG without one).

    Raises:
        InputError: Pillow cannot write that format.
    """
    suffix = Path(path).suffix.lower() or ".png"
    kind = Image.registered_extensions().get(suffix)
    if kind is None or kind not in Image.SAVE:
        raise InputError(f"{path}: pictures cannot be written as {suffix!r}; use .png or .jpg")
    return write_whole(path, lambda file: picture.save(file, format=kind))


def save_json(data: Any, path: str | Path) -> Path:
    """Save plain data as indented JSON, whole or not at all."""
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    return write_whole(path, write)
