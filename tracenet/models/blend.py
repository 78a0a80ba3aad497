"""Average two checkpoints of one architecture, as WiSE-FT (arXiv 2109.01903) does with weights before and after tuning.

python -m tracenet.models.blend FIRST SECOND --share 0.35 --out OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from tracenet.models.tracenet import TraceNet
from tracenet.models.weights import load_checkpoint, save_checkpoint
from tracenet_kernels.errors import CheckpointError, InputError


def blend(first: dict[str, Tensor], second: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """``share * first + (1 - share) * second``, tensor by tensor; integers are those of ``second``.

    Raises:
        InputError: ``share`` is not between 0 and 1, or the two hold other tensors.
    """
    if not 0 <= share <= 1:
        raise InputError(f"a share of {share}; give a number from 0 (second alone) to 1 (first alone)")
    shapes = [{k: tuple(v.shape) for k, v in state.items()} for state in (first, second)]
    if shapes[0] != shapes[1]:
        raise InputError("the two hold other tensors; only networks of one architecture can be averaged")
    return {k: torch.lerp(v, first[k], share) if v.is_floating_point() else v for k, v in second.items()}


def blend_files(first: Path, second: Path, share: float, out: Path, int8: bool = True) -> None:
    """Write the average of two checkpoints with the predictor settings of the second.

    Raises:
        CheckpointError: a file that cannot be read, or two architectures.
        InputError: see :func:`blend`; ``out`` cannot be written.
    """
    (a, one), (b, two) = load_checkpoint(first), load_checkpoint(second)
    if one.config != two.config:
        raise CheckpointError(f"{first} and {second} are of two architectures; only one can be averaged")
    model = TraceNet(two.config)
    model.load_state_dict(blend(a.state_dict(), b.state_dict(), share))
    save_checkpoint(model.eval(), out, predictor=two.predictor, quantize=int8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path, help="its predictor settings are kept")
    parser.add_argument("--share", type=float, required=True, help="of the first, between 0 and 1")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fp32", action="store_true", help="do not store weights as int8")
    args = parser.parse_args()
    blend_files(args.first, args.second, args.share, args.out, not args.fp32)


if __name__ == "__main__":
    main()
