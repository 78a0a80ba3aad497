"""What every request passes: its Host and Origin are checked, its visitor is known, its answer is counted."""

from __future__ import annotations

import ipaddress
import json
import logging
import time
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tracenet.viewer.errors import ViewerError, as_viewer_error
from tracenet.viewer.metrics import Metrics
from tracenet.viewer.visitors import is_visitor_id, new_visitor_id

log = logging.getLogger("tracenet.viewer")

COOKIE = "tracenet_visitor"
HEADER = "X-TraceNet-Visitor"
COOKIE_SECONDS = 30 * 24 * 3600
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class AllowedHosts:
    """Names under which the server may be asked for.

    A page of another site can make its own name point here (DNS rebinding) and would then read answers; it cannot do
    so with an address. So addresses are allowed, where the server listens on them, and names only if they are known.

    Args:
        listens: the address the server listens on.
        names: further names.
    """

    def __init__(self, listens: str, names: Collection[str] = ()) -> None:
        self._names = {"localhost", *(name.lower().rstrip(".") for name in names)}
        address = _address(listens)
        if address is None:
            self._names.add(listens.lower())
        self._only_loopback = listens == "localhost" or (address is not None and address.is_loopback)

    def __contains__(self, host: object) -> bool:
        name = _host_name(str(host))
        if name is None:
            return False
        address = _address(name)
        if address is None:
            return name in self._names
        return address.is_loopback or not self._only_loopback


class Gate:
    """The outermost layer of the application.

    Args:
        app: what it guards.
        hosts: see :class:`AllowedHosts`.
        metrics: where answers are counted.
    """

    def __init__(self, app: ASGIApp, hosts: AllowedHosts, metrics: Metrics) -> None:
        self._app, self._hosts, self._metrics = app, hosts, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        visitor, is_new = _visitor(headers)
        scope.setdefault("state", {})["visitor"] = visitor
        status = 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    answer[name] = value
                answer.setdefault("Cache-Control", "no-store")
                if is_new:
                    answer.append(
                        "Set-Cookie",
                        f"{COOKIE}={visitor}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Strict",
                    )
            await send(message)

        try:
            problem = self._problem(scope, headers)
            if problem is None:
                await self._app(scope, receive, send_guarded)
            else:
                await _answer(problem, send_guarded)
        except Exception as error:  # nobody's mistake but the server's
            log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            if status:
                raise
            await _answer(as_viewer_error(error), send_guarded)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.add(route, _method(scope), str(status or 499))
            self._metrics.seconds.observe(time.perf_counter() - start, route)

    def _problem(self, scope: Scope, headers: Headers) -> ViewerError | None:
        host = headers.get("host", "")
        if host not in self._hosts:
            return ViewerError(
                "forbidden_host",
                f"the request is for the host {host[:100]!r}, which this server does not know",
                "use the address it printed, or start it with --allow-host NAME",
            )
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD") and urlsplit(origin).netloc != host:
            return ViewerError(
                "forbidden_origin",
                f"a page of {origin[:100]!r} asks a server that is {host[:100]!r}",
                "use the server's own page, or a program",
            )
        return None


async def _answer(error: ViewerError, send: Send) -> None:
    body = json.dumps(error.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _visitor(headers: Headers) -> tuple[str, bool]:
    """The id that a request carries, or a new one; and whether it is new."""
    given = headers.get(HEADER.lower(), "")
    if is_visitor_id(given):
        return given, False
    try:
        cookie: Any = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        cookie = None
    if cookie is not None and is_visitor_id(cookie.value):
        return cookie.value, False
    return new_visitor_id(), True


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT") else "other"


def _host_name(host: str) -> str | None:
    """The name or address of a Host header, without its port; None where it is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    if parts.netloc != host or "@" in host or not parts.hostname:
        return None
    return parts.hostname.rstrip(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
