"""Capture and replay, with a fake device where there is none."""

from __future__ import annotations

import pytest
import torch

from tracenet.engine.gpu.capture import GraphCapture, eager, refuse_capturing
from tracenet_kernels.errors import ExecutionError


class FakeCuda:
    """What :class:`GraphCapture` asks of ``torch.cuda``; launches inside a capture are recorded, not run."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.capturing = False
        self.recorded: list[str] = []

    class OutOfMemoryError(RuntimeError):
        pass

    def launch(self, name: str) -> None:
        (self.recorded if self.capturing else self.log).append(name)


class _Within:
    def __init__(self, enter: object = None, leave: object = None) -> None:
        self.enter, self.leave = enter, leave

    def __enter__(self) -> None:
        if callable(self.enter):
            self.enter()

    def __exit__(self, *_: object) -> None:
        if callable(self.leave):
            self.leave()


class FakeStream:
    def wait_stream(self, other: object) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()

    class Graph:
        def replay(self) -> None:
            fake.log.extend(fake.recorded)

    def begin() -> None:
        fake.capturing = True

    def end() -> None:
        fake.capturing = False

    for name, value in {
        "device": lambda device: _Within(),
        "is_current_stream_capturing": lambda: fake.capturing,
        "Stream": lambda device: FakeStream(),
        "current_stream": lambda device=None: FakeStream(),
        "stream": lambda stream: _Within(),
        "CUDAGraph": Graph,
        "graph": lambda graph, stream, capture_error_mode: _Within(begin, end),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return fake


DEVICE = torch.device("cuda", 0)


def test_a_graph_runs_once_before_and_then_by_replay_only(cuda: FakeCuda) -> None:
    work = [lambda: cuda.launch("a"), lambda: cuda.launch("b")]
    replay = GraphCapture(DEVICE)(work)
    assert cuda.log == ["a", "b"]  # compiled outside the capture
    assert cuda.recorded == ["a", "b"]
    replay.replay()
    replay.replay()
    assert cuda.log == ["a", "b"] * 3


def test_what_fails_in_a_capture_is_named(cuda: FakeCuda) -> None:
    def fails() -> None:
        if cuda.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(ExecutionError, match=r"1 launches could not be captured .*not permitted.*mode='eager'"):
        GraphCapture(DEVICE)([fails])
    assert not cuda.capturing


def test_a_stream_that_is_being_captured_is_refused(cuda: FakeCuda) -> None:
    cuda.capturing = True
    with pytest.raises(ExecutionError, match="the current stream is being captured"):
        GraphCapture(DEVICE)([])
    with pytest.raises(ExecutionError, match="run the session outside of"):
        refuse_capturing(DEVICE)
    refuse_capturing(torch.device("cpu"))


def test_eager_launches_anew_each_time() -> None:
    log: list[str] = []
    replay = eager([lambda: log.append("a"), lambda: log.append("b")])
    assert log == []
    replay.replay()
    replay.replay()
    assert log == ["a", "b"] * 2
