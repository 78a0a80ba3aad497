"""Ahead-of-time gate: compile every launch for every architecture without a GPU, and look at the machine code.

``python -m tracenet_kernels.triton.aot [--arch 80 90 ...] [--json FILE] [--quick]``, or ``make aot``. It fails, exit
code 1, where a kernel does not compile, spills registers, lacks the tensor-core instructions it is meant to have, or
asks for more shared memory or registers than the architecture has. Architectures that the installed Triton or its
assembler do not know are named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tracenet_kernels.errors import BackendError, InputError
from tracenet_kernels.triton.devices import (
    REGISTERS_MULTIPROCESSOR,
    REGISTERS_THREAD,
    TENSOR_MEMORY_COLUMNS,
    limits,
)
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.sass import MachineCode, machine_code
from tracenet_kernels.triton.text import aligned

ARCHS = (80, 87, 90, 110, 120)
QUICK_ARCHS = (80, 90)


@dataclass(frozen=True, slots=True)
class Job:
    """A kernel to compile, as plain data that another process can take.

    Attributes:
        kernel: ``module:name``.
        arch: 90 for ``sm_90a``.
        source: pickled signature, constants and attributes of the source, and the options.
        identity: the same as text; jobs that agree in it are the same kernel.
        names: of the launches that it serves.
        tensor_cores: whether its machine code must hold tensor-core instructions.
    """

    kernel: str
    arch: int
    source: bytes
    identity: str
    names: tuple[str, ...] = ()
    tensor_cores: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a job; ``problems`` is empty where it passes."""

    kernel: str
    arch: int
    names: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    shared: int = 0
    tensor_memory: int = 0
    code: MachineCode | None = None
    problems: tuple[str, ...] = ()


def unsupported(arch: int) -> str:
    """Why nothing can be compiled for an architecture here, as a clause; an empty string where it can."""

    from triton.backends.nvidia.compiler import get_ptxas

    try:
        ptxas = get_ptxas(arch).path
        text = subprocess.run([ptxas, "--help"], capture_output=True, text=True, check=True).stdout
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        return f"Triton's assembler does not run ({error})"
    name = f"sm_{arch}{'a' if arch >= 90 else ''}"
    return "" if f"'{name}'" in text else f"Triton's assembler does not know {name}"


def jobs_of(launches: Iterable[Launch], arch: int) -> list[Job]:
    """The distinct kernels of launches on one architecture, specialised as Triton specialises them at a launch.

    Raises:
        BackendError: kernels were defined for Triton's interpreter.
        InputError: an argument of a launch is none of its kernel's.
    """
    found: dict[str, Job] = {}
    for launch in launches:
        job = job_of(launch, arch)
        known = found.get(job.identity, job)
        names = tuple(dict.fromkeys((*known.names, launch.name)))
        found[job.identity] = replace(known, names=names, tensor_cores=known.tensor_cores or launch.tensor_cores)
    return list(found.values())


def job_of(launch: Launch, arch: int) -> Job:
    """The kernel of a launch; see :func:`jobs_of`."""
    from triton.runtime.jit import JITFunction

    kernel = launch.kernel
    if not isinstance(kernel, JITFunction):
        raise BackendError(
            f"{launch.name}: the kernel is {type(kernel).__name__}; set TRITON_INTERPRET=0 before kernels are imported"
        )
    keywords = {**launch.args, **launch.meta, **launch.options, "debug": False, "instrumentation_mode": ""}
    backend, binder = _binder(kernel, arch)
    try:
        bound, specialisation, options = binder(**keywords)
        options, signature, constants, attributes = kernel._pack_args(backend, keywords, bound, specialisation, options)
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{launch.name}: {kernel.__name__} does not take these arguments ({error})") from error
    plain = {path: _Reference.of(value) for path, value in constants.items()}
    parts = (signature, plain, attributes, dict(sorted(launch.options.items())))
    name = f"{kernel.__module__}:{kernel.__name__}"
    return Job(name, arch, pickle.dumps(parts), f"{name} {parts}", (launch.name,), launch.tensor_cores)


