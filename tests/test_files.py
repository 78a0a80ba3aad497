"""Files are written whole or not at all, and every reason why not is an InputError."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from tracenet import files
from tracenet.files import check_picture_target, check_target, save_json, save_picture, save_pictures, write_whole
from tracenet_kernels.errors import InputError

PICTURE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def full_disk(file: BinaryIO) -> None:
    file.write(b"half")
    raise OSError(28, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    for content in (b"first", b"second"):
        assert write_whole(target, lambda file, content=content: file.write(content)) == target
        assert target.read_bytes() == content
    assert names(tmp_path) == ["a.bin"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        target = write_whole(tmp_path / "a.bin", lambda file: None)
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_names_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    name = "x" * 251 + ".png"
    save_picture(PICTURE, tmp_path / name)
    assert names(tmp_path) == [name]
    with pytest.raises(InputError, match="cannot be written"):
        save_picture(PICTURE, tmp_path / ("x" + name))
    assert names(tmp_path) == [name]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(InputError, match="No space left"):
        write_whole(target, full_disk)
    with pytest.raises(ZeroDivisionError):
        write_whole(target, lambda file: 1 // 0)
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(file: BinaryIO) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a.bin", interrupted)
    assert not names(tmp_path)


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    for path, message in (
        (tmp_path / "absent" / "a.png", "does not exist; create it"),
        (tmp_path / "file" / "a.png", "does not exist; create it"),
        (tmp_path, "is a folder"),
        (tmp_path / "a\0.png", "is not a path"),
    ):
        with pytest.raises(InputError, match=message):
            check_target(path)
        with pytest.raises(InputError, match=message):
            write_whole(path, lambda file: None)
    assert names(tmp_path) == ["file"]


def test_a_folder_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="not writable"):
        save_picture(PICTURE, tmp_path / "a.png")
    monkeypatch.undo()

    def refused(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkstemp", refused)
    with pytest.raises(InputError, match=r"a\.png cannot be written \(Permission denied\)"):
        save_picture(PICTURE, tmp_path / "a.png")
    assert not names(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.bmp", "BMP"), ("a", "PNG")]
)
def test_the_suffix_gives_the_format(name: str, kind: str, tmp_path: Path) -> None:
    assert check_picture_target(tmp_path / name) == kind
    assert save_picture(PICTURE, tmp_path / name) == tmp_path / name
    with Image.open(tmp_path / name) as found:
        assert found.format == kind
        assert found.size == PICTURE.size


def test_unknown_suffixes(tmp_path: Path) -> None:
    for name in ("a.xyz", "a.json", "a.psd"):
        with pytest.raises(InputError, match=r"use \.png or \.jpg"):
            save_picture(PICTURE, tmp_path / name)
    assert not names(tmp_path)


def test_pictures_that_a_format_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"old")
    with pytest.raises(InputError, match=r"cannot be written as XBM .*use \.png"):
        save_picture(PICTURE, tmp_path / "a.xbm")
    with pytest.raises(InputError, match="a RGBA picture of 4x4 cannot be written as JPEG"):
        save_picture(PICTURE.convert("RGBA"), tmp_path / "a.jpg")
    with pytest.raises(InputError, match="a L picture of 70000x1 cannot be written as JPEG"):
        save_picture(Image.new("L", (70000, 1)), tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").read_bytes() == b"old"
    assert names(tmp_path) == ["a.jpg"]


def test_several_pictures_are_written_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.jpg"
    first.write_bytes(b"old")
    with pytest.raises(InputError, match="JPEG"):
        save_pictures({first: PICTURE, second: PICTURE.convert("RGBA")})
    with pytest.raises(InputError, match="does not exist"):
        save_pictures({first: PICTURE, tmp_path / "absent" / "b.png": PICTURE})

    made: list[str] = []
    make = files.tempfile.mkstemp

    def second_fails(**options: object) -> tuple[int, str]:
        if made:
            raise OSError(28, "No space left on device")
        handle, name = make(**options)
        made.append(name)
        return handle, name

    monkeypatch.setattr(files.tempfile, "mkstemp", second_fails)
    with pytest.raises(InputError, match=r"b\.jpg cannot be written \(No space left on device\)"):
        save_pictures({first: PICTURE, second: PICTURE})
    assert first.read_bytes() == b"old"
    assert names(tmp_path) == ["a.png"]
    monkeypatch.undo()
    save_pictures({first: PICTURE, second: PICTURE})
    assert names(tmp_path) == ["a.png", "b.jpg"]
    with Image.open(first) as found:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(PICTURE))


def test_json(tmp_path: Path) -> None:
    target = save_json({"a": [1, 2.5, None], "b": "ü"}, tmp_path / "a.json")
    assert json.loads(target.read_text()) == {"a": [1, 2.5, None], "b": "ü"}
    before = target.read_bytes()
    for data in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises(InputError, match="cannot be written as JSON"):
            save_json(data, target)
    assert target.read_bytes() == before
    assert names(tmp_path) == ["a.json"]
