"""``tracenet viewer``: one process that listens until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tracenet.checkpoint import BUNDLED, Checkpoint, bundled_checkpoint
from tracenet.predictor import Predictor
from tracenet.viewer.app import Viewer, create_app
from tracenet.viewer.gate import AllowedHosts
from tracenet.viewer.limits import MIB, Limits, default_open_bytes
from tracenet_kernels.backends import choose
from tracenet_kernels.errors import InputError

HEAD_BYTES = 32 << 10
SHUTDOWN_SECONDS = 30


def serve(
    folder: Path | None = None,
    checkpoint: Path | None = None,
    backend: str = "auto",
    host: str = "127.0.0.1",
    port: int = 8080,
    allow_hosts: Sequence[str] = (),
    memory_mib: int | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        folder: photos to offer beside the bundled ones.
        checkpoint: the bundled one by default.
        port: 0 takes any that is free.
        allow_hosts: names under which the server may be asked for, beside its address and ``localhost``.
        memory_mib: bound on decoded photos and kept features of all visitors; by default a quarter of the machine's
            memory, at most 4 GiB.

    Raises:
        InputError: the folder cannot be listed; host or port cannot be listened on.
        CheckpointError, BackendError: as :meth:`tracenet.Predictor.from_pretrained`.
    """
    choose(backend)
    limits = _limits(memory_mib)
    listening = listen(host, port)
    with listening:
        file = bundled_checkpoint() if checkpoint is None else checkpoint
        source = Checkpoint(file)
        predictor = Predictor(source, source.info.predictor, backend)
        name = source.info.model if file.name == BUNDLED else f"{source.info.model} ({file.name})"
        viewer = Viewer(predictor, folder, limits, name)
        server = make_server(viewer, listening, host, AllowedHosts(host, allow_hosts))
        # uvicorn raises the signal that ended it once more, with the handlers of before.
        before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            server.run([listening])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def make_server(viewer: Viewer, listening: socket.socket, host: str, hosts: AllowedHosts) -> Server:
    """A server of a viewer on a socket; ``run([listening])`` returns when every thread has ended."""
    app = create_app(viewer, hosts)
    limits = viewer.limits

    class Protocol(HeadInTime):
        head_seconds = limits.head_seconds

    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        http=Protocol,
        ws="none",
        lifespan="on",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return Server(config, viewer, _greeting(listening, host))


class Server(uvicorn.Server):
    """Says where it listens, and answers those that wait before it ends."""

    def __init__(self, config: uvicorn.Config, viewer: Viewer, greeting: str) -> None:
        super().__init__(config)
        self._viewer, self._greeting = viewer, greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._greeting, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._viewer.close()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop. The signal is not raised again afterwards: a server that was told to stop has not failed."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


class HeadInTime(H11Protocol):
    """Closes connections on which no request's head arrives in time; uvicorn waits for them without end."""

    head_seconds = 10.0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def on_response_complete(self) -> None:
        self._await_head()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        before = self.cycle

        def close_without_head() -> None:
            if self.cycle is before and not self.transport.is_closing():
                self.transport.close()

        self._head_timer = self.loop.call_later(self.head_seconds, close_without_head)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: the address is not known here, the port is taken or not allowed.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port is {port}; pass 0 for any free one, or a number up to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host!r} is not known here ({error}); pass an address of this machine") from error
    listening = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} of {host} is in use; pass another --port, or --port 0 for any") from error
        reason = error.strerror or error
        raise InputError(f"{host}:{port} cannot be listened on ({reason}); pass another --host or --port") from error
    listening.setblocking(False)
    return listening


def _limits(memory_mib: int | None) -> Limits:
    if memory_mib is not None and memory_mib < 64:
        raise InputError(f"--memory is {memory_mib} MiB; at least 64 are needed for one photo")
    open_bytes = default_open_bytes() if memory_mib is None else memory_mib * MIB
    return Limits(open_bytes=open_bytes, kept_bytes=min(Limits.kept_bytes, open_bytes))


def _greeting(listening: socket.socket, host: str) -> str:
    port = listening.getsockname()[1]
    address = listening.getsockname()[0]
    shown = f"[{host}]" if ":" in host else host
    line = f"TraceNet viewer: http://{shown}:{port}/"
    if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        line += (
            "\nAnyone who reaches this machine over the network can use it: click, send photos, and see those of the "
            "folder. There is no password."
        )
    return line