@lru_cache(maxsize=256)
def _binder(kernel: Any, arch: int) -> tuple[Any, Callable[..., Any]]:
    """Triton's own reading of a launch's arguments, which needs the architecture but no device."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(GPUTarget("cuda", arch, 32))
    return backend, create_function_from_signature(kernel.signature, kernel.params, backend)


@dataclass(frozen=True, slots=True)
class _Reference:
    """A kernel among the constants of another, by name."""

    name: str

    @classmethod
    def of(cls, value: Any) -> Any:
        from triton.runtime.jit import JITFunction

        return cls(f"{value.__module__}:{value.__name__}") if isinstance(value, JITFunction) else value


def _kernel(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def compile_job(job: Job) -> Result:
    """Compile a kernel, or find it in Triton's cache, and judge its machine code."""
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes, options = pickle.loads(job.source)
    kernel = _kernel(job.kernel)
    named = {kernel.arg_names[path[0]]: _printable(value) for path, value in constants.items() if len(path) == 1}
    real = {path: _kernel(v.name) if isinstance(v, _Reference) else v for path, v in constants.items()}
    source = ASTSource(kernel, signature, real, attributes)
    shown = {"kernel": job.kernel, "arch": job.arch, "names": job.names, "options": options, "constants": named}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the whole assembly, where the assembler fails
            compiled = triton_compile(source, target=GPUTarget("cuda", job.arch, 32), options=options)
        code = machine_code(compiled.asm["cubin"])
    except Exception as error:  # the compiler raises whatever it meets; the gate goes on to the next kernel
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        return Result(**shown, problems=(f"does not compile: {type(error).__name__}: {lines[-1].strip()[:300]}",))
    result = Result(
        **shown,
        shared=compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", 0) or 0,
        code=code,
    )
    found = problems(result, compiled.metadata.num_warps, job.tensor_cores)
    return Result(**shown, shared=result.shared, tensor_memory=result.tensor_memory, code=code, problems=tuple(found))


