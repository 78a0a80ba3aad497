// 8-bit convolution on planes given as (array, extent, size) triples; see tracenet_kernels/windowed_int8.py.
#include "tracenet/conv_int8.hpp"

#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "bindings/conv_spec.hpp"
#include "bindings/threads.hpp"
#include "tracenet/error.hpp"

namespace py = pybind11;

namespace {

struct AlignedDelete {
    void operator()(std::int8_t* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
};

// Weights in packed order with their scales, and the memory they lie in.
class OwnedInt8Conv {
  public:
    OwnedInt8Conv(const tracenet::ConvSpec& spec, const std::int8_t* weights, const float* scale)
        : spec_(spec), scale_(scale, scale + spec.out_channels) {
        for (const float value : scale_) {
            if (!(value >= 0.0F) || !std::isfinite(value)) {
                throw tracenet::InputError("a weight scale is " + std::to_string(value) +
                                           "; pass finite ones, at least 0");
            }
        }
        const auto bytes = static_cast<std::size_t>(tracenet::packed_int8_conv_bytes(spec));
        memory_.reset(static_cast<std::int8_t*>(::operator new[](bytes, std::align_val_t(64))));
        tracenet::pack_int8_conv(spec, weights, memory_.get());
    }

    tracenet::PackedInt8Conv packed() const { return {spec_, memory_.get(), scale_.data()}; }
    const tracenet::ConvSpec& spec() const { return spec_; }

