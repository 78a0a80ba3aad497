"""Programs of checkpoints, kept on disk so that a later process runs them without PyTorch.

In ``TRACENET_CACHE``, or the user's cache folder: ``<key>.program`` per checkpoint content, package and instruction
set, and ``<file>.checkpoint``, which holds the content hash of a checkpoint file as long as its size and time of change
stay the same. Nothing in the folder is needed: whatever is absent, unreadable or of another version is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tracenet import __version__
from tracenet.checkpoint import Checkpoint
from tracenet.engine.program import Program
from tracenet_kernels import native
from tracenet_kernels.backends import say_once
from tracenet_kernels.errors import InputError, ScheduleError

if TYPE_CHECKING:
    from filelock import BaseFileLock

MAX_PROGRAMS = 8
"""Programs kept, of a hundred megabytes or more each; those not used for the longest time go first."""
LOCK_SECONDS = 600
_CHUNK = 1 << 20


def cache_folder() -> Path:
    """``TRACENET_CACHE``, or ``tracenet`` in the user's cache folder."""
    given = os.environ.get("TRACENET_CACHE")
    if given:
        return Path(given)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("tracenet", appauthor=False))


def cached_program(checkpoint: Checkpoint) -> Program:
    """The program of a checkpoint: from the cache, or built and then kept there.

    Raises:
        CheckpointError, CaptureError: it has to be built and the checkpoint cannot be read or captured.
        BackendError: the C++ extension is not built.
    """
    folder = cache_folder()
    try:
        path = folder / f"{_key(checkpoint.info.path, folder)}.program"
        program = _load(path)
        if program is not None:
            return program
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    except OSError as error:
        say_once(f"programs are not kept: {folder} cannot be used ({error.strerror or error}); set TRACENET_CACHE")
        return _build(checkpoint, None)
    try:
        return _load(path) or _build(checkpoint, path)
    finally:
        lock.release()


def _load(path: Path) -> Program | None:
    if not path.is_file():
        return None
    try:
        program = Program.load(path)
    except (ScheduleError, InputError) as error:
        say_once(f"a cached program is built again: {error}")
        return None
    with contextlib.suppress(OSError):  # a folder that may only be read
        os.utime(path)
    return program


def _build(checkpoint: Checkpoint, path: Path | None) -> Program:
    from tracenet.sessions.native_program import build_program

    program = build_program(checkpoint.model)
    if path is not None:
        try:
            program.save(path)
        except InputError as error:
            say_once(f"programs are not kept: {error}")
        else:
            _drop_oldest(path)
            return Program.load(path)  # mapped: what is not run takes no memory
    return program


def _lock(path: Path) -> BaseFileLock:
    """One process builds, others wait and find it built; one that has waited too long goes without the cache."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{path}.lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise OSError(f"another process has held {lock.lock_file} for {LOCK_SECONDS} s") from error
    except NotImplementedError as error:  # a file system without locks
        raise OSError(str(error)) from error
    return lock


def _drop_oldest(kept: Path) -> None:
    """Delete all programs but those used last."""
    with contextlib.suppress(OSError):
        programs = sorted(kept.parent.glob("*.program"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in programs[MAX_PROGRAMS:]:
            if file != kept:
                file.unlink()
                Path(f"{file}.lock").unlink(missing_ok=True)


def _key(path: Path, folder: Path) -> str:
    isa = native.require().cpu_features()["isa"]
    tag = hashlib.sha256(f"{__version__} {_sources()}".encode()).hexdigest()
    return f"{_content(path, folder)[:32]}-{tag[:12]}-{isa}"


def _sources() -> str:
    """Size and time of change of what makes programs: in a source tree it changes without a new version."""
    package = Path(__file__).parent
    files = [Path(str(native.require().__file__))]
    files += sorted(file for part in ("engine", "graph", "models") for file in (package / part).glob("*.py"))
    return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in map(os.stat, files))


def _content(path: Path, folder: Path) -> str:
    """SHA-256 of a checkpoint, read anew where the file's path, size or time of change is not known yet."""
    stat = path.stat()
    name = hashlib.sha256(f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}".encode()).hexdigest()
    known = folder / f"{name[:32]}.checkpoint"
    with contextlib.suppress(OSError, ValueError):
        text = known.read_text()
        if len(text) == 64 and int(text, 16) >= 0:
            return text
    digest = _digest(path)
    with contextlib.suppress(OSError, InputError):
        from tracenet.files import save_text

        folder.mkdir(parents=True, exist_ok=True)
        save_text(digest, known)
    return digest


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