def _printable(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(getattr(value, "name", value))


def problems(result: Result, warps: int, tensor_cores: bool) -> list[str]:
    """Why a compiled kernel does not pass."""
    code, bound = result.code, limits(result.arch)
    if code is None:
        return ["is not compiled"]
    found = []
    if code.spills:
        found.append(
            f"spills: {code.local_bytes} bytes of local memory, {code.spill_stores} stores, {code.spill_loads} loads"
        )
    if tensor_cores and not code.tensor_core:
        found.append("has no tensor-core instruction")
    if result.shared > bound.shared_block:
        found.append(f"asks for {result.shared} bytes of shared memory; {bound.shared_block} is the most")
    if code.registers > REGISTERS_THREAD or code.registers * 32 * warps > REGISTERS_MULTIPROCESSOR:
        found.append(f"takes {code.registers} registers in each of {32 * warps} threads")
    if result.tensor_memory > TENSOR_MEMORY_COLUMNS:
        found.append(f"takes {result.tensor_memory} columns of tensor memory; {TENSOR_MEMORY_COLUMNS} is the most")
    return found


def compile_all(
    jobs: Sequence[Job], processes: int | None = None, done: Callable[[], None] = lambda: None
) -> list[Result]:
    """Compile in several processes; results in the order of the jobs.

    Args:
        jobs: what to compile.
        processes: how many; as many as there are processors where it is not given, none where it is 0.
        done: called after each job.
    """
    processes = min(os.cpu_count() or 1 if processes is None else processes, len(jobs))
    if processes < 2:
        results = []
        for job in jobs:
            results.append(compile_job(job))
            done()
        return results
    # Fresh processes: the compiler is not made to be forked, and they import the kernels by name.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = {pool.submit(compile_job, job): i for i, job in enumerate(jobs)}
        found: dict[int, Result] = {}
        for future in as_completed(waiting):
            found[waiting[future]] = future.result()
            done()
    return [found[i] for i in range(len(jobs))]


_HEAD = (
    "arch",
    "kernel",
    "launches",
    "warps",
    "stages",
    "regs",
    "spills",
    "shared",
    "tensor cores",
    "TMA",
    "async",
    "code",
)


def table(results: Sequence[Result]) -> str:
    """One aligned line per compiled kernel."""
    return "\n".join(aligned([_HEAD, *(_cells(result) for result in results)], left={1, 2, 8}))


def _cells(result: Result) -> tuple[str, ...]:
    first = f"{result.names[0]}{f' +{len(result.names) - 1}' if len(result.names) > 1 else ''}" if result.names else ""
    head = (
        str(result.arch),
        result.kernel.rpartition(":")[2],
        first,
        str(result.options.get("num_warps", "")),
        str(result.options.get("num_stages", "")),
    )
    code = result.code
    if code is None:
        return (*head, *("-" for _ in _HEAD[len(head) :]))
    return (
        *head,
        str(code.registers),
        f"{code.spill_stores}/{code.spill_loads}" if code.spills else "0",
        str(result.shared),
        " ".join(f"{times} {name}" for name, times in sorted(code.tensor_core.items())) or "-",
        str(code.tma),
        str(code.async_copies),
        str(code.instructions),
    )


def as_json(results: Sequence[Result], left_out: Mapping[int, str]) -> dict[str, Any]:
    """Results as plain data."""
    import triton

    return {
        "triton": triton.__version__,
        "left_out": {str(arch): why for arch, why in left_out.items()},
        "failed": sum(bool(result.problems) for result in results),
        "kernels": [asdict(result) for result in results],
    }


def gate(launches_of: Callable[[int], Iterable[Launch]], archs: Sequence[int]) -> tuple[list[Result], dict[int, str]]:
    """Compile the launches of every architecture.

    Args:
        launches_of: architecture -> launches as they would be built on it.
        archs: architectures.

    Returns:
        results, and why some architectures are left out.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    left_out = {arch: why for arch in archs if (why := unsupported(arch))}
    jobs = [job for arch in archs if arch not in left_out for job in jobs_of(launches_of(arch), arch)]
    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=len(jobs))
        results = compile_all(jobs, done=lambda: progress.advance(task))
    return results, left_out


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print, and say by the exit code whether everything passes."""
    parser = argparse.ArgumentParser(prog="python -m tracenet_kernels.triton.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=None, help=f"compute capabilities (default: {ARCHS})")
    parser.add_argument("--json", type=Path, default=None, help="file to write the table to")
    parser.add_argument("--quick", action="store_true", help=f"one dtype per kernel, on {QUICK_ARCHS} only")
    parser.add_argument("--only", default="", help="launches whose name holds this")
    options = parser.parse_args(arguments)
    os.environ["TRITON_INTERPRET"] = "0"  # kernels are imported below
    from tracenet_kernels.triton.cases import launches

    archs = options.arch or (QUICK_ARCHS if options.quick else ARCHS)

    def of(arch: int) -> list[Launch]:
        return [launch for launch in launches(arch, quick=options.quick) if options.only in launch.name]

    results, left_out = gate(of, archs)
    print(table(results))
    for arch, why in left_out.items():
        print(f"sm_{arch} is left out: {why}")
    failed = [result for result in results if result.problems]
    for result in failed:
        for problem in result.problems:
            print(f"sm_{result.arch} {result.kernel} ({', '.join(result.names[:3])}) {problem}")
            print(f"    {result.options} {result.constants}")
    print(f"{len(results)} kernels compiled, {len(failed)} do not pass")
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(results, left_out), indent=1) + "\n", encoding="utf-8")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    # By its own name: the other processes import this module so, and take its jobs.
    from tracenet_kernels.triton.aot import main as run

    sys.exit(run())
