"""Check an annotation file and its images before they are trained on.

``python -m tracenet.data.check --images DIR --annotations F`` reads everything once, prints what is there and every
problem by file and id, and exits with 2 if there is one.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tracenet.data.coco import CocoDataset
from tracenet_kernels.errors import InputError

SMALL, MEDIUM = 32**2, 96**2
"""COCO's limits between small, medium and large objects, in pixels of ``area``."""


def summary(dataset: CocoDataset) -> dict[str, Any]:
    """What a dataset holds, as plain numbers: images, instances by kind and size, crowds, categories."""
    instances = [i for r in dataset for i in r.instances]
    true = [i for i in instances if not i.proposal]
    sizes = Counter(
        "unstated" if i.area < 0 else "small" if i.area < SMALL else "medium" if i.area < MEDIUM else "large"
        for i in true
    )
    return {
        "images": len(dataset),
        "instances": len(true),
        "as_polygons": sum(not isinstance(i.segmentation, dict) for i in true),
        **{f"{size}": sizes[size] for size in ("small", "medium", "large", "unstated")},
        "below_16_pixels": len(dataset.too_small),
        "crowds": sum(len(r.crowds) for r in dataset),
        "proposals": len(instances) - len(true),
        "categories": len(dataset.categories),
        "categories_without_instances": len(dataset.categories) - len({i.category_id for i in true}),
        "sources": dict(Counter(r.source for r in dataset if r.source)),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tracenet.data.check", description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", required=True, type=Path, help="COCO or LVIS json")
    parser.add_argument("--images", type=Path, help="folder of the images; without it, files are not looked for")
    parser.add_argument("--proposals", type=Path, help="json of another model's masks on the same images")
    args = parser.parse_args(argv)
    try:
        dataset = CocoDataset(args.images, args.annotations, on_error="skip", proposals=args.proposals)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    problems = dataset.validate()
    table = Table(title=str(args.annotations), show_header=False)
    for name, value in summary(dataset).items():
        table.add_row(name.replace("_", " "), str(value))
    Console().print(table)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problem{'' if len(problems) == 1 else 's'}")
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
