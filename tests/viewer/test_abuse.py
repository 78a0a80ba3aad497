"""What a hostile or broken client sends: every case is a clear error, nothing is read outside, memory stays bounded."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.viewer.servers import Running, a_photo, encoded, running, wait_until
from tracenet import Predictor
from tracenet.viewer import limits
from tracenet.viewer.gate import AllowedHosts
from tracenet.viewer.limits import Limits
from tracenet.viewer.photos import PhotoFolder
from tracenet_kernels.errors import InputError

AT = [[30, 20]]
LIMITS = Limits(
    max_bytes=64 << 10,
    max_pixels=250_000,
    photos_per_visitor=3,
    bytes_per_visitor=100 << 10,
    visitors=4,
    sent_bytes=200 << 10,
    open_bytes=24 << 20,
    kept_bytes=16 << 20,
    json_bytes=8 << 10,
    receiving_bytes=256 << 10,
    body_seconds=1.5,
    idle_seconds=0.5,
    head_seconds=0.5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos with links out of it and things that are no photos; a secret photo lies beside it."""
    base = tmp_path_factory.mktemp("base")
    made = base / "photos"
    made.mkdir()
    a_photo(60, 40).save(base / "secret.png")
    a_photo(60, 40).save(made / "fine.png")
    a_photo(600, 500).save(made / "enormous.png")
    (made / "broken.jpg").write_bytes(encoded(a_photo(60, 40), "JPEG")[:1000])
    (made / "link.png").symlink_to(base / "secret.png")
    (made / "inner.png").symlink_to(made / "fine.png")
    (made / "loop.png").symlink_to(made / "loop.png")
    (made / "out").symlink_to(base, target_is_directory=True)
    (made / ".hidden.png").write_bytes(encoded(a_photo(60, 40)))
    (made / "vector.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    (made / "disguised.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    if hasattr(os, "mkfifo"):
        os.mkfifo(made / "pipe.png")
    return made


@pytest.fixture(scope="module")
def server(predictor: Predictor, folder: Path) -> Iterator[Running]:
    with running(predictor, folder, LIMITS) as found:
        yield found


@pytest.fixture
def client(server: Running, request: pytest.FixtureRequest) -> httpx.Client:
    return server.visitor("".join(c if c.isalnum() else "-" for c in request.node.name)[:60])


def problem(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code
    return str(response.json()["error"]["message"])


def upload(client: httpx.Client, content: Any, **headers: str) -> httpx.Response:
    return client.post("/api/photos", content=content, headers={"content-type": "image/png", **headers})


def alive(client: httpx.Client) -> None:
    assert client.post("/segment", json={"photo": "coffee", "points": AT}).status_code == 200


def a_bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no photo at all",
        b"\x89PNG\r\n\x1a\n",
        encoded(a_photo(60, 40))[:200],
        encoded(a_photo(60, 40), "JPEG")[:400],
        b"\xff\xd8\xff" + bytes(100),
        b"GIF89a" + bytes(20),
        b"II*\x00\x08\x00\x00\x00" + b"\xff" * 64,
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(40),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>",
    ],
)
def test_malformed_photos_are_refused(client: httpx.Client, content: bytes) -> None:
    problem(upload(client, content), 422, "bad_image")
    asked = {"image": base64.b64encode(content or b"-").decode(), "points": AT}
    problem(client.post("/segment", json=asked), 422, "bad_image")
    alive(client)


@pytest.mark.parametrize(("width", "height"), [(501, 500), (60_000, 60_000), (1, 1 << 30), (1 << 31, 1 << 31), (0, 5)])
def test_decompression_bombs_are_refused_before_they_are_decoded(client: httpx.Client, width: int, height: int) -> None:
    start = time.monotonic()
    message = problem(upload(client, a_bomb(width, height)), 422, "bad_image")
    assert time.monotonic() - start < 10
    assert "pixels" in message or "corrupt" in message or "not an image" in message or "too large" in message


