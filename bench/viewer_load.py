"""Load and abuse of ``tracenet viewer``: requests per second and latency, memory over many clicks, hostile requests.

    python -m bench.viewer_load --json bench/results/viewer_load.json

The server runs in a process of its own, its clients are threads of this one on the same cores, so their share of the
time is in the figures. *First clicks* compute everything anew, *next clicks* land within 40 pixels of a click on the
same photo.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import random
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.report import environment
from tracenet.files import check_target, save_json

USERS = (1, 4, 16)
KINDS = ("first clicks", "next clicks")
PHOTOS = {"astronaut": (512, 512), "chelsea": (451, 300), "coffee": (600, 400), "rocket": (640, 427)}
REACH = 40
TIMEOUT = 120
MIB = 1 << 20
Answer = tuple[int, dict[str, Any]]


class Server:
    """A server in a process of its own.

    Args:
        arguments: of ``tracenet viewer``.
    """

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tracenet.cli", "viewer", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = re.search(r"http://([\d.]+):(\d+)/", self.process.stdout.readline())
        if found is None:
            raise SystemExit(f"the server did not start: {self.process.communicate()[1]}")
        self.host, self.port = found[1], int(found[2])

    @property
    def rss(self) -> int:
        """Bytes of memory that the process holds."""
        return self._status("VmRSS")

    @property
    def peak_rss(self) -> int:
        """The most it ever held."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", text)
        if found is None:
            raise SystemExit(f"the server is gone: exit code {self.process.wait()}, {self.process.communicate()[1]!r}")
        return int(found[1]) * 1024

    def metric(self, name: str) -> float:
        """A number of ``/metrics``."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return float(next(line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(f"{name} ")))

    def end(self) -> dict[str, Any]:
        """Tell it to stop; how it did."""
        self.process.send_signal(signal.SIGTERM)
        start = time.perf_counter()
        try:
            _, said = self.process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return {"exit_code": None, "seconds": time.perf_counter() - start, "stderr": ""}
        return {
            "exit_code": self.process.returncode,
            "seconds": time.perf_counter() - start,
            "stderr": said[-2000:],
        }


class Visitor:
    """One visitor with one connection."""

    def __init__(self, server: Server, name: str) -> None:
        self._connection = http.client.HTTPConnection(server.host, server.port, timeout=TIMEOUT)
        self._name = name

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> Answer:
        """Status and answer; a connection that the server closed while it was idle is opened again."""
        headers = {"X-TraceNet-Visitor": self._name, "Content-Type": kind}
        for last in (False, True):
            was_open = self._connection.sock is not None
            try:
                self._connection.request(method, path, body, headers)
                response = self._connection.getresponse()
                data = response.read()
                break
            except (OSError, http.client.HTTPException):
                self._connection.close()
                if last or not was_open:
                    raise
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.status, json.loads(data) if is_json and data else {}

    def click(self, photo: str, x: float, y: float, **options: Any) -> Answer:
        return self.ask("POST", "/segment", json.dumps({"photo": photo, "points": [[x, y]], **options}).encode())

    def close(self) -> None:
        self._connection.close()


@dataclass
class Clicker:
    """A visitor that clicks around on one photo."""

    visitor: Visitor
    photo: str
    dice: random.Random
    at: tuple[float, float] | None = None

    def click(self, first: bool) -> Answer:
        width, height = PHOTOS[self.photo]
        if first or self.at is None:
            self.at = (self.dice.uniform(0, width - 1), self.dice.uniform(0, height - 1))
            return self.visitor.click(self.photo, *self.at, forget=True)
        x, y = (
            min(max(v + self.dice.uniform(-REACH, REACH), 0.0), side - 1)
            for v, side in zip(self.at, (width, height), strict=True)
        )
        return self.visitor.click(self.photo, x, y)


def clickers(server: Server, count: int, name: str) -> list[Clicker]:
    """So many visitors, on the bundled photos by turns."""
    names = list(PHOTOS)
    return [
        Clicker(Visitor(server, f"{name}-visitor-{i}"), names[i % len(names)], random.Random(i)) for i in range(count)
    ]


def measure_load(server: Server, users: int, kind: str, seconds: float, tick: Callable[[], None]) -> dict[str, Any]:
    """Requests per second and latency of so many users that click again as soon as they have an answer."""
    all_users = clickers(server, users, f"load-{users}-{kind.split()[0]}")
    for one in all_users:
        one.click(first=True)
    lock = threading.Lock()
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    opened = 0
    start = time.perf_counter()

    def use(one: Clicker) -> None:
        nonlocal opened
        while time.perf_counter() - start < seconds:
            before = time.perf_counter()
            status, answer = one.click(first=kind == KINDS[0])
            with lock:
                latencies.append(time.perf_counter() - before)
                statuses[status] += 1
                opened += status == 200 and answer["timing_ms"]["set_image"] == 0
                tick()

    with ThreadPoolExecutor(users) as pool:
        list(pool.map(use, all_users))
    elapsed = time.perf_counter() - start
    for one in all_users:
        one.visitor.close()
    return {
        "users": users,
        "kind": kind,
        "requests": len(latencies),
        "seconds": elapsed,
        "per_second": len(latencies) / elapsed,
        "median_ms": 1e3 * statistics.median(latencies),
        "p95_ms": 1e3 * quantile(latencies, 0.95),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "photo_was_open": opened / len(latencies),
        "rss_mib": server.rss / MIB,
    }


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def measure_memory(server: Server, clicks: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Memory of the server over many clicks of four visitors; every hundredth forgets what was kept."""
    all_users = clickers(server, 4, "memory")
    samples: list[list[float]] = []
    statuses: Counter[int] = Counter()
    for number in range(clicks):
        status, _ = all_users[number % 4].click(first=number % 100 < 4)
        statuses[status] += 1
        if (number + 1) % max(1, clicks // 40) == 0:
            samples.append([number + 1, server.rss / MIB])
        tick()
    for one in all_users:
        one.visitor.close()
    settled = [megabytes for at, megabytes in samples if at > clicks * 0.1]
    half = len(settled) // 2
    return {
        "clicks": clicks,
        "statuses": {str(status): count for status, count in statuses.items()},
        "rss_mib": samples,
        "first_half_mean_mib": statistics.mean(settled[:half]),
        "second_half_mean_mib": statistics.mean(settled[half:]),
        "growth_mib": statistics.mean(settled[half:]) - statistics.mean(settled[:half]),
        "max_mib": max(settled),
    }


def malformed_photos(count: int) -> Iterator[bytes]:
    """Bundled photos in several formats, cut short, with bytes changed, and with their heads exchanged."""
    dice = random.Random(0)
    image = Image.open(str(files("tracenet") / "assets" / "photos" / "chelsea.jpg")).resize((120, 80))
    sources = []
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        sources.append(buffer.getvalue())
    for number in range(count):
        data = bytearray(sources[number % len(sources)])
        how = number // len(sources) % 3
        if how == 0:
            del data[dice.randrange(len(data)) :]
        elif how == 1:
            for _ in range(dice.randrange(1, 30)):
                data[dice.randrange(len(data))] = dice.randrange(256)
        else:
            data[:16] = sources[dice.randrange(len(sources))][:16]
        yield bytes(data)


def a_bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(4 * MIB), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Abuse:
    """Hostile requests; each case says how it was answered.

    Args:
        server: of the tests.
        tick: called after every request.
    """

    def __init__(self, server: Server, tick: Callable[[], None]) -> None:
        self._server, self._tick = server, tick

    def malformed(self, count: int) -> Counter[str]:
        """Photos that are damaged; what still can be read is taken."""
        return self._uploads("malformed", malformed_photos(count))

    def bombs(self) -> Counter[str]:
        """Small files that say they hold gigabytes of pixels."""
        sizes = [(8000, 8000), (60_000, 60_000), (1, 1 << 30), (1 << 30, 1), ((1 << 31) - 1, (1 << 31) - 1)]
        return self._uploads("bombs", (a_bomb(*size) for size in sizes for _ in range(4)))

    def traversal(self) -> Counter[str]:
        """Paths that would lead out of the folders."""
        outcomes: Counter[str] = Counter()
        for path in (
            "/api/photos/../../../etc/passwd/file",
            "/api/photos/..%2f..%2f..%2fetc%2fpasswd/file",
            "/api/photos/%2e%2e/file",
            "/api/photos/coffee.jpg/file",
            "/static/../../cli.py",
            "/static/%2e%2e/%2e%2e/cli.py",
            "/static/..%5c..%5ccli.py",
            "/static//etc/passwd",
            "/static/%00",
        ):
            answer = self._raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            leaked = b"root:" in answer or b"import " in answer
            outcomes["leaked" if leaked else status_of(answer)] += 1
            self._tick()
        return outcomes

    def oversize_json(self) -> Counter[str]:
        """Requests of megabytes, deep nests, and long lists."""
        outcomes: Counter[str] = Counter()
        visitor = Visitor(self._server, "oversize-visitor")
        many = json.dumps({"photo": "coffee", "points": [[1, 2]] * 1_000_000}).encode()
        deep = b'{"photo": "coffee", "points": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        huge = b'{"image": "' + b"A" * (43 * MIB) + b'", "points": [[1, 1]]}'
        for body in (many, deep, huge, b"[" * (30 * MIB)):
            outcomes[outcome(lambda body=body: visitor.ask("POST", "/segment", body))] += 1  # type: ignore[misc]
            self._tick()
        visitor.close()
        return outcomes

    def slow_uploads(self, count: int) -> dict[str, Any]:
        """Connections that send a byte now and then, while somebody clicks."""
        head = (
            b"POST /api/photos HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9999\r\n\r\n"
        )
        outcomes: Counter[str] = Counter()
        latencies: list[float] = []
        done = threading.Event()

        def drip(number: int) -> None:
            answer = self._raw(head if number % 3 else head[:-30], wait=90)
            outcomes[status_of(answer)] += 1
            self._tick()

        def click() -> None:
            one = clickers(self._server, 1, "beside-slow")[0]
            one.click(first=True)
            while not done.is_set():
                start = time.perf_counter()
                status, _ = one.click(first=False)
                assert status == 200
                latencies.append(time.perf_counter() - start)
            one.visitor.close()

        beside = threading.Thread(target=click)
        beside.start()
        try:
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(drip, range(count)))
        finally:
            done.set()
            beside.join()
        return {
            "outcomes": dict(outcomes),
            "clicks_beside": len(latencies),
            "median_ms_beside": 1e3 * statistics.median(latencies),
        }

    def tabs(self, count: int) -> dict[str, Any]:
        """So many tabs that open the page and click at once, each a visitor; one that is told to wait tries again."""
        outcomes: Counter[str] = Counter()
        waits: list[float] = []
        lock = threading.Lock()

        def open_tab(number: int) -> None:
            visitor = Visitor(self._server, f"tab-number-{number}")
            photo = list(PHOTOS)[number % len(PHOTOS)]
            for path in ("/api/info", "/api/photos", f"/api/photos/{photo}/file?thumbnail=240"):
                found = outcome(lambda path=path: visitor.ask("GET", path))  # type: ignore[misc]
                with lock:
                    outcomes[f"pages {found}"] += 1
            start = time.perf_counter()
            for _ in range(100):
                found = outcome(lambda: visitor.click(photo, 200, 150))
                with lock:
                    outcomes[f"clicks {found}"] += 1
                if found != "503 busy":
                    break
                time.sleep(2)
            with lock:
                waits.append(time.perf_counter() - start)
            visitor.close()
            self._tick()

        with ThreadPoolExecutor(count) as pool:
            list(pool.map(open_tab, range(count)))
        return {"outcomes": dict(outcomes), "median_s": statistics.median(waits), "longest_s": max(waits)}

    def _uploads(self, name: str, photos: Iterator[bytes]) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        visitor = Visitor(self._server, f"{name}-visitor")
        for data in photos:
            kept: list[str] = []

            def send(data: bytes = data, kept: list[str] = kept) -> Answer:
                status, answer = visitor.ask("POST", "/api/photos", data, "application/octet-stream")
                kept += [answer["id"]] if status == 201 else []
                return status, answer

            outcomes[outcome(send)] += 1
            for photo in kept:
                visitor.ask("DELETE", f"/api/photos/{photo}")
            self._tick()
        visitor.close()
        return outcomes

    def _raw(self, data: bytes, wait: float = 20) -> bytes:
        answer = b""
        with socket.create_connection((self._server.host, self._server.port), timeout=wait) as connection:
            connection.sendall(data)
            try:
                while piece := connection.recv(65536):
                    answer += piece
            except OSError:
                pass
        return answer


