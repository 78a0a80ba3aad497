"""Triton kernels on windows of planes, in place: NVIDIA GPUs from sm_80 on, and Triton's interpreter without one.

One module per kernel family. Each offers the kernel, a function ``<family>_launches`` that checks its arguments and
binds them to :class:`~tracenet_kernels.triton.launch.Launch` objects, and a function that runs them at once. An
executor builds the launches of a whole network once and only runs them, or captures them in a CUDA graph.

Planes and windows: :mod:`tracenet_kernels.triton.planes`. Nothing here is imported by ``tracenet_kernels`` itself, so
the package works without Triton; :func:`tracenet_kernels.gpu.why_not` says why there is no GPU backend.
"""
