// Convolution on planes given as (array, extent, size) triples; see tracenet_kernels/windowed.py.
#include "tracenet/conv.hpp"

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "bindings/conv_spec.hpp"
#include "bindings/packed_conv.hpp"
#include "bindings/threads.hpp"
#include "tracenet/error.hpp"

namespace py = pybind11;

namespace {

tracenet::Isa to_isa(const py::object& name) {
    if (name.is_none()) return tracenet::active_isa();
    for (const tracenet::Isa isa :
         {tracenet::Isa::portable, tracenet::Isa::neon, tracenet::Isa::avx2, tracenet::Isa::avx512}) {
        if (name.equal(py::str(tracenet::isa_name(isa)))) return isa;
    }
    throw tracenet::InputError(
        py::str("isa {!r} is not known; pass avx512, avx2, neon or portable").format(name).cast<std::string>());
}

std::unique_ptr<OwnedConv> make_conv(py::handle weight, py::handle stride, py::handle padding, py::handle dilation,
                                     py::handle groups, const py::object& isa) {
    const py::array array = to_array(weight, py::dtype::of<float>(), false, "weight");
    const tracenet::ConvSpec spec = to_conv_spec(array, stride, padding, dilation, groups);
    const tracenet::Isa chosen = to_isa(isa);
    const auto* weights = static_cast<const float*>(array.data());
    const py::gil_scoped_release unlocked;
    return std::make_unique<OwnedConv>(spec, chosen, weights);
}

tracenet::Activation to_activation(py::handle value) {
    const std::int64_t number = to_integer(value, "activation");
    if (number != 0 && number != 1) {
        throw tracenet::InputError("activation is " + std::to_string(number) + "; pass 0 (none) or 1 (ReLU)");
    }
    return static_cast<tracenet::Activation>(number);
}

tracenet::ConvJob to_job(py::handle value, const tracenet::ConvSpec& spec) {
    if (!py::isinstance<py::tuple>(value) || py::len(value) != 8) {
        throw tracenet::InputError(
            "a job: pass (input, output, window, scale, bias, residual, residual_factor, activation)");
    }
    const auto parts = py::reinterpret_borrow<py::tuple>(value);
    tracenet::ConvJob job;
    job.input = to_view<const float>(parts[0], "the input");
    job.output = to_view<float>(parts[1], "the output");
    job.window = to_ordered_window(parts[2], "window");
    job.scale = to_vector<float>(parts[3], spec.out_channels, "scale");
    job.bias = to_vector<float>(parts[4], spec.out_channels, "bias");
    job.residual = to_view<const float>(parts[5], "the residual");
    job.residual_factor = to_integer(parts[6], "residual_factor");
    job.activation = to_activation(parts[7]);
    return job;
}

// Jobs with the arrays they point into, so that running them again takes no more Python.
class BoundJobs {
  public:
    BoundJobs(py::object conv, py::tuple tuples) : conv_(std::move(conv)), tuples_(std::move(tuples)) {
        if (!py::isinstance<OwnedConv>(conv_)) throw tracenet::InputError("packed: pass a PackedConv");
        const auto& owned = conv_.cast<const OwnedConv&>();
        packed_ = owned.packed();
        jobs_.reserve(tuples_.size());
        for (const py::handle tuple : tuples_) jobs_.push_back(to_job(tuple, owned.spec()));
    }

    void run() const {
        const auto pool = shared_pool();
        const py::gil_scoped_release unlocked;
        tracenet::conv2d(packed_, jobs_.data(), jobs_.size(), *pool);
    }

  private:
    py::object conv_;
    py::tuple tuples_;
    tracenet::PackedConv packed_;
    std::vector<tracenet::ConvJob> jobs_;
};

}  // namespace

void bind_conv(py::module_& module) {
    py::class_<OwnedConv>(module, "PackedConv")
        .def(py::init(&make_conv), py::arg("weight"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
             py::arg("groups"), py::arg("isa"))
        .def_property_readonly("in_channels", [](const OwnedConv& conv) { return conv.spec().in_channels; })
        .def_property_readonly("out_channels", [](const OwnedConv& conv) { return conv.spec().out_channels; })
        .def_property_readonly("isa", &OwnedConv::isa);
    py::class_<BoundJobs>(module, "ConvJobs", "Jobs that run in one parallel region, again and again.")
        .def(py::init<py::object, py::tuple>(), py::arg("packed"), py::arg("jobs"))
        .def("run", &BoundJobs::run, "The interpreter lock is released meanwhile.");
    module.def(
        "active_isa", [] { return tracenet::isa_name(tracenet::active_isa()); },
        "The instruction set that weights are packed for by default.");
}
