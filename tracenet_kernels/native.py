"""The C++ extension, loaded on first use. The only module that imports ``tracenet_kernels._C``."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from tracenet_kernels.errors import BackendError

_HOW_TO_BUILD = (
    "install a C++17 compiler and run `TRACENET_BUILD_NATIVE=1 pip install --editable .` in the source tree, "
    "which shows why where it does not build"
)


_LATEST = "group_norm"
"""What the extension got last: one without it was built from older sources."""


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        module = importlib.import_module("tracenet_kernels._C")
        if not hasattr(module, _LATEST):
            return None, f"the C++ extension {module.__file__} was built from older sources"
        return module, ""
    except ModuleNotFoundError:
        return None, "the C++ extension is not built"
    except ImportError as error:
        return None, f"the C++ extension is built but does not load ({error})"


def available() -> bool:
    """True where the C++ extension is built and loads."""
    return _load()[0] is not None


def why_not() -> str:
    """Why the extension is not available, or an empty string where it is."""
    return _load()[1]


def require() -> ModuleType:
    """The extension module.

    Raises:
        BackendError: it is not available; the message says why and how to build it.
    """
    module, reason = _load()
    if module is None:
        raise BackendError(f"{reason}; {_HOW_TO_BUILD}")
    return module
