"""What the server answers: photos, clicks with their windows, jobs, metrics; several visitors; its end."""

from __future__ import annotations

import base64
import io
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.viewer.servers import Running, a_photo, encoded, occupied, running, wait_until
from tracenet import Predictor
from tracenet.viewer import app
from tracenet.viewer.outlines import decode_rle, encode_rle
from tracenet.viewer.worker import Job

PHOTO = a_photo()
AT = [[75, 48]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("photos")
    PHOTO.save(made / "one.png")
    a_photo(60, 40, 1).save(made / "two words é.jpg")
    (made / "inner").mkdir()
    a_photo(50, 70, 2).save(made / "inner" / "three.webp")
    return made


@pytest.fixture(scope="module")
def server(predictor: Predictor, folder: Path) -> Iterator[Running]:
    with running(predictor, folder) as found:
        yield found


@pytest.fixture
def client(server: Running, request: pytest.FixtureRequest) -> httpx.Client:
    return server.visitor(f"visitor-{request.node.name}"[:60].replace("[", "-").replace("]", "-"))


def ok(response: httpx.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


def sent(client: httpx.Client, image: Image.Image = PHOTO) -> str:
    response = client.post("/api/photos", content=encoded(image), headers={"content-type": "image/png"})
    return str(ok(response, 201)["id"])


def problem(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert error["hint"]
    return str(error["message"])


def test_info_and_health(client: httpx.Client, predictor: Predictor) -> None:
    info = ok(client.get("/api/info"))
    assert info["backend"] == predictor.backend
    assert info["working_size"] == 128
    assert info["levels"] == [3, 7]
    assert info["has_level_head"] is True
    assert set(info["limits"]) == {"max_bytes", "max_pixels", "photos_per_visitor", "queue"}
    assert ok(client.get("/healthz"))["status"] == "ok"


def test_photos_are_the_bundled_ones_those_of_the_folder_and_the_visitors_own(
    server: Running, client: httpx.Client
) -> None:
    mine = sent(client)
    photos = ok(client.get("/api/photos"))["photos"]
    by_source = {source: [p for p in photos if p["source"] == source] for source in ("bundled", "folder", "upload")}
    assert [p["id"] for p in by_source["bundled"]] == ["astronaut", "chelsea", "coffee", "rocket"]
    assert [p["name"] for p in by_source["folder"]] == ["one.png", "two words é.jpg", "inner/three.webp"]
    assert [(p["width"], p["height"]) for p in by_source["folder"]] == [(150, 97), (60, 40), (50, 70)]
    assert [p["id"] for p in by_source["upload"]] == [mine]
    other = ok(server.visitor("somebody-else").get("/api/photos"))["photos"]
    assert all(photo["source"] != "upload" for photo in other)


def test_files_and_thumbnails(client: httpx.Client) -> None:
    photos = {p["name"]: p for p in ok(client.get("/api/photos"))["photos"]}
    whole = client.get(f"/api/photos/{photos['one.png']['id']}/file")
    assert whole.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(whole.content))), np.asarray(PHOTO))
    again = client.get(f"/api/photos/{photos['one.png']['id']}/file", headers={"if-none-match": whole.headers["etag"]})
    assert again.status_code == 304
    for _ in range(2):
        small = client.get("/api/photos/rocket/file", params={"thumbnail": 100})
        assert small.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(small.content)).size == (100, 67)
    problem(client.get("/api/photos/rocket/file?thumbnail=100000"), 400, "bad_request")
    problem(client.get("/api/photos/rocket/file?thumbnail=many"), 400, "bad_request")
    problem(client.get("/api/photos/rockets/file"), 404, "not_found")


