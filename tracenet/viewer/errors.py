"""Errors as the server answers them: a status, a code for programs, and what came, what is allowed, what to do."""

from __future__ import annotations

from typing import Any

from tracenet_kernels.errors import BackendError, ClickError, ImageError, InputError, TraceNetError

CODES = {
    "bad_request": 400,
    "forbidden_host": 403,
    "forbidden_origin": 403,
    "not_found": 404,
    "wrong_method": 405,
    "too_slow": 408,
    "superseded": 409,
    "too_large": 413,
    "bad_image": 422,
    "bad_click": 422,
    "too_many": 429,
    "gone": 499,
    "internal": 500,
    "busy": 503,
    "shutting_down": 503,
    "no_page": 503,
}
"""Code -> HTTP status. ``gone`` is only counted: nobody is there to read it."""
RETRY_SECONDS = 2


class ViewerError(TraceNetError):
    """What a request is answered with instead of what it asked for.

    Attributes:
        code: one of :data:`CODES`.
        message: what came and what is allowed.
        hint: what to do.
        close: end the connection, because its body was not read to the end.
    """

    def __init__(self, code: str, message: str, hint: str, close: bool = False) -> None:
        super().__init__(f"{message}; {hint}")
        self.code, self.message, self.hint, self.close = code, message, hint, close

    @property
    def status(self) -> int:
        return CODES[self.code]

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {"Retry-After": str(RETRY_SECONDS)} if self.code in ("busy", "too_many") else {}
        return {**headers, "Connection": "close"} if self.close else headers


def as_viewer_error(error: Exception) -> ViewerError:
    """How an error raised on purpose somewhere below is answered; any other is ``internal`` and says nothing more."""
    if isinstance(error, ViewerError):
        return error
    if isinstance(error, TraceNetError) and not isinstance(error, BackendError):
        code = "internal"
        for kind, name in ((ImageError, "bad_image"), (ClickError, "bad_click"), (InputError, "bad_request")):
            if isinstance(error, kind):
                code = name
                break
        message, _, hint = str(error).partition("; ")
        return ViewerError(code, message, hint or "see the documentation of /segment")
    return ViewerError("internal", "the server failed on this request", "its console says why; try again")


def shutting_down() -> ViewerError:
    return ViewerError("shutting_down", "the server is shutting down", "start it again and repeat the request")
