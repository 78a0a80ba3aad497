"""The page in a real browser: clicks, layers, windows, files, keys, errors. The network's masks are known by hand."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Route, expect

from tests.viewer.browser.servers import REACH, WORKING_SIZE, ViewerProcess
from tests.viewer.browser.viewer_page import ViewerPage, decode, fill, grown, has_photo

PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
TIMES = "\N{MULTIPLICATION SIGN}"
AMBER, BLUE = (255, 180, 84), (110, 168, 255)
"""What this click computed, and what was kept."""
PHOTO = Path(__file__).parents[3] / "tracenet" / "assets" / "photos" / "coffee.jpg"


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Pixels whose colour is plainly another."""
    return np.abs(before[..., :3].astype(int) - after[..., :3]).max(axis=2) > 12


def save(page: ViewerPage, kind: str) -> bytes:
    """The file that an export gives."""
    with page.page.expect_download() as download:
        page.page.locator(f'[data-export="{kind}"]').click()
    return Path(download.value.path()).read_bytes()


def refuse(status: int, code: str, **headers: str) -> Callable[[Route], None]:
    """Answers a request as the server would when it refuses."""
    error = {"code": code, "message": f"It is {code}.", "hint": "Do something else."}
    return lambda route: route.fulfill(status=status, headers=headers, json={"error": error})


# Clicks


def test_a_click_changes_the_pixels_of_its_mask(viewer: ViewerPage) -> None:
    before = viewer.picture()
    answer = viewer.click(300, 200)
    mask = decode(answer["masks"][0]["rle"])
    assert abs(mask.sum() - 2 * (REACH * 600 / WORKING_SIZE) ** 2) < 0.1 * mask.sum()
    difference = changed(before, viewer.picture())
    inside = ~grown(~mask, 4)
    assert difference[inside].mean() > 0.99
    x0, y0, x1, y1 = (round(edge) for edge in answer["masks"][0]["box"])
    framed = np.zeros_like(mask)
    framed[y0 - 4 : y1 + 4, x0 - 4 : x1 + 4] = True
    framed[y0 + 6 : y1 - 6, x0 + 6 : x1 - 6] = False  # the corners of the predicted box are drawn
    assert difference[~grown(mask, 5) & ~framed].sum() == 0
    expect(viewer.live).to_have_text(re.compile(r"Object 1: score 0\.73, level P3, .* ms, .* % of the network"))
    viewer.screenshot("click")


def test_facts_of_a_click_are_shown(viewer: ViewerPage) -> None:
    answer = viewer.click(300, 200)
    facts = viewer.page.get_by_label("Selected object")
    for text in ("0.73", "P3", f"175{TIMES}175", "Round trip"):
        expect(facts).to_contain_text(text)
    share = answer["macs"] / answer["full_macs"]
    expect(facts.get_by_role("meter")).to_have_attribute("aria-valuenow", str(round(100 * share)))


