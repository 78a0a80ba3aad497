"""The application: routes from requests to photos, clicks and jobs. Bodies are read by hand, within bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from tracenet import __version__
from tracenet.predictor import Predictor
from tracenet.viewer import messages
from tracenet.viewer.bodies import Receiver, check_json, decode_image, parse, split_image
from tracenet.viewer.clicks import Clicks
from tracenet.viewer.errors import ViewerError, as_viewer_error, shutting_down
from tracenet.viewer.gate import AllowedHosts, Gate
from tracenet.viewer.limits import Limits
from tracenet.viewer.metrics import CONTENT_TYPE, Metrics
from tracenet.viewer.opened import OpenPhotos
from tracenet.viewer.outlines import decode_rle
from tracenet.viewer.photos import Photo, PhotoFolder, check_upload, clean_name
from tracenet.viewer.reading import Pictures, Reader, as_jpeg
from tracenet.viewer.tolerance import ToleranceJob
from tracenet.viewer.visitors import Visitors
from tracenet.viewer.worker import Job, Worker
from tracenet_kernels.errors import TraceNetError

STATIC = Path(str(files("tracenet.viewer") / "static"))
BUNDLED = Path(str(files("tracenet") / "assets" / "photos"))
THUMBNAIL_SIDES = (16, 1024)
Result = TypeVar("Result")


class Viewer:
    """What one server holds.

    Args:
        predictor: whose network and settings are used.
        folder: further photos, or None.
        limits: of the server.
        model: the network's name, for people.
    """

    def __init__(
        self, predictor: Predictor, folder: Path | None = None, limits: Limits | None = None, model: str = ""
    ) -> None:
        self.limits = limits or Limits()
        most, pixels = self.limits.folder_photos, self.limits.max_pixels
        self.folders = [PhotoFolder(BUNDLED, "bundled", pixels, most)] if BUNDLED.is_dir() else []
        if folder is not None:
            self.folders.append(PhotoFolder(folder, "folder", pixels, most))
        self.opened = OpenPhotos(predictor, self.limits)
        self.clicks = Clicks(predictor, self.opened, self.limits)
        self.visitors = Visitors(self.limits, self.opened.close)
        self.receiver = Receiver(self.limits)
        self.worker = Worker(self.limits.queue, self.limits.queue_per_visitor, self.limits.tolerance_jobs)
        self.reader = Reader(self.limits.reading, "tracenet-reader")
        self.finder = Reader(self.limits.reading, "tracenet-folders")
        self.pictures = Pictures(self.limits.picture_bytes)
        self.metrics = Metrics(
            {
                "tracenet_queue_length": ("Clicks that wait.", lambda: self.worker.waiting),
                "tracenet_tolerance_jobs": ("Click tolerances under way.", lambda: self.worker.long_jobs),
                "tracenet_open_photos": ("Photos that are open.", lambda: len(self.opened)),
                "tracenet_open_bytes": ("Of open photos and kept features.", lambda: self.opened.bytes),
                "tracenet_visitors": ("Visitors that left something here.", lambda: len(self.visitors)),
                "tracenet_sent_bytes": ("Of photos that visitors sent.", lambda: self.visitors.bytes),
                "tracenet_receiving_bytes": ("Of bodies being received.", lambda: self.receiver.bytes),
            }
        )
        config = predictor.config
        self.info = {
            "version": __version__,
            "model": model or f"tracenet_r{config.depth}_fpn",
            "backend": predictor.backend,
            "device": str(getattr(predictor.network, "device", "cpu")),
            "working_size": predictor.settings.working_size,
            "levels": list(predictor.settings.levels),
            "has_level_head": config.level_head,
            "limits": {
                name: getattr(self.limits, name) for name in ("max_bytes", "max_pixels", "photos_per_visitor", "queue")
            },
        }

    async def photo(self, visitor: str, photo_id: str) -> Photo:
        """A photo that a visitor can see. Raises ViewerError ``not_found``."""
        found = self.visitors.find(visitor).photos.get(photo_id)
        for folder in self.folders:
            if found is None:
                found = await self.finder.run(folder.get, photo_id)
        if found is None:
            raise ViewerError(
                "not_found", f"there is no photo {photo_id[:80]!r}", "list them with /api/photos, or send it again"
            )
        return found

    async def compute(
        self, request: Request, owner: str, run: Callable[[Job], Result], supersede: bool = False
    ) -> Result:
        """Run on the computing thread; a client that goes away cancels it."""
        job = Job(owner, run)
        self.worker.submit(job, supersede)
        answer = asyncio.wrap_future(job.future)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ViewerError("gone", "the client went away", "nothing")
            result: Result = answer.result()
            return result
        finally:
            gone.cancel()
            answer.cancel()
            self.worker.drop(job, ViewerError("gone", "the client went away", "nothing"))

    def close(self) -> None:
        """Take no more work, and answer what waits."""
        self.worker.close()

    def stop(self) -> None:
        """After :meth:`close`: wait for the threads to end, and free what is held."""
        self.worker.join()
        self.reader.stop()
        self.finder.stop()
        self.opened.clear()


def create_app(viewer: Viewer, hosts: AllowedHosts) -> FastAPI:
    """The application of a viewer. Its lifespan starts and ends the computing thread."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        viewer.worker.start()
        yield
        viewer.close()
        await asyncio.get_running_loop().run_in_executor(None, viewer.stop)

    app = FastAPI(
        title="TraceNet viewer",
        version=__version__,
        description="One click on a photo, one mask, computing only what the click needs. Every error is an `Error`.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={"4XX": {"model": messages.Error}, "5XX": {"model": messages.Error}},
    )
    app.add_middleware(Gate, hosts=hosts, metrics=viewer.metrics)
    _add_errors(app)
    _add_pages(app)
    _add_photos(app, viewer)
    _add_clicks(app, viewer)
    _add_jobs(app, viewer)
    _add_state(app, viewer)
    return app


