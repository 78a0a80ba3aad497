"""The viewer's page as the tests use it: opened, clicked, read back."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page, expect

SCREENSHOTS = Path(__file__).parents[3] / "out" / "viewer"
"""Where pictures of the page are left; git ignores the folder."""


@dataclass(frozen=True)
class Placement:
    """Where the photo lies on the canvas: CSS pixel = photo edge * scale + (x, y)."""

    scale: float
    x: float
    y: float


class ViewerPage:
    """A browser's page with the viewer open."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.troubles: list[str] = []
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("console", lambda message: self._heard(message.type, message.text))

    def _heard(self, kind: str, text: str) -> None:
        # A refused request is logged by the browser itself; what the page makes of it is tested.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.troubles.append(text)

    def open(self, photo: str = "coffee") -> ViewerPage:
        self.page.goto(f"{self.url}#{photo}")
        expect(self.canvas).to_have_attribute("data-view", has_photo(photo))
        return self

    @property
    def canvas(self) -> Locator:
        return self.page.locator("#canvas")

    @property
    def live(self) -> Locator:
        return self.page.locator("#live")

    @property
    def objects(self) -> Locator:
        return self.page.get_by_role("list", name="Objects").get_by_role("listitem")

    @property
    def toast(self) -> Locator:
        return self.page.locator(".toast").last

    def view(self) -> Placement:
        found = json.loads(self.canvas.get_attribute("data-view") or "null")
        return Placement(found["scale"], found["x"], found["y"])

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Page coordinates of a photo pixel's centre."""
        box, view = self.canvas.bounding_box(), self.view()
        assert box is not None
        return box["x"] + view.x + (x + 0.5) * view.scale, box["y"] + view.y + (y + 0.5) * view.scale

    def click(self, x: float, y: float, shift: bool = False) -> dict[str, Any]:
        """Click a photo pixel and return the server's answer, when the page shows it."""
        with self.answer() as found:
            if shift:
                self.page.keyboard.down("Shift")
            self.page.mouse.click(*self.point(x, y))
            if shift:
                self.page.keyboard.up("Shift")
        return found

    @contextmanager
    def answer(self) -> Iterator[dict[str, Any]]:
        """What is done inside asks the server once; its answer is filled in when the page shows it."""
        found: dict[str, Any] = {}
        with self.page.expect_response("**/segment") as response:
            yield found
        found["request"] = response.value.request.post_data_json
        found |= response.value.json()
        self.still()

    def still(self) -> None:
        """Wait until nothing is pending and nothing moves."""
        expect(self.page.locator("#stage")).to_have_attribute("aria-busy", "false")
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        expect(self.canvas).to_have_attribute("data-still", "true")

    def picture(self) -> NDArray[np.uint8]:
        """What the canvas shows at the centre of every pixel of the photo, which fits: ``[height, width, 4]``."""
        self.still()
        drawn, view = self.read(self.canvas), self.view()
        ratio = drawn.shape[1] / self.canvas.evaluate("canvas => canvas.clientWidth")
        rows, columns = (
            np.arange(round((length / ratio - 2 * edge) / view.scale))
            for length, edge in ((drawn.shape[0], view.y), (drawn.shape[1], view.x))
        )
        at_y = ((view.y + (rows + 0.5) * view.scale) * ratio).astype(int)
        at_x = ((view.x + (columns + 0.5) * view.scale) * ratio).astype(int)
        return drawn[at_y[:, None], at_x]

    def read(self, canvas: Locator) -> NDArray[np.uint8]:
        """The pixels of a canvas, ``[height, width, 4]``."""
        data = canvas.evaluate("canvas => canvas.toDataURL().split(',')[1]")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))

    def screenshot(self, name: str) -> Path:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path)
        print(f"screenshot: {path}")
        return path


def has_photo(photo: str) -> Any:
    """A pattern for the canvas's view of a photo."""

    return re.compile(rf'"photo":"{re.escape(photo)}"' if photo else '"photo":"')


def decode(rle: dict[str, Any]) -> NDArray[np.bool_]:
    """COCO's uncompressed RLE as ``[H, W]``."""
    height, width = rle["size"]
    values = np.arange(len(rle["counts"])) % 2 == 1
    return np.repeat(values, rle["counts"]).reshape(width, height).T


def grown(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """The mask with everything that is at most ``reach`` rows and columns away."""
    found = mask.copy()
    for _ in range(reach):
        padded = np.pad(found, 1)
        found = np.logical_or.reduce(
            [
                padded[1 + dy : padded.shape[0] - 1 + dy, 1 + dx : padded.shape[1] - 1 + dx]
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
            ]
        )
    return found


def fill(polygons: list[list[float]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centres lie inside polygons along pixel edges, by the even-odd rule."""
    toggles = np.zeros((shape[0], shape[1] + 1), np.int64)
    for polygon in polygons:
        corners = np.array(polygon, np.int64).reshape(-1, 2)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if x0 == x1:
                toggles[min(y0, y1) : max(y0, y1), x0] += 1
    return toggles.cumsum(axis=1)[:, : shape[1]] % 2 == 1
