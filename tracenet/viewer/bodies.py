"""Bodies of requests, received within bounds of bytes and of time, whatever their head says of them."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from tracenet.viewer.errors import ViewerError
from tracenet.viewer.limits import Limits

DRAINED = 4
"""Of a body that is too large, up to so many times the limit are read and thrown away before the answer: a client that
is cut off while it sends never sees it."""
_IMAGE = re.compile(rb'"image"\s*:\s*"([^"\\]*(?:\\/[^"\\]*)*)"')
Model = TypeVar("Model", bound=BaseModel)


class Receiver:
    """Receives bodies; what all of them hold together is bounded."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.bytes = 0

    @asynccontextmanager
    async def body(self, request: Request, most: int) -> AsyncIterator[bytes]:
        """The body; it counts as held until the context ends.

        Raises:
            ViewerError: ``too_large``, ``too_slow``, ``busy`` (too much is being received) or ``gone``.
        """
        pieces: list[bytes] = []
        size = held = 0
        declared = _declared(request)
        if declared is not None and declared > DRAINED * most:
            raise _too_large(declared, most)
        deadline = time.monotonic() + self._limits.body_seconds
        stream = request.stream().__aiter__()
        try:
            while True:
                wait = min(self._limits.idle_seconds, deadline - time.monotonic())
                try:
                    piece = await asyncio.wait_for(stream.__anext__(), max(wait, 0.0))
                except StopAsyncIteration:
                    break
                except (TimeoutError, asyncio.TimeoutError) as error:
                    raise _too_slow(size, self._limits) from error
                except ClientDisconnect as error:
                    raise ViewerError("gone", "the client went away while it sent", "nothing", close=True) from error
                size += len(piece)
                if size > DRAINED * most:
                    raise _too_large(size, most)
                if size > most or (declared or 0) > most:
                    pieces.clear()
                    continue
                if self.bytes + len(piece) > self._limits.receiving_bytes:
                    raise ViewerError("busy", "too much is being sent to the server", "try again later", close=True)
                self.bytes += len(piece)
                held += len(piece)
                pieces.append(piece)
            if size > most:
                raise _too_large(size, most)
            yield b"".join(pieces)
        finally:
            self.bytes -= held

    async def json(self, request: Request, model: type[Model]) -> Model:
        """The body as a model. Raises ViewerError, ``bad_request`` among others."""
        check_json(request)
        async with self.body(request, self._limits.json_bytes) as body:
            return parse(body, model)


def check_json(request: Request) -> None:
    """Raise ViewerError where a body does not say that it is JSON: forms of other sites cannot say so."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ViewerError("bad_request", f"the body is {kind or 'of no kind'!r}", "send Content-Type: application/json")


def parse(body: bytes, model: type[Model]) -> Model:
    """JSON -> model. Raises ViewerError."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'the body'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False, include_context=False)[:4]
        ]
        more = f" and {error.error_count() - 4} more" if error.error_count() > 4 else ""
        raise ViewerError("bad_request", "; ".join(problems)[:500] + more, "see /openapi.json") from error


def split_image(body: bytes, most: int) -> tuple[bytes, bytes | None]:
    """JSON with an empty text in place of its first ``image``, and that text: most of a large body is not parsed.

    Args:
        most: bytes of the rest.

    Raises:
        ViewerError: the rest is too large.
    """
    found = _IMAGE.search(body)
    rest = body if found is None else body[: found.start(1)] + body[found.end(1) :]
    if len(rest) > most:
        raise ViewerError(
            "too_large", f"the JSON has {len(rest)} bytes, its image apart; at most {most} are read", "send less"
        )
    return rest, None if found is None else found[1].replace(b"\\/", b"/")


def decode_image(text: bytes | str) -> bytes:
    """Base64 -> bytes. Raises ViewerError."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ViewerError("bad_request", f"`image` is no base64 ({error})", "encode the photo's file") from error


def _declared(request: Request) -> int | None:
    text = request.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


def _too_large(size: int, most: int) -> ViewerError:
    return ViewerError(
        "too_large", f"the body has {size} bytes or more; at most {most} are read", "send a smaller one", close=True
    )


def _too_slow(size: int, limits: Limits) -> ViewerError:
    return ViewerError(
        "too_slow",
        f"{size} bytes of the body came before time was up: {limits.idle_seconds:g} s without any, "
        f"or {limits.body_seconds:g} s in all",
        "send it again, faster",
        close=True,
    )
