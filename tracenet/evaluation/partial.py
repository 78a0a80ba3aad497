"""Results kept beside the output while an evaluation runs: a file for each process, read by all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tracenet.evaluation.results import ImageResult
from tracenet.partial import PartialRows

JOB = "an evaluation"


class PartialResults:
    """The results of one process.

    Args:
        output: the file that the finished evaluation will write.
        fingerprint: plain data; results are only taken up by an evaluation with the same.
        rank: of this process; every process appends to a file of its own.
    """

    def __init__(self, output: Path, fingerprint: dict[str, Any], rank: int = 0) -> None:
        self._output, self._fingerprint = output, fingerprint
        path = output.with_name(f"{output.name}.partial{f'.{rank}' if rank else ''}.jsonl")
        self._rows = PartialRows(path, fingerprint, JOB)

    def load(self) -> list[ImageResult]:
        """What earlier runs of this evaluation finished, whichever of their processes did.

        Raises:
            InputError: a file is of another evaluation, or no such file at all.
        """
        files = [PartialRows(path, self._fingerprint, JOB) for path in _files(self._output)]
        results = [ImageResult.from_row(row) for file in files for row in file.load()]
        return list({result.image: result for result in results}.values())

    def append(self, result: ImageResult) -> None:
        """Keep one image's result; it survives a kill once this returns."""
        self._rows.append(result.to_row())


def remove_partial(output: Path) -> None:
    """Delete what the processes of an evaluation left beside its output."""
    for path in _files(output):
        path.unlink(missing_ok=True)


def _files(output: Path) -> list[Path]:
    pattern = re.compile(re.escape(output.name) + r"\.partial(\.\d+)?\.jsonl")
    return sorted(path for path in output.parent.iterdir() if pattern.fullmatch(path.name))
