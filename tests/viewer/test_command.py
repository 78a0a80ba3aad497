"""``tracenet viewer`` as people start it: the bundled checkpoint, the client example, its end, and what it refuses."""

from __future__ import annotations

import builtins
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.viewer.servers import wait_until
from tracenet import Predictor
from tracenet.cli import main
from tracenet.viewer.serve import _greeting, listen

PHOTOS = Path(str(files("tracenet") / "assets" / "photos"))
ROOT = Path(__file__).parents[2]


class Started:
    """A server in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tracenet.cli", "viewer", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ)
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"TraceNet viewer: (http://127\.0\.0\.1:\d+)/\n", line)
        assert found, line + self.process.communicate()[1]
        self.url = found[1]

    def end(self, how: signal.Signals) -> tuple[int, str]:
        """Exit code, and what stood on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            _, said = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        return self.process.returncode, said


@pytest.fixture
def started() -> Iterator[Started]:
    server = Started("--port", "0", str(PHOTOS))
    yield server
    server.end(signal.SIGKILL)


def run_example(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "segment_over_http.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_bundled_checkpoint_answers_the_client_example_and_ends_with_zero(started: Started, tmp_path: Path) -> None:
    out = tmp_path / "mask.png"
    coffee = str(PHOTOS / "coffee.jpg")
    done = run_example(coffee, "--click", "300,200", "--url", started.url, "-o", str(out))
    assert done.returncode == 0, done.stderr
    predictor = Predictor.from_pretrained()
    predictor.set_image(coffee)
    expected = predictor.predict([[300, 200]])[0][0]
    found = np.asarray(Image.open(out)) > 0
    assert np.mean(found != expected) < 1e-3
    assert f"{found.sum()} pixels" in done.stdout
    assert "GMACs" in done.stdout

    refused = run_example(coffee, "--click", "9999,1", "--url", started.url, "-o", str(out))
    assert refused.returncode == 1
    assert refused.stderr.startswith("bad_click: ")

    answers: list[int] = []

    def click(visitor: int) -> None:
        headers = {"X-TraceNet-Visitor": f"visitor-{visitor}"}
        asked = {"photo": "rocket", "points": [[320, 200]], "mask_window": "full"}
        with httpx.Client(base_url=started.url, headers=headers, timeout=60, trust_env=False) as client:
            answers.append(client.post("/segment", json=asked).status_code)

    clicks = [threading.Thread(target=click, args=(i,)) for i in range(8)]
    for one in clicks:
        one.start()
    with httpx.Client(base_url=started.url, timeout=60, trust_env=False) as client:
        # One runs; all others have arrived.
        wait_until(lambda: client.get("/healthz").json()["queue"] + len(answers) >= 7)
    code, said = started.end(signal.SIGTERM)
    for one in clicks:
        one.join(60)
    assert (code, said) == (0, "")
    assert set(answers) == {200, 503}
    gone = run_example(coffee, "--click", "1,1", "--url", started.url)
    assert "tracenet viewer" in gone.stderr


def test_an_interrupt_ends_it_too(started: Started) -> None:
    assert started.end(signal.SIGINT) == (0, "")


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["tracenet", "viewer", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("tracenet: ")
    assert said.count("\n") == 1
    return said


def test_what_cannot_be_served_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} of 127.0.0.1 is in use" in refusal(monkeypatch, capsys, "--port", port)
    assert "--port is 70000" in refusal(monkeypatch, capsys, "--port", "70000")
    assert "--host" in refusal(monkeypatch, capsys, "--host", "no.such.host.invalid", "--port", "0")
    assert "cannot be listed" in refusal(monkeypatch, capsys, str(tmp_path / "absent"), "--port", "0")
    assert "--memory is 3 MiB" in refusal(monkeypatch, capsys, "--memory", "3")
    assert "is not a file" in refusal(monkeypatch, capsys, "--checkpoint", str(tmp_path / "absent"), "--port", "0")
    assert "backend" in refusal(monkeypatch, capsys, "--backend", "magic")


def test_without_its_extra_it_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return usual(name, *rest, **more)

    for name in [name for name in sys.modules if name.startswith(("tracenet.viewer", "uvicorn"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    assert "the viewer needs uvicorn; install it with pip install 'tracenet[viewer]'" in refusal(monkeypatch, capsys)


def test_an_open_server_says_who_can_use_it() -> None:
    with listen("127.0.0.1", 0) as local:
        assert "\n" not in _greeting(local, "127.0.0.1")
    with listen("0.0.0.0", 0) as everywhere:
        assert "Anyone who reaches this machine over the network can use it" in _greeting(everywhere, "0.0.0.0")