def test_a_second_click_shows_only_what_is_new(viewer: ViewerPage) -> None:
    first = viewer.click(200, 200)
    second = viewer.click(330, 200)
    assert 0 < second["macs"] < first["macs"]
    viewer.page.get_by_role("tab", name="Network").click()
    share = 100 * second["macs"] / second["full_macs"]
    expect(viewer.page.locator(".number")).to_have_text(f"{share:.{1 if share < 10 else 0}f} %")
    kept = viewer.picture()
    viewer.page.get_by_text("Only what this click computed").click()
    layer = next(layer for layer in second["trace"]["layers"] if layer["name"] == "P3")
    picture = viewer.picture()
    coloured = np.ptp(picture[..., :3].astype(int), axis=2) > 24
    new = np.zeros(coloured.shape, bool)
    for x0, y0, x1, y1 in layer["computed_photo"]:
        new[round(y0) : round(y1), round(x0) : round(x1)] = True
    marks = grown(decode(second["masks"][0]["rle"]), 4)  # the outline and the click stay visible
    x0, y0, x1, y1 = layer["photo_box"]
    frame = np.zeros_like(new)
    frame[round(y0) - 4 : round(y1) + 4, round(x0) - 4 : round(x1) + 4] = True
    frame[round(y0) + 4 : round(y1) - 4, round(x0) + 4 : round(x1) - 4] = False
    assert 0 < new.sum() < new.size / 2
    assert coloured[~grown(new, 4) & ~marks & ~frame].mean() < 0.01
    assert coloured[~grown(~new, 4) & ~marks].mean() > 0.9
    assert changed(kept, picture).any()
    viewer.screenshot("second_click")
    graph = viewer.page.locator(".graph")
    drawn = viewer.read(graph)
    amber, blue = (np.abs(drawn[..., :3].astype(int) - colour).max(axis=2) < 8 for colour in (AMBER, BLUE))
    assert amber.any() and not blue.any()
    viewer.page.get_by_text("Only what this click computed").click()
    viewer.still()
    drawn = viewer.read(graph)
    assert (np.abs(drawn[..., :3].astype(int) - BLUE).max(axis=2) < 8).any()


def test_alternatives_are_cycled(viewer: ViewerPage) -> None:
    viewer.click(300, 200)
    with viewer.answer() as answer:
        viewer.page.keyboard.press("a")
    assert [mask["level"] for mask in answer["masks"]] == [3, 4, 5]
    expect(viewer.live).to_have_text(re.compile("Mask 2 of 3.*P4"))
    viewer.page.get_by_role("button", name="Next mask").first.click()
    expect(viewer.live).to_have_text(re.compile("Mask 3 of 3.*P5"))
    viewer.page.get_by_role("button", name="Mask 1, level P3").click()
    expect(viewer.page.locator("#chip-level")).to_have_text("P3")


def test_shift_click_adds_a_point(viewer: ViewerPage) -> None:
    first = viewer.click(250, 200)
    both = viewer.click(340, 200, shift=True)
    assert both["request"]["points"] == [[250, 200], [340, 200]]
    assert both["masks"][0]["area"] > first["masks"][0]["area"]
    expect(viewer.objects).to_have_count(1)
    viewer.page.get_by_role("button", name="Add a point").click()
    assert len(viewer.click(300, 150)["request"]["points"]) == 3


def test_the_same_thing_clicked_again_stays_one_object(viewer: ViewerPage) -> None:
    viewer.click(300, 200)
    viewer.click(302, 201)
    expect(viewer.objects).to_have_count(1)
    viewer.click(100, 100)
    expect(viewer.objects).to_have_count(2)


def test_a_newer_click_replaces_one_that_waits(viewer: ViewerPage) -> None:
    held: list[Route] = []
    viewer.page.route("**/segment", lambda route: held.append(route) if not held else route.continue_())
    viewer.page.mouse.click(*viewer.point(100, 100))
    expect(viewer.page.locator("#stage")).to_have_attribute("aria-busy", "true")
    answer = viewer.click(300, 200)
    expect(viewer.objects).to_have_count(1)
    assert answer["request"]["points"] == [[300, 200]]
    expect(viewer.page.locator(".toast")).to_have_count(0)


def test_hasty_clicks_end_with_the_last(viewer: ViewerPage) -> None:
    for x in range(100, 500, 50):
        viewer.page.mouse.click(*viewer.point(x, 200))
    viewer.still()
    expect(viewer.page.locator("#chip-level")).to_have_text("P3")
    drawn = viewer.picture()[193:208, 445:456, :3].astype(int)
    assert (drawn.min(axis=2) > 240).any()  # the ring around the last click's mark is white
    expect(viewer.page.locator(".toast")).to_have_count(0)


