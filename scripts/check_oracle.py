"""Compare the tracer with windows and multiply-adds computed elsewhere.

    python scripts/check_oracle.py windows.json

Prints one line per case and a final count; exits with 1 if a window or a number differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tracenet.models import TraceNetConfig
from tracenet.standard import standard_plan, summary

SHOWN = 5


def check_case(case: dict[str, Any], num_classes: int = 80) -> list[str]:
    """What differs between our plan and one case; empty if nothing does."""
    config = TraceNetConfig(
        depth=case["depth"],
        stride_in_1x1=case["stride_in_1x1"],
        mask_branch=case["mask_branch"],
        num_classes=num_classes,
    )
    cells = case["mask_cells"] or "none"
    cells = int(cells) if cells not in ("all", "none") else cells
    size = (case["width"], case["height"])
    plan = standard_plan(config, size, tuple(case["click"]), tuple(case["levels"]), cells)
    request = {str(key): [w.y0, w.y1, w.x0, w.x1] for key, w in plan.request.items()}
    ours = summary(plan)
    return [
        *_compare("request", request, case["requests"]),
        *_compare("window", ours["windows"], case["windows"]),
        *_compare("macs", ours["macs"], _renamed(case["macs"])),
        *_compare("full_macs", ours["full_macs"], _renamed(case["full_macs"])),
    ]


def _renamed(macs: dict[str, int]) -> dict[str, int]:
    return {name.lower(): value for name, value in macs.items()}


def _compare(kind: str, ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [
        f"{kind} {name}: ours {ours.get(name)}, expected {theirs.get(name)}"
        for name in sorted(set(ours) | set(theirs))
        if ours.get(name) != theirs.get(name)
    ]


def _describe(case: dict[str, Any]) -> str:
    placement = "1x1" if case["stride_in_1x1"] else "3x3"
    first, last = case["levels"]
    return (
        f"r{case['depth']} {case['width']}x{case['height']} stride in {placement}, mask branch {case['mask_branch']}, "
        f"levels {first}-{last}, click {case['click']}, mask cells {case['mask_cells'] or 'none'}: "
        f"{len(case['windows'])} windows, "
        f"{case['macs']['total'] / 1e9:.3f} of {case['full_macs']['total'] / 1e9:.3f} GMACs"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="windows.json")
    cases = json.loads(parser.parse_args().file.read_text())["cases"]
    agreeing = 0
    for case in cases:
        problems = check_case(case)
        agreeing += not problems
        print(f"{'FAIL' if problems else 'ok  '} {_describe(case)}")
        for problem in problems[:SHOWN]:
            print(f"     {problem}")
        if len(problems) > SHOWN:
            print(f"     and {len(problems) - SHOWN} more")
    print(f"{agreeing} of {len(cases)} cases agree exactly")
    return 0 if agreeing == len(cases) else 1


if __name__ == "__main__":
    sys.exit(main())
