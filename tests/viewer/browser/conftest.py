"""A headless Chromium from the system's packages, servers, and pages with the viewer open."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from tests.viewer.browser.servers import ViewerProcess, save_diamond_network
from tests.viewer.browser.viewer_page import ViewerPage

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_MS = 30_000
"""For machines with more to do; nothing waits longer than it must."""
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little of it
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = os.environ.get("TRACENET_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        text = "no Chromium here: install it (`apt-get install chromium`) or name one with TRACENET_CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture(scope="session")
def diamonds(tmp_path_factory: pytest.TempPathFactory, cache_folder: Path) -> Path:
    """The checkpoint of a network whose masks are diamonds."""
    path = tmp_path_factory.mktemp("network") / "diamonds.safetensors"
    save_diamond_network(path)
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one photo, a grey ramp."""
    path = tmp_path_factory.mktemp("photos")
    ramp = np.tile(np.linspace(40, 215, 240, dtype=np.uint8), (160, 1))
    Image.fromarray(np.stack([ramp] * 3, axis=2)).save(path / "ramp.png")
    return path


@pytest.fixture(scope="session")
def server(browser: Browser, diamonds: Path, folder: Path) -> Iterator[ViewerProcess]:
    """`tracenet viewer` with diamonds for masks, shared by all tests. It is asked for after the browser is found."""
    process = ViewerProcess([folder, "--checkpoint", diamonds])
    yield process
    process.stop()


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Callable[..., ViewerPage]]:
    """Opens pages, each of another visitor; when the test ends none may have complained."""
    contexts, pages = [], []

    def make(url: str, **options: Any) -> ViewerPage:
        settings = {"viewport": {"width": 1100, "height": 720}, "reduced_motion": "reduce"} | options
        context = browser.new_context(**settings)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        pages.append(ViewerPage(context.new_page(), url))
        return pages[-1]

    yield make
    for page in pages:
        page.page.unroute_all(behavior="ignoreErrors")
    for context in contexts:
        context.close()
    assert [trouble for page in pages for trouble in page.troubles] == []


@pytest.fixture
def viewer(new_page: Callable[..., ViewerPage], server: ViewerProcess) -> ViewerPage:
    """The page with the photo of a cup of coffee open."""
    return new_page(server.url).open()
