#include "bindings/conv_spec.hpp"

#include <cstdint>
#include <string>

#include "bindings/arrays.hpp"
#include "tracenet/error.hpp"

namespace py = pybind11;

namespace {

// (y, x) pairs.
void to_pair(py::handle value, const char* name, std::int64_t& y, std::int64_t& x) {
    if (!py::isinstance<py::tuple>(value) || py::len(value) != 2) {
        throw tracenet::InputError(std::string(name) + ": pass a tuple (y, x) of integers");
    }
    const auto pair = py::reinterpret_borrow<py::tuple>(value);
    y = to_integer(pair[0], name);
    x = to_integer(pair[1], name);
}

}  // namespace

tracenet::ConvSpec to_conv_spec(const py::array& weight, py::handle stride, py::handle padding, py::handle dilation,
                                py::handle groups) {
    if (weight.ndim() != 4 || (weight.flags() & py::array::c_style) == 0) {
        throw tracenet::InputError("weight: pass a C-ordered array [out, in / groups, kernel_y, kernel_x]");
    }
    tracenet::ConvSpec spec;
    spec.groups = to_integer(groups, "groups");
    spec.out_channels = weight.shape(0);
    // A count of groups that overflows the product is refused as no divisor of the output channels.
    if (spec.groups < 1 || spec.groups > spec.out_channels) {
        throw tracenet::InputError("groups is " + std::to_string(spec.groups) + "; pass 1 to the number of outputs, " +
                                   std::to_string(spec.out_channels));
    }
    spec.in_channels = tracenet::checked_mul(weight.shape(1), spec.groups);
    spec.y.kernel = weight.shape(2);
    spec.x.kernel = weight.shape(3);
    to_pair(stride, "stride", spec.y.stride, spec.x.stride);
    to_pair(padding, "padding", spec.y.padding, spec.x.padding);
    to_pair(dilation, "dilation", spec.y.dilation, spec.x.dilation);
    return spec;
}
