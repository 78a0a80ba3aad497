"""Stages that measure no speed: what the machine is, the installation, the tests, the memory checkers, tuning."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

from bench.gpu.children import Ended, run_child
from bench.gpu.journal import Case, Journal, OutOfTime, Row
from bench.gpu.machine import ROOT, Machine, driver_facts
from tracenet_kernels.env_report import report

PACKAGES = {
    "numpy": "everything",
    "torch": "everything",
    "triton": "the kernels",
    "PIL": "photos (pip: pillow)",
    "safetensors": "the checkpoint",
    "rich": "tables",
    "pytest": "the stage tests",
    "hypothesis": "the stage tests",
    "typer": "tracenet tune",
    "platformdirs": "where measured configurations and programs are kept",
    "filelock": "where measured configurations and programs are kept",
}
"""Modules that stages import, and what needs them. Nothing else is needed on the machine."""
TESTS = ("tests/kernels/triton/test_*.py", "tests/engine/gpu/test_*.py", "tests/sessions/test_triton*.py")
DRY_TESTS = ("tests/kernels/test_testing.py",)
TEST_JOBS = 4
"""Test files at the same time: most of their time goes into compiling kernels on the processor."""
TOOLS = ("memcheck", "racecheck", "synccheck")
TOOL_PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/compute-sanitizer")
FOUND_ERRORS = 9
"""Exit code that a checker is told to give where it finds something."""
TUNE_MARGIN = 60
"""Seconds that the last layer of a tuning call may take."""
CLI = "from tracenet.cli import main; raise SystemExit(main())"


def env_cases(machine: Machine) -> dict[str, Case]:
    """What results depend on, and whether all packages are there."""

    def device() -> Row:
        return {"status": "ok", "driver": driver_facts(), "report": report().splitlines(), "packages": PACKAGES}

    def packages() -> Row:
        missing = {name: use for name, use in PACKAGES.items() if importlib.util.find_spec(name) is None}
        if missing:
            uses = ", ".join(f"{name} ({use})" for name, use in missing.items())
            return {"status": f"failed: not installed: {uses}; install them with pip --no-deps"}
        return {"status": "ok"}

    def ceilings() -> Row:
        import torch

        return {"status": "ok", **machine.ceilings(torch.float32 if machine.dry else torch.float16)}

    return {"device": device, "packages": packages, "ceilings": ceilings}


def build_cases(machine: Machine, journal: Journal) -> dict[str, Case]:
    """Install the package beside PyTorch, which stays as it is; the sources are on the path in any case."""
    logs = journal.path.parent / "logs"

    def package() -> Row:
        if machine.dry:
            return {"status": "skipped: dry run"}
        if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
            return {"status": "skipped: pip or setuptools is not there; the sources are used from where they lie"}
        install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-e", "."]
        ended = run_child(install, journal.seconds_left, logs / "install.log")
        if ended.code == 0:
            return {"status": "ok"}
        inplace = [sys.executable, "setup.py", "build_ext", "--inplace"]
        built = run_child(inplace, journal.seconds_left, logs / "build_ext.log")
        how = "the extension was built in place" if built.code == 0 else "nor was the extension built in place"
        return {"status": f"skipped: not installed ({_last(ended)}); {how}"}

    def extension() -> Row:
        program = "from tracenet_kernels import native; import torch; print(torch.__version__); print(native.why_not())"
        ended = run_child([sys.executable, "-c", program], 120, logs / "extension.log")
        lines = ended.output.splitlines()
        if ended.code != 0:
            return {"status": f"failed: the package cannot be imported: {_last(ended)}"}
        reason = lines[1] if len(lines) > 1 else ""
        row: Row = {"torch_after": lines[0], "native": not reason}
        if reason:
            slow = "clicks are planned in Python, which is slow, and nothing is kept between them"
            return {**row, "status": f"skipped: no C++ extension ({reason}): {slow}"}
        return {**row, "status": "ok"}

    return {"package": package, "extension": extension}


def test_cases(machine: Machine, journal: Journal) -> dict[str, Case]:
    """One per test file, each in a process of its own: an illegal access ends no more than that."""
    patterns = DRY_TESTS if machine.dry else TESTS
    files = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    return {str(path.relative_to(ROOT)): lambda p=path: _test_file(p, machine, journal) for path in files}


def _test_file(path: Path, machine: Machine, journal: Journal) -> Row:
    folder = journal.path.parent / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    xml = folder / f"{path.stem}.xml"
    xml.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={xml}", str(path)]
    env = {"TRITON_INTERPRET": "1" if machine.dry else "0", "CI": "1"}
    ended = run_child(command, journal.seconds_left, folder / f"{path.stem}.log", env)
    if ended.code is None:
        raise OutOfTime
    if ended.code == 5:
        return {"status": "skipped: it holds no test for this machine"}
    if not xml.is_file():
        return {"status": f"failed: pytest ended with {ended.code}: {_last(ended)}"}
    return junit_row(xml)


def junit_row(path: Path) -> Row:
    """Counts of a JUnit file, and the first line of each failure."""
    suites = ElementTree.parse(path).getroot().iter("testsuite")
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    failed: dict[str, str] = {}
    for suite in suites:
        for name in counts:
            counts[name] += int(suite.get(name, 0))
        for case in suite.iter("testcase"):
            for problem in (*case.iter("failure"), *case.iter("error")):
                failed[case.get("name", "?")] = (problem.get("message") or "").splitlines()[0][:300]
    bad = counts["failures"] + counts["errors"]
    return {"status": f"failed: {bad} of {counts['tests']} tests" if bad else "ok", **counts, "failed": failed}


def sanitizer_cases(machine: Machine, journal: Journal) -> dict[str, Case]:
    """Every kernel family on small planes, alone and under each of NVIDIA's checkers."""
    smoke = [sys.executable, "-m", "bench.gpu", "smoke", *(["--dry-run"] if machine.dry else [])]
    logs = journal.path.parent / "logs"

    def plain() -> Row:
        ended = run_child(smoke, journal.seconds_left, logs / "smoke.log")
        if ended.code is None:
            raise OutOfTime
        return {"status": "ok" if ended.code == 0 else f"failed: {_last(ended)}"}

    def checked(tool: str) -> Row:
        binary = shutil.which("compute-sanitizer", path=os.pathsep.join((os.environ.get("PATH", ""), *TOOL_PLACES)))
        if binary is None:
            return {"status": "skipped: compute-sanitizer is not installed"}
        command = [binary, "--tool", tool, "--error-exitcode", str(FOUND_ERRORS), *smoke]
        # Each tensor in an allocation of its own, so that a read past its end is seen.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        ended = run_child(command, journal.seconds_left, logs / f"{tool}.log", alone)
        if ended.code is None:
            raise OutOfTime
        if ended.code == FOUND_ERRORS:
            return {"status": f"failed: {_last(ended)}", "output": ended.output.splitlines()}
        if ended.code:
            return {"status": f"skipped: {tool} ended with {ended.code}: {_last(ended)}"}
        return {"status": "ok"}

    return {"plain": plain, **{tool: lambda t=tool: checked(t) for tool in TOOLS}}


