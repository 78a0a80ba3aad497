"""What this installation is and can do: ``python -m tracenet_kernels.env_report``.

The text to paste into a bug report or beside a measurement.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from tracenet_kernels import native
from tracenet_kernels.backends import BACKENDS

_PACKAGES = ("tracenet", "torch", "numpy", "triton", "onnxruntime")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    if native.available():
        features = native.require().cpu_features()
        extra = [name for name in ("avx2_fma", "avx512f", "avx512_vnni", "neon") if features[name]]
        return f"{features['isa']} ({', '.join(extra) or 'no vector extensions'})"
    return f"{torch.backends.cpu.get_cpu_capability().lower()} (as PyTorch sees it; {native.why_not()})"


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return ["none (PyTorch is built without CUDA)" if torch.version.cuda is None else "none (no device found)"]
    lines = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        lines.append(
            f"{device.name}, sm_{device.major}{device.minor}, {device.multi_processor_count} SMs, "
            f"{device.total_memory / 2**30:.1f} GiB"
        )
    return lines


def _backends() -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for b in BACKENDS.values():
        state = f"not available: {reason}" if (reason := b.why_not()) else b.not_automatic() or "available"
        rows.append((f"backend {b.name}", f"{b.what}, {state}"))
    return rows


def report() -> str:
    """Versions, processor, threads, GPUs and backends as aligned ``name  value`` lines."""
    rows = [
        ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("platform", platform.platform()),
        *((package, _version(package)) for package in _PACKAGES),
        ("instruction set", _processor()),
        ("threads", f"{torch.get_num_threads()} (PyTorch) of {os.cpu_count()} processors"),
        *(("gpu", line) for line in _gpus()),
        *_backends(),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


if __name__ == "__main__":
    print(report())
