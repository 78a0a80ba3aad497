"""Measure a GPU, stage by stage; ``bench/gpu_suite.sh`` runs all of them.

    python -m bench.gpu kernels --json results/kernels.json
    python -m bench.gpu show results

A stage writes its file after every case and goes on where it stopped when it is called again. Its exit code is 0 where
all is right, 1 where a case failed, 2 where the machine or the arguments are not possible, 75 where cases are left.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.gpu.journal import Journal
    from bench.gpu.machine import Machine
    from bench.gpu.options import Options

STAGES = ("env", "build", "tests", "sanitizer", "tune", "kernels", "end_to_end", "predictor")


def main(arguments: list[str] | None = None) -> int:
    """Parse arguments, then one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=(*STAGES, "show", "smoke", "compiled"))
    parser.add_argument("folder", nargs="?", type=Path, help="with results, for show")
    parser.add_argument("--json", type=Path, help="file of a stage")
    parser.add_argument("--seconds", type=float, default=420.0, help="of this call")
    parser.add_argument("--precisions", default=os.environ.get("TRACENET_SUITE_PRECISIONS", "float16"))
    parser.add_argument("--precision", default="float16", help="of compiled")
    parser.add_argument("--size", default="", help="of compiled, WxH")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, no GPU, no clock")
    options = parser.parse_args(arguments)
    dry = options.dry_run or os.environ.get("TRACENET_SUITE_DRY", "0") not in ("", "0")
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before the first kernel is defined
    if options.command == "show":
        return _show(options.folder or Path("."))
    from tracenet_kernels.errors import TraceNetError

    try:
        return _measure(options, dry)
    except TraceNetError as error:
        print(f"bench.gpu {options.command}: {error}", file=sys.stderr)
        return 2


def _show(folder: Path) -> int:
    from rich.console import Console

    from bench.gpu.show import picture, show

    show(folder, Console(width=240, highlight=False))
    if (folder / "end_to_end.json").is_file():
        reason = picture(folder, folder / "end_to_end.png")
        if reason:
            print(f"No picture: {reason}.")
    return 0


def _measure(options: argparse.Namespace, dry: bool) -> int:
    from rich.console import Console

    from bench.gpu import options as choices
    from bench.gpu.journal import FAILED, Journal
    from bench.gpu.machine import Machine
    from bench.gpu.show import show_stage
    from tracenet.files import check_target, save_json
    from tracenet_kernels.errors import InputError

    machine = Machine(dry)
    chosen = choices.DRY if dry else choices.Options().with_precisions(options.precisions.split(","))
    if options.command == "smoke":
        from bench.gpu.smoke import smoke

        smoke(machine)
        return 0
    if options.json is None:
        raise InputError(f"{options.command} writes a file; give it with --json")
    check_target(options.json)
    if options.command == "compiled":
        from bench.gpu.end_to_end import compiled

        width, _, height = options.size.partition("x")
        if not (width.isdigit() and height.isdigit()) or options.precision not in choices.PRECISIONS:
            raise InputError(f"size {options.size!r}, precision {options.precision!r}; give WxH and a known precision")
        save_json(
            compiled((int(width), int(height)), choices.PRECISIONS[options.precision], chosen, machine), options.json
        )
        return 0
    key = machine.key()
    if options.command in ("kernels", "end_to_end", "predictor"):
        key = ":".join((key, options.precisions, machine.configurations()))
    if options.command == "tune":
        key = ":".join((key, *(os.environ.get(f"TRACENET_SUITE_TUNE{more}", "") for more in ("", "_ARGS"))))
    journal = Journal(options.json, options.command, key, machine.facts(), options.seconds)
    try:
        code = journal.code if journal.complete else _stage(options.command, chosen, machine, journal)
        journal.put("failure", None)
    except Exception as error:  # before the first case, such as while the network is captured
        code = FAILED
        journal.put("failure", f"{type(error).__name__}: {error}")
        traceback.print_exc()
    show_stage(journal.data, Console(width=240, highlight=False))
    return code


def _stage(name: str, options: Options, machine: Machine, journal: Journal) -> int:
    if name in ("env", "build", "tests", "sanitizer", "tune"):
        from bench.gpu import checks

        found = {
            "env": lambda: checks.env_cases(machine),
            "build": lambda: checks.build_cases(machine, journal),
            "tests": lambda: checks.test_cases(machine, journal),
            "sanitizer": lambda: checks.sanitizer_cases(machine, journal),
            "tune": lambda: checks.tune_cases(machine, journal),
        }[name]()
        return journal.run(found, machine.broken, checks.TEST_JOBS if name == "tests" and not machine.dry else 1)
    if name == "kernels":
        from bench.gpu import kernels

        journal.put("timer_floor_us", kernels.timer_floor(machine))
        return journal.run(kernels.cases(options, machine), machine.broken)
    if name == "end_to_end":
        from bench.gpu import end_to_end

        journal.put("kernels", end_to_end.kernel_summary(journal.path.parent))
        return journal.run(end_to_end.cases(options, machine, journal), machine.broken)
    from bench.gpu import predictor

    return journal.run(predictor.cases(options, machine), machine.broken)


if __name__ == "__main__":
    raise SystemExit(main())
