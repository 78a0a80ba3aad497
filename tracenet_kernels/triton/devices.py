"""What NVIDIA parts can do: limits of a multiprocessor by architecture, and figures of the parts we model.

Limits are those of the table "Technical Specifications per Compute Capability" in NVIDIA's CUDA Programming Guide. Peak
rates are dense; a data sheet that states them with sparsity is halved. Figures that no data sheet states are marked as
assumptions: replace them by measurements where there are any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from tracenet_kernels.errors import InputError

KIB = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one architecture.

    Attributes:
        shared_block: bytes of shared memory that one program may have.
        shared_multiprocessor: bytes of a multiprocessor; every resident program takes 1 KiB more than it asks for
            from 8.0 on.
        warps, programs: resident on one multiprocessor.
    """

    shared_block: int
    shared_multiprocessor: int
    warps: int
    programs: int


REGISTERS_THREAD = 255
"""32-bit registers that one thread may have, on every architecture here."""
REGISTERS_MULTIPROCESSOR = 64 * KIB
"""32-bit registers of a multiprocessor and the most of one program, on every architecture here."""
TENSOR_MEMORY_COLUMNS = 512
"""Columns of tensor memory that one program may have, where there is such memory (10.0, 10.3, 11.0)."""

LIMITS: Mapping[int, Limits] = MappingProxyType(
    {
        80: Limits(163 * KIB, 164 * KIB, 64, 32),
        86: Limits(99 * KIB, 100 * KIB, 48, 16),
        87: Limits(163 * KIB, 164 * KIB, 48, 16),
        89: Limits(99 * KIB, 100 * KIB, 48, 24),
        90: Limits(227 * KIB, 228 * KIB, 64, 32),
        100: Limits(227 * KIB, 228 * KIB, 64, 32),
        103: Limits(227 * KIB, 228 * KIB, 64, 32),
        110: Limits(227 * KIB, 228 * KIB, 48, 24),
        120: Limits(99 * KIB, 100 * KIB, 48, 24),
        121: Limits(99 * KIB, 100 * KIB, 48, 24),
    }
)
"""Compute capability as in ``sm_90`` -> its limits."""


def limits(arch: int) -> Limits:
    """Limits of an architecture; of one that is not listed, those of the nearest older one, or of the oldest."""
    known = [listed for listed in LIMITS if listed <= arch]
    return LIMITS[max(known) if known else min(LIMITS)]


@dataclass(frozen=True, slots=True)
class Part:
    """One GPU.

    Attributes:
        name: as CUDA names the device, or the beginning of it.
        arch: compute capability, 90 for 9.0.
        multiprocessors: how many it has.
        clock: Hz at which the peak rates hold.
        tensor: dtype -> dense multiply-adds per second of the tensor cores; none for a dtype they do not have.
        fp32: multiply-adds per second without tensor cores.
        bandwidth: bytes per second of its memory.
        l2: bytes of its level-2 cache.
        launch: seconds from the end of one kernel to the first work of the next in a CUDA graph (assumption).
        launch_pdl: the same with programmatic dependent launch (assumption); ``launch`` where there is none.
        latency: seconds from a load that misses the level-2 cache to its data (assumption).
    """

    name: str
    arch: int
    multiprocessors: int
    clock: float
    tensor: Mapping[str, float]
    fp32: float
    bandwidth: float
    l2: int
    launch: float = 1.5e-6
    launch_pdl: float = 0.8e-6
    latency: float = 0.7e-6

    @property
    def l2_bandwidth(self) -> float:
        """Bytes per second from the level-2 cache.

        64 bytes per clock and multiprocessor, and 5120 per clock in all, as the A100 white paper states for that part
        (assumption for all others).
        """
        return self.clock * min(64 * self.multiprocessors, 5120)

    @property
    def limits(self) -> Limits:
        return limits(self.arch)

    def resized(self, arch: int, multiprocessors: int) -> Part:
        """A part of ``arch`` with so many multiprocessors like this one's; memory and caches stay."""
        if (arch, multiprocessors) == (self.arch, self.multiprocessors):
            return self
        share = multiprocessors / self.multiprocessors
        tensor = MappingProxyType({dtype: rate * share for dtype, rate in self.tensor.items()})
        return replace(self, arch=arch, multiprocessors=multiprocessors, tensor=tensor, fp32=self.fp32 * share)

    def rate(self, dtype: str, tensor_cores: bool = True) -> float:
        """Multiply-adds per second in ``dtype``; without tensor cores, those of fp32."""
        return self.tensor.get(dtype, self.fp32) if tensor_cores else self.fp32


def _tensor(half: float, int8: float, fp8: float | None = None) -> Mapping[str, float]:
    """Multiply-adds per second from data-sheet operations, two of which are one multiply-add."""
    rates = {"float16": half / 2, "bfloat16": half / 2, "int8": int8 / 2}
    if fp8 is not None:
        rates["float8_e4m3fn"] = fp8 / 2
    return MappingProxyType(rates)


