"""The page with the network that ships: what a visitor of `tracenet viewer` sees first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.viewer.browser.servers import ViewerProcess
from tests.viewer.browser.viewer_page import ViewerPage, decode

CUP = (300, 200)


@pytest.fixture(scope="module")
def bundled(browser: Browser) -> Iterator[ViewerProcess]:
    process = ViewerProcess()
    yield process
    process.stop()


@pytest.fixture
def viewer(new_page: Callable[..., ViewerPage], bundled: ViewerProcess) -> ViewerPage:
    return new_page(bundled.url, viewport={"width": 1360, "height": 860}).open("coffee")


def test_a_cup_of_coffee(viewer: ViewerPage) -> None:
    """The mask holds the cup's rim and not the table; a second click on the cup costs a fraction of the first."""
    first = viewer.click(*CUP)
    mask = decode(first["masks"][0]["rle"])
    assert mask[150, 300] and mask[250, 250] and not mask[20, 20] and not mask[380, 580]
    viewer.page.get_by_role("tab", name="Network").click()
    viewer.screenshot("coffee_network")
    second = viewer.click(CUP[0] + 30, CUP[1])
    assert second["macs"] < 0.2 * first["macs"]
    viewer.screenshot("coffee_second_click")


def test_the_near_levels_need_small_windows_only(viewer: ViewerPage) -> None:
    all_levels = viewer.click(345, 305)
    viewer.page.get_by_role("tab", name="Network").click()
    with viewer.answer() as near:
        viewer.page.get_by_role("radio", name="P3 to P5").click()
    assert near["request"]["levels"] == [3, 5]
    expect(viewer.page.locator("#count")).to_have_text("1")
    names = [layer["name"] for layer in near["trace"]["layers"]]
    assert "P7" in [layer["name"] for layer in all_levels["trace"]["layers"]] and "P7" not in names


def test_beside_the_full_network(viewer: ViewerPage) -> None:
    viewer.click(*CUP)
    viewer.page.get_by_role("tab", name="Network").click()
    with viewer.answer() as answer:
        viewer.page.get_by_role("button", name="Compare with the full network").click()
    assert answer["full"]["max_error"] <= 1e-4 * answer["full"]["max_logit"]
    expect(viewer.page.locator(".compared")).to_contain_text(re.compile("Largest difference of a mask value"))
    viewer.page.locator(".compared").scroll_into_view_if_needed()
    viewer.screenshot("full_network")
