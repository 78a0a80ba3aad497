"""The GPU executor: schedules on windows by Triton kernels, one captured CUDA graph for every click of a class.

All planes are whole and lie at fixed places of one workspace, so a launch depends on a click only through the window
table in the device's memory. Launches are bound once per class of requests (:mod:`tracenet.engine.gpu.bind`), captured
once (:mod:`tracenet.engine.gpu.capture`) and replayed for any click of the class (:mod:`tracenet.engine.gpu.session`).
"""
