"""Backward rules: one per operation, from output window to input demands, with the crop computation beside it."""

from tracenet.rft.rules import barriers, convolution, indexing, pointwise, pooling, reshape, resize
from tracenet.rft.rules.barriers import Barrier
from tracenet.rft.rules.local import Local
from tracenet.rft.rules.pointwise import FirstOperand, Pointwise
from tracenet.rft.rules.registry import Demand, Reader, Rule, find_rule, register_rule, registered_ops
from tracenet.rft.rules.resize import Taps, TapsRule

__all__ = [
    "Barrier",
    "Demand",
    "FirstOperand",
    "Local",
    "Pointwise",
    "Reader",
    "Rule",
    "Taps",
    "TapsRule",
    "barriers",
    "convolution",
    "find_rule",
    "indexing",
    "pointwise",
    "pooling",
    "register_rule",
    "registered_ops",
    "reshape",
    "resize",
]
