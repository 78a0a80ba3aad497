"""The choice of a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracenet.sessions.base import Network
from tracenet_kernels.errors import BackendError

if TYPE_CHECKING:
    from tracenet.checkpoint import Checkpoint
    from tracenet.models import TraceNet

BACKENDS = ("auto", "torch")


def choose_backend(backend: str) -> str:
    """The backend that a name asks for.

    Raises:
        BackendError: no backend has that name.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} is not available; choose one of {BACKENDS}")
    return "torch"


def open_network(source: TraceNet | Checkpoint, backend: str) -> Network:
    """The network of a model, or of an opened checkpoint, on a backend.

    Raises:
        BackendError: the backend is not available.
    """
    choose_backend(backend)
    from tracenet.checkpoint import Checkpoint
    from tracenet.sessions.torch_session import TorchNetwork

    return TorchNetwork(source.model if isinstance(source, Checkpoint) else source)
