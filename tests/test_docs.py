"""What the pages print works: Python runs, commands parse, links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import typer

from tests import pages
from tests.pages import CLAIMS, PAGES, ROOT, SETUPS, Scope, blocks, name_of, python_blocks, shell_lines
from tracenet.cli import app
from tracenet.rft.rules import registry
from tracenet_kernels import native

RUN = [page for page in PAGES if any(block.not_run is None for block in python_blocks(page))]
NOT_RUN = [page for page in PAGES if any(block.not_run is not None for block in python_blocks(page))]
IN_WORDS = re.compile(r"`((?:python -m|tracenet|make|bash|bench/\w+\.sh) [^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
NEED_EXTENSION = ("docs/kernels.md",)
NEED_TRITON = ("docs/gpu.md",)
TRACENET = typer.main.get_command(app)


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_python_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name_of(page) in NEED_EXTENSION and not native.available():
        pytest.skip(native.why_not())
    if name_of(page) in NEED_TRITON:
        pytest.importorskip("triton")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))  # rules of the examples are gone afterwards
    name = name_of(page)
    scope: Scope = SETUPS[name]() if name in SETUPS else {}
    for block in python_blocks(page):
        if block.not_run is None:
            pages.run(block, scope)
    if name in CLAIMS:
        CLAIMS[name](scope)


@pytest.mark.parametrize("page", NOT_RUN, ids=name_of)
def test_python_that_cannot_run_here_is_python_and_imports_what_exists(page: Path) -> None:
    for block in python_blocks(page):
        if block.not_run is not None:
            tree = ast.parse(block.text, f"{block.page}:{block.line}")
            imports: list[ast.stmt] = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
            imports = [n for n in imports if not any(name in block.not_run for name in _modules(n))]
            exec(compile(ast.Module(imports, []), str(page), "exec"), {})


def _modules(statement: ast.stmt) -> list[str]:
    names = [alias.name for alias in getattr(statement, "names", [])]
    return [statement.module or ""] if isinstance(statement, ast.ImportFrom) else names


def test_first_example_is_eight_lines_and_the_same_on_both_pages() -> None:
    first, second = (
        next(block.text for block in blocks(ROOT / page) if block.language == "python")
        for page in ("README.md", "docs/index.md")
    )
    assert first == second
    assert len(first.strip().splitlines()) == 8


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    for line, words in shell_lines(page):
        words = words[words.index("-m") - 1 :] if words[0] == "torchrun" else words
        _check_command(words, line)
        if words[0] == "tracenet" and len(words) > 2 and "..." not in words:
            TRACENET.commands[words[1]].make_context(words[1], words[2:])  # type: ignore[attr-defined]
    for match in IN_WORDS.finditer(page.read_text(encoding="utf-8")):
        _check_command(match[1].replace('"', "").split(), match[1])


def _check_command(words: list[str], line: str) -> None:
    if words[0] == "tracenet" or words[1:3] == ["-m", "tracenet.cli"]:
        command, *rest = words[1:] if words[0] == "tracenet" else words[3:]
        if command == "COMMAND":
            return
        known = TRACENET.commands[command].params  # type: ignore[attr-defined]
        unknown = {word for word in rest if word.startswith("-")} - {name for option in known for name in option.opts}
        assert not unknown, f"{line}: tracenet {command} has no {unknown}"
    elif words[1:2] == ["-m"] and words[2].split(".")[0] in ("tracenet", "tracenet_kernels", "bench"):
        text = _source(words[2], line)
        for word in words[3:]:
            assert not word.startswith("--") or f'"{word}"' in text, f"{line}: {words[2]} has no {word}"
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert words[1] in targets, line
    elif words[0].endswith("python") and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), line
    elif words[0].endswith(".sh"):
        assert (ROOT / words[0]).is_file(), line


def _source(module: str, line: str) -> str:
    """Text of a module; of a package, of all its modules."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{line}: there is no {module}"
    assert spec.origin is not None, f"{line}: {module} cannot be run"
    origin = Path(spec.origin)
    files = sorted(origin.parent.glob("*.py")) if origin.name == "__init__.py" else [origin]
    return "\n".join(file.read_text() for file in files)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_lead_to_files_of_the_repository(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if not link.startswith(("https://", "#")):
            target = page.parent / link.split("#")[0]
            assert target.exists(), f"{name_of(page)} links to {link}"
            assert target.resolve().is_relative_to(ROOT), f"{name_of(page)} links out of the repository: {link}"


@pytest.mark.parametrize(("shown", "right"), [("0.33", True), ("0.34", False), ("1", False)])
def test_values_that_a_page_shows_are_compared(shown: str, right: bool) -> None:
    block = pages.Block("page.md", 1, "python", f"third = 1 / 3\nthird  # => {shown}\n", None)
    if right:
        pages.run(block, {})
    else:
        with pytest.raises(AssertionError, match=r"page.md, line 2: 0.33"):
            pages.run(block, {})


def test_messages_in_troubleshooting_are_those_of_the_library() -> None:
    sources = [file for folder in ("tracenet", "tracenet_kernels") for file in (ROOT / folder).rglob("*.py")]
    text = re.sub(r'"\s*f?"', "", "\n".join(file.read_text(encoding="utf-8") for file in sources))
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    firsts = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    messages = [message for cell in firsts for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 25
    assert [message for message in messages if message not in text] == []
