"""Read photos as users have them: any mode, any bit depth Pillow knows, EXIF orientation applied."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tracenet_kernels.errors import ImageError

MAX_PIXELS = 256 * 1024 * 1024
"""Larger photos are refused (256 megapixels): decoding one would take gigabytes."""


def load_image(source: str | Path | bytes) -> Image.Image:
    """Open a photo file (or its bytes) as an upright RGB image.

    Raises:
        ImageError: the file does not exist, is not an image, is corrupt or truncated, or is larger than
            :data:`MAX_PIXELS`.
    """
    label = "the given bytes" if isinstance(source, bytes) else str(source)
    try:
        image: Image.Image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        _check_size(image.size, label)
        image.load()
    except FileNotFoundError as error:
        raise ImageError(f"{label} does not exist; pass the path of a photo") from error
    except IsADirectoryError as error:
        raise ImageError(f"{label} is a folder; pass the path of a photo") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{label} is not an image Pillow can read; pass a JPEG, PNG, WebP or TIFF file") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{label} is too large: {error}; at most {MAX_PIXELS} pixels are read") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{label} is corrupt or truncated ({error}); save it again") from error
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, reduce to 8 bits and three channels; transparency is composed over white."""
    _check_size(image.size, "the image")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """16-bit data by its high byte; anything else by its own range."""
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
        try:
            return to_rgb(value)
        except (OSError, SyntaxError) as error:
            raise ImageError(f"the image is corrupt or truncated ({error}); save it again") from error
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


def _check_size(size: tuple[int, int], label: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{label} is {width}x{height} pixels; it must have at least one")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{label} is {width}x{height} pixels; at most {MAX_PIXELS} are read, reduce it first")