def test_a_huge_body_is_refused_whatever_its_head_says(client: httpx.Client) -> None:
    def pieces(count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield bytes(1 << 10)

    assert "65536 are read" in problem(upload(client, bytes(100 << 10)), 413, "too_large")
    problem(upload(client, pieces(100)), 413, "too_large")  # in chunks, without a length
    alive(client)


def raw(server: Running, head: str, *pieces: bytes, pause: float = 0.0, wait: float = 5.0) -> bytes:
    """Send a request by hand, piece by piece, and read until the server closes or time is up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode())
        answer = b""
        try:
            for piece in pieces:
                time.sleep(pause)
                connection.sendall(piece)
            while data := connection.recv(65536):
                answer += data
        except (TimeoutError, ConnectionError):
            pass
        return answer


HEAD = "POST /api/photos HTTP/1.1\nHost: 127.0.0.1\nContent-Type: image/png\n"


def test_a_length_that_is_far_too_large_is_refused_at_once(server: Running, client: httpx.Client) -> None:
    answer = raw(server, HEAD + "Content-Length: 99999999999\n\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    for bad in ("Content-Length: -1\n\n", "Content-Length: 1e9\n\n", "Content-Length: 5\nContent-Length: 6\n\n"):
        assert raw(server, HEAD + bad).startswith(b"HTTP/1.1 400 ")
    alive(client)


def test_a_body_without_end_is_cut_off(server: Running, client: httpx.Client) -> None:
    chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
    answer = raw(server, HEAD + "Transfer-Encoding: chunked\n\n", *[chunk] * 64)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413 ")  # the answer is lost where we were still sending
    alive(client)


def test_slow_uploads_end(server: Running, client: httpx.Client) -> None:
    length = "Content-Length: 1000\n\n"
    stalled = raw(server, HEAD + length, b"abc")
    assert stalled.startswith(b"HTTP/1.1 408 ")
    assert b"too_slow" in stalled
    dripping = raw(server, HEAD + length, *[b"a"] * 12, pause=0.25)
    assert dripping == b"" or dripping.startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: server.viewer.receiver.bytes == 0)
    alive(client)


def test_slow_heads_end(server: Running, client: httpx.Client) -> None:
    start = time.monotonic()
    assert raw(server, "GET /api/info HT", wait=20) == b""
    answered = raw(server, "GET /api/info HTTP/1.1\nHost: 127.0.0.1\n\n", b"GET /api/in", wait=20)
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert time.monotonic() - start < 15
    large = raw(server, "GET / HTTP/1.1\nHost: 127.0.0.1\nX: ", *[b"a" * 100_000] * 20)
    assert large == b"" or large.startswith(b"HTTP/1.1 4")  # the answer is lost where we were still sending
    alive(client)


def test_a_client_that_goes_away_while_it_sends_leaves_nothing(server: Running, client: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall((HEAD + "Content-Length: 60000\n\n").replace("\n", "\r\n").encode() + bytes(30_000))
        wait_until(lambda: server.viewer.receiver.bytes > 0)
    wait_until(lambda: server.viewer.receiver.bytes == 0)
    alive(client)


def test_what_is_received_at_once_is_bounded(server: Running, client: httpx.Client) -> None:
    head = (HEAD + "Content-Length: 65000\n\n").replace("\n", "\r\n").encode()
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
    try:
        for connection in connections:
            connection.sendall(head + bytes(60_000))
        wait_until(lambda: server.viewer.metrics.requests.value("/api/photos", "POST", "503") > 0)
        assert server.viewer.receiver.bytes <= LIMITS.receiving_bytes
    finally:
        for connection in connections:
            connection.close()
    wait_until(lambda: server.viewer.receiver.bytes == 0)
    alive(client)


def test_oversize_json_is_refused(client: httpx.Client) -> None:
    many = {"photo": "coffee", "points": [[1, 2]] * 3000}
    assert "its image apart" in problem(client.post("/segment", json=many), 413, "too_large")
    image = base64.b64encode(bytes(65 << 10)).decode()
    problem(client.post("/segment", json={"image": image, "points": AT}), 413, "too_large")
    deep = b'{"photo": "coffee", "points": ' + b"[" * 3000 + b"]" * 3000 + b"}"
    headers = {"content-type": "application/json"}
    problem(client.post("/segment", content=deep, headers=headers), 400, "bad_request")
    counts = {"photo": "coffee", "rle": {"size": [40, 60], "counts": [1] * 9000}}
    problem(client.post("/api/tolerance", json=counts), 413, "too_large")
    for text in (b'{"photo": "coffee", "points": [[NaN, 1]]}', b'{"photo": "coffee", "points": [[1e999, 1]]}'):
        assert client.post("/segment", content=text, headers=headers).status_code in (400, 422)
    for text in (b"\xff\xfe", b"[]", b"null", b'{"photo": "\\ud800", "points": [[1, 1]]}', b'"' + b"a" * 5000 + b'"'):
        problem(client.post("/segment", content=text, headers=headers), 400, "bad_request")
    huge = b'{"photo": "coffee", "points": [[' + b"9" * 5000 + b", 1]]}"
    assert client.post("/segment", content=huge, headers=headers).status_code in (400, 422)
    alive(client)


def test_an_image_with_escaped_slashes_and_fields_in_any_order_is_read(client: httpx.Client) -> None:
    image = base64.b64encode(encoded(a_photo(60, 40, 5))).decode()
    body = '{"points": [[30, 20]], "image" : "' + image.replace("/", "\\/") + '", "keep": false}'
    response = client.post("/segment", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text
    twice = '{"image": "' + image + '", "image": "AAAA", "points": [[30, 20]]}'
    response = client.post("/segment", content=twice, headers={"content-type": "application/json"})
    problem(response, 422, "bad_image")  # the last one counts, as anywhere in JSON


@pytest.mark.parametrize(
    "path",
    [
        "/api/photos/../../etc/passwd/file",
        "/api/photos/..%2f..%2fetc%2fpasswd/file",
        "/api/photos/%2e%2e%2fsecret.png/file",
        "/api/photos/secret.png/file",
        "/api/photos/fine.png/file",
        "/api/photos/%00/file",
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/%2e%2e/cli.py",
        "/static//etc/passwd",
        "/static/%00",
    ],
)
def test_no_path_leads_out(server: Running, path: str) -> None:
    answer = raw(server, f"GET {path} HTTP/1.1\nHost: 127.0.0.1\nConnection: close\n\n")
    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")), answer[:300]
    assert b"root:" not in answer
    assert b"import" not in answer


def test_links_that_lead_out_are_not_followed(server: Running, client: httpx.Client, folder: Path) -> None:
    photos = client.get("/api/photos").json()["photos"]
    assert [p["name"] for p in photos if p["source"] == "folder"] == ["broken.jpg", "fine.png", "inner.png"]
    assert all(not p["id"].endswith(".png") for p in photos)
    fine = next(p for p in photos if p["name"] == "fine.png")
    (folder / "fine.png").rename(folder / "kept.png")
    try:
        (folder / "fine.png").symlink_to(folder.parent / "secret.png")  # in place of a photo that was listed
        problem(client.get(f"/api/photos/{fine['id']}/file"), 404, "not_found")
        problem(client.post("/segment", json={"photo": fine["id"], "points": AT}), 404, "not_found")
    finally:
        (folder / "fine.png").unlink()
        (folder / "kept.png").rename(folder / "fine.png")
    assert client.get(f"/api/photos/{fine['id']}/file").status_code == 200
    broken = next(p for p in photos if p["name"] == "broken.jpg")
    message = problem(client.post("/segment", json={"photo": broken["id"], "points": AT}), 422, "bad_image")
    assert str(folder) not in message


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot be listed"):
            PhotoFolder(path, "folder", 100, 100)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:9999", 200),
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("[::1]:8080", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("192.168.1.5", 403),
        ("", 403),
        ("user@127.0.0.1", 403),
        ("127.0.0.1/evil", 403),
    ],
)
def test_only_known_hosts_are_answered(server: Running, host: str, status: int) -> None:
    answer = raw(server, f"GET /api/info HTTP/1.1\nHost: {host}\nConnection: close\n\n")
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]


def test_hosts_of_an_open_server() -> None:
    hosts = AllowedHosts("0.0.0.0", ["photos.example"])
    assert all(host in hosts for host in ("192.168.1.5:80", "[fe80::1]", "photos.example", "localhost", "10.0.0.1"))
    assert "evil.example" not in hosts
    assert "box.local" in AllowedHosts("box.local")


def test_pages_of_other_sites_cannot_post(server: Running, client: httpx.Client) -> None:
    asked = {"photo": "coffee", "points": AT}
    evil = {"origin": "https://evil.example"}
    problem(client.post("/segment", json=asked, headers=evil), 403, "forbidden_origin")
    problem(client.post("/segment", json=asked, headers={"origin": "null"}), 403, "forbidden_origin")
    assert client.post("/segment", json=asked, headers={"origin": server.url}).status_code == 200
    plain = {"content-type": "text/plain"}  # what a form can send without asking first
    problem(client.post("/segment", content=json.dumps(asked), headers=plain), 400, "bad_request")
    assert "access-control-allow-origin" not in client.get("/api/info", headers=evil).headers


def test_photos_of_a_visitor_are_bounded_in_number_and_bytes(server: Running, client: httpx.Client) -> None:
    ids = []
    for seed in range(3):
        response = upload(client, encoded(a_photo(30, 20, seed)))
        assert response.status_code == 201
        ids.append(response.json()["id"])
    assert "3 photos" in problem(upload(client, encoded(a_photo(30, 20, 9))), 429, "too_many")
    assert client.delete(f"/api/photos/{ids[0]}").status_code == 204
    rng = np.random.default_rng(0)
    large = [encoded(Image.fromarray(rng.integers(0, 256, (130, 150, 3), np.uint8))) for _ in range(2)]
    assert upload(client, large[0]).status_code == 201
    client.delete(f"/api/photos/{ids[1]}")
    problem(upload(client, large[1]), 429, "too_many")


def test_visitors_are_bounded_and_those_away_for_long_are_forgotten(server: Running) -> None:
    clients = [server.visitor(f"one-of-many-{i}") for i in range(12)]
    photos = [upload(client, encoded(a_photo(60, 40, i))).json()["id"] for i, client in enumerate(clients)]
    for client, photo in zip(clients, photos, strict=True):
        assert client.post("/segment", json={"photo": photo, "points": AT}).status_code in (200, 404)
    assert len(server.viewer.visitors) <= LIMITS.visitors
    assert server.viewer.visitors.bytes <= LIMITS.sent_bytes
    problem(clients[0].post("/segment", json={"photo": photos[0], "points": AT}), 404, "not_found")
    assert clients[-1].post("/segment", json={"photo": photos[-1], "points": AT}).status_code == 200


def test_alternatives_of_a_large_photo_are_bounded(predictor: Predictor, folder: Path) -> None:
    with running(predictor, folder, Limits(mask_pixels=900_000)) as server:
        client = server.visitor("alternatives")
        asked = {"photo": "coffee", "points": AT}
        assert client.post("/segment", json=asked).status_code == 200
        message = problem(client.post("/segment", json={**asked, "alternatives": True}), 400, "bad_request")
        assert message.startswith("5 masks of 600x400 pixels")


def test_many_visitors_keep_no_more_than_is_allowed(server: Running) -> None:
    for i in range(40):
        client = server.visitor(f"tab-number-{i}")
        assert client.post("/segment", json={"photo": "coffee", "points": AT}).status_code == 200
        assert server.viewer.opened.bytes <= LIMITS.open_bytes
        client.close()
    assert 1 <= len(server.viewer.opened) < 40


def test_one_photo_beyond_the_bound_keeps_nothing(predictor: Predictor, folder: Path) -> None:
    with running(predictor, folder, Limits(open_bytes=1 << 20)) as server:
        for visitor in ("first-one", "second-one"):
            answer = server.visitor(visitor).post("/segment", json={"photo": "coffee", "points": AT})
            assert answer.status_code == 200
            assert len(server.viewer.opened) == 1
            assert server.viewer.opened.bytes < 16 << 20  # the decoded photo and the workspace


def test_the_default_bound_is_a_share_of_the_memory_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 64 << 20 <= limits.default_open_bytes() <= 4 << 30
    container = tmp_path / "memory.max"
    monkeypatch.setattr(limits, "_CGROUPS", (str(container),))
    for text, expected in (("1073741824\n", 256 << 20), ("1000\n", 64 << 20)):
        container.write_text(text)
        assert limits.default_open_bytes() == expected
    container.write_text("max\n")
    assert limits.default_open_bytes() > 64 << 20


def test_strange_headers_do_no_harm(server: Running, client: httpx.Client) -> None:
    for cookie in (
        "tracenet_visitor=../../etc",
        "tracenet_visitor=" + "a" * 500,
        '="',
        "a=b; tracenet_visitor",
        "\x01",
    ):
        answer = raw(server, f"GET /api/info HTTP/1.1\nHost: localhost\nCookie: {cookie}\nConnection: close\n\n")
        assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))
    named = upload(client, encoded(a_photo(30, 20)), **{"x-file-name": "%ff%0d%0aSet-Cookie:a=b" + "x" * 900})
    assert named.status_code == 201
    assert len(named.json()["name"]) <= 120
    assert "\n" not in named.json()["name"]
    assert upload(client, b"x", **{"content-type": "text/html"}).status_code == 400
    assert io.BytesIO(named.content).read(1) == b"{"