def _add_errors(app: FastAPI) -> None:
    async def known(request: Request, error: Exception) -> Response:
        return _error(as_viewer_error(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "bad_request")
        path = request.url.path[:200]
        return _error(ViewerError(code, f"{request.method} {path!r} is not offered", "see /openapi.json"))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return _error(ViewerError("bad_request", f"{where}: {first['msg']}", "see /openapi.json"))

    app.add_exception_handler(TraceNetError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        if not (STATIC / "index.html").is_file():
            raise ViewerError(
                "no_page",
                "this installation has no page: tracenet/viewer/static is not there",
                "build it with `make web`, or use /segment; see /openapi.json",
            )
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    class Assets(StaticFiles):
        """The page's files, which browsers ask about anew each time."""

        async def check_config(self) -> None:
            if not STATIC.is_dir():
                raise HTTPException(404)

        def file_response(self, *arguments: Any, **options: Any) -> Response:
            response = super().file_response(*arguments, **options)
            response.headers["Cache-Control"] = "no-cache"
            return response

    app.mount("/static", Assets(directory=STATIC, check_dir=False), name="static")


def _add_photos(app: FastAPI, viewer: Viewer) -> None:
    limits = viewer.limits

    @app.get("/api/photos", response_model=messages.Photos)
    async def photos(request: Request) -> Response:
        """Bundled photos, those of the folder, and those that this visitor sent."""
        found: list[Photo] = []
        for folder in viewer.folders:
            found += await viewer.finder.run(folder.photos)
        found += viewer.visitors.find(request.state.visitor).photos.values()
        return JSONResponse({"photos": [_info(photo) for photo in found]})

    @app.post(
        "/api/photos",
        status_code=201,
        response_model=messages.PhotoInfo,
        openapi_extra={"requestBody": {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def send_photo(request: Request) -> Response:
        """Keep a photo for this visitor: the body is its file. `X-File-Name`, percent-encoded, names it."""
        try:
            photo = await _received(request, viewer)
        except Exception as error:
            viewer.metrics.uploads.add(as_viewer_error(error).code)
            raise
        viewer.metrics.uploads.add("ok")
        return JSONResponse(_info(photo), 201)

    @app.get("/api/photos/{photo_id}/file", response_class=Response)
    async def photo_file(request: Request, photo_id: str, thumbnail: int | None = None) -> Response:
        """The photo as the server sees it; `thumbnail`: a JPEG whose longest side has so many pixels."""
        photo = await viewer.photo(request.state.visitor, photo_id)
        low, high = THUMBNAIL_SIDES
        if thumbnail is not None and not low <= thumbnail <= high:
            raise ViewerError("bad_request", f"thumbnail is {thumbnail}; {low} to {high} is allowed", "ask for that")
        etag = f'"{photo.version}-{thumbnail or 0}"'
        headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        if thumbnail is None and photo.header.media_type is not None:
            return _whole_file(photo, headers)
        key = (photo.id, photo.version, thumbnail or 0)
        data = viewer.pictures.get(key)
        if data is None:
            data = await viewer.reader.run(as_jpeg, photo, limits.max_pixels, thumbnail)
            viewer.pictures.add(key, data)
        return Response(data, media_type="image/jpeg", headers=headers)

    @app.delete("/api/photos/{photo_id}", status_code=204)
    async def delete_photo(request: Request, photo_id: str) -> Response:
        """Forget a photo that this visitor sent."""
        if not viewer.visitors.drop_photo(request.state.visitor, photo_id):
            raise ViewerError(
                "not_found", f"this visitor sent no photo {photo_id[:80]!r}", "list them with /api/photos"
            )
        return Response(status_code=204)


def _whole_file(photo: Photo, headers: dict[str, str]) -> Response:
    if isinstance(photo.content, bytes):
        return Response(photo.content, media_type=photo.header.media_type, headers=headers)
    return FileResponse(photo.content, media_type=photo.header.media_type, headers=headers)


async def _received(request: Request, viewer: Viewer) -> Photo:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.startswith("image/") and kind != "application/octet-stream":
        raise ViewerError(
            "bad_request", f"the body is {kind or 'of no kind'!r}", "send Content-Type: image/jpeg or another image"
        )
    name = clean_name(unquote(request.headers.get("x-file-name", "")[:1000], errors="replace"))
    async with viewer.receiver.body(request, viewer.limits.max_bytes) as data:
        photo = await viewer.reader.run(check_upload, data, name, viewer.limits.max_pixels)
    return viewer.visitors.add_photo(request.state.visitor, photo)


def _add_clicks(app: FastAPI, viewer: Viewer) -> None:
    limits = viewer.limits

    @app.post(
        "/segment",
        response_model=messages.SegmentAnswer,
        response_model_exclude_unset=True,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": messages.schema(messages.SegmentRequest)}},
            }
        },
    )
    async def segment(request: Request) -> Response:
        """Masks of the clicked thing, best first."""
        start = time.perf_counter()
        try:
            answer = await _segmented(request, viewer, start)
        except Exception as error:
            viewer.metrics.clicks.add(as_viewer_error(error).code)
            raise
        viewer.metrics.clicks.add("ok")
        viewer.metrics.macs.add(by=answer["macs"])
        for phase, milliseconds in answer["timing_ms"].items():
            viewer.metrics.click_seconds.observe(milliseconds / 1e3, phase)
        return JSONResponse(answer)

    @app.get("/api/photos/{photo_id}/graph", response_model=messages.Graph)
    async def graph(request: Request, photo_id: str) -> Response:
        """The network's nodes at the working size of a photo; a trace's `visited` are positions in it."""
        photo = await viewer.photo(request.state.visitor, photo_id)
        owner = f"{request.state.visitor}/graph"
        return JSONResponse(await viewer.compute(request, owner, lambda job: viewer.clicks.graph(photo)))

    async def _asked(request: Request) -> tuple[messages.SegmentRequest, Photo]:
        visitor = request.state.visitor
        check_json(request)
        most = limits.json_bytes + (limits.max_bytes * 4 + 2) // 3
        async with viewer.receiver.body(request, most) as body:
            split = (split_image, body, limits.json_bytes)
            rest, text = await viewer.reader.run(*split) if len(body) > limits.json_bytes else split_image(*split[1:])
            asked = parse(rest, messages.SegmentRequest)
            if (asked.photo is None) == (asked.image is None):
                raise ViewerError("bad_request", "the request has no photo or two", "pass either `photo` or `image`")
            if asked.photo is not None:
                return asked, await viewer.photo(visitor, asked.photo)
            image = decode_image(asked.image or text or b"")
            if len(image) > limits.max_bytes:
                raise ViewerError(
                    "too_large",
                    f"the image has {len(image)} bytes; at most {limits.max_bytes} are read",
                    "send a smaller one",
                )
            photo = await viewer.reader.run(check_upload, image, "image", limits.max_pixels)
        return asked, viewer.visitors.add_photo(visitor, photo, inline=True)

    async def _segmented(request: Request, viewer: Viewer, start: float) -> dict[str, Any]:
        asked, photo = await _asked(request)
        visitor = request.state.visitor
        queued = time.perf_counter()

        def run(job: Job) -> dict[str, Any]:
            waited = (time.perf_counter() - queued) * 1e3
            return viewer.clicks.segment(visitor, photo, asked, job.check, waited)

        return await viewer.compute(request, visitor, run, supersede=not asked.keep_older)


def _add_jobs(app: FastAPI, viewer: Viewer) -> None:
    @app.post(
        "/api/tolerance",
        status_code=202,
        response_model=messages.Job,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": messages.schema(messages.ToleranceRequest)}},
            }
        },
    )
    async def tolerance(request: Request) -> Response:
        """Try clicks all over a thing, between other clicks; an older job of this visitor is cancelled."""
        asked = await viewer.receiver.json(request, messages.ToleranceRequest)
        visitor = request.state.visitor
        photo = await viewer.photo(visitor, asked.photo)
        size = [photo.height, photo.width]
        if asked.rle.size != size:
            raise ViewerError("bad_request", f"the mask is {asked.rle.size}, the photo {size}", "pass its own mask")
        mask = await viewer.reader.run(decode_rle, asked.rle.size, asked.rle.counts)
        if not mask.any():
            raise ViewerError("bad_request", "the mask is empty", "pass the pixels of a thing")
        most = min(asked.most, viewer.limits.tolerance_clicks)
        job = ToleranceJob(viewer.opened, visitor, photo, mask, most)
        viewer.visitors.find(visitor).cancel_jobs()
        viewer.worker.add_long_job(job.steps())
        viewer.visitors.add_job(visitor, job)
        return JSONResponse({"job": job.id}, 202)

    def find(request: Request, job_id: str) -> ToleranceJob:
        job = viewer.visitors.find(request.state.visitor).jobs.get(job_id)
        if job is None:
            raise ViewerError("not_found", f"this visitor has no job {job_id[:80]!r}", "start one at /api/tolerance")
        return job

    @app.get("/api/jobs/{job_id}", response_model=messages.JobState)
    async def job_state(request: Request, job_id: str) -> Response:
        """How far a job is, and its result."""
        return JSONResponse(find(request, job_id).report())

    @app.delete("/api/jobs/{job_id}", status_code=204)
    async def cancel_job(request: Request, job_id: str) -> Response:
        """Stop a job."""
        find(request, job_id).cancel()
        return Response(status_code=204)


def _add_state(app: FastAPI, viewer: Viewer) -> None:
    @app.get("/api/info", response_model=messages.Info)
    async def info() -> Response:
        """The network and what the server allows."""
        return JSONResponse(viewer.info)

    @app.get("/healthz")
    async def health() -> Response:
        """200 while the server takes work."""
        if viewer.worker.closed:
            raise shutting_down()
        state = {"status": "ok", "queue": viewer.worker.waiting, "tolerance_jobs": viewer.worker.long_jobs}
        return JSONResponse(state | {"open_bytes": viewer.opened.bytes})

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(viewer.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _error(error: ViewerError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)


async def _disconnected(request: Request) -> None:
    """Returns when the client goes away; its body was read before."""
    receive: Callable[[], Awaitable[Any]] = request.receive
    while (await receive())["type"] != "http.disconnect":
        pass


def _info(photo: Photo) -> dict[str, Any]:
    return {
        "id": photo.id,
        "name": photo.name,
        "width": photo.width,
        "height": photo.height,
        "source": photo.source,
    }
