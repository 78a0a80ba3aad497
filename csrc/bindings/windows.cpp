// Windows and processor detection as plain functions on tuples of integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <exception>
#include <tuple>
#include <vector>

#include "bindings/bindings.hpp"
#include "tracenet/cpu_features.hpp"
#include "tracenet/window.hpp"

namespace py = pybind11;

namespace {

// A Python integer as int64; what does not fit is the caller's window, so it is a WindowError as well.
std::int64_t to_int64(py::handle value) {
    if (!PyLong_Check(value.ptr()) || PyBool_Check(value.ptr())) {
        throw tracenet::WindowError(py::str("{!r} is not an integer; pass integers").format(value).cast<std::string>());
    }
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    if (overflow != 0) {
        throw tracenet::WindowError("coordinate " + py::str(value).cast<std::string>() + " does not fit in 64 bits");
    }
    return number;
}

template <std::size_t N>
std::array<std::int64_t, N> to_integers(const py::sequence& values, const char* what) {
    if (values.size() != N) {
        throw tracenet::WindowError(std::string(what) + " has " + std::to_string(values.size()) + " numbers; pass " +
                                    std::to_string(N));
    }
    std::array<std::int64_t, N> numbers{};
    for (std::size_t i = 0; i < N; ++i) numbers[i] = to_int64(values[i]);
    return numbers;
}

tracenet::Window to_window(const py::sequence& values) {
    const auto [y0, y1, x0, x1] = to_integers<4>(values, "a window");
    return tracenet::make_window(y0, y1, x0, x1);
}

using Four = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
using Two = std::tuple<std::int64_t, std::int64_t>;

Four from_window(const tracenet::Window& window) { return {window.y0, window.y1, window.x0, window.x1}; }

tracenet::AxisGeometry to_axis(py::handle kernel, py::handle stride, py::handle padding, py::handle dilation) {
    return {to_int64(kernel), to_int64(stride), to_int64(padding), to_int64(dilation)};
}

template <typename Rule>
auto bind_demand(Rule rule) {
    return [rule](const py::sequence& out, py::handle kernel, py::handle stride, py::handle padding,
                  py::handle dilation) -> Two {
        const auto [begin, end] = to_integers<2>(out, "a span");
        const tracenet::Span span = rule(tracenet::Span{begin, end}, to_axis(kernel, stride, padding, dilation));
        return {span.begin, span.end};
    };
}

py::dict cpu_features() {
    const tracenet::CpuFeatures features = tracenet::detect_cpu_features();
    py::dict report;
    report["isa"] = tracenet::isa_name(features.best());
    report["neon"] = features.neon;
    report["avx2_fma"] = features.avx2_fma;
    report["avx512f"] = features.avx512f;
    report["avx512_vnni"] = features.avx512_vnni;
    return report;
}

}  // namespace

void bind_windows(py::module_& module) {
    module.def("cpu_features", &cpu_features, "What the processor can do: the chosen isa and one flag per feature.");

    module.def(
        "hull",
        [](const std::vector<py::sequence>& parts) {
            std::vector<tracenet::Window> windows;
            windows.reserve(parts.size());
            for (const py::sequence& part : parts) windows.push_back(to_window(part));
            return from_window(tracenet::hull(windows));
        },
        py::arg("windows"));
    module.def(
        "clip",
        [](const py::sequence& window, py::handle height, py::handle width) {
            return from_window(tracenet::clip(to_window(window), to_int64(height), to_int64(width)));
        },
        py::arg("window"), py::arg("height"), py::arg("width"));
    module.def(
        "border_of",
        [](const py::sequence& window, py::handle height, py::handle width) -> Four {
            const tracenet::Border border = tracenet::border_of(to_window(window), to_int64(height), to_int64(width));
            return {border.top, border.bottom, border.left, border.right};
        },
        py::arg("window"), py::arg("height"), py::arg("width"));
    module.def(
        "shift",
        [](const py::sequence& window, py::handle dy, py::handle dx) {
            return from_window(tracenet::shift(to_window(window), to_int64(dy), to_int64(dx)));
        },
        py::arg("window"), py::arg("dy"), py::arg("dx"));
    module.def(
        "intersect",
        [](const py::sequence& a, const py::sequence& b) {
            return from_window(tracenet::intersect(to_window(a), to_window(b)));
        },
        py::arg("a"), py::arg("b"));
    module.def(
        "subtract",
        [](const py::sequence& a, const py::sequence& b) {
            std::vector<Four> pieces;
            for (const tracenet::Window& piece : tracenet::subtract(to_window(a), to_window(b))) {
                pieces.push_back(from_window(piece));
            }
            return pieces;
        },
        py::arg("a"), py::arg("b"));
    module.def("conv_demand", bind_demand(&tracenet::conv_demand), py::arg("out"), py::arg("kernel"),
               py::arg("stride") = 1, py::arg("padding") = 0, py::arg("dilation") = 1,
               "Inputs [begin, end) a convolution or pooling reads for the outputs `out`, unclipped.");
    module.def("transposed_demand", bind_demand(&tracenet::transposed_demand), py::arg("out"), py::arg("kernel"),
               py::arg("stride") = 1, py::arg("padding") = 0, py::arg("dilation") = 1,
               "Inputs [begin, end) a transposed convolution reads for the outputs `out`, unclipped.");
}
