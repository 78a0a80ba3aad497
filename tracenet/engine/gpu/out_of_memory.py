"""A device that runs out of memory, as an error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tracenet_kernels.errors import ExecutionError


@contextmanager
def named_out_of_memory(device: torch.device, what: str) -> Iterator[None]:
    """Raises ExecutionError in place of PyTorch's own error.

    Args:
        what: that memory is taken for.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ExecutionError(
            f"{device} has no room for {what} ({error}); free other sessions, use a smaller image or float16"
        ) from error