def outcome(ask: Callable[[], Answer]) -> str:
    """How a request was answered: its status, and its error's code."""
    try:
        status, answer = ask()
    except (OSError, http.client.HTTPException) as error:
        return f"connection lost ({type(error).__name__})"
    code = answer.get("error", {}).get("code", "")
    return f"{status} {code}".strip()


def status_of(answer: bytes) -> str:
    """The status of a raw answer, or that there was none."""
    found = re.match(rb"HTTP/1\.1 (\d+)", answer)
    return found[1].decode() if found else "closed"


def measure_abuse(
    server: Server, malformed: int, slow: int, tabs: int, tick: Callable[[], None], without: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Every case in turn, with the server's memory after it, and whether it still answers a click."""
    abuse = Abuse(server, tick)
    cases: dict[str, Callable[[], Any]] = {
        "malformed photos": lambda: {"outcomes": dict(abuse.malformed(malformed))},
        "decompression bombs": lambda: {"outcomes": dict(abuse.bombs())},
        "path traversal": lambda: {"outcomes": dict(abuse.traversal())},
        "oversize JSON": lambda: {"outcomes": dict(abuse.oversize_json())},
        "slow uploads": lambda: abuse.slow_uploads(slow),
        f"{tabs} tabs": lambda: abuse.tabs(tabs),
    }
    found: dict[str, Any] = {}
    for name, run in cases.items():
        if name in without:
            continue
        before = server.rss
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
        visitor = Visitor(server, "still-there-visitor")
        status, _ = visitor.click("coffee", 300, 200)
        visitor.close()
        found[name] = {
            **result,
            "seconds": seconds,
            "rss_before_mib": before / MIB,
            "rss_after_mib": server.rss / MIB,
            "answers_after": status == 200,
        }
    return found


@contextmanager
def a_server(*arguments: str) -> Iterator[tuple[Server, dict[str, Any]]]:
    """A server, and how it ended once the context is left."""
    server, ended = Server(*arguments), {}
    try:
        yield server, ended
    finally:
        ended["peak_rss_mib"] = server.peak_rss / MIB
        ended |= server.end()


def run(seconds: float, clicks: int, malformed: int, slow: int, tabs: int, arguments: list[str]) -> dict[str, Any]:
    """All parts, each with a server of its own."""
    result: dict[str, Any] = {**environment(), "arguments": arguments}
    columns = (*Progress.get_default_columns(), "{task.completed:.0f}/{task.total:.0f}")
    with a_server(*arguments):
        pass  # the network is prepared once per machine, with PyTorch: no part should pay for that
    with Progress(*columns, console=Console(stderr=True)) as bar:
        with a_server(*arguments) as (server, ended):
            task = bar.add_task("load", total=len(USERS) * len(KINDS))
            result["load"] = []
            for users in USERS:
                for kind in KINDS:
                    result["load"].append(measure_load(server, users, kind, seconds, lambda: None))
                    bar.advance(task)
        result["load_server"] = ended
        with a_server(*arguments) as (server, ended):
            task = bar.add_task("memory", total=clicks)
            result["memory"] = measure_memory(server, clicks, lambda: bar.advance(task))
        result["memory_server"] = ended
        with a_server(*arguments) as (server, ended):
            task = bar.add_task("abuse", total=malformed + 20 + 9 + 4 + slow + tabs)
            result["abuse"] = measure_abuse(server, malformed, slow, tabs, lambda: bar.advance(task))
        result["abuse_server"] = ended
    return result


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for people."""
    load = Table(title="load", title_justify="left")
    for name in ("users", "clicks", "per second", "median ms", "p95 ms", "photo was open", "answers", "RSS MiB"):
        load.add_column(name, justify="left" if name in ("clicks", "answers") else "right")
    for row in result["load"]:
        load.add_row(
            str(row["users"]),
            row["kind"],
            f"{row['per_second']:.2f}",
            f"{row['median_ms']:.0f}",
            f"{row['p95_ms']:.0f}",
            f"{row['photo_was_open']:.0%}",
            _counted(row["statuses"]),
            f"{row['rss_mib']:.0f}",
        )
    memory = Table(title=f"memory over {result['memory']['clicks']} clicks", title_justify="left")
    for name in ("first half MiB", "second half MiB", "growth MiB", "most MiB", "answers"):
        memory.add_column(name, justify="right")
    m = result["memory"]
    figures = (m["first_half_mean_mib"], m["second_half_mean_mib"], m["growth_mib"], m["max_mib"])
    memory.add_row(*(f"{value:.1f}" for value in figures), _counted(m["statuses"]))
    abuse = Table(title="abuse", title_justify="left")
    for name in ("case", "answers", "RSS before", "after MiB", "answers a click after"):
        abuse.add_column(name, justify="left" if name in ("case", "answers") else "right")
    for name, row in result["abuse"].items():
        before, after = f"{row['rss_before_mib']:.0f}", f"{row['rss_after_mib']:.0f}"
        abuse.add_row(name, _counted(row["outcomes"]), before, after, "yes" if row["answers_after"] else "no")
    return [load, memory, abuse]


def _counted(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(outcomes.items()))


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Load and abuse of the viewer's server.")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each number of users and kind of click")
    parser.add_argument("--clicks", type=int, default=2000, help="of the memory part")
    parser.add_argument("--malformed", type=int, default=180, help="damaged photos")
    parser.add_argument("--slow", type=int, default=24, help="slow connections at once")
    parser.add_argument("--tabs", type=int, default=100)
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("viewer", nargs="*", help="arguments of tracenet viewer, after --")
    options = parser.parse_args(arguments)
    if options.json is not None:
        check_target(options.json)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its servers end as well
    result = run(options.seconds, options.clicks, options.malformed, options.slow, options.tabs, options.viewer)
    if options.json is not None:
        save_json(result, options.json)
    for table in tables(result):
        Console(width=150).print(table)
    for part in ("load", "memory", "abuse"):
        ended = result[f"{part}_server"]
        print(f"{part}: exit code {ended['exit_code']}, peak {ended['peak_rss_mib']:.0f} MiB, {ended['stderr']!r}")


if __name__ == "__main__":
    main()
