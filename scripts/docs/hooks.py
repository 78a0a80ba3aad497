"""What the documentation site has beside the pages in docs/: hooks that MkDocs calls.

- Files of the repository that pages link to (results, sources, CONTRIBUTING.md, ...) come with the site, so the same
  relative links work in the repository and on the site.
- ``<!-- results: NAME -->`` becomes a table of bench/results, ``<!-- drawing: NAME -->`` a drawing of them, and
  ``<!-- options: COMMAND -->`` the options of a command.
- A build that would load anything from another host fails.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import results
import scatter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "tracenet/assets/MODEL_CARD.md": "model_card.md",
    "README.md": "index.md",
}
"""Files of the repository that are pages of the site: the first three as they are, the last has a page of its own."""
SHOWN = {".py": "python", ".toml": "toml", ".sh": "bash", ".cpp": "cpp", ".hpp": "cpp"}
"""Sources that pages link to become pages, by suffix; other files come as they are."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^(?: *)(```|~~~).*?^ *\1[^\n]*$", re.MULTILINE | re.DOTALL)
FILLED: dict[str, Callable[[str], str]] = {
    "results": results.table,
    "options": commands.options,
    "drawing": lambda name: {"zoo-break-even": scatter.break_even}[name](),
}
"""What a mark such as ``<!-- results: end-to-end -->`` becomes, by its first word."""
MARK = re.compile(r"^<!-- (results|options|drawing): ([\w.-]+) -->$", re.MULTILINE)
LOADED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\"'\s>]+", re.I)
CANONICAL = re.compile(r"rel=[\"']?(?:canonical|next|prev)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to outside docs/."""
    for source, page in PAGES.items():
        if source != "README.md":
            files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    wanted: set[str] = set()
    for file in files.documentation_pages():
        if not file.is_documentation_page():
            continue
        for path in _links(MARK.sub(_filled, file.content_string), _origin(file.src_uri)):
            if not path.startswith("docs/") and path not in PAGES:
                wanted.add(path)
    for path in sorted(wanted):
        files.append(_outside(path, config))
    return files


def on_page_markdown(markdown: str, *, page: Page, files: Files, **_: Any) -> str:
    """Fill in tables, and point links that leave docs/ to what came with the site."""
    markdown = MARK.sub(_filled, markdown)
    origin = _origin(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        path = _resolved(match[1], origin)
        target = path.removeprefix("docs/") if path.startswith("docs/") else _home(path)
        start = posixpath.dirname(page.file.src_uri)
        return posixpath.relpath(target, start or ".") + (match[2] or "")

    return _outside_fences(markdown, lambda text: LINK.sub(moved, text))


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse pages that load scripts, styles or pictures from other hosts."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        for tag in LOADED.findall(page.read_text(encoding="utf-8")):
            if not CANONICAL.search(tag):
                raise PluginError(f"{page.name} loads {tag!r} from another host; bring it into docs/")


def _filled(match: re.Match[str]) -> str:
    kind, name = match.groups()
    return FILLED[kind](name)


def _origin(src_uri: str) -> str:
    """Path in the repository of a page's source."""
    return next((source for source, page in PAGES.items() if page == src_uri != "index.md"), f"docs/{src_uri}")


def _resolved(link: str, origin: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def _links(markdown: str, origin: str) -> set[str]:
    found: set[str] = set()

    def note(text: str) -> str:
        found.update(_resolved(match[1], origin) for match in LINK.finditer(text))
        return text

    _outside_fences(markdown, note)
    return found


def _outside_fences(markdown: str, change: Any) -> str:
    """``change`` applied to the text between fenced blocks of code."""
    parts, last = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, change(markdown[last:])])


def _home(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path in PAGES:
        return PAGES[path]
    return f"files/{path}.md" if Path(path).suffix in SHOWN else f"files/{path}"


def _outside(path: str, config: MkDocsConfig) -> File:
    source, home = _existing(path), _home(path)
    if home.endswith(".md"):
        return File.generated(config, home, content=_shown(path), inclusion=InclusionLevel.NOT_IN_NAV)
    return File.generated(config, home, abs_src_path=os.fspath(source), inclusion=InclusionLevel.NOT_IN_NAV)


def _existing(path: str) -> Path:
    source = ROOT / path
    if not source.is_file():
        raise PluginError(f"a page links to {path}, which is no file of the repository")
    return source


def _shown(path: str) -> str:
    """A source as a page."""
    source = _existing(path)
    text = source.read_text(encoding="utf-8").rstrip()
    return f"# {path}\n\n~~~~{SHOWN[source.suffix]}\n{text}\n~~~~\n"