def test_a_turned_photo_is_shown_upright_and_without_transparency(client: httpx.Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(PHOTO, "JPEG", exif=exif, quality=95)
    found = ok(client.post("/api/photos", content=turned, headers={"content-type": "image/jpeg"}), 201)
    assert (found["width"], found["height"]) == (97, 150)
    shown = client.get(f"/api/photos/{found['id']}/file")
    assert Image.open(io.BytesIO(shown.content)).size == (97, 150)
    clear = PHOTO.copy()
    clear.putalpha(0)
    found = ok(client.post("/api/photos", content=encoded(clear), headers={"content-type": "image/png"}), 201)
    shown = client.get(f"/api/photos/{found['id']}/file")
    assert np.asarray(Image.open(io.BytesIO(shown.content))).min() >= 250


def test_the_page_and_its_files_are_served(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    named = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
    assert named
    for path in named:
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["cache-control"] == "no-cache"
    problem(client.get("/static/absent.js"), 404, "not_found")


def test_without_a_page_the_server_says_how_to_build_it(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(app, "STATIC", tmp_path / "absent")
    with running(predictor) as server:
        client = server.visitor()
        assert "no page" in problem(client.get("/"), 503, "no_page")
        problem(client.get("/static/app.js"), 404, "not_found")
        ok(client.get("/api/info"))


def test_photos_that_appear_later_are_found(server: Running, folder: Path, client: httpx.Client) -> None:
    a_photo(33, 44, 3).save(folder / "later.png")
    (folder / "text.jpg").write_text("no photo")
    try:
        photos = {p["name"]: p for p in ok(client.get("/api/photos"))["photos"]}
        assert (photos["later.png"]["width"], photos["later.png"]["height"]) == (33, 44)
        assert "text.jpg" not in photos
        a_photo(66, 44, 3).save(folder / "later.png")  # the same name, another photo
        answer = ok(client.post("/segment", json={"photo": photos["later.png"]["id"], "points": [[60, 40]]}))
        assert (answer["width"], answer["height"]) == (66, 44)
    finally:
        (folder / "later.png").unlink()
        (folder / "text.jpg").unlink()
    problem(client.get(f"/api/photos/{photos['later.png']['id']}/file"), 404, "not_found")


def test_a_click_gives_what_the_predictor_gives(client: httpx.Client, predictor: Predictor) -> None:
    photo = sent(client)
    asked = {"photo": photo, "points": AT, "labels": [1], "alternatives": True, "polygons": True, "levels": [3, 5]}
    answer = ok(client.post("/segment", json=asked))
    own = predictor.another()
    own.set_image(PHOTO)
    masks, scores, _ = own.predict(AT, [1], multimask_output=True, levels=(3, 5))
    assert len(answer["masks"]) == 3
    for one, mask, score in zip(answer["masks"], masks, scores, strict=True):
        np.testing.assert_array_equal(decode_rle(one["rle"]["size"], one["rle"]["counts"]), mask)
        assert one["score"] == pytest.approx(float(score), abs=1e-4)
        assert one["area"] == mask.sum()
        corners = [np.array(polygon).reshape(-1, 2).T for polygon in one["polygons"]]
        assert sum(0.5 * (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() for x, y in corners) == one["area"]
    assert own.last_plan is not None
    assert own.last_boxes is not None
    np.testing.assert_allclose([one["box"] for one in answer["masks"]], own.last_boxes, atol=1e-2)
    assert (answer["macs"], answer["full_macs"]) == (own.last_plan.macs, own.last_plan.full_macs)
    assert answer["kept_bytes"] > 0
    assert set(answer["timing_ms"]) == {"queue", "set_image", "capture", "predict"}
    assert "trace" not in answer
    assert "full" not in answer


def test_options_reach_the_predictor(client: httpx.Client, predictor: Predictor) -> None:
    own = predictor.another()
    own.set_image(PHOTO)
    photo = sent(client)
    for asked, options in (
        ({"mask_window": 20}, {"mask_window": 20}),
        ({"mask_window": "full"}, {"mask_window": "full"}),
        ({"zoom": [0.5, 1]}, {"zoom": (0.5, 1)}),
    ):
        answer = ok(client.post("/segment", json={"photo": photo, "points": AT, **asked, "keep": False}))
        mask = own.predict(AT, **options)[0][0]
        rle = answer["masks"][0]["rle"]
        np.testing.assert_array_equal(decode_rle(rle["size"], rle["counts"]), mask)
        assert answer["kept_bytes"] == 0


def test_the_second_click_computes_what_is_missing_and_the_trace_says_so(client: httpx.Client) -> None:
    asked = {"photo": sent(client), "points": AT, "trace": True}
    first, second = (ok(client.post("/segment", json=asked)) for _ in range(2))
    forgotten = ok(client.post("/segment", json={**asked, "forget": True}))
    assert second["macs"] < first["macs"] == forgotten["macs"]
    assert second["timing_ms"]["set_image"] == 0
    layers = [{layer["name"]: layer for layer in answer["trace"]["layers"]} for answer in (first, second)]
    assert [*layers[0]][:6] == ["image", "backbone.conv1", "C2", "C3", "C4", "C5"]
    assert [*layers[0]] == [*layers[1]]
    for name, layer in layers[0].items():
        y0, y1, x0, x1 = layer["demand"]
        assert 0 <= y0 < y1 <= layer["plane"][0]
        assert 0 <= x0 < x1 <= layer["plane"][1]
        covered = np.zeros(layer["plane"], np.int64)
        for a, b, c, d in layer["computed"]:
            covered[a:b, c:d] += 1
        assert covered.max() == 1  # pieces do not overlap
        assert covered[y0:y1, x0:x1].all() or name in ("C2", "C3", "C4", "C5")
        left, top, right, bottom = layer["photo_box"]
        assert 0 <= left < right <= 150
        assert 0 <= top < bottom <= 97
        assert layers[1][name]["demand"] == layer["demand"]
        assert layers[1][name]["macs"] <= layer["macs"]
    assert layers[1]["C3"]["computed"] == []
    assert layers[1]["C3"]["macs"] == 0
    stages = first["trace"]["stages"]
    assert [stage["stage"] for stage in stages] == [
        "stem", "C2", "C3", "C4", "C5", "FPN", "heads", "mask branch", "mask head",
    ]  # fmt: skip
    assert sum(stage["macs"] for stage in stages) == first["macs"]
    assert sum(stage["full_macs"] for stage in stages) == first["full_macs"]
    assert first["trace"]["visited"] == second["trace"]["visited"]
    assert len(second["trace"]["computed"]) < len(first["trace"]["computed"]) <= len(first["trace"]["visited"])


def test_the_graph_has_what_the_trace_visits(client: httpx.Client) -> None:
    photo = sent(client)
    nodes = ok(client.get(f"/api/photos/{photo}/graph"))["nodes"]
    answer = ok(client.post("/segment", json={"photo": photo, "points": AT, "trace": True, "levels": [3, 3]}))
    visited = answer["trace"]["visited"]
    assert all(0 <= one < len(nodes) for one in visited)
    assert nodes[visited[0]]["name"] == "image"
    stages = {nodes[one]["stage"] for one in visited}
    assert {"stem", "C2", "C5", "FPN", "heads", "mask branch", "mask head"} <= stages
    assert len(visited) < len(nodes)  # the heads of other levels are not among them
    assert all(source < position for position, node in enumerate(nodes) for source in node["inputs"])
    assert sum(node["full_macs"] for node in nodes) == answer["full_macs"]


def test_the_whole_network_agrees_with_the_click(client: httpx.Client) -> None:
    answer = ok(client.post("/segment", json={"photo": sent(client), "points": [[75, 48], [20, 90]], "full": True}))
    assert answer["full"]["ms"] > 0
    assert answer["full"]["max_logit"] > 0.1
    assert answer["full"]["max_error"] <= 1e-4 * answer["full"]["max_logit"]


def test_a_photo_inside_the_request_is_kept_for_the_next_click(client: httpx.Client) -> None:
    ids = []
    for seed in range(3):
        image = base64.b64encode(encoded(a_photo(seed=seed))).decode()
        answer = ok(client.post("/segment", json={"image": image, "points": AT}))
        again = ok(client.post("/segment", json={"photo": answer["photo"], "points": AT}))
        assert again["masks"][0]["rle"] == answer["masks"][0]["rle"]
        ids.append(answer["photo"])
    uploads = [p["id"] for p in ok(client.get("/api/photos"))["photos"] if p["source"] == "upload"]
    assert uploads == ids[1:]


def test_uploads_are_named_found_again_and_deleted(client: httpx.Client) -> None:
    headers = {"content-type": "image/png", "x-file-name": "..%2Fa%20photo%00%E2%82%AC.png"}
    found = ok(client.post("/api/photos", content=encoded(PHOTO), headers=headers), 201)
    assert found["name"] == "a photo?€.png"
    assert ok(client.post("/api/photos", content=encoded(PHOTO), headers=headers), 201)["id"] == found["id"]
    ok(client.post("/segment", json={"photo": found["id"], "points": AT}))
    assert client.delete(f"/api/photos/{found['id']}").status_code == 204
    problem(client.delete(f"/api/photos/{found['id']}"), 404, "not_found")
    problem(client.post("/segment", json={"photo": found["id"], "points": AT}), 404, "not_found")
    problem(client.delete("/api/photos/chelsea"), 404, "not_found")


def test_a_visitor_is_known_by_its_cookie(server: Running) -> None:
    client = server.someone()
    first = client.get("/api/info")
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "set-cookie" not in client.get("/api/info").headers
    photo = sent(client)
    assert ok(client.post("/segment", json={"photo": photo, "points": AT}))["photo"] == photo
    problem(server.someone().post("/segment", json={"photo": photo, "points": AT}), 404, "not_found")
    assert "set-cookie" not in server.visitor("a-program").get("/api/info").headers
    client.cookies.set("tracenet_visitor", "not an id!")
    assert "set-cookie" in client.get("/api/info").headers


@pytest.mark.parametrize(
    ("asked", "status", "code", "text"),
    [
        ({"points": AT}, 400, "bad_request", "no photo"),
        ({"photo": "coffee", "image": "AAAA", "points": AT}, 400, "bad_request", "or two"),
        ({"photo": "coffee"}, 400, "bad_request", "points"),
        ({"photo": "coffee", "points": []}, 400, "bad_request", "points"),
        ({"photo": "coffee", "points": [[1, 2]] * 33}, 400, "bad_request", "points"),
        ({"photo": "coffee", "points": [[1, 2, 3]]}, 400, "bad_request", "points"),
        ({"photo": "coffee", "points": AT, "colour": 1}, 400, "bad_request", "colour"),
        ({"photo": "coffee", "points": AT, "levels": [2, 9]}, 400, "bad_request", "levels"),
        ({"photo": "coffee", "points": AT, "mask_window": -1}, 400, "bad_request", "mask_window"),
        ({"photo": "coffee", "points": AT, "zoom": [0.001]}, 400, "bad_request", "zoom"),
        ({"photo": "coffee", "points": AT, "zoom": [100]}, 400, "bad_request", "zoom"),
        ({"photo": "coffee", "points": AT, "zoom": [16]}, 400, "bad_request", "at most 1750000 are looked at"),
        ({"photo": "coffee", "points": [[600, 10]]}, 422, "bad_click", "outside the photo"),
        ({"photo": "coffee", "points": AT, "labels": [0]}, 422, "bad_click", "point_labels"),
        ({"photo": "coffee", "points": AT, "labels": [1, 1]}, 422, "bad_click", "point_labels"),
        ({"photo": "../coffee", "points": AT}, 404, "not_found", "no photo"),
        ({"image": "####", "points": AT}, 400, "bad_request", "base64"),
        ({"image": base64.b64encode(b"no photo").decode(), "points": AT}, 422, "bad_image", "not an image"),
    ],
)
def test_bad_requests_say_what_is_wrong(
    client: httpx.Client, asked: dict[str, Any], status: int, code: str, text: str
) -> None:
    assert text in problem(client.post("/segment", json=asked), status, code)


def test_a_newer_click_supersedes_older_ones_unless_asked(server: Running, client: httpx.Client) -> None:
    asked = {"photo": sent(client), "points": AT}

    def click(client: httpx.Client, **more: Any) -> httpx.Response:
        return client.post("/segment", json={**asked, **more})

    with ThreadPoolExecutor(4) as pool, occupied(server.viewer):
        first = pool.submit(click, client)
        wait_until(lambda: server.viewer.worker.waiting == 1)
        second = pool.submit(click, client)
        problem(first.result(10), 409, "superseded")
        third = pool.submit(click, client, keep_older=True)
        wait_until(lambda: server.viewer.worker.waiting == 2)
        fourth = pool.submit(click, server.visitor("another-one"), photo="coffee")
        wait_until(lambda: server.viewer.worker.waiting == 3)
        assert "tracenet_queue_length 3" in client.get("/metrics").text
    assert [one.result(30).status_code for one in (second, third, fourth)] == [200, 200, 200]


def test_a_running_click_ends_at_its_next_phase(server: Running, client: httpx.Client) -> None:
    photo = sent(client)
    begun, release, phases = threading.Event(), threading.Event(), []
    segment = server.viewer.clicks.segment

    def slow(visitor: str, of: Any, asked: Any, check: Any, queued: float) -> Any:
        def watched() -> None:
            phases.append(len(phases))
            begun.set()
            assert release.wait(10)
            check()

        return segment(visitor, of, asked, watched, queued)

    server.viewer.clicks.segment = slow  # type: ignore[method-assign]
    try:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.post, "/segment", json={"photo": photo, "points": AT})
            assert begun.wait(10)
            with ThreadPoolExecutor(1) as other:
                second = other.submit(client.post, "/segment", json={"photo": photo, "points": [[20, 20]]})
                problem(first.result(10), 409, "superseded")
                seen = len(phases)
                release.set()
                assert second.result(30).status_code == 200
    finally:
        server.viewer.clicks.segment = segment  # type: ignore[method-assign]
    assert seen == 1
    assert len(phases) == 3  # one of the first click, both of the second


def test_a_client_that_goes_away_cancels_its_click(server: Running, client: httpx.Client) -> None:
    photo = sent(client)
    before = server.viewer.metrics.clicks.value("gone")
    with occupied(server.viewer):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/segment", json={"photo": photo, "points": AT}, timeout=0.3)
        client.close()
        wait_until(lambda: server.viewer.worker.waiting == 0)
    wait_until(lambda: server.viewer.metrics.clicks.value("gone") == before + 1)


def test_several_visitors_click_at_once_and_get_their_own_answers(server: Running, predictor: Predictor) -> None:
    own = predictor.another()
    expected = []
    for seed in range(6):
        own.set_image(a_photo(seed=seed))
        expected.append(encode_rle(own.predict(AT)[0][0]))

    def use(seed: int) -> list[Any]:
        client = server.visitor(f"visitor-number-{seed}")
        photo = sent(client, a_photo(seed=seed))
        return [ok(client.post("/segment", json={"photo": photo, "points": AT}))["masks"][0]["rle"] for _ in range(3)]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(use, range(6)))
    assert answers == [[one] * 3 for one in expected]


def finished(client: httpx.Client, job: str) -> Any:
    end = time.monotonic() + 30
    while (state := ok(client.get(f"/api/jobs/{job}")))["state"] in ("waiting", "running"):
        assert time.monotonic() < end
        time.sleep(0.02)
    return state


def test_click_tolerance_runs_in_the_background(client: httpx.Client, predictor: Predictor) -> None:
    photo = sent(client)
    mask = np.zeros((97, 150), np.bool_)
    mask[40:60, 60:100] = True
    own = predictor.another()
    own.set_image(PHOTO)
    job = ok(client.post("/api/tolerance", json={"photo": photo, "rle": encode_rle(mask), "most": 9}), 202)["job"]
    ok(client.post("/segment", json={"photo": photo, "points": AT}))
    state = finished(client, job)
    assert state["state"] == "done"
    assert state["done"] == state["total"] == state["result"]["clicks"] == len(state["result"]["points"]) <= 9
    for x, y, iou in state["result"]["points"]:
        assert mask[int(y), int(x)]
        found = own.predict([[x, y]])[0][0]
        assert iou == pytest.approx((found & mask).sum() / (found | mask).sum(), abs=1e-4)
    hits = sum(iou >= 0.7 for _, _, iou in state["result"]["points"])
    assert state["result"]["share"] == hits / state["result"]["clicks"]


def test_click_tolerance_is_cancelled_by_a_newer_one_and_by_hand(server: Running, client: httpx.Client) -> None:
    photo, rle = sent(client), encode_rle(np.ones((97, 150), np.bool_))
    asked = {"photo": photo, "rle": rle, "most": 2000}
    with occupied(server.viewer):
        first = ok(client.post("/api/tolerance", json=asked), 202)["job"]
        second = ok(client.post("/api/tolerance", json=asked), 202)["job"]
        assert ok(client.get(f"/api/jobs/{first}"))["state"] == "cancelled"
        assert ok(client.get(f"/api/jobs/{second}"))["state"] == "waiting"
    assert client.delete(f"/api/jobs/{second}").status_code == 204
    assert finished(client, second)["state"] == "cancelled"
    wait_until(lambda: server.viewer.worker.long_jobs == 0)
    problem(server.visitor("another-one").get(f"/api/jobs/{second}"), 404, "not_found")
    for size, counts in (([97, 150], [1]), ([2, 2], [4]), ([97, 150], [97 * 150])):
        bad = {**asked, "rle": {"size": size, "counts": counts}}
        problem(client.post("/api/tolerance", json=bad), 400, "bad_request")


def test_deleting_a_photo_cancels_its_job(server: Running, client: httpx.Client) -> None:
    photo, rle = sent(client), encode_rle(np.ones((97, 150), np.bool_))
    with occupied(server.viewer):
        job = ok(client.post("/api/tolerance", json={"photo": photo, "rle": rle}), 202)["job"]
        assert client.delete(f"/api/photos/{photo}").status_code == 204
        assert ok(client.get(f"/api/jobs/{job}"))["state"] == "cancelled"


def test_a_tolerance_job_whose_photo_goes_says_so(server: Running, folder: Path, client: httpx.Client) -> None:
    a_photo(40, 30, 9).save(folder / "going.png")
    photo = next(p for p in ok(client.get("/api/photos"))["photos"] if p["name"] == "going.png")
    with occupied(server.viewer):
        rle = encode_rle(np.ones((30, 40), np.bool_))
        job = ok(client.post("/api/tolerance", json={"photo": photo["id"], "rle": rle, "most": 50}), 202)["job"]
        (folder / "going.png").unlink()
    state = finished(client, job)
    assert state["state"] == "failed"
    assert state["error"]["code"] == "bad_image"
    assert str(folder) not in str(state)


def test_openapi_describes_segment(client: httpx.Client) -> None:
    description = ok(client.get("/openapi.json"))
    post = description["paths"]["/segment"]["post"]
    request = post["requestBody"]["content"]["application/json"]["schema"]
    assert request["properties"]["points"]["description"]
    assert request["examples"]
    assert "SegmentAnswer" in post["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert "Error" in post["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"]
    assert "SegmentRequest" not in str(request.get("$ref"))


def test_metrics_count_requests_and_clicks(client: httpx.Client) -> None:
    photo = sent(client)
    ok(client.post("/segment", json={"photo": photo, "points": AT}))
    client.get("/api/photos/nothing/file")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    assert float(lines['tracenet_requests_total{route="/segment",method="POST",status="200"}']) >= 1
    assert float(lines['tracenet_requests_total{route="/api/photos/{photo_id}/file",method="GET",status="404"}']) >= 1
    assert float(lines['tracenet_request_seconds_bucket{route="/segment",le="+Inf"}']) >= 1
    assert float(lines['tracenet_clicks_total{outcome="ok"}']) >= 1
    assert float(lines["tracenet_open_bytes"]) > 0
    assert float(lines["tracenet_open_photos"]) >= 1
    assert photo not in response.text


def test_unknown_routes_and_methods_are_errors_of_the_same_form(client: httpx.Client) -> None:
    problem(client.get("/nothing"), 404, "not_found")
    problem(client.put("/segment"), 405, "wrong_method")
    problem(client.post("/segment", content="points=1"), 400, "bad_request")
    problem(client.post("/segment", content=b"{", headers={"content-type": "application/json"}), 400, "bad_request")


def test_answers_forbid_scripts_of_others_and_guessing_of_types(client: httpx.Client) -> None:
    headers = client.get("/api/info").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_an_unforeseen_failure_says_nothing_of_the_inside(
    server: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(server.viewer.clicks, "segment", broken)
    response = client.post("/segment", json={"photo": sent(client), "points": AT})
    problem(response, 500, "internal")
    assert "secret" not in response.text
    monkeypatch.undo()
    ok(client.post("/segment", json={"photo": sent(client), "points": AT}))


def test_shutting_down_answers_those_that_wait_and_lets_the_running_click_end(predictor: Predictor) -> None:
    begun, release = threading.Event(), threading.Event()

    def run(job: Job) -> None:
        begun.set()
        assert release.wait(10)

    with running(predictor) as server:
        client = server.visitor("waits-for-long")
        job = Job("another", run)
        server.viewer.worker.submit(job, False)
        assert begun.wait(10)
        with ThreadPoolExecutor(2) as pool:
            click = pool.submit(client.post, "/segment", json={"photo": "coffee", "points": AT})
            wait_until(lambda: server.viewer.worker.waiting == 1)
            ending = pool.submit(server.stop)
            problem(click.result(10), 503, "shutting_down")
            assert not ending.done()
            release.set()
            ending.result(30)
        assert job.future.done()
        with pytest.raises(httpx.ConnectError):
            server.visitor("too-late").get("/healthz")
