"""Rows of a long job kept while it runs, so that a killed one goes on where it stopped.

A JSON-lines file: first a fingerprint of everything the rows depend on, then one row a line. A line cut short by a kill
is dropped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tracenet_kernels.errors import InputError

Row = dict[str, Any]


class PartialRows:
    """One file of rows.

    Args:
        path: of the file; it is made with the first row.
        fingerprint: plain data; rows are only taken up by a job with the same.
        job: what the rows are of, with its article, for errors: ``"an evaluation"``.
    """

    def __init__(self, path: Path, fingerprint: Row, job: str) -> None:
        self.path, self.job = path, job
        self._fingerprint: Row = json.loads(json.dumps(fingerprint))
        self._started = False

    def load(self) -> list[Row]:
        """Rows of earlier runs, in order; none where there is no file.

        Raises:
            InputError: the file cannot be read, is of another job, or no such file at all.
        """
        return self._read()[0] if self.path.exists() else []

    def append(self, row: Row) -> None:
        """Keep a row; it survives a kill once this returns.

        Raises:
            InputError: the disk is full or the file cannot be written.
        """
        lines = [json.dumps(row)]
        try:
            if not self._started:
                self._started = True
                if self.path.exists():
                    whole = self._read()[1]
                    with self.path.open("r+b") as file:
                        file.truncate(whole)
                if not self.path.exists() or self.path.stat().st_size == 0:
                    lines.insert(0, json.dumps({"fingerprint": self._fingerprint}))
            with self.path.open("a") as file:
                file.write("".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror or error}); what it holds is kept: make room and run "
                "the same command again"
            ) from error

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> tuple[list[Row], int]:
        """Rows, and how many of the file's bytes are whole lines."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be read ({error.strerror or error}); delete it to start anew"
            ) from error
        whole = data.rfind(b"\n") + 1
        own = self._fingerprint
        try:
            header, *rows = [json.loads(line) for line in data[:whole].splitlines()] or [{"fingerprint": own}]
            theirs = header["fingerprint"]
            other = sorted(key for key in {*theirs, *own} if theirs.get(key) != own.get(key))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.path} holds no results of {self.job}; delete it or choose another output"
            ) from error
        if other:
            raise InputError(
                f"{self.path} was left by {self.job} with another {', '.join(other)}; delete it to start anew, repeat "
                "that one to finish it, or choose another output"
            )
        return rows, whole