def test_escape_cancels_a_click(viewer: ViewerPage) -> None:
    viewer.page.route("**/segment", lambda route: None)
    viewer.page.mouse.click(*viewer.point(100, 100))
    expect(viewer.page.locator("#stage")).to_have_attribute("aria-busy", "true")
    viewer.page.keyboard.press("Escape")
    expect(viewer.page.locator("#stage")).to_have_attribute("aria-busy", "false")


def test_masks_open_from_the_click_where_motion_is_welcome(
    new_page: Callable[..., ViewerPage], server: ViewerProcess
) -> None:
    viewer = new_page(server.url, reduced_motion="no-preference").open()
    viewer.page.evaluate(
        """() => {
          window.moved = false;
          new MutationObserver(() => { window.moved ||= canvas.dataset.still === "false"; })
            .observe(canvas, { attributes: true });
        }"""
    )
    viewer.click(300, 200)
    assert viewer.page.evaluate("window.moved")


# Layers


def test_undo_redo_hide_rename_delete(viewer: ViewerPage) -> None:
    clean = viewer.picture()
    viewer.click(300, 200)
    masked = viewer.picture()
    viewer.page.keyboard.press("Control+z")
    expect(viewer.objects).to_have_count(0)
    assert not changed(clean, viewer.picture()).any()
    viewer.page.keyboard.press("Control+Shift+z")
    expect(viewer.objects).to_have_count(1)
    assert not changed(masked, viewer.picture()).any()
    viewer.page.get_by_role("button", name="Hide Object 1").click()
    assert not changed(clean, viewer.picture()).any()
    viewer.page.get_by_role("button", name="Show Object 1").click()
    name = viewer.page.get_by_role("textbox", name="Name of Object 1")
    name.fill("cup")
    name.press("Enter")
    viewer.page.get_by_role("button", name="Delete cup").click()
    expect(viewer.objects).to_have_count(0)
    viewer.page.get_by_role("button", name="Undo").click()
    expect(viewer.page.get_by_role("textbox", name="Name of cup")).to_have_value("cup")
    viewer.page.get_by_role("button", name="Undo").click()
    expect(viewer.page.get_by_role("textbox", name="Name of Object 1")).to_have_value("Object 1")


def test_each_photo_keeps_its_objects(viewer: ViewerPage) -> None:
    viewer.click(300, 200)
    photos = viewer.page.get_by_role("list", name="Photos")
    photos.get_by_role("button", name="ramp").click()
    expect(viewer.page.get_by_role("heading", name="Objects")).to_be_hidden()
    viewer.click(120, 80)
    viewer.click(60, 40)
    expect(viewer.objects).to_have_count(2)
    photos.get_by_role("button", name="coffee").click()
    expect(viewer.objects).to_have_count(1)
    viewer.page.keyboard.press("Control+z")
    expect(viewer.page.get_by_role("button", name="Undo")).to_be_disabled()


def test_backdrops(viewer: ViewerPage) -> None:
    photo = viewer.picture()
    mask = decode(viewer.click(300, 200)["masks"][0]["rle"])
    inside, outside = ~grown(~mask, 3), ~grown(mask, 3)
    viewer.page.get_by_role("radio", name="Cut out").click()
    cut = viewer.picture()
    assert not changed(photo, cut)[inside].any()
    assert np.ptp(cut[outside][:, :3].astype(int), axis=1).max() < 16  # chequers are grey
    viewer.page.get_by_role("radio", name="Blur").click()
    blurred = viewer.picture()
    assert not changed(photo, blurred)[inside].any()
    sharpness = [np.abs(np.diff(one[..., 1].astype(int), axis=1))[outside[:, 1:]].mean() for one in (photo, blurred)]
    assert sharpness[1] < 0.3 * sharpness[0]
    viewer.screenshot("blur")


# Files that go out


