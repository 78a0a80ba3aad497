"""One thread that computes: clicks first, in the order they came, and long jobs step by step between them."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from typing import Any

from tracenet.viewer.errors import ViewerError, shutting_down

log = logging.getLogger("tracenet.viewer")


class Job:
    """One click.

    Args:
        owner: the visitor.
        run: what is computed; it is given the job, whose :meth:`check` it calls between phases.
    """

    def __init__(self, owner: str, run: Callable[[Job], Any]) -> None:
        self.owner = owner
        self.future: Future[Any] = Future()
        self._run = run
        self._stop: ViewerError | None = None

    def check(self) -> None:
        """Raise what the job was cancelled with, if it was."""
        if self._stop is not None:
            raise self._stop

    def cancel(self, error: ViewerError) -> None:
        """Answer with ``error`` now; a run ends at its next phase."""
        if self._stop is None:
            self._stop = error
            with contextlib.suppress(InvalidStateError):
                self.future.set_exception(error)

    def compute(self) -> None:
        """Run and answer; called by the worker."""
        try:
            self.check()
            result = self._run(self)
        except Exception as error:
            if self._stop is None and not isinstance(error, ViewerError):
                log.debug("a click failed", exc_info=error)
            with contextlib.suppress(InvalidStateError):
                self.future.set_exception(error)
        else:
            with contextlib.suppress(InvalidStateError):
                self.future.set_result(result)


class Worker:
    """The thread and its queue.

    Args:
        queue: clicks that may wait, of all owners.
        queue_per_owner: of one owner.
        long_jobs: long jobs that may be under way.
    """

    def __init__(self, queue: int, queue_per_owner: int, long_jobs: int) -> None:
        self._queue, self._queue_per_owner, self._most_long_jobs = queue, queue_per_owner, long_jobs
        self._change = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._long: deque[Iterator[None]] = deque()
        self._stepping = False
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="tracenet-compute")
        self._started = False

    def start(self) -> None:
        self._started = True
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Clicks that wait."""
        return len(self._waiting)

    @property
    def long_jobs(self) -> int:
        """Long jobs under way."""
        return len(self._long) + self._stepping

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, job: Job, supersede: bool) -> None:
        """Queue a click.

        Args:
            supersede: older clicks of its owner, waiting or running, are answered with ``superseded``.

        Raises:
            ViewerError: ``busy``, ``too_many`` or ``shutting_down``.
        """
        with self._change:
            if self._closed:
                raise shutting_down()
            own = [one for one in self._waiting if one.owner == job.owner]
            if supersede:
                older = own + [self._running] * (self._running is not None and self._running.owner == job.owner)
                for one in older:
                    assert one is not None
                    self._drop(one, _superseded())
            elif len(own) >= self._queue_per_owner:
                raise ViewerError(
                    "too_many",
                    f"{len(own)} clicks of this visitor wait already; at most {self._queue_per_owner} may",
                    "wait for their answers, or leave out keep_older",
                )
            if len(self._waiting) >= self._queue:
                raise ViewerError(
                    "busy", f"{len(self._waiting)} clicks wait already, which is all that may", "try again in a moment"
                )
            self._waiting.append(job)
            self._change.notify()

    def drop(self, job: Job, error: ViewerError) -> None:
        """Cancel a click, waiting or running; nothing happens to one that is answered."""
        with self._change:
            self._drop(job, error)

    def add_long_job(self, steps: Iterator[None]) -> None:
        """Queue a long job; it is advanced by one step whenever no click waits.

        Raises:
            ViewerError: ``busy`` or ``shutting_down``.
        """
        with self._change:
            if self._closed:
                raise shutting_down()
            if self.long_jobs >= self._most_long_jobs:
                raise ViewerError(
                    "busy", f"{self.long_jobs} long jobs are under way, which is all that may", "try again later"
                )
            self._long.append(steps)
            self._change.notify()

    def close(self) -> None:
        """Answer those that wait with ``shutting_down`` and take no more; the click that runs goes on to its end."""
        with self._change:
            self._closed = True
            for job in list(self._waiting):
                self._drop(job, shutting_down())
            self._change.notify()

    def join(self, seconds: float | None = None) -> None:
        """Wait for the thread to end; :meth:`close` first."""
        if self._started:
            self._thread.join(seconds)

    def _drop(self, job: Job, error: ViewerError) -> None:
        with contextlib.suppress(ValueError):
            self._waiting.remove(job)
        job.cancel(error)

    def _work(self) -> None:
        while True:
            with self._change:
                while not (self._waiting or self._long or self._closed):
                    self._change.wait()
                if self._closed:
                    break
                steps = None
                if self._waiting:
                    self._running = self._waiting.popleft()
                else:
                    steps, self._stepping = self._long.popleft(), True
            if steps is not None:
                self._step(steps)
            elif self._running is not None:
                self._running.compute()
                with self._change:
                    self._running = None
        for steps in self._long:
            getattr(steps, "close", lambda: None)()
        self._long.clear()

    def _step(self, steps: Iterator[None]) -> None:
        goes_on = False
        try:
            next(steps)
            goes_on = True
        except StopIteration:
            pass
        except Exception as error:  # a job says itself how it failed; nothing may end this thread
            log.error("a long job failed", exc_info=error)
        with self._change:
            self._stepping = False
            if goes_on:
                self._long.append(steps)


def _superseded() -> ViewerError:
    return ViewerError(
        "superseded", "a newer click of this visitor took this one's place", "nothing, or send keep_older with both"
    )
