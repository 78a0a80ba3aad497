"""What the predictor asks of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tracenet.inference import Canvas
from tracenet.resize import ResizedPhoto
from tracenet_kernels.window import Window

Parameters = Mapping[str, NDArray[np.float32]]
"""The mask head's inputs by name: ``theta`` [1, 169], ``origin`` [1, 2] and ``size_of_interest`` [1]."""


class PhasePlan(Protocol):
    """What one request computes: a :class:`tracenet.Plan`, or what another backend says of itself.

    Attributes:
        request: output name -> window on its plane.
        windows: name -> window, of every plane that was visited.
        planes: name -> rows and columns, of the same.
        macs, full_macs: multiply-adds of the request, and of the whole network at this size.
        barriers: steps that read whole planes.
    """

    @property
    def request(self) -> Mapping[Any, Window]: ...

    @property
    def windows(self) -> Mapping[str, Window]: ...

    @property
    def planes(self) -> Mapping[str, tuple[int, int]]: ...

    @property
    def macs(self) -> int: ...

    @property
    def full_macs(self) -> int: ...

    @property
    def barriers(self) -> Sequence[Any]: ...

    @property
    def planning_ms(self) -> float: ...

    def table(self, full: bool = False) -> str: ...


class Session(Protocol):
    """One photo at one scale, with the features kept for it."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of the kept features."""
        ...

    def run(
        self, request: Mapping[str, Window], parameters: Parameters | None = None
    ) -> tuple[PhasePlan, dict[str, NDArray[np.float32]]]:
        """Compute windows of the network's outputs.

        Args:
            request: output name -> window on its plane.
            parameters: of the mask head; needed where the request asks for a mask.

        Returns:
            The plan, and the windows by name, ``[1, C, window.height, window.width]``.
        """
        ...

    def forget(self) -> None:
        """Drop the kept features."""
        ...


class Network(Protocol):
    """A network on one backend, at every size that is asked of it."""

    backend: str

    def prepare(self, canvas: Canvas) -> None:
        """Do what a canvas' first session would otherwise wait for."""
        ...

    def session(self, photo: ResizedPhoto, canvas: Canvas, max_kept_bytes: int) -> Session:
        """A session on ``photo``, which is resized to the canvas; nothing is computed yet."""
        ...

    def full_macs(self, canvas: Canvas) -> int:
        """Multiply-adds of the whole network on a canvas."""
        ...
