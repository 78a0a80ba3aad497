"""Small kernels for the tests of the ahead-of-time gate, which compile them in a process of their own."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
import triton.language as tl

from tracenet_kernels.triton import aot
from tracenet_kernels.triton.launch import Launch


@triton.jit
def product(a, b, c, depth, scale, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    acc = tl.zeros((M, N), tl.float32)
    for start in range(0, depth, K):
        x = tl.load(a + m[:, None] * depth + (start + k)[None, :])
        y = tl.load(b + n[None, :] * depth + (start + k)[:, None])
        acc = tl.dot(x, y, acc)
    tl.store(c + m[:, None] * N + n[None, :], (acc * scale).to(c.dtype.element_ty))


@triton.jit
def copy(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)


def product_launch(name: str, depth: int, side: int = 64, inner: int = 32, **options: Any) -> Launch:
    a, b = (torch.empty(side, depth, dtype=torch.float16) for _ in range(2))
    args = {"a": a, "b": b, "c": torch.empty(side, side), "depth": depth, "scale": 0.5}
    meta = {"M": side, "N": side, "K": inner}
    return Launch(name, product, (1, 1, 1), args, meta, {"num_warps": 4, **options}, tensor_cores=True)


def copy_launch(name: str, x: torch.Tensor, n: int, *, tensor_cores: bool = False) -> Launch:
    args = {"x": x, "y": torch.empty(128), "n": n}
    return Launch(name, copy, (1, 1, 1), args, {"BLOCK": 128}, tensor_cores=tensor_cores)


def launches() -> list[Launch]:
    return [
        product_launch("first", 128, num_stages=3),
        product_launch("alike", 256, num_stages=3),  # the same divisibility
        product_launch("spilling", 128, side=128, num_stages=2, maxnreg=64),
        product_launch("large", 128, side=128, inner=128, num_stages=5, maxnreg=None),
        copy_launch("plain", torch.empty(128), 1),
        copy_launch("cores", torch.empty(129)[1:], 100, tensor_cores=True),
        Launch("broken", copy, (1, 1, 1), {"x": torch.empty(4), "y": torch.empty(4), "n": 4}, {"BLOCK": 100}),
    ]


def main() -> None:
    """Print what becomes of them on the architectures given as arguments."""
    found = {}
    for arch in map(int, sys.argv[1:]):
        jobs = aot.jobs_of(launches() if arch < 90 else launches()[:1], arch)
        found[arch] = aot.as_json(aot.compile_all(jobs, 0), {})["kernels"]
    print(json.dumps({"kernels": found, "no_part": aot.unsupported(999)}))


if __name__ == "__main__":
    from tests.kernels.triton.aot_kernels import main as run  # kernels are found again by their module's name

    run()
