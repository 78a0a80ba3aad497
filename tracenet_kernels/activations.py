"""Names of the functions that may follow a convolution, sum or product.

Formulas are in ``csrc/include/tracenet/conv.hpp``.
"""

ACTIVATIONS = (
    "none",
    "relu",
    "clip",
    "leaky_relu",
    "sigmoid",
    "hard_sigmoid",
    "hard_swish",
    "silu",
    "gelu",
    "gelu_tanh",
    "tanh",
)
"""In the order of the extension's own numbers."""