def tune_cases(machine: Machine, journal: Journal) -> dict[str, Case]:
    """``tracenet tune``, only where it is asked for: it takes long, and what it finds changes what is measured."""

    def tune() -> Row:
        if os.environ.get("TRACENET_SUITE_TUNE", "0") in ("", "0"):
            return {"status": "skipped: not asked for; TRACENET_SUITE_TUNE=1 does"}
        if machine.dry:
            return {"status": "skipped: dry run"}
        words = shlex.split(os.environ.get("TRACENET_SUITE_TUNE_ARGS", ""))
        log = journal.path.parent / "logs" / "tune.log"
        # A layer takes a while: it stops beginning new ones before the time is up.
        seconds = str(int(max(1, journal.seconds_left - TUNE_MARGIN)))
        command = [sys.executable, "-c", CLI, "tune", "--json", "--seconds", seconds, *words]
        ended = run_child(command, journal.seconds_left, log)
        if ended.code is None:
            raise OutOfTime
        if ended.code:
            return {"status": f"failed: {_last(ended)}"}
        found = json.loads(_last(ended))
        if found["left"]:
            raise OutOfTime(progress=found["new"] > 0)
        return {"status": "ok", **found}

    return {"tune": tune}


def _last(ended: Ended) -> str:
    lines = [line for line in ended.output.splitlines() if line.strip()]
    return lines[-1][:1000] if lines else f"exit code {ended.code}, nothing was printed"
