"""Results kept while an evaluation runs, so that a killed one goes on where it stopped.

A JSON-lines file beside the output: first a fingerprint of everything the numbers depend on, then one line per image.
A line cut short by a kill is dropped.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tracenet.evaluation.results import ImageResult
from tracenet_kernels.errors import InputError


class PartialResults:
    """The results of one process.

    Args:
        output: the file that the finished evaluation will write.
        fingerprint: plain data; results are only taken up by an evaluation with the same.
        rank: of this process; every process appends to a file of its own.
    """

    def __init__(self, output: Path, fingerprint: dict[str, Any], rank: int = 0) -> None:
        self._output = output
        self._fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self._path = output.with_name(f"{output.name}.partial{f'.{rank}' if rank else ''}.jsonl")
        self._started = False

    def load(self) -> list[ImageResult]:
        """What earlier runs of this evaluation finished, whichever of their processes did.

        Raises:
            InputError: a file is of another evaluation, or no such file at all.
        """
        found: dict[int, ImageResult] = {}
        for path in _files(self._output):
            for row in _read(path, self._fingerprint)[0]:
                result = ImageResult.from_row(row)
                found[result.image] = result
        return list(found.values())

    def append(self, result: ImageResult) -> None:
        """Keep one image's result; it survives a kill once this returns."""
        lines = [json.dumps(result.to_row())]
        try:
            if not self._started:
                self._started = True
                if self._path.exists():
                    whole = _read(self._path, self._fingerprint)[1]
                    with self._path.open("r+b") as file:
                        file.truncate(whole)
                if not self._path.exists() or self._path.stat().st_size == 0:
                    lines.insert(0, json.dumps({"fingerprint": self._fingerprint}))
            with self._path.open("a") as file:
                file.write("".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be written ({error.strerror or error}); what it holds is kept: make room and run "
                "the same command again"
            ) from error


def remove_partial(output: Path) -> None:
    """Delete what the processes of an evaluation left beside its output."""
    for path in _files(output):
        path.unlink(missing_ok=True)


def _files(output: Path) -> list[Path]:
    pattern = re.compile(re.escape(output.name) + r"\.partial(\.\d+)?\.jsonl")
    return sorted(path for path in output.parent.iterdir() if pattern.fullmatch(path.name))


def _read(path: Path, fingerprint: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Rows of one file, and how many of its bytes are whole lines."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); delete it to start anew") from error
    whole = data.rfind(b"\n") + 1
    try:
        header, *rows = [json.loads(line) for line in data[:whole].splitlines()] or [{"fingerprint": fingerprint}]
        theirs = header["fingerprint"]
        other = sorted(key for key in {*theirs, *fingerprint} if theirs.get(key) != fingerprint.get(key))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no results of an evaluation; delete it or choose another output") from error
    if other:
        raise InputError(
            f"{path} was left by an evaluation with another {', '.join(other)}; delete it to start anew, repeat that "
            "evaluation to finish it, or choose another output"
        )
    return rows, whole