  private:
    tracenet::ConvSpec spec_;
    std::vector<float> scale_;
    std::unique_ptr<std::int8_t[], AlignedDelete> memory_;
};

std::unique_ptr<OwnedInt8Conv> make_conv(py::handle weight, py::handle scale, py::handle stride, py::handle padding,
                                         py::handle dilation, py::handle groups) {
    const py::array array = to_array(weight, py::dtype::of<std::int8_t>(), false, "weight");
    const tracenet::ConvSpec spec = to_conv_spec(array, stride, padding, dilation, groups);
    const auto* scales = to_vector<float>(scale, spec.out_channels, "scale");
    if (scales == nullptr) throw tracenet::InputError("scale is None; pass one per output channel");
    return std::make_unique<OwnedInt8Conv>(spec, static_cast<const std::int8_t*>(array.data()), scales);
}

// (scale, zero point); None where there is nothing to quantise.
tracenet::Quantisation to_quantisation(py::handle value, const char* name) {
    if (value.is_none()) return {};
    if (!py::isinstance<py::tuple>(value) || py::len(value) != 2) {
        throw tracenet::InputError(std::string(name) + ": pass (scale, zero_point)");
    }
    const auto pair = py::reinterpret_borrow<py::tuple>(value);
    const double scale = PyFloat_AsDouble(py::object(pair[0]).ptr());
    if (PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        throw tracenet::InputError(std::string(name) + ": its scale is not a number");
    }
    const std::int64_t zero_point = to_integer(pair[1], name);
    if (zero_point < 0 || zero_point > 255) {
        throw tracenet::InputError(std::string(name) + " has zero point " + std::to_string(zero_point) +
                                   "; pass 0 to 255");
    }
    return {static_cast<float>(scale), static_cast<std::int32_t>(zero_point)};
}

tracenet::Int8Kernel to_kernel(py::handle name) {
    if (name.is_none()) return tracenet::active_int8_kernel();
    for (const auto kernel :
         {tracenet::Int8Kernel::portable, tracenet::Int8Kernel::avx2, tracenet::Int8Kernel::avx512_vnni}) {
        if (name.equal(py::str(tracenet::int8_kernel_name(kernel)))) return kernel;
    }
    throw tracenet::InputError(
        py::str("kernel {!r} is not known; pass avx512_vnni, avx2 or portable").format(name).cast<std::string>());
}

bool holds_bytes(py::handle plane) {
    if (!py::isinstance<py::tuple>(plane) || py::len(plane) != 3) return false;
    const py::object array = py::reinterpret_borrow<py::tuple>(plane)[0];
    return py::isinstance<py::array>(array) &&
           py::reinterpret_borrow<py::array>(array).dtype().equal(py::dtype::of<std::uint8_t>());
}

tracenet::Int8ConvJob to_job(py::handle value, const tracenet::ConvSpec& spec) {
    if (!py::isinstance<py::tuple>(value) || py::len(value) != 11) {
        throw tracenet::InputError(
            "a job: pass (input, input_quantisation, output, output_quantisation, window, scale, bias, residual, "
            "residual_quantisation, residual_factor, activation)");
    }
    const auto parts = py::reinterpret_borrow<py::tuple>(value);
    tracenet::Int8ConvJob job;
    job.input = to_view<const std::uint8_t>(parts[0], "the input");
    job.input_quantisation = to_quantisation(parts[1], "the input's quantisation");
    if (holds_bytes(parts[2])) {
        job.quantised_output = to_view<std::uint8_t>(parts[2], "the output");
        job.output_quantisation = to_quantisation(parts[3], "the output's quantisation");
    } else {
        job.output = to_view<float>(parts[2], "the output");
    }
    job.window = to_ordered_window(parts[4], "window");
    job.scale = to_vector<float>(parts[5], spec.out_channels, "scale");
    job.bias = to_vector<float>(parts[6], spec.out_channels, "bias");
    if (holds_bytes(parts[7])) {
        job.quantised_residual = to_view<const std::uint8_t>(parts[7], "the residual");
        job.residual_quantisation = to_quantisation(parts[8], "the residual's quantisation");
    } else {
        job.residual = to_view<const float>(parts[7], "the residual");
    }
    job.residual_factor = to_integer(parts[9], "residual_factor");
    const std::int64_t activation = to_integer(parts[10], "activation");
    if (activation != 0 && activation != 1) {
        throw tracenet::InputError("activation is " + std::to_string(activation) + "; pass 0 (none) or 1 (ReLU)");
    }
    job.activation = static_cast<tracenet::Activation>(activation);
    return job;
}

void run_jobs(const OwnedInt8Conv& conv, const py::tuple& tuples, py::handle kernel) {
    const tracenet::Int8Kernel chosen = to_kernel(kernel);
    std::vector<tracenet::Int8ConvJob> jobs;
    jobs.reserve(tuples.size());
    for (const py::handle tuple : tuples) jobs.push_back(to_job(tuple, conv.spec()));
    const auto pool = shared_pool();
    const py::gil_scoped_release unlocked;
    tracenet::conv2d_int8(conv.packed(), jobs.data(), jobs.size(), *pool, chosen);
}

void quantise(py::handle input, py::handle quantisation, py::handle output, py::handle window) {
    const auto from = to_view<const float>(input, "the input");
    const auto to = to_view<std::uint8_t>(output, "the output");
    const auto grid = to_quantisation(quantisation, "the output's quantisation");
    const tracenet::Window cells = to_ordered_window(window, "window");
    const auto pool = shared_pool();
    const py::gil_scoped_release unlocked;
    tracenet::quantise(from, grid, to, cells, *pool);
}

void dequantise(py::handle input, py::handle quantisation, py::handle output, py::handle window) {
    const auto from = to_view<const std::uint8_t>(input, "the input");
    const auto to = to_view<float>(output, "the output");
    const auto grid = to_quantisation(quantisation, "the input's quantisation");
    const tracenet::Window cells = to_ordered_window(window, "window");
    const auto pool = shared_pool();
    const py::gil_scoped_release unlocked;
    tracenet::dequantise(from, grid, to, cells, *pool);
}

}  // namespace

void bind_conv_int8(py::module_& module) {
    py::class_<OwnedInt8Conv>(module, "PackedInt8Conv")
        .def(py::init(&make_conv), py::arg("weight"), py::arg("scale"), py::arg("stride"), py::arg("padding"),
             py::arg("dilation"), py::arg("groups"))
        .def_property_readonly("in_channels", [](const OwnedInt8Conv& conv) { return conv.spec().in_channels; })
        .def_property_readonly("out_channels", [](const OwnedInt8Conv& conv) { return conv.spec().out_channels; });
    module.def("conv2d_int8", &run_jobs, py::arg("packed"), py::arg("jobs"), py::arg("kernel"),
               "Runs all jobs in one parallel region; the interpreter lock is released meanwhile.");
    module.def(
        "active_int8_kernel", [] { return tracenet::int8_kernel_name(tracenet::active_int8_kernel()); },
        "The 8-bit kernel that is used by default.");
    module.def("quantise", &quantise, py::arg("input"), py::arg("quantisation"), py::arg("output"), py::arg("window"));
    module.def("dequantise", &dequantise, py::arg("input"), py::arg("quantisation"), py::arg("output"),
               py::arg("window"));
}
