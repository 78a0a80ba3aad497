"""A viewer's server in a thread, for tests."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tracenet import Predictor
from tracenet.viewer.app import Viewer
from tracenet.viewer.gate import AllowedHosts
from tracenet.viewer.limits import Limits
from tracenet.viewer.serve import listen, make_server
from tracenet.viewer.worker import Job


@dataclass
class Running:
    """A server that runs."""

    viewer: Viewer
    url: str
    port: int
    stop: Callable[[], None]
    clients: list[httpx.Client] = field(default_factory=list)

    def visitor(self, name: str = "visitor-1", **options: Any) -> httpx.Client:
        """A client that is one visitor."""
        headers = {"X-TraceNet-Visitor": name, **options.pop("headers", {})}
        client = httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **options)
        self.clients.append(client)
        return client

    def someone(self) -> httpx.Client:
        """A client that says nothing of itself and keeps cookies."""
        client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self.clients.append(client)
        return client


@contextmanager
def running(
    predictor: Predictor, folder: Path | None = None, limits: Limits | None = None, host: str = "127.0.0.1"
) -> Iterator[Running]:
    """A server; when the context ends it must end too, with all its threads."""
    before = set(threading.enumerate())
    viewer = Viewer(predictor, folder, limits)
    listening = listen(host, 0)
    port = listening.getsockname()[1]
    server = make_server(viewer, listening, host, AllowedHosts("127.0.0.1"))
    thread = threading.Thread(target=server.run, args=([listening],), name="server")
    thread.start()
    wait_until(lambda: server.started)

    def stop() -> None:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()

    found = Running(viewer, f"http://127.0.0.1:{port}", port, stop)
    try:
        yield found
    finally:
        for client in found.clients:
            client.close()
        stop()
        listening.close()
        left = [one for one in set(threading.enumerate()) - before if one.name.startswith("tracenet-")]
        assert left == []


@contextmanager
def occupied(viewer: Viewer) -> Iterator[None]:
    """The computing thread is busy until the context ends."""
    begun, release = threading.Event(), threading.Event()

    def run(job: Job) -> None:
        begun.set()
        release.wait(30)

    viewer.worker.submit(Job("nobody", run), supersede=False)
    assert begun.wait(30)
    try:
        yield
    finally:
        release.set()


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def a_photo(width: int = 150, height: int = 97, seed: int = 0) -> Image.Image:
    """Smooth blobs over noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
