"""The viewer's page is built from its sources in web/ and committed, because users need no Node."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"
STATIC = ROOT / "tracenet" / "viewer" / "static"


def digest_of_sources() -> str:
    """As web/build.mjs computes it."""
    names = [f"{folder}/{file.name}" for folder in ("src", "static") for file in (WEB / folder).iterdir()]
    digest = hashlib.sha256()
    for name in sorted([*names, "package-lock.json", "build.mjs"]):
        digest.update(name.encode() + b"\0" + (WEB / name).read_bytes() + b"\0")
    return digest.hexdigest()


def test_committed_page_is_built_from_these_sources() -> None:
    found = re.search(r"Sources: ([0-9a-f]{64})", (STATIC / "app.js").read_text()[:300])
    assert found is not None
    assert found[1] == digest_of_sources(), "web/ changed after the page was built; run `make web`"
    for name in ("index.html", "icon.svg"):
        assert (STATIC / name).read_bytes() == (WEB / "static" / name).read_bytes()


def test_page_asks_for_nothing_from_elsewhere() -> None:
    """No fonts, scripts or styles of other hosts, and no markup that the content policy forbids."""
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!/static/)", page)
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", page)
    for name in ("app.js", "app.css"):
        urls = set(re.findall(r"https?://[^\s\"'`)]+", (STATIC / name).read_text()))
        assert urls <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|@font-face|url\(", (STATIC / "app.css").read_text())


def test_page_needs_no_libraries_and_names_no_registry() -> None:
    package = json.loads((WEB / "package.json").read_text())
    assert "dependencies" not in package
    lock = json.loads((WEB / "package-lock.json").read_text())
    assert not [name for name, entry in lock["packages"].items() if "resolved" in entry]
    assert all(entry.get("integrity") for name, entry in lock["packages"].items() if name)


def test_page_ships_with_the_package() -> None:
    shipped = {entry.name for entry in (files("tracenet.viewer") / "static").iterdir()}
    assert shipped == {"index.html", "app.js", "app.css", "icon.svg"}


def test_sources_build_the_same_page_and_their_own_tests_pass() -> None:
    if shutil.which("node") is None or not (WEB / "node_modules").is_dir():
        pytest.skip("no Node 20 with the packages of web/ here: run `cd web && npm ci --ignore-scripts`")
    for script in ("test.mjs", "build.mjs --check"):
        result = subprocess.run(
            ["node", *script.split()], cwd=WEB, capture_output=True, text=True, timeout=120, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
