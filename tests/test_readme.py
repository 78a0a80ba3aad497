"""The README's Python runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def code_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_first_example_is_eight_lines_and_exact(capsys: pytest.CaptureFixture[str]) -> None:
    code = code_blocks()[0]
    assert len(code.strip().splitlines()) == 8
    small = code.replace("768, 1024", "256, 320").replace("384 >> k, 512 >> k", "128 >> k, 160 >> k")
    assert small != code
    scope: dict[str, object] = {}
    exec(compile(small, "README.md", "exec"), scope)
    assert float(scope["error"]) <= 1e-4 * max(float(v.abs().max()) for v in scope["full"].values())  # type: ignore[arg-type, attr-defined]
    assert "x faster, max error" in capsys.readouterr().out
