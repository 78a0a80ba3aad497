"""``python -m bench.zoo``: exactness, barriers, multiply-adds and times over a committed list of ConvNets."""