def test_exported_pictures(viewer: ViewerPage) -> None:
    mask = decode(viewer.click(300, 200)["masks"][0]["rle"])
    photo = np.asarray(Image.open(PHOTO).convert("RGB")).astype(int)
    made = {kind: Image.open(io.BytesIO(save(viewer, kind))) for kind in ("cutout", "blur", "overlay", "mask")}
    assert {image.size for image in made.values()} == {(600, 400)}
    cut = np.asarray(made["cutout"].convert("RGBA"))
    assert made["cutout"].mode == "RGBA"
    assert np.array_equal(cut[..., 3], np.where(mask, 255, 0))
    assert np.abs(cut[mask][:, :3] - photo[mask]).max() <= 6  # two decoders of one JPEG
    assert np.array_equal(np.asarray(made["mask"].convert("L")) == 255, mask)
    blurred = np.asarray(made["blur"].convert("RGBA"))
    assert (blurred[..., 3] == 255).all()
    assert np.abs(blurred[mask][:, :3] - photo[mask]).max() <= 6
    assert np.abs(blurred[~mask][:, :3] - photo[~mask]).mean() > 4
    overlaid = np.asarray(made["overlay"].convert("RGB"))
    assert changed(photo, overlaid)[~grown(~mask, 3)].mean() > 0.99
    assert not changed(photo, overlaid)[~grown(mask, 3)].any()


def test_exported_annotations_decode_to_the_masks(viewer: ViewerPage) -> None:
    masks = [decode(viewer.click(*point)["masks"][0]["rle"]) for point in ((300, 200), (100, 120))]
    with viewer.answer():
        viewer.page.keyboard.press("a")
    one = json.loads(save(viewer, "rle"))
    assert [entry["level"] for entry in one["annotations"]] == [4]
    viewer.page.keyboard.press("Control+z")
    viewer.page.get_by_role("radio", name="All visible").click()
    for kind in ("rle", "polygons"):
        document = json.loads(save(viewer, kind))
        assert document["images"] == [{"id": 1, "file_name": "coffee.jpg", "width": 600, "height": 400}]
        assert [entry["name"] for entry in document["annotations"]] == ["Object 1", "Object 2"]
        for entry, mask in zip(document["annotations"], masks, strict=True):
            found = entry["segmentation"]
            assert np.array_equal(decode(found) if kind == "rle" else fill(found, mask.shape), mask)
            rows, columns = np.nonzero(mask)
            x, y, width, height = entry["bbox"]
            assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert entry["area"] == mask.sum() and entry["iscrowd"] == 0


def test_copying(viewer: ViewerPage) -> None:
    viewer.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    viewer.click(300, 200)
    viewer.page.get_by_role("button", name="Copy Polygons").click()
    expect(viewer.toast).to_have_text("Polygons copied.")
    assert json.loads(viewer.page.evaluate("navigator.clipboard.readText()"))["annotations"][0]["area"] > 0
    viewer.page.get_by_role("button", name="Copy Cut-out").click()
    expect(viewer.toast).to_have_text("Cut-out copied.")
    types = viewer.page.evaluate("navigator.clipboard.read().then(items => items.flatMap(item => item.types))")
    assert types == ["image/png"]


# Files that come in


