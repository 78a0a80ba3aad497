"""The device that is measured, what is known of it, and the ceilings that everybody's rate is a share of."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bench.gpu.timing import CudaTimer, DryTimer, Timer, in_turns, spread
from bench.report import commit, processor_name
from tracenet_kernels.errors import BackendError

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("tracenet", "tracenet_kernels", "bench", "tests", "csrc")
SMI = (
    "name,driver_version,pstate,persistence_mode,compute_mode,mig.mode.current,temperature.gpu,power.draw,power.limit,"
    "clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,memory.total,memory.used"
).split(",")


class Machine:
    """One GPU, or in dry runs the CPU with Triton's interpreter and a clock that does not tick.

    Args:
        dry: nothing is measured; for tests of the suite itself.

    Raises:
        BackendError: there is no CUDA device, and the run is not dry.
    """

    def __init__(self, dry: bool) -> None:
        self.dry = dry
        if not dry and not torch.cuda.is_available():
            built = "PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch sees no CUDA device"
            raise BackendError(
                f"the GPU suite needs an NVIDIA GPU: {built}; run it where there is one, or with --dry-run"
            )
        if not dry and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
            raise BackendError(
                "TRITON_INTERPRET is set: kernels would run in an interpreter; unset it, or use --dry-run"
            )
        self.device = torch.device("cpu") if dry else torch.device("cuda", torch.cuda.current_device())

    @cached_property
    def timer(self) -> Timer:
        return DryTimer() if self.dry else CudaTimer(self.device)

    @property
    def name(self) -> str:
        return f"{processor_name()} (dry run)" if self.dry else torch.cuda.get_device_name(self.device)

    @property
    def arch(self) -> int:
        """Compute capability, 90 for 9.0; in dry runs that of the part whose figures are shown."""
        if self.dry:
            return 90
        major, minor = torch.cuda.get_device_capability(self.device)
        return 10 * major + minor

    @property
    def modern(self) -> bool:
        """Whether there are tensor-memory copies and programmatic dependent launch."""
        return not self.dry and self.arch >= 90

    def facts(self) -> dict[str, Any]:
        """What every result is written with."""
        found: dict[str, Any] = {
            "dry": self.dry,
            "gpu": self.name,
            "arch": self.arch,
            "device": processor_name(),
            "cuda": torch.version.cuda,
            "torch": torch.__version__,
            "triton": _version("triton"),
            "python": platform.python_version(),
            "commit": source_commit(),
        }
        if not self.dry:
            properties = torch.cuda.get_device_properties(self.device)
            found.update(
                multiprocessors=properties.multi_processor_count,
                memory_bytes=properties.total_memory,
                l2_bytes=getattr(properties, "L2_cache_size", None),
                cudnn=torch.backends.cudnn.version(),
            )
        return found

    def broken(self) -> bool:
        """Whether an error of a kernel has ended what this process can do on the device."""
        if self.dry:
            return False
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            return True
        return False

    def key(self) -> str:
        """Of the sources, the device and the libraries: results of another key are measured anew."""
        parts = [source_key(), self.name, torch.__version__, _version("triton"), str(self.dry)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def configurations(self) -> str:
        """Of the measured tile sizes of this GPU, which decide how launches look; empty where there are none."""
        from tracenet_kernels.triton.configs import user_file

        path = None if self.dry else user_file(self.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path is not None and path.is_file() else ""

    def ceilings(self, dtype: torch.dtype) -> dict[str, float]:
        """Multiply-adds per second of a large matrix product, and bytes per second of a large copy, both measured."""
        side, cells = (64, 1 << 12) if self.dry else (8192, min(1 << 29, self._memory // 16))
        a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
        source = torch.ones(cells, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        out = torch.empty_like(a)
        runs = {
            "product": lambda: self.timer.device(lambda: torch.mm(a, b, out=out), cold=False),
            "copy": lambda: self.timer.device(lambda: target.copy_(source), cold=False),
        }
        times = {name: spread(values)["median"] for name, values in in_turns(runs, 10).items()}
        return {
            "macs_per_second": side**3 / (times["product"] * 1e-3),
            "bytes_per_second": 2 * cells / (times["copy"] * 1e-3),
        }

    @property
    def _memory(self) -> int:
        return int(torch.cuda.get_device_properties(self.device).total_memory)


def driver_facts() -> dict[str, str]:
    """What ``nvidia-smi`` says, and on a Jetson its power mode; nothing is changed."""
    found: dict[str, str] = {}
    for field in SMI:
        # One field a call: an old driver refuses the whole query where it does not know one of them.
        value = _output("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0")
        if value is not None:
            found[field] = value
    mode = _output("nvpmodel", "-q")
    if mode is not None:
        found["nvpmodel"] = mode
    return found


def source_commit() -> str:
    """The commit; where there is no checkout, ``TRACENET_SUITE_COMMIT`` says it."""
    return os.environ.get("TRACENET_SUITE_COMMIT") or commit()


def source_key() -> str:
    """Of everything that can change a result: a checkout may have changes, or there may be none."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".hpp", ".json") and "results" not in path.parts:
                digest.update(str(path.relative_to(ROOT)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return " ".join(done.stdout.split())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
