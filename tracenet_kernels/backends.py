"""Which code runs a network: a frozen registry of backends.

A backend asked for by name either runs or fails with the reason and the remedy. ``"auto"`` takes the fastest one that
fits and says once per reason why it is not a faster one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tracenet_kernels import gpu, native
from tracenet_kernels.errors import BackendError

AUTO = "auto"

_log = logging.getLogger(__name__)
_said: set[str] = set()


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to run a network.

    Attributes:
        name: as callers write it.
        what: it is, in a few words.
        why_not: why it cannot run here, or an empty string where it can.
        require: raises BackendError with the reason and the remedy where it cannot.
        not_automatic: why ``"auto"`` passes it over although it can run, or an empty string.
        expected: whether its absence is worth a warning.
    """

    name: str
    what: str
    why_not: Callable[[], str]
    require: Callable[[], object]
    not_automatic: Callable[[], str] = lambda: ""
    expected: bool = True

    @property
    def available(self) -> bool:
        return not self.why_not()

    @property
    def automatic(self) -> bool:
        """Whether ``"auto"`` considers it here."""
        return self.available and not self.not_automatic()


BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        backend.name: backend
        for backend in (
            Backend(
                "triton",
                "Triton kernels in place on windows, NVIDIA GPUs, fp16, bf16 and fp32",
                gpu.why_not,
                gpu.require,
                lambda: "TRITON_INTERPRET runs it in an interpreter" if gpu.interpreted() else "",
                expected=False,
            ),
            Backend("native", "C++ kernels in place on windows, CPU, fp32", native.why_not, native.require),
            Backend("torch", "crop and pad in PyTorch, any device and dtype", lambda: "", lambda: None),
        )
    }
)
"""Every backend by name, the one that ``"auto"`` prefers first."""

NAMES = (AUTO, *BACKENDS)
"""What callers may ask for."""


def choose(name: object, obstacles: Mapping[str, str] = MappingProxyType({})) -> str:
    """The backend that is to run.

    Args:
        name: one of :data:`NAMES`.
        obstacles: backend -> why it does not fit what is to be run, as a clause.

    Returns:
        a name in :data:`BACKENDS`.

    Raises:
        BackendError: the name is not known, or the backend asked for is not available or does not fit.
    """
    if name == AUTO:
        return _best(obstacles)
    backend = BACKENDS.get(name) if isinstance(name, str) else None
    if backend is None:
        raise BackendError(f"backend {name!r} is not available; choose one of {NAMES}")
    backend.require()
    if obstacles.get(backend.name):
        raise BackendError(
            f"backend {backend.name!r} cannot run this: {obstacles[backend.name]}; choose {AUTO!r} or another backend"
        )
    return backend.name


def _best(obstacles: Mapping[str, str]) -> str:
    for backend in BACKENDS.values():
        absent = backend.why_not() or backend.not_automatic()
        reason = absent or obstacles.get(backend.name, "")
        if not reason:
            return backend.name
        if backend.expected or not absent:
            say_once(f"not using backend {backend.name!r}: {reason}")
    raise BackendError(f"no backend fits: {dict(obstacles)}")


def say_once(message: str) -> None:
    """Log a warning the first time this process meets it."""
    if message not in _said:
        _said.add(message)
        _log.warning(message)
