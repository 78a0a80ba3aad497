"""Read photos as users have them: any mode, any bit depth Pillow knows, EXIF orientation applied."""

from __future__ import annotations

import io
import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from tracenet_kernels.errors import ImageError

MAX_PIXELS = 256 * 1024 * 1024
"""Larger photos are refused (256 megapixels): decoding one would take gigabytes."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored pixels upright (Exif 2.3, tag 0x0112)."""

_LIMIT = threading.Lock()


def load_image(
    source: str | Path | bytes,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] | None = None,
    reduced_to: int | None = None,
) -> Image.Image:
    """Open a photo file (or its bytes) as an upright RGB image.

    Args:
        source: path, or the file's content.
        max_pixels: larger photos are refused before they are decoded.
        formats: Pillow's names of the formats that may be read; all it knows by default.
        reduced_to: where a format can be decoded at a fraction of its size (JPEG), the longest side needs no more
            pixels than this; it is not shorter where the photo is not.

    Raises:
        ImageError: the file does not exist, is not an image, is corrupt or truncated, or is too large.
    """
    label = "the given bytes" if isinstance(source, bytes) else str(source)
    try:
        file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
    except FileNotFoundError as error:
        raise ImageError(f"{label} does not exist; pass the path of a photo") from error
    except IsADirectoryError as error:
        raise ImageError(f"{label} is a folder; pass the path of a photo") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{label!r} cannot be opened ({_reason(error)}); pass the path of a photo") from error
    with (
        file,
        decoding(label, max_pixels),
        Image.open(file, formats=None if formats is None else tuple(formats)) as image,
    ):
        _check_size(image.size, label, max_pixels)
        if reduced_to is not None:
            share = min(1.0, reduced_to / max(image.size))
            image.draft(None, (math.ceil(image.width * share), math.ceil(image.height * share)))
        image.load()
        return to_rgb(image)


@contextmanager
def decoding(label: str, max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Pillow with this module's limit on pixels instead of its own, silent, and with every failure an ImageError."""
    with _LIMIT, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn about metadata, and about sizes that are checked here
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise ImageError(f"{label} is not an image Pillow can read; pass a JPEG, PNG, WebP or TIFF file") from error
        except Image.DecompressionBombError as error:
            raise ImageError(f"{label} is too large: {error}; at most {max_pixels} pixels are read") from error
        except Exception as error:  # damaged data makes decoders fail in any way
            raise ImageError(f"{label} is corrupt or truncated ({_reason(error)}); save it again") from error
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def to_rgb(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, reduce to 8 bits and three channels; transparency is composed over white.

    Raises:
        ImageError: empty, enormous, or in a mode that Pillow cannot convert.
    """
    _check_size(image.size, "the image")
    image = _upright(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # the high byte, however dark the photo
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    try:
        if image.mode in ("RGBa", "La"):
            image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, rgba).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"the image has mode {image.mode}, which cannot be read ({error}); save it as RGB") from error


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # unreadable metadata says nothing about the pixels
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """32-bit integers and floats, which state no range: above 255 they are 16-bit data, floats up to 1 are shares."""
    if values.dtype.kind in "ui" and values.min() >= 0 and values.max() > 255:
        top = 65535 if values.max() <= 65535 else int(values.max())
        return (values.astype(np.float64) * (255.0 / top) + 0.5).astype(np.uint8)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ImageError("the image holds NaN or infinite values; pass finite pixels")
        top_value = float(values.max())
        values = values * 255.0 if top_value <= 1.0 else values
    return np.clip(values, 0, 255).astype(np.uint8)


def as_image(value: Any) -> Image.Image:
    """What ``set_image`` takes -> upright RGB image.

    Args:
        value: a PIL image, or an array ``[H, W, 3]`` uint8 (RGB). Also a path, or ``[H, W]`` / ``[H, W, 1]`` /
            ``[H, W, 4]`` uint8 arrays.

    Raises:
        ImageError: anything else; an empty or enormous image.
    """
    if isinstance(value, (str, Path)):
        return load_image(value)
    if isinstance(value, Image.Image):
        _check_size(value.size, "the image")
        with decoding("the image"):
            return to_rgb(value)
    if not isinstance(value, np.ndarray):
        raise ImageError(f"set_image got a {type(value).__name__}; pass a PIL image or an [H, W, 3] uint8 array")
    if value.dtype != np.uint8:
        raise ImageError(
            f"set_image got an array of {value.dtype}; pass uint8 pixels 0..255 (convert with, for example, "
            "(pixels * 255).astype(numpy.uint8))"
        )
    if value.ndim == 3 and value.shape[2] == 1:
        value = value[:, :, 0]
    if value.ndim != 2 and not (value.ndim == 3 and value.shape[2] in (3, 4)):
        raise ImageError(f"set_image got an array of shape {value.shape}; pass [H, W, 3]")
    _check_size((value.shape[1], value.shape[0]), "the array")
    return to_rgb(Image.fromarray(np.ascontiguousarray(value)))


def _check_size(size: tuple[int, int], label: str, max_pixels: int = MAX_PIXELS) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{label} is {width}x{height} pixels; it must have at least one")
    if width * height > max_pixels:
        raise ImageError(f"{label} is {width}x{height} pixels; at most {max_pixels} are read, reduce it first")


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0]
