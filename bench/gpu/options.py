"""What is measured, and how often: the real thing, and the few cells of a dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.end_to_end.network import Levels, build_model
from bench.gpu.network import PRECISIONS, Precision, tiny_model
from tracenet.models import TraceNet
from tracenet.standard import Size
from tracenet_kernels.errors import InputError


@dataclass(frozen=True)
class Options:
    """Of all stages.

    Attributes:
        sizes: width and height; the launches are measured at the second one.
        rounds: samples of everybody, warm and cold each.
        clicks: random ones that one captured graph serves.
        pairs: first and second clicks; 0: the one that warms up counts.
        compile_seconds: of ``torch.compile``, for one size.
    """

    sizes: tuple[Size, ...] = ((640, 480), (1024, 768), (2048, 1536))
    levels: tuple[Levels, ...] = ((3, 7), (3, 5))
    precisions: tuple[Precision, ...] = (PRECISIONS["float16"],)
    rounds: int = 30
    clicks: int = 100
    pairs: int = 20
    compile_seconds: int = 400
    dry: bool = False

    @property
    def kernel_size(self) -> Size:
        return self.sizes[min(1, len(self.sizes) - 1)]

    def model(self) -> TraceNet:
        return tiny_model() if self.dry else build_model()

    def with_precisions(self, names: Sequence[str]) -> Options:
        """Others than float16. Raises InputError where one is not known."""
        unknown = [name for name in names if name not in PRECISIONS]
        if unknown or not names:
            raise InputError(f"precision {', '.join(unknown) or 'none'}: choose among {', '.join(PRECISIONS)}")
        return replace(self, precisions=tuple(PRECISIONS[name] for name in names))


DRY = Options(
    sizes=((64, 32),),
    levels=((3, 3),),
    precisions=(PRECISIONS["float32"],),
    rounds=1,
    clicks=2,
    pairs=0,
    compile_seconds=30,
    dry=True,
)
"""Float32: the interpreter's half-precision products are slow."""