PARTS: Mapping[str, Part] = MappingProxyType(
    {
        # NVIDIA H100 Tensor Core GPU Architecture white paper, H100 SXM5: 132 multiprocessors, 989.4 TFLOPS fp16,
        # 1978.9 int8 and fp8, 66.9 fp32, which is 1.83 GHz; 50 MB level 2. Data sheet: 3.35 TB/s.
        "h100": Part(
            "NVIDIA H100", 90, 132, 1.83e9, _tensor(989.4e12, 1978.9e12, 1978.9e12), 33.5e12, 3.35e12, 50 << 20
        ),
        # NVIDIA H200 data sheet: the same chip, 4.8 TB/s.
        "h200": Part(
            "NVIDIA H200", 90, 132, 1.83e9, _tensor(989.4e12, 1978.9e12, 1978.9e12), 33.5e12, 4.8e12, 50 << 20
        ),
        # NVIDIA A100 data sheet (80 GB SXM): 312 TFLOPS fp16, 624 TOPS int8, 19.5 fp32, 2.039 TB/s; white paper: 108
        # multiprocessors, 1.41 GHz, 40 MB level 2.
        "a100": Part(
            "NVIDIA A100", 80, 108, 1.41e9, _tensor(312e12, 624e12), 9.75e12, 2.039e12, 40 << 20, launch_pdl=1.5e-6
        ),
        # Jetson AGX Orin Series technical brief: 16 multiprocessors, 1.3 GHz, 170 sparse TOPS int8, 5.3 TFLOPS fp32,
        # 4 MB level 2, 204.8 GB/s. fp16 is half of dense int8, as on every Ampere part.
        "orin": Part(
            "Orin AGX 64GB",
            87,
            16,
            1.3e9,
            _tensor(42.5e12, 85e12),
            2.65e12,
            204.8e9,
            4 << 20,
            launch=3e-6,
            launch_pdl=3e-6,
            latency=1e-6,
        ),
        # Jetson Orin Nano Super developer kit data sheet: 1024 cores (8 multiprocessors), 1.02 GHz, 67 sparse TOPS,
        # 102 GB/s; the CUDA driver reports 2 MB of level 2.
        "orin_nano": Part(
            "Orin Nano 8GB",
            87,
            8,
            1.02e9,
            _tensor(16.7e12, 33.5e12),
            1.04e12,
            102e9,
            2 << 20,
            launch=4e-6,
            launch_pdl=4e-6,
            latency=1e-6,
        ),
        # Jetson T5000 data sheet: 2560 cores (20 multiprocessors), 1.57 GHz, 517 dense TFLOPS fp8, half of it in fp16,
        # 273 GB/s; the CUDA driver reports 32 MB of level 2.
        "thor": Part(
            "NVIDIA Thor",
            110,
            20,
            1.57e9,
            _tensor(258.5e12, 517e12, 517e12),
            4.02e12,
            273e9,
            32 << 20,
            launch=2.5e-6,
            launch_pdl=1.5e-6,
            latency=1e-6,
        ),
        # NVIDIA RTX Blackwell GPU Architecture white paper, GeForce RTX 5090: 170 multiprocessors, 2.407 GHz, 209.5
        # TFLOPS fp16 and 419 fp8 with fp32 sums, 838 TOPS int8, 104.8 TFLOPS fp32, 1.792 TB/s, 96 MB level 2.
        "rtx5090": Part(
            "NVIDIA GeForce RTX 5090",
            120,
            170,
            2.407e9,
            _tensor(209.5e12, 838e12, 419e12),
            52.4e12,
            1.792e12,
            96 << 20,
        ),
    }
)
"""Parts by a short name."""

REPRESENTATIVES: Mapping[int, str] = MappingProxyType({80: "a100", 87: "orin", 90: "h100", 110: "thor", 120: "rtx5090"})
"""Architecture -> the part that stands for it where nothing better is known."""


def part(name: str) -> Part:
    """The part of a short name, or whose CUDA name begins like ``name``.

    Raises:
        InputError: it is not listed.
    """
    found = PARTS.get(name) or next((p for p in PARTS.values() if name.startswith(p.name)), None)
    if found is None:
        raise InputError(f"no figures for the part {name!r}; known are {', '.join(PARTS)}")
    return found


def nearest_part(name: str, arch: int) -> Part:
    """The part called ``name`` where it is listed, else the one that stands for the nearest architecture."""
    for listed in PARTS.values():
        if name.startswith(listed.name):
            return listed
    return PARTS[REPRESENTATIVES[nearest_arch(arch, REPRESENTATIVES)]]


def nearest_arch(arch: int, known: Mapping[int, object]) -> int:
    """The architecture in ``known`` whose code fits ``arch`` best: the same generation first, then the newest older."""
    return min(known, key=lambda other: (other // 10 != arch // 10, other > arch, abs(other - arch)))
