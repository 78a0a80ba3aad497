"""The computing thread: order, superseding, bounds, long jobs between clicks, and its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.viewer.servers import wait_until
from tracenet.viewer.errors import ViewerError
from tracenet.viewer.worker import Job, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(queue=3, queue_per_owner=2, long_jobs=2)
    made.start()
    yield made
    made.close()
    made.join(10)


class Held:
    """A job that runs until it is released; it looks at its cancellation then."""

    def __init__(self, owner: str) -> None:
        self.begun, self.release = threading.Event(), threading.Event()
        self.job = Job(owner, self._run)

    def _run(self, job: Job) -> str:
        self.begun.set()
        assert self.release.wait(10)
        job.check()
        return "held"


def a_job(owner: str, ran: list[str], name: str) -> Job:
    def run(job: Job) -> str:
        ran.append(name)
        return name

    return Job(owner, run)


def code_of(job: Job) -> str:
    with pytest.raises(ViewerError) as error:
        job.future.result(10)
    return error.value.code


def test_jobs_run_in_order_and_answer(worker: Worker) -> None:
    held, ran = Held("x"), []
    worker.submit(held.job, False)
    assert held.begun.wait(10)
    jobs = [a_job(f"visitor{i}", ran, f"{i}") for i in range(3)]
    for job in jobs:
        worker.submit(job, True)
    assert worker.waiting == 3
    held.release.set()
    assert [job.future.result(10) for job in jobs] == ["0", "1", "2"] == ran


def test_a_newer_click_supersedes_its_own_visitors_only(worker: Worker) -> None:
    held, ran = Held("a"), []
    worker.submit(held.job, True)
    assert held.begun.wait(10)
    waiting, other, newer = a_job("a", ran, "waiting"), a_job("b", ran, "other"), a_job("a", ran, "newer")
    for job in (waiting, other, newer):
        worker.submit(job, True)
    assert code_of(waiting) == "superseded"
    assert code_of(held.job) == "superseded"  # answered although its phase goes on
    held.release.set()
    assert newer.future.result(10) == "newer"
    assert other.future.result(10) == "other"
    assert ran == ["other", "newer"]


def test_the_queue_is_bounded_for_all_and_for_each(worker: Worker) -> None:
    held, ran = Held("x"), []
    worker.submit(held.job, False)
    assert held.begun.wait(10)
    for i in range(2):
        worker.submit(a_job("a", ran, str(i)), False)
    with pytest.raises(ViewerError, match="at most 2 may") as error:
        worker.submit(a_job("a", ran, "third"), False)
    assert error.value.status == 429
    worker.submit(a_job("b", ran, "b"), False)
    with pytest.raises(ViewerError) as error:
        worker.submit(a_job("c", ran, "c"), True)
    assert error.value.code == "busy"
    assert error.value.headers["Retry-After"]
    held.release.set()
    wait_until(lambda: len(ran) == 3)


def test_a_failed_job_answers_with_its_error_and_the_thread_goes_on(worker: Worker) -> None:
    def fail(job: Job) -> Any:
        raise RuntimeError("broken")

    failed = Job("a", fail)
    worker.submit(failed, True)
    with pytest.raises(RuntimeError, match="broken"):
        failed.future.result(10)
    ran: list[str] = []
    after = a_job("a", ran, "after")
    worker.submit(after, True)
    assert after.future.result(10) == "after"


def test_long_jobs_take_turns_and_clicks_go_first(worker: Worker) -> None:
    seen: list[str] = []
    first_step, go_on = threading.Event(), threading.Event()

    def steps(name: str, count: int) -> Iterator[None]:
        for i in range(count):
            seen.append(f"{name}{i}")
            first_step.set()
            assert go_on.wait(10)
            yield

    worker.add_long_job(steps("a", 3))
    assert first_step.wait(10)
    worker.add_long_job(steps("b", 2))
    with pytest.raises(ViewerError) as error:
        worker.add_long_job(steps("c", 1))
    assert error.value.code == "busy"
    click = a_job("x", seen, "click")
    worker.submit(click, True)
    go_on.set()
    wait_until(lambda: worker.long_jobs == 0)
    assert seen == ["a0", "click", "b0", "a1", "b1", "a2"]


def test_closing_ends_the_thread_answers_what_waits_and_lets_the_running_click_end(worker: Worker) -> None:
    held, ended = Held("a"), []

    def steps() -> Iterator[None]:
        try:
            yield
            yield
        finally:
            ended.append(True)

    worker.submit(held.job, True)
    assert held.begun.wait(10)
    waiting = a_job("b", [], "waiting")
    worker.submit(waiting, True)
    long_job = steps()
    next(long_job)
    worker.add_long_job(long_job)
    worker.close()
    assert code_of(waiting) == "shutting_down"
    held.release.set()
    assert held.job.future.result(10) == "held"
    worker.join(10)
    assert ended == [True]
    with pytest.raises(ViewerError, match="shutting down"):
        worker.submit(a_job("c", [], "late"), True)
    with pytest.raises(ViewerError, match="shutting down"):
        worker.add_long_job(steps())
