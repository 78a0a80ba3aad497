"""Convolution kernels, layer by layer, at the windows of the standard request."""
