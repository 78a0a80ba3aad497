"""What a compiled kernel's machine code holds: registers, spills, tensor-core and copy instructions.

Reads cubins with the disassembler that comes with Triton; needs no GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tracenet_kernels.errors import BackendError

TENSOR_CORE = re.compile(r"^(?:[BDHIOQ]MMA|[BHIQ]GMMA|UTC[HIOQ]MMA)(?:\.|$)")
"""Matrix instructions: of a warp up to Ampere and on consumer parts (``HMMA``, ``IMMA``, ``QMMA``), of a warp group on
Hopper (``HGMMA``, ``IGMMA``, ``QGMMA``), with tensor memory on Blackwell (``UTCHMMA``, ``UTCIMMA``, ``UTCQMMA``)."""
TMA = re.compile(r"^(?:UTMA(?:LDG|STG|REDG)|UBLKCP)")
"""Bulk copies by the tensor memory accelerator."""
ASYNC_COPY = re.compile(r"^LDGSTS")
"""Copies from global to shared memory that take no register."""
SPILL_STORE = re.compile(r"^STL(?:\.|$)")
SPILL_LOAD = re.compile(r"^LDL(?:\.|$)")

# "        /*0a10*/                   @!P0 LDGSTS.E.BYPASS.128 [R219], desc[UR8][R4.64] ;"
_INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T0-9]\S*\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_]+)*)", re.M
)
_RESOURCES = re.compile(r"\bREG:(\d+)\s+STACK:(\d+)\s+SHARED:(\d+)\s+LOCAL:(\d+)")


@dataclass(frozen=True, slots=True)
class MachineCode:
    """Counts of one kernel.

    Attributes:
        registers: per thread.
        local_bytes: of local memory per thread: spilled registers and arrays with computed indices.
        spill_stores, spill_loads: instructions that access it.
        tensor_core: matrix instructions by name, such as ``HMMA``.
        tma, async_copies: instructions.
        instructions: all of them.
    """

    registers: int
    local_bytes: int
    spill_stores: int
    spill_loads: int
    tensor_core: Mapping[str, int]
    tma: int
    async_copies: int
    instructions: int

    @property
    def spills(self) -> bool:
        return bool(self.local_bytes or self.spill_stores or self.spill_loads)


def machine_code(cubin: bytes) -> MachineCode:
    """Disassemble a cubin that holds one kernel.

    Raises:
        BackendError: Triton's disassembler is not there or does not read the cubin.
    """
    with tempfile.TemporaryDirectory(prefix="tracenet-") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        resources = _run("cuobjdump", "-res-usage", str(path))
        listing = _run("nvdisasm", "-c", str(path))
    found = _RESOURCES.search(resources)
    if found is None:
        raise BackendError(f"cuobjdump names no resources of a kernel: {resources.strip()[:200]!r}")
    registers, stack, _, local = map(int, found.groups())
    return count(listing, registers, stack + local)


def count(listing: str, registers: int, local_bytes: int) -> MachineCode:
    """Count the instructions of a listing by ``nvdisasm``."""
    names = Counter(match[1] for match in _INSTRUCTION.finditer(listing))
    tensor_core: Counter[str] = Counter()
    for name, times in names.items():
        if TENSOR_CORE.match(name):
            tensor_core[name.split(".")[0]] += times
    return MachineCode(
        registers,
        local_bytes,
        _matching(names, SPILL_STORE),
        _matching(names, SPILL_LOAD),
        dict(tensor_core),
        _matching(names, TMA),
        _matching(names, ASYNC_COPY),
        names.total(),
    )


def _matching(names: Counter[str], pattern: re.Pattern[str]) -> int:
    return sum(times for name, times in names.items() if pattern.match(name))


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([str(_tool(tool)), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(f"{tool} failed with {done.returncode}: {done.stderr.strip()[:300]}")
    return done.stdout


@lru_cache(maxsize=4)
def _tool(name: str) -> Path:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.is_file():
        raise BackendError(f"{path} is not there; install a Triton wheel that brings {name}")
    return path
