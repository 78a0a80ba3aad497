"""How many threads the native kernels use."""

from __future__ import annotations

from tracenet_kernels import native


def set_threads(count: int) -> None:
    """Use ``count`` threads, the calling one included; 0 means one per processor this process may run on.

    Raises:
        BackendError: the extension is not built.
        InputError: no integer, negative, or more than the pool allows.
    """
    native.require().set_threads(count)


def threads() -> int:
    """Threads that kernels use.

    Raises:
        BackendError: the extension is not built.
    """
    count: int = native.require().threads()
    return count
