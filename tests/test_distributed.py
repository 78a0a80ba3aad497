"""Processes as one job; what two of them do together is tested where it is used."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tracenet.distributed import Ranks, pick_device, processes
from tracenet_kernels.errors import InputError


def test_one_process_shares_with_nobody() -> None:
    with processes() as ranks:
        assert ranks == Ranks() and ranks.first
        assert ranks.share([1, 2, 3]) == [1, 2, 3]
        assert ranks.gather("x") == ["x"]
        assert float(ranks.mean(torch.tensor(2.0))) == 2


def test_items_are_shared_out_completely() -> None:
    parts = [Ranks(rank, 3).share(range(8)) for rank in range(3)]
    assert sorted(x for part in parts for x in part) == list(range(8))
    assert parts[1] == [1, 4, 7]
    assert [r.first for r in (Ranks(0, 3), Ranks(1, 3))] == [True, False]


def test_what_cannot_be_shared_evenly_is_refused() -> None:
    assert Ranks(0, 4).even_share(16, "images") == 4
    with pytest.raises(InputError, match="images = 16 cannot be shared by 3 processes"):
        Ranks(0, 3).even_share(16, "images")


def test_devices_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="choose auto, cpu or cuda"):
        pick_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(InputError, match="sees no GPU"):
        pick_device("cuda")


PROGRAM = """
import os
from tracenet.distributed import processes

with processes() as ranks:
    import torch._dynamo
    assert ranks.gather(ranks.rank) == [0, 1]
names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
print([name for name in names if "gloo" in name])
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_no_thread_of_the_group_outlives_it() -> None:
    """One that does races with the end of the process, which now and then aborts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **group, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    assert [output.splitlines()[-1] for output in outputs] == ["[]", "[]"], "\n".join(outputs)
