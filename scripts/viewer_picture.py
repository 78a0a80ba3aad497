"""The picture of the viewer in the documentation: its page on a desk and on a phone.

python scripts/viewer_picture.py http://127.0.0.1:8080/ docs/viewer.jpg

Needs a running `tracenet viewer` and an installed Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
from pathlib import Path

from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, sync_playwright

CLICKS = ((250, 120), (370, 420), (385, 200))
"""Face and collar, helmet, shuttle of the bundled photo of an astronaut."""
DESK = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 372, "height": 800}, "has_touch": True, "is_mobile": True}
GAP, CORNER, GROUND = 36, 22, (38, 42, 50)


def opened(browser: Browser, url: str, options: dict[str, object]) -> Page:
    """A page on which the things are clicked one after the other."""
    page = browser.new_context(reduced_motion="reduce", **options).new_page()
    page.goto(f"{url}#astronaut")
    page.wait_for_selector("#canvas[data-view*=astronaut]")
    for x, y in CLICKS:
        view = json.loads(page.locator("#canvas").get_attribute("data-view") or "")
        position = {"x": view["x"] + (x + 0.5) * view["scale"], "y": view["y"] + (y + 0.5) * view["scale"]}
        with page.expect_response("**/segment"):
            page.locator("#canvas").click(position=position)
        page.wait_for_selector("#stage[aria-busy=false]")
    return page


def picture(page: Page) -> Image.Image:
    page.wait_for_timeout(500)  # sliding switches and fading buttons come to rest
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    chromium = os.environ.get("TRACENET_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        desk = opened(browser, args.url, DESK)
        desk.get_by_role("tab", name="Network").click()
        phone = opened(browser, args.url, PHONE)
        pictures = [picture(desk), picture(phone)]
        browser.close()
    width = sum(one.width for one in pictures) + GAP * (len(pictures) + 1)
    sheet = Image.new("RGB", (width, pictures[0].height + 2 * GAP), GROUND)
    left = GAP
    for one in pictures:
        rounded = Image.new("L", one.size, 0)
        ImageDraw.Draw(rounded).rounded_rectangle([0, 0, one.width - 1, one.height - 1], CORNER, fill=255)
        sheet.paste(one, (left, GAP), rounded)
        left += one.width + GAP
    sheet.save(args.out, quality=86, optimize=True, progressive=True)
    print(f"{args.out}: {sheet.width}x{sheet.height}, {args.out.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
