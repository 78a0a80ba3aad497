"""Kernels from Python: the same bits with any number of threads, from several Python threads at once and after fork."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tracenet_kernels import native, window_ops
from tracenet_kernels.errors import InputError
from tracenet_kernels.threads import set_threads, threads

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = threads()
    yield
    set_threads(before)


def pooled(seed: int) -> np.ndarray:
    """Large enough for several tasks."""
    x = np.random.default_rng(seed).standard_normal((120, 90, 24), np.float32)
    out = np.full_like(x, np.nan)
    window_ops.avg_pool2d(x, out, kernel=3, stride=1, padding=1)
    window_ops.sigmoid(out, out)
    return out


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_any_number_of_threads_gives_the_same_bits(count: int) -> None:
    set_threads(1)
    wanted = pooled(0)
    set_threads(count)
    assert threads() == count
    assert (pooled(0) == wanted).all()


def test_zero_is_one_per_processor() -> None:
    set_threads(0)
    assert threads() >= 1


@pytest.mark.parametrize("count", [-1, 257, 2**40])
def test_impossible_numbers_are_refused(count: int) -> None:
    before = threads()
    with pytest.raises(InputError, match="threads"):
        set_threads(count)
    assert threads() == before


def test_several_python_threads_at_once() -> None:
    set_threads(3)
    wanted = [pooled(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as executor:
        for _ in range(5):
            results = list(executor.map(pooled, range(4)))
            assert all((a == b).all() for a, b in zip(results, wanted, strict=True))


def test_the_number_may_change_while_kernels_run() -> None:
    wanted = pooled(1)
    with ThreadPoolExecutor(2) as executor:
        running = [executor.submit(pooled, 1) for _ in range(12)]
        for count in (2, 4, 1, 3):
            set_threads(count)
        assert all((result.result() == wanted).all() for result in running)


def _send(connection) -> None:
    connection.send(pooled(2))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_computes() -> None:
    set_threads(3)
    wanted = pooled(2)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(sender,))
    child.start()
    assert receiver.poll(30), "the child hangs"
    result = receiver.recv()
    child.join(30)
    assert child.exitcode == 0
    assert (result == wanted).all()


def test_a_process_ends_while_workers_sleep_or_spin() -> None:
    program = (
        "import numpy as np\n"
        "from tracenet_kernels import window_ops\n"
        "from tracenet_kernels.threads import set_threads\n"
        "set_threads(4)\n"
        "x = np.zeros((200, 200, 16), np.float32)\n"
        "window_ops.sigmoid(x, x)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
