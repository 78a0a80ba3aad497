"""What the documentation site is made of: tables of results, options of commands, docstrings, links out of docs/."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mkdocs.config import load_config

import tracenet
from tests.pages import PAGES, ROOT, name_of

sys.path.insert(0, str(ROOT / "scripts/docs"))
import commands
import docstrings
import hooks
import pictures
import results

MARKS = [(name_of(page), *mark) for page in PAGES for mark in hooks.MARK.findall(page.read_text(encoding="utf-8"))]


TABLES = [mark for mark in MARKS if mark[1] != "drawing"]


@pytest.mark.parametrize(("page", "kind", "name"), TABLES, ids=lambda value: str(value))
def test_every_table_that_a_page_asks_for_is_one(page: str, kind: str, name: str) -> None:
    text = results.table(name) if kind == "results" else commands.options(name)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 2
    for table in re.split(r"\n\n", text):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, f"{page}: rows of different lengths in {name}"
    for file in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / "docs" / file).is_file(), f"{page}: {name} links to {file}"


def test_every_command_and_every_table_of_results_is_on_a_page() -> None:
    assert {name for _, kind, name in MARKS if kind == "options"} == set(commands.commands())
    assert {name for _, kind, name in MARKS if kind == "results"} == set(results.names())


def test_figures_in_tables_are_those_of_the_file() -> None:
    data = json.loads((ROOT / "bench/results/end_to_end.json").read_text(encoding="utf-8"))
    case = next(case for case in data["cases"] if case["kind"] == "centre")
    table = results.table("end-to-end")
    assert f"| {case['ms_median']:.0f} ms |" in table
    assert f"| {case['speed_up']:.2f}x |" in table
    assert data["commit"] in table


def test_the_drawing_of_the_zoo_has_a_dot_for_every_request_that_was_timed() -> None:
    models = json.loads((ROOT / "bench/results/zoo.json").read_text(encoding="utf-8"))["models"]
    kinds = [("mac_share", f"{name}_ms") for name in ("native", "crop_pad")]
    kinds += [("mac_share_shallow", f"{name}_shallow_ms") for name in ("native", "crop_pad")]
    timed = [model for model in models for share, time in kinds if model.get(share) and model.get(time)]
    drawing = hooks.FILLED["drawing"]("zoo-break-even")
    assert drawing.count("<title>") == len(timed)
    assert '="nan"' not in drawing


def test_options_have_their_names_and_defaults() -> None:
    table = commands.options("segment")
    assert "| `-o, --output PATH` | Mask to write: a PNG, 255 on the object, 0 elsewhere. | required |" in table
    assert "| `--json` | Print JSON instead of text. |  |" in table
    assert "| `--backend TEXT` | auto, native or torch. | `auto` |" in table


def test_references_in_docstrings_become_links() -> None:
    text = docstrings.as_markdown(
        "see :func:`tracenet.trace` and :meth:`run`::\n\n    code", lambda role, name: f"C.{name}"
    )
    assert '<autoref identifier="tracenet.trace" optional><code>trace</code></autoref>' in text
    assert '<autoref identifier="C.run" optional><code>run</code></autoref>:\n\n    code' in text
    assert docstrings.as_markdown("A thing.\n\n::\n\n    code", lambda role, name: name) == "A thing.\n\n\n    code"


def test_links_out_of_docs_lead_to_files_that_come_with_the_site() -> None:
    assert hooks._home("bench/results/zoo.json") == "files/bench/results/zoo.json"
    assert hooks._home("configs/r50_cpu.toml") == "files/configs/r50_cpu.toml.md"
    assert hooks._home("CONTRIBUTING.md") == "contributing.md"
    shown = hooks._shown("configs/r50_cpu.toml")
    assert "# configs/r50_cpu.toml" in shown
    assert (ROOT / "configs/r50_cpu.toml").read_text(encoding="utf-8").rstrip() in shown
    with pytest.raises(hooks.PluginError, match=r"configs/absent\.toml, which is no file"):
        hooks._shown("configs/absent.toml")


def test_pages_that_load_from_elsewhere_are_refused(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path))
    page.write_text('<a href="https://example.org">fine</a><script src="local.js"></script>')
    hooks.on_post_build(config)
    page.write_text('<link rel="stylesheet" href="https://example.org/style.css">')
    with pytest.raises(hooks.PluginError, match="from another host"):
        hooks.on_post_build(config)


@pytest.mark.parametrize("name", ["inside.svg", "edge.svg", "gate.svg", "unions.svg"])
def test_drawings_are_those_of_the_library_as_it_is(name: str, tmp_path: Path) -> None:
    pictures.drawings(tmp_path)
    message = "run python scripts/docs/pictures.py docs/pictures"
    assert (tmp_path / name).read_text() == (ROOT / "docs/pictures" / name).read_text(), message


def documented() -> Iterator[tuple[str, object]]:
    """Functions and classes of the public interface, and methods of the latter."""
    for name in tracenet.__all__:
        thing = getattr(tracenet, name)
        yield name, thing
        if inspect.isclass(thing):
            for method, function in inspect.getmembers(thing, inspect.isfunction):
                if not method.startswith("_") and function.__module__.startswith("tracenet"):
                    yield f"{name}.{method}", function


@pytest.mark.parametrize(("name", "thing"), list(documented()), ids=[name for name, _ in documented()])
def test_docstrings_describe_parameters_that_there_are(name: str, thing: object) -> None:
    text = inspect.getdoc(thing)
    assert text, f"{name} has no docstring"
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", text, flags=re.MULTILINE)
    if section is None:
        return
    described = re.findall(r"^    ([\w*]+(?:, [\w*]+)*):", section[1], flags=re.MULTILINE)
    names = {part.strip().lstrip("*") for several in described for part in several.split(",")}
    known = set(inspect.signature(thing).parameters)  # type: ignore[arg-type]
    assert names <= known, f"{name} describes {names - known}"


def figures(row: str) -> list[str]:
    """Cells of a row of a table, without emphasis."""
    return [cell.strip().strip("*") for cell in row.strip("|").split("|")]


def test_speeds_in_the_readme_are_those_of_the_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [figures(line) for line in results.table("end-to-end").splitlines() if line.startswith("| ")][1:]
    shown = [figures(line) for line in readme.splitlines() if line.startswith("|")]
    missing = [row for row in rows if row not in shown]
    assert not missing, f"bench/results/end_to_end.json has {missing[0]}; put its rows into the README"
    assert json.loads((ROOT / "bench/results/end_to_end.json").read_text())["commit"] in readme


def test_modes_on_the_page_about_barriers_are_those_of_the_file() -> None:
    page = (ROOT / "docs/barriers.md").read_text(encoding="utf-8")
    for row in json.loads((ROOT / "bench/results/global_context.json").read_text())["rows"]:
        once = f"{row['mac_share_once']:.0%}" if row["mac_share_once"] else ""
        cells = [row["network"], row["mode"], f"{row['mac_share']:.1%}", once, f"{row['max_rel_error']:.0e}"]
        assert cells in [figures(line) for line in page.splitlines() if line.startswith("|")], cells
