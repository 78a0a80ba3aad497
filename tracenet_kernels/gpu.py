"""Whether Triton kernels can run here; imports neither PyTorch nor Triton until it is asked."""

from __future__ import annotations

import importlib.util
import os
import sys

from tracenet_kernels.errors import BackendError

_DRIVER_FILES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/nvmap", "/dev/dxg")
"""What NVIDIA's drivers for servers and desktops, Jetsons, and WSL put there."""
MIN_CAPABILITY = (8, 0)
"""The oldest compute capability with the tensor-core instructions and asynchronous copies that kernels use."""


def interpreted() -> bool:
    """Whether TRITON_INTERPRET asks for Triton's interpreter, which needs no GPU and is very slow."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


def why_not() -> str:
    """Why no Triton kernel can run here, as a clause; an empty string where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with PyTorch's CUDA wheels for Linux; or install tracenet[gpu])"
    if interpreted():
        return ""
    # A glance at the driver first: importing PyTorch takes a second, which the native backend does without.
    if sys.platform == "linux" and not any(map(os.path.exists, _DRIVER_FILES)):
        return "there is no NVIDIA driver"
    import torch

    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        return f"{torch.cuda.get_device_name()} has compute capability {capability}; kernels need {MIN_CAPABILITY}"
    return ""


def require() -> None:
    """Raises BackendError where no Triton kernel can run here."""
    if reason := why_not():
        raise BackendError(f"backend 'triton' cannot run here: {reason}; choose 'auto', 'native' or 'torch'")
