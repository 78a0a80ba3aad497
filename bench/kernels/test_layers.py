"""The same layers under pytest-benchmark: ``python -m pytest bench/kernels/test_layers.py``.

Correctness is asserted before a layer is timed; no time is asserted.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.kernels.layers import Layer, standard_layers
from bench.kernels.measure import TOLERANCE, make_case
from tracenet_kernels import native
from tracenet_kernels.threads import set_threads

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())

THREADS = 2


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    set_threads(THREADS)
    yield
    torch.set_num_threads(before)
    set_threads(0)


def _layers() -> dict[str, Layer]:
    if not native.available():
        return {}
    return {names[0]: layer for layer, names in standard_layers((3, 7)).items()}


LAYERS = _layers()


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_layer(benchmark: BenchmarkFixture, layer: Layer) -> None:
    case = make_case(layer, seed=0)
    assert case.max_rel_error <= TOLERANCE
    benchmark.extra_info["macs"] = layer.macs
    benchmark.pedantic(case.run, setup=case.refresh, rounds=5, warmup_rounds=1)
