"""Photos of every mode and orientation become upright 8-bit RGB; everything else is an ImageError."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tracenet import image_io
from tracenet.image_io import MAX_PIXELS, as_image, load_image, to_rgb
from tracenet_kernels.errors import ImageError, InputError, TraceNetError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (7, 11, 3), dtype=np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(np.arange(0, 240, 5)[:, None], np.arange(0, 200, 5), 90), 2).astype(np.uint8)
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}
"""Exif 2.3: where the stored row 0 and column 0 belong -> the array as it should be seen."""


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def header_only_png(width: int, height: int) -> bytes:
    """A PNG that states a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def whole_png(width: int, height: int) -> bytes:
    """A PNG of one bit per pixel, all black, made without holding its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row * 1000) for _ in range(height // 1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PIXELS), kind, exif=exif)
    expected = UPRIGHT[orientation](PIXELS)
    np.testing.assert_array_equal(np.asarray(load_image(data)), expected)
    np.testing.assert_array_equal(np.asarray(as_image(Image.open(io.BytesIO(data)))), expected)


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation_of_a_jpeg_file(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    path.write_bytes(encoded(Image.fromarray(SMOOTH), "JPEG", exif=exif, quality=100, subsampling=0))
    found = np.asarray(as_image(path), dtype=int)
    expected = UPRIGHT[orientation](SMOOTH).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 4


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientations_leave_the_photo_as_it_is(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(np.asarray(load_image(encoded(Image.fromarray(PIXELS), exif=exif))), PIXELS)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*\xff\xff\xff\xff"]
)
def test_unreadable_metadata_does_not_spoil_the_photo(exif: bytes) -> None:
    data = encoded(Image.fromarray(SMOOTH), "JPEG", exif=exif)
    assert load_image(data).size == (SMOOTH.shape[1], SMOOTH.shape[0])


def test_grey_is_repeated_over_the_channels() -> None:
    grey = PIXELS[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, 2)
    for given in (grey, grey[:, :, None], Image.fromarray(grey)):
        np.testing.assert_array_equal(np.asarray(as_image(given)), expected)
    np.testing.assert_array_equal(np.asarray(load_image(encoded(Image.fromarray(grey)))), expected)


def test_one_bit_images_are_black_and_white() -> None:
    bits = RNG.random((5, 9)) > 0.5
    found = np.asarray(load_image(encoded(Image.fromarray(bits))))
    np.testing.assert_array_equal(found, np.repeat(bits[:, :, None] * np.uint8(255), 3, 2))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composed_over_white(mode: str) -> None:
    channels = {"RGBA": 4, "LA": 2}[mode]
    values = RNG.integers(0, 256, (4, 6, channels), dtype=np.uint8)
    values[0, :, -1], values[1, :, -1] = 0, 255
    picture = Image.fromarray(values)
    assert picture.mode == mode
    found = np.asarray(load_image(encoded(picture)), dtype=float)
    alpha = values[:, :, -1:] / 255
    expected = values[:, :, :-1] * alpha + 255 * (1 - alpha)
    assert np.abs(found - np.broadcast_to(expected, found.shape)).max() <= 1
    np.testing.assert_array_equal(found[0], 255)
    np.testing.assert_array_equal(found[1], np.broadcast_to(values[1, :, :-1], (6, 3)))


def test_arrays_with_alpha_are_composed_over_white() -> None:
    values = np.zeros((2, 2, 4), np.uint8)
    values[0, :, 3] = 255
    np.testing.assert_array_equal(np.asarray(as_image(values))[:, 0, 0], [0, 255])


def test_palette_with_transparency() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.putdata([0, 1, 2])
    found = np.asarray(load_image(encoded(picture, transparency=1)))
    np.testing.assert_array_equal(found[0], [[10, 20, 30], [255, 255, 255], [70, 80, 90]])
    found = np.asarray(load_image(encoded(picture, transparency=b"\xff\xff\x00")))
    np.testing.assert_array_equal(found[0], [[10, 20, 30], [40, 50, 60], [255, 255, 255]])


def test_one_transparent_colour_of_an_rgb_png() -> None:
    found = np.asarray(load_image(encoded(Image.fromarray(PIXELS), transparency=tuple(PIXELS[2, 3].tolist()))))
    expected = PIXELS.copy()
    expected[2, 3] = 255
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("top", [65535, 255], ids=["bright", "dark"])
def test_16_bit_images_keep_their_high_byte(kind: str, top: int) -> None:
    values = np.linspace(0, top, 35).astype(np.uint16).reshape(5, 7)
    found = np.asarray(load_image(encoded(Image.fromarray(values), kind)))
    np.testing.assert_array_equal(found, np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, 2))


def test_big_endian_16_bit_images() -> None:
    values = np.array([[0, 256, 65535]], dtype=np.uint16)
    picture = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(np.asarray(to_rgb(picture))[0, :, 0], [0, 1, 255])


def test_32_bit_and_float_images_by_their_range() -> None:
    wide = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    np.testing.assert_array_equal(np.asarray(to_rgb(wide))[0, :, 0], [0, 255])
    narrow = Image.fromarray(np.array([[-5, 200]], dtype=np.int32))
    np.testing.assert_array_equal(np.asarray(to_rgb(narrow))[0, :, 0], [0, 200])
    shares = Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32))
    np.testing.assert_array_equal(np.asarray(to_rgb(shares))[0, :, 0], [0, 255])
    with pytest.raises(ImageError, match="NaN or infinite"):
        to_rgb(Image.fromarray(np.array([[np.nan, 1.0]], dtype=np.float32)))


def test_cmyk_photos() -> None:
    picture = Image.fromarray(SMOOTH).convert("CMYK")
    found = np.asarray(load_image(encoded(picture, "JPEG", quality=100)), dtype=int)
    assert np.abs(found - SMOOTH).max() <= 8


@pytest.mark.parametrize("mode", ["HSV", "YCbCr", "RGBX", "RGBa", "La", "PA"])
def test_other_modes_are_converted(mode: str) -> None:
    picture = Image.new("RGBA" if mode in ("RGBa", "PA") else "LA" if mode == "La" else "RGB", (3, 2))
    found = as_image(picture.convert(mode) if mode != "PA" else Image.new("PA", (3, 2)))
    assert (found.mode, found.size) == ("RGB", (3, 2))


def test_modes_that_cannot_be_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Image.Image, mode: str) -> Image.Image:
        raise ValueError(f"conversion from {self.mode} to {mode} not supported")

    data = encoded(Image.fromarray(PIXELS))
    monkeypatch.setattr(Image.Image, "convert", refused)
    with pytest.raises(ImageError, match="mode RGB, which cannot be read"):
        load_image(data)
    with pytest.raises(ImageError, match="mode HSV, which cannot be read"):
        as_image(Image.new("HSV", (3, 2)))


def test_arrays_are_taken_as_they_are_and_not_aliased() -> None:
    given = PIXELS[::-1, ::2]  # not contiguous
    found = as_image(given)
    np.testing.assert_array_equal(np.asarray(found), given)
    picture = Image.fromarray(PIXELS)
    copy = as_image(picture)
    picture.paste((0, 0, 0), (0, 0, 11, 7))
    np.testing.assert_array_equal(np.asarray(copy), PIXELS)


@pytest.mark.parametrize("source", [str, Path])
def test_paths(source: type, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encoded(Image.fromarray(PIXELS)))
    np.testing.assert_array_equal(np.asarray(as_image(source(tmp_path / "photo.png"))), PIXELS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (PIXELS.astype(np.float32) / 255, "array of float32"),
        (PIXELS.astype(np.int64), "array of int64"),
        (PIXELS > 9, "array of bool"),
        (PIXELS[:, :, :2], r"shape \(7, 11, 2\)"),
        (np.zeros((7, 11, 5), np.uint8), r"shape \(7, 11, 5\)"),
        (np.zeros((1, 7, 11, 3), np.uint8), r"shape \(1, 7, 11, 3\)"),
        (np.zeros(3, np.uint8), r"shape \(3,\)"),
        (np.array(7, np.uint8), r"shape \(\)"),
        (np.zeros((0, 5, 3), np.uint8), "5x0 pixels"),
        (np.zeros((5, 0), np.uint8), "0x5 pixels"),
        (np.broadcast_to(np.uint8(0), (20000, 20000, 3)), "20000x20000 pixels"),
        (Image.new("RGB", (0, 5)), "0x5 pixels"),
        (b"bytes", "got a bytes"),
        (None, "got a NoneType"),
        ([[[0, 0, 0]]], "got a list"),
    ],
)
def test_values_that_are_no_image(value: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        as_image(value)


@pytest.mark.parametrize(("width", "height"), [(65535, 65535), (20000, 20000), (2**31 - 1, 2**31 - 1), (16385, 16384)])
def test_enormous_files_are_refused_before_they_are_decoded(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match=f"{width}x{height}|too large"):
        load_image(header_only_png(width, height))
    assert before == Image.MAX_IMAGE_PIXELS


def test_photos_larger_than_pillow_likes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    width, height = 14000, 13000
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None
    assert 2 * limit < width * height <= MAX_PIXELS  # Pillow warns above its limit and refuses above its double
    monkeypatch.setattr(image_io, "to_rgb", lambda image: image)  # three channels take too long for a test
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_image(whole_png(width, height))
    assert found.size == (width, height)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_an_icon_cannot_smuggle_an_enormous_picture() -> None:
    inner = header_only_png(40000, 40000)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    with pytest.raises(ImageError):
        load_image(struct.pack("<HHH", 0, 1, 1) + entry + inner)


def test_missing_files_folders_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"absent\.png does not exist"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("a\0b.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("x" * 5000)
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image(tmp_path / "file" / "photo.png")

    def refused(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(ImageError, match="Permission denied"):
        load_image(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(1000)])
def test_files_that_are_no_image(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"text\.jpg is not an image Pillow can read|corrupt"):
        load_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_files(kind: str) -> None:
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    for share in (0.3, 0.6, 0.95):
        with pytest.raises(ImageError, match="corrupt or truncated"):
            load_image(whole[: int(len(whole) * share)])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "PPM", "TGA", "JPEG2000", "PCX"])
def test_damaged_files_give_an_image_or_a_typed_error(kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow cannot write {kind}")
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {}
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (40, 32, 3), dtype=np.uint8)), kind, **options)
    messages = []
    for trial in range(60):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            damaged = damaged[: RNG.integers(0, len(whole))]
        else:
            area = min(len(whole), 200) if trial % 3 == 1 else len(whole)
            for at in RNG.integers(0, area, 4):
                damaged[at] = RNG.integers(0, 256)
        try:
            found = load_image(bytes(damaged))
            assert found.mode == "RGB"
        except ImageError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


def test_lazy_images_that_turn_out_truncated_or_closed(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(PIXELS))
    with pytest.raises(ImageError, match="corrupt or truncated"):
        as_image(Image.open(io.BytesIO(whole[:-40])))
    (tmp_path / "photo.png").write_bytes(whole)
    with Image.open(tmp_path / "photo.png") as closed:
        pass
    with pytest.raises(ImageError):
        as_image(closed)


def test_the_error_belongs_to_the_family() -> None:
    assert issubclass(ImageError, InputError)
    assert issubclass(ImageError, TraceNetError)
    assert issubclass(ImageError, ValueError)
