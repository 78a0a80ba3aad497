"""Kernels on windows. Knows nothing of graphs or models and is usable alone."""