def test_an_opened_photo_is_shown_and_removed(viewer: ViewerPage, tmp_path: Path) -> None:
    image = Image.new("RGB", (90, 160), (30, 120, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    with viewer.page.expect_file_chooser() as chooser:
        viewer.page.get_by_role("button", name="Open").click()
    chooser.value.set_files(tmp_path / "turned.jpg")
    expect(viewer.page.locator("#title")).to_have_text("turned.jpg")
    assert viewer.picture().shape == (90, 160, 4)
    viewer.click(80, 45)
    viewer.page.get_by_role("button", name="Remove turned.jpg").click()
    expect(viewer.page.locator("#title")).to_have_text("astronaut.jpg")
    expect(viewer.page.get_by_role("button", name="turned.jpg")).to_have_count(0)


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_photos_are_dropped_and_pasted(viewer: ViewerPage, way: str) -> None:
    viewer.page.evaluate(
        """async way => {
          const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
          const blob = await new Promise(done => canvas.toBlob(done));
          const files = new DataTransfer();
          files.items.add(new File([blob], `${way}.png`, { type: "image/png" }));
          if (way === "paste") document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: files }));
          else for (const type of ["dragenter", "drop"])
            document.body.dispatchEvent(new DragEvent(type, { dataTransfer: files, bubbles: true, cancelable: true }));
        }""",
        way,
    )
    expect(viewer.page.locator("#title")).to_have_text(f"{way}.png")
    expect(viewer.page.locator("#drop")).to_be_hidden()


def test_files_that_cannot_be_opened_say_why(viewer: ViewerPage, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("this is text")
    (tmp_path / "empty.png").touch()
    chooser = viewer.page.locator("#file")
    chooser.set_input_files(tmp_path / "text.jpg")
    expect(viewer.page.get_by_role("alert").locator("p").first).not_to_be_empty()
    expect(viewer.toast.locator(".hint")).not_to_be_empty()
    viewer.screenshot("bad_file")
    chooser.set_input_files(tmp_path / "empty.png")
    expect(viewer.toast).to_contain_text("empty.png is empty.")
    limit = viewer.page.evaluate("fetch('/api/info').then(answer => answer.json())")["limits"]["max_bytes"]
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(limit + 1)
    chooser.set_input_files(tmp_path / "huge.jpg")
    expect(viewer.toast).to_contain_text(re.compile(r"huge\.jpg has \d+ MB; at most \d+ MB are allowed"))
    expect(viewer.page.locator("#title")).to_have_text("coffee.jpg")
    viewer.click(300, 200)


def test_a_photo_with_too_many_pixels_is_refused_by_the_server(viewer: ViewerPage, tmp_path: Path) -> None:
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    viewer.page.locator("#file").set_input_files(tmp_path / "bomb.png")
    expect(viewer.toast).to_contain_text(re.compile("pixels"))
    expect(viewer.page.locator("#title")).to_have_text("coffee.jpg")


# Errors


def test_a_busy_server_is_asked_again(viewer: ViewerPage) -> None:
    answers: list[Callable[[Route], None]] = [refuse(503, "busy", **{"Retry-After": "1"})]
    viewer.page.route("**/segment", lambda route: answers.pop()(route) if answers else route.continue_())
    viewer.page.mouse.click(*viewer.point(300, 200))
    expect(viewer.objects).to_have_count(1)
    expect(viewer.page.locator(".toast")).to_have_count(0)


def test_refusals_are_shown_and_superseded_clicks_are_not(viewer: ViewerPage) -> None:
    viewer.page.route("**/segment", refuse(429, "too_many"), times=1)
    viewer.page.mouse.click(*viewer.point(300, 200))
    expect(viewer.toast).to_contain_text("It is too_many.")
    expect(viewer.toast).to_contain_text("Do something else.")
    viewer.page.get_by_role("button", name="Dismiss").click()
    viewer.page.route("**/segment", refuse(409, "superseded"), times=1)
    viewer.page.mouse.click(*viewer.point(300, 200))
    viewer.still()
    expect(viewer.page.locator(".toast")).to_have_count(0)


def test_a_lost_server_has_a_banner_and_is_found_again(
    new_page: Callable[..., ViewerPage], server: ViewerProcess, diamonds: Path, tmp_path: Path
) -> None:
    other = ViewerProcess(["--checkpoint", diamonds])
    try:
        viewer = new_page(other.url).open()
        Image.new("RGB", (80, 60), (9, 99, 199)).save(tmp_path / "mine.png")
        viewer.page.locator("#file").set_input_files(tmp_path / "mine.png")
        expect(viewer.page.locator("#title")).to_have_text("mine.png")
        other.stop()
        viewer.page.mouse.click(*viewer.point(40, 30))
        banner = viewer.page.locator("#banner")
        expect(banner).to_be_visible()
        viewer.screenshot("server_gone")
        other.start()
        other.line()
        expect(banner).to_be_hidden()
        # The new process has never seen the photo; the page brings it back.
        viewer.page.mouse.click(*viewer.point(40, 30))
        expect(viewer.objects).to_have_count(1)
        expect(viewer.page.get_by_role("button", name="mine.png", exact=True)).to_have_attribute("aria-current", "true")
    finally:
        other.stop()


# Keys, touch, looks


def test_everything_by_keyboard(viewer: ViewerPage) -> None:
    keyboard = viewer.page.keyboard
    while not viewer.page.evaluate("document.activeElement.id === 'stage'"):
        keyboard.press("Tab")
    assert viewer.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    keyboard.press("ArrowRight")
    keyboard.press("ArrowDown")
    keyboard.press("Alt+ArrowDown")
    with viewer.answer() as answer:
        keyboard.press("Enter")
    (point,) = answer["request"]["points"]
    view = viewer.view()
    assert np.allclose(point, [299.5, 199.5 + 14 / view.scale + 1], atol=0.1)
    viewer.screenshot("keyboard")
    keyboard.press("ArrowLeft")
    with viewer.answer() as answer:
        keyboard.press("Shift+Enter")
    assert len(answer["request"]["points"]) == 2
    keyboard.press("Control+z")
    keyboard.press("Control+z")
    expect(viewer.page.get_by_role("button", name="Redo")).to_be_enabled()
    keyboard.press("Control+y")
    keyboard.press("h")
    expect(viewer.page.get_by_role("button", name="Show Object 1")).to_be_visible()
    keyboard.press("n")
    expect(viewer.page.get_by_role("tab", name="Network")).to_have_attribute("aria-selected", "true")
    layer = viewer.page.locator(".layer-name")
    expect(layer).to_have_text("P3")
    keyboard.press("[")
    expect(layer).to_have_text("P4")
    keyboard.press("Delete")
    expect(viewer.page.get_by_role("button", name="Redo")).to_be_disabled()
    keyboard.press("?")
    expect(viewer.page.get_by_role("dialog", name="Keys and gestures")).to_be_visible()
    keyboard.press("Escape")
    expect(viewer.page.get_by_role("dialog")).to_be_hidden()


def test_zoom_and_pan(viewer: ViewerPage) -> None:
    fitted = viewer.view()
    x, y = viewer.point(100, 100)
    viewer.page.mouse.move(x, y)
    viewer.page.mouse.wheel(0, -400)
    viewer.still()
    assert viewer.view().scale > 1.5 * fitted.scale
    assert np.allclose(viewer.point(100, 100), (x, y), atol=2)  # wheels report whole pixels
    x, y = viewer.point(100, 100)
    viewer.page.mouse.down()
    viewer.page.mouse.move(x - 60, y - 40, steps=4)
    viewer.page.mouse.up()
    viewer.still()
    assert np.allclose(viewer.point(100, 100), (x - 60, y - 40), atol=1)
    expect(viewer.objects).to_have_count(0)
    answer = viewer.click(150, 120)
    assert answer["request"]["points"] == [[150, 120]]
    viewer.page.keyboard.press("0")
    viewer.still()
    assert viewer.view() == fitted


def test_layers_are_walked_with_the_slider(viewer: ViewerPage) -> None:
    trace = viewer.click(300, 200)["trace"]
    viewer.page.get_by_role("tab", name="Network").click()
    slider = viewer.page.get_by_role("slider", name="Layer")
    slider.press("Home")
    for layer in trace["layers"]:
        y0, y1, x0, x1 = layer["demand"]
        text = f"{y1 - y0} {TIMES} {x1 - x0} of {layer['plane'][0]} {TIMES} {layer['plane'][1]} cells"
        expect(viewer.page.locator(".layer-facts")).to_contain_text(text)
        assert text in (slider.get_attribute("aria-valuetext") or "")
        slider.press("ArrowRight")
    stages = viewer.page.get_by_role("list", name="Multiply-adds by stage").get_by_role("listitem")
    expect(stages).to_have_count(len(trace["stages"]))
    graph = viewer.page.get_by_role("img", name=re.compile(r"Graph of \d+ nodes"))
    expect(graph).to_have_attribute("aria-label", re.compile(f"{len(trace['visited'])} needed"))
    viewer.screenshot("network")


def test_on_a_phone(new_page: Callable[..., ViewerPage], server: ViewerProcess) -> None:
    viewer = new_page(server.url, **PHONE).open()
    assert viewer.page.evaluate("document.documentElement.scrollWidth") == 360
    with viewer.answer():
        viewer.page.touchscreen.tap(*viewer.point(300, 200))
    expect(viewer.objects).to_have_count(1)
    for tab in ("Objects", "Network"):
        viewer.page.get_by_role("tab", name=tab).tap()
        if viewer.page.locator("body.collapsed").count():
            viewer.page.get_by_role("tab", name=tab).tap()
        small = viewer.page.evaluate(
            """() => [...document.querySelectorAll("button, input:not([type=file]), label.switch")]
              .map(element => [element.closest(".switch") ?? element, element.getBoundingClientRect()])
              .map(([element, box]) => [element, element.matches(".switch") ? element.getBoundingClientRect() : box])
              .filter(([element, box]) => box.width && (box.width < 40 || box.height < 40)
                && !element.closest(".named"))
              .map(([element]) => element.outerHTML.slice(0, 120))"""
        )
        assert small == []
        assert viewer.page.evaluate("document.documentElement.scrollWidth") == 360
        viewer.screenshot(f"phone_{tab.lower()}")
    fitted = viewer.view().scale
    pinch(viewer, viewer.point(300, 200))
    assert viewer.view().scale > 1.5 * fitted
    viewer.page.get_by_role("tab", name="Network").tap()
    expect(viewer.page.locator("#network")).to_be_hidden()


def pinch(viewer: ViewerPage, centre: tuple[float, float]) -> None:
    """Two fingers move apart."""
    session = viewer.page.context.new_cdp_session(viewer.page)
    for kind, reach in (("touchStart", 20), ("touchMove", 30), ("touchMove", 45), ("touchMove", 60), ("touchEnd", 0)):
        fingers = [{"x": centre[0] + side * reach, "y": centre[1], "id": i} for i, side in enumerate((-1, 1))]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers if reach else []})
    viewer.still()


CONTRAST = """() => {
  const parse = text => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
      layers.push([r, g, b, a]);
      if (a === 1) break;
    }
    const over = (under, [r, g, b, a]) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
    return layers.reverse().reduce(over, [0, 0, 0]);
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    const field = element.matches("input[type=text]");
    if (!(own || field) || !element.checkVisibility() || element.matches(":disabled")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${element.outerHTML.slice(0, 100)}`);
  }
  return poor;
}"""

NAMELESS = """() => [...document.querySelectorAll("button, input:not([hidden]), [role=meter], [role=img]")]
  .filter(element => element.checkVisibility())
  .filter(element => !(element.getAttribute("aria-label") || element.getAttribute("aria-labelledby")
    || element.textContent.trim() || element.labels?.length))
  .map(element => element.outerHTML.slice(0, 100))"""


def test_everything_has_a_name_and_enough_contrast(viewer: ViewerPage) -> None:
    viewer.click(300, 200)
    with viewer.answer():
        viewer.page.keyboard.press("a")
    for tab in ("Objects", "Network"):
        viewer.page.get_by_role("tab", name=tab).click()
        viewer.still()
        assert viewer.page.evaluate(CONTRAST) == []
        assert viewer.page.evaluate(NAMELESS) == []
        ids = viewer.page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
        assert len(ids) == len(set(ids))


# The click-tolerance map


def test_the_tolerance_map_is_computed_in_the_background(viewer: ViewerPage) -> None:
    viewer.click(300, 200)
    viewer.page.get_by_role("tab", name="Network").click()
    seen: list[dict[str, Any]] = []
    viewer.page.on("response", lambda answer: seen.append(answer.json()) if "/api/jobs/" in answer.url else None)
    viewer.page.get_by_role("button", name="Map the clicks").click()
    expect(viewer.page.locator(".mapped")).to_contain_text(re.compile(r"\d+ % of \d+ clicks"))
    result = seen[-1]["result"]
    expect(viewer.page.locator(".mapped")).to_contain_text(f"{result['clicks']} clicks")
    mapped = viewer.picture()
    beside = [(x, y, agreement) for x, y, agreement in result["points"] if abs(x - 300) + abs(y - 200) > 12]
    x, y, agreement = max(beside, key=lambda point: point[2])  # the click itself has its mark
    assert agreement > 0.7
    _, green, blue = mapped[round(y), round(x), :3].astype(int)
    assert green > blue + 30
    viewer.screenshot("tolerance")
    viewer.page.get_by_text("Show", exact=True).click()
    assert changed(mapped, viewer.picture()).any()


def test_the_tolerance_map_can_be_cancelled(viewer: ViewerPage) -> None:
    viewer.click(300, 200)
    viewer.page.get_by_role("tab", name="Network").click()
    viewer.page.route("**/api/jobs/*", lambda route: answer_running(route))
    viewer.page.get_by_role("button", name="Map the clicks").click()
    bar = viewer.page.get_by_role("progressbar", name="Clicks tried")
    expect(bar).to_have_attribute("value", "30")
    with viewer.page.expect_request(lambda request: request.method == "DELETE" and "/api/jobs/" in request.url):
        viewer.page.get_by_role("button", name="Cancel").click()
    expect(viewer.page.get_by_role("button", name="Map the clicks")).to_be_visible()


def answer_running(route: Route) -> None:
    if route.request.method == "GET":
        route.fulfill(json={"state": "running", "done": 30, "total": 120, "result": None})
    else:
        route.continue_()


# The camera


def test_the_camera_is_a_viewfinder(viewer: ViewerPage) -> None:
    viewer.page.context.grant_permissions(["camera"])
    photos = viewer.page.get_by_role("list", name="Photos").get_by_role("listitem")
    before = photos.count()
    viewer.page.get_by_role("button", name="Camera", exact=True).click()
    video = viewer.page.locator("#video")
    expect(viewer.page.get_by_text("Tap a thing to freeze")).to_be_visible()
    viewer.page.evaluate(
        """() => new Promise(done => {
          const look = () => video.currentTime > 0.1 ? done() : requestAnimationFrame(look);
          look();
        })"""
    )
    viewer.screenshot("camera_live")
    with viewer.answer() as answer:
        video.click()
    x, y = answer["request"]["points"][0]
    assert abs(x - answer["width"] / 2) <= 2 and abs(y - answer["height"] / 2) <= 2
    expect(video).to_be_hidden()
    expect(viewer.objects).to_have_count(1)
    viewer.screenshot("camera_frozen")
    viewer.page.get_by_role("button", name="Resume").click()
    expect(video).to_be_visible()
    expect(photos).to_have_count(before)
    with viewer.answer():
        video.click()
    viewer.page.get_by_role("button", name="Keep photo").click()
    expect(photos).to_have_count(before + 1)
    expect(viewer.objects).to_have_count(1)


def test_a_camera_that_does_not_start_says_why(viewer: ViewerPage) -> None:
    viewer.page.evaluate(
        """() => {
          navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("", "NotFoundError"); };
        }"""
    )
    viewer.page.get_by_role("button", name="Camera", exact=True).click()
    expect(viewer.toast).to_contain_text("There is no camera here.")
    expect(viewer.canvas).to_have_attribute("data-view", has_photo("coffee"))
    viewer.click(300, 200)
