"""Tables as aligned text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Lines of a table, the columns ``left`` to the left and all others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        padded = (c.ljust(width) if i in left else c.rjust(width) for i, (c, width) in enumerate(cells))
        lines.append("  ".join(padded).rstrip())
    return lines
