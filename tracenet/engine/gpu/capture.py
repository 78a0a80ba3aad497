"""Capturing launches in a CUDA graph, so that a click costs one call of the driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from tracenet_kernels.errors import ExecutionError

Work = Sequence[Callable[[], None]]
"""Launches in order."""


class Replay(Protocol):
    """What a capture gives."""

    def replay(self) -> None:
        """Run all launches again, in order, on the current stream of the device."""
        ...


class Capture(Protocol):
    """Turns launches into something that replays them."""

    def __call__(self, work: Work) -> Replay: ...


class _InOrder:
    def __init__(self, work: Work) -> None:
        self._work = tuple(work)

    def replay(self) -> None:
        for launch in self._work:
            launch()


def eager(work: Work) -> Replay:
    """No capture: every replay launches kernel by kernel. For debugging, and where there is no CUDA."""
    return _InOrder(work)


class GraphCapture:
    """Captures on a stream of its own.

    The launches run once before, so that Triton compiles them outside the capture; they must not change what they
    read, which holds for schedules: steps only write their own output planes.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, work: Work) -> Replay:
        """Capture.

        Raises:
            ExecutionError: the current stream is being captured by somebody else, or the capture fails.
        """
        with torch.cuda.device(self._device):
            refuse_capturing(self._device)
            stream = torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.current_stream(self._device))
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.stream(stream):
                    for launch in work:
                        launch()
                stream.synchronize()
                # Other threads may allocate and launch meanwhile: only this thread's mistakes end the capture.
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    for launch in work:
                        launch()
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ExecutionError(
                    f"{len(work)} launches could not be captured in a CUDA graph ({error}); mode='eager' runs them "
                    "one by one and says which one fails"
                ) from error
            torch.cuda.current_stream(self._device).wait_stream(stream)
        replay: Replay = graph
        return replay


def refuse_capturing(device: torch.device) -> None:
    """Raises ExecutionError where the device's current stream is being captured: sessions replay graphs themselves."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise ExecutionError(
            "the current stream is being captured in a CUDA graph; run the session outside of torch.cuda.graph(...), "
            "it captures its own launches"
        )
