// The parts of tracenet_kernels._C, one file each.
#pragma once

#include <pybind11/pybind11.h>

void bind_conv(pybind11::module_& module);
void bind_conv_int8(pybind11::module_& module);
void bind_runtime(pybind11::module_& module);
void bind_threads(pybind11::module_& module);
void bind_window_ops(pybind11::module_& module);
void bind_windows(pybind11::module_& module);
