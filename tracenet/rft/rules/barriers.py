"""Operations that read the whole plane: computed whole, exactly, and reported."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from tracenet.graph.graph import Layout, Node
from tracenet.rft.rules.pointwise import FirstOperand, crop_output
from tracenet.rft.rules.registry import Demand, Reader, Rule, call, register_rule, whole
from tracenet_kernels.window import Window


class Barrier(Rule):
    """Demand every operand whole, compute the full output, hand on the window.

    The output keeps the plane of the first operand if the shapes agree; otherwise it is flat.
    """

    reason = "mixes the whole plane"

    def layout(self, node: Node) -> Layout | None:
        first = node.operands[0]
        return first.layout if first.shape == node.shape else None

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        return [whole(operand) for operand in node.operands if not operand.is_constant]

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        return crop_output(node, call(node, {}, read), window)

    def barrier(self, node: Node) -> str | None:
        planes = [operand for operand in node.operands if operand.layout is not None]
        return self.reason if planes else None


@register_rule("aten.group_norm", "aten.native_group_norm")
class Normalisation(Barrier):
    """GroupNorm and InstanceNorm take their statistics from the whole plane."""

    reason = "takes statistics from the whole plane"


@register_rule("aten.instance_norm")
class InstanceNorm(Normalisation):
    """A barrier, unless it was given running statistics: then the same window."""

    def _stored(self, node: Node) -> bool:
        return not node.args[5]

    def demands(self, node: Node, window: Window) -> Iterable[Demand]:
        return _FIRST.demands(node, window) if self._stored(node) else super().demands(node, window)

    def run(self, node: Node, window: Window, read: Reader) -> Tensor:
        return _FIRST.run(node, window, read) if self._stored(node) else super().run(node, window, read)

    def barrier(self, node: Node) -> str | None:
        return None if self._stored(node) else super().barrier(node)


_FIRST = FirstOperand()


@register_rule("aten.matmul", "aten.bmm", "aten.mm", "aten.baddbmm", "aten.addmm", "aten.einsum", "aten.mv", "aten.dot")
class MatrixProduct(Barrier):
    """Products of two activations (attention) mix the whole plane."""

    def macs(self, node: Node, window: Window) -> int:
        left = next(operand for operand in node.operands if operand.ndim >= 1)
        return math.prod(node.shape) * left.shape[-1] if node.op != "aten.einsum" else 0


@register_rule("aten.scaled_dot_product_attention")
class Attention(Barrier):
    """Attention over tokens; ``2 * N * heads * T^2 * d`` multiply-adds."""

    def macs(self, node: Node, window: Window) -> int:
        query, key = node.args[0], node.args[1]
        return 2 * math.prod(query.shape) * key.shape[-2]


@register_rule("aten.avg_pool1d", "aten.max_pool1d", "aten.adaptive_avg_pool1d")
class TokenPool(Barrier):
    """Poolings of tokens, which are rows and columns in one axis."""

    reason = "pools rows and columns as one axis"


@register_rule(
    *(
        f"aten.{name}"
        for name in """
        fft_fft2 fft_rfft2 fft_ifft2 fft_irfft2 _fft_r2c _fft_c2c _fft_c2r topk kthvalue median gather scatter
        index_add index_put scatter_add unfold im2col col2im grid_sampler grid_sampler_2d argsort take_along_dim
        as_strided
        """.split()
    )
)
class Other(Barrier):
    """Transforms, gathers and sampling whose reach depends on data or spans the plane."""
