// A convolution's geometry from Python's arguments, whatever its weights hold.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "tracenet/conv.hpp"

// weight: C-ordered [out, in / groups, kernel_y, kernel_x]; stride, padding, dilation: tuples (y, x).
tracenet::ConvSpec to_conv_spec(const pybind11::array& weight, pybind11::handle stride, pybind11::handle padding,
                                pybind11::handle dilation, pybind11::handle groups);
