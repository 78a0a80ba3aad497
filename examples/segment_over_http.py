"""Ask a running ``tracenet viewer`` for the mask under a click. Python's standard library is all it needs.

tracenet viewer --port 8080 &
python examples/segment_over_http.py photo.jpg --click 300,200 -o mask.png
"""

from __future__ import annotations

import argparse
import json
import secrets
import struct
import sys
import urllib.error
import urllib.request
import zlib
from itertools import cycle
from pathlib import Path
from typing import Any


class Viewer:
    """One visitor of a viewer: the server keeps its photos and features apart from those of others."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._headers = {"X-TraceNet-Visitor": secrets.token_urlsafe(24)}

    def send_photo(self, path: Path) -> str:
        """Send a photo's file; returns its id."""
        return str(self._post("/api/photos", path.read_bytes(), "application/octet-stream")["id"])

    def segment(self, photo: str, x: float, y: float, **options: Any) -> dict[str, Any]:
        """The answer to a click in photo pixels; the options are those of ``/openapi.json``."""
        body = json.dumps({"photo": photo, "points": [[x, y]], **options}).encode()
        return self._post("/segment", body, "application/json")

    def _post(self, path: str, body: bytes, kind: str) -> dict[str, Any]:
        request = urllib.request.Request(self._url + path, body, {**self._headers, "Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:  # the server says what came, what is allowed and what to do
            said = json.load(error)["error"]
            raise SystemExit(f"{said['code']}: {said['message']}; {said['hint']}") from error


def png_of(rle: dict[str, list[int]]) -> bytes:
    """A mask's run lengths (columns one below the other, zeros first) as a grey PNG, 255 on the object."""
    height, width = rle["size"]
    columns = b"".join(value * count for value, count in zip(cycle((b"\x00", b"\xff")), rle["counts"], strict=False))
    rows = b"".join(b"\x00" + columns[y::height] for y in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def main(arguments: list[str] | None = None) -> None:
    """Command line of this example."""
    parser = argparse.ArgumentParser(description="The mask under a click, from a running viewer.")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--click", required=True, help="X,Y in pixels")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("-o", "--output", type=Path, default=Path("mask.png"))
    options = parser.parse_args(arguments)
    x, y = (float(part) for part in options.click.split(","))
    viewer = Viewer(options.url)
    try:
        answer = viewer.segment(viewer.send_photo(options.photo), x, y)
    except urllib.error.URLError as error:
        sys.exit(f"{options.url} does not answer ({error.reason}); start it with: tracenet viewer")
    mask = answer["masks"][0]
    options.output.write_bytes(png_of(mask["rle"]))
    print(
        f"{options.output}: {mask['area']} pixels, score {mask['score']:.2f}, level P{mask['level']}, "
        f"{answer['timing_ms']['predict']:.0f} ms, {answer['macs'] / 1e9:.1f} of {answer['full_macs'] / 1e9:.1f} GMACs"
    )


if __name__ == "__main__":
    main()
