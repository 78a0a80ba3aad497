// Kernels that are not convolutions, on the planes of tracenet_kernels/arrays.py.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>

#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "bindings/packed_conv.hpp"
#include "bindings/threads.hpp"
#include "tracenet/error.hpp"
#include "tracenet/kernels.hpp"

namespace py = pybind11;

namespace {

using tracenet::InputError;
using tracenet::View;
using tracenet::Window;

View<const float> readable(py::handle plane, const char* name) { return to_view<const float>(plane, name); }

View<float> writable(py::handle plane) { return to_view<float>(plane, "out"); }

// The window, the pool and the right to run without the interpreter's lock: what every call ends with.
template <typename Kernel>
void run_on(py::handle window, const Kernel& kernel) {
    const Window where = to_ordered_window(window, "window");
    const std::shared_ptr<tracenet::ThreadPool> pool = shared_pool();
    const py::gil_scoped_release unlocked;
    kernel(where, *pool);
}

// ((kernel_y, kernel_x), (stride_y, stride_x), (padding_y, padding_x), (dilation_y, dilation_x))
tracenet::PoolSpec to_pool_spec(const py::tuple& geometry) {
    if (py::len(geometry) != 4) throw InputError("geometry: pass kernel, stride, padding and dilation, a pair each");
    std::int64_t numbers[4][2];
    for (std::size_t i = 0; i < 4; ++i) {
        const py::object pair = geometry[i];
        if (!py::isinstance<py::tuple>(pair) || py::len(pair) != 2) throw InputError("geometry: pass pairs");
        for (std::size_t axis = 0; axis < 2; ++axis) {
            numbers[i][axis] = to_integer(py::reinterpret_borrow<py::tuple>(pair)[axis], "geometry");
        }
    }
    tracenet::PoolSpec spec;
    spec.y = {numbers[0][0], numbers[1][0], numbers[2][0], numbers[3][0]};
    spec.x = {numbers[0][1], numbers[1][1], numbers[2][1], numbers[3][1]};
    return spec;
}

tracenet::MaskHead to_mask_head(py::handle theta, float origin_x, float origin_y, float size_of_interest,
                                py::handle stride) {
    tracenet::MaskHead head;
    head.theta = to_vector<float>(theta, 169, "theta");
    head.origin_x = origin_x;
    head.origin_y = origin_y;
    head.size_of_interest = size_of_interest;
    head.stride = to_integer(stride, "stride");
    return head;
}

void max_pool2d(py::handle x, py::handle out, py::handle window, const py::tuple& geometry) {
    const auto input = readable(x, "x");
    const auto output = writable(out);
    const tracenet::PoolSpec spec = to_pool_spec(geometry);
    run_on(window, [&](const Window& where, tracenet::ThreadPool& pool) {
        tracenet::max_pool2d(spec, input, output, where, pool);
    });
}

void avg_pool2d(py::handle x, py::handle out, py::handle window, const py::tuple& geometry, bool count_include_pad,
                py::handle divisor) {
    const auto input = readable(x, "x");
    const auto output = writable(out);
    tracenet::PoolSpec spec = to_pool_spec(geometry);
    spec.count_include_pad = count_include_pad;
    spec.divisor = to_integer(divisor, "divisor");
    run_on(window, [&](const Window& where, tracenet::ThreadPool& pool) {
        tracenet::avg_pool2d(spec, input, output, where, pool);
    });
}

void resize(py::handle x, py::handle addend, py::handle out, py::handle window, int mode, float ratio_y, float ratio_x,
            py::handle factor) {
    const auto input = readable(x, "x");
    const auto plus = readable(addend, "addend");
    const auto output = writable(out);
    tracenet::ResizeSpec spec;
    spec.mode = static_cast<tracenet::ResizeMode>(mode);
    spec.ratio_y = ratio_y;
    spec.ratio_x = ratio_x;
    spec.factor = to_integer(factor, "factor");
    run_on(window, [&](const Window& where, tracenet::ThreadPool& pool) {
        tracenet::resize(spec, input, plus, output, where, pool);
    });
}

void add(py::handle a, py::handle b, py::handle out, py::handle window, bool relu) {
    const auto first = readable(a, "a");
    const auto second = readable(b, "b");
    const auto output = writable(out);
    const tracenet::Activate function{relu ? tracenet::Activation::relu : tracenet::Activation::none};
    run_on(window, [&](const Window& where, tracenet::ThreadPool& pool) {
        tracenet::add(first, second, function, output, where, pool);
    });
}

tracenet::Activate to_activate(int kind, float a, float b) { return {static_cast<tracenet::Activation>(kind), a, b}; }

void activate(py::handle x, py::handle out, py::handle window, int kind, float a, float b) {
    const auto input = readable(x, "x");
    const auto output = writable(out);
    run_on(window, [&](const Window& where, tracenet::ThreadPool& pool) {
        tracenet::activate(input, to_activate(kind, a, b), output, where, pool);
    });
}

void multiply(py::handle a, py::handle b, py::handle out, py::handle window) {
    const auto first = readable(a, "a");
    const auto second = readable(b, "b");
    const auto output = writable(out);
    run_on(window, [&](const Window& where, tracenet::ThreadPool& pool) {
        tracenet::multiply(first, second, {}, output, where, pool);
    });
}

void plane_mean(py::handle x, py::handle out, py::handle window) {
    const auto input = readable(x, "x");
    const auto output = writable(out);
    run_on(window, [&](const Window&, tracenet::ThreadPool& pool) { tracenet::plane_mean(input, output, pool); });
}

void group_norm(py::handle x, py::handle out, py::handle window, py::handle groups, double epsilon, py::handle scale,
                py::handle bias) {
    const auto input = readable(x, "x");
    const auto output = writable(out);
    tracenet::GroupNorm norm;
    norm.groups = to_integer(groups, "groups");
    norm.epsilon = epsilon;
    norm.scale = to_vector<float>(scale, output.channels, "scale");
    norm.bias = to_vector<float>(bias, output.channels, "bias");
    run_on(window, [&](const Window& where, tracenet::ThreadPool& pool) {
        tracenet::group_norm(norm, input, {}, output, where, pool);
    });
}

void take_channels(py::handle x, py::handle first, py::handle out, py::handle window) {
    const auto input = readable(x, "x");
    const std::int64_t channel = to_integer(first, "first");
    const auto output = writable(out);
    run_on(window, [&](const Window& where, tracenet::ThreadPool& pool) {
        tracenet::take_channels(input, channel, output, where, pool);
    });
}

void sigmoid(py::handle x, py::handle out, py::handle window) {
    const auto input = readable(x, "x");
    const auto output = writable(out);
    run_on(window,
           [&](const Window& where, tracenet::ThreadPool& pool) { tracenet::sigmoid(input, output, where, pool); });
}

void copy_channels(py::handle x, py::handle first, py::handle out, py::handle window) {
    const auto input = readable(x, "x");
    const std::int64_t channel = to_integer(first, "first");
    const auto output = writable(out);
    run_on(window, [&](const Window& where, tracenet::ThreadPool& pool) {
        tracenet::copy_channels(input, channel, output, where, pool);
    });
}

void mask_head(py::handle features, py::handle theta, float origin_x, float origin_y, float size_of_interest,
               py::handle stride, py::handle factor, py::handle out, py::handle window) {
    const auto input = readable(features, "features");
    const auto output = writable(out);
    const tracenet::MaskHead head = to_mask_head(theta, origin_x, origin_y, size_of_interest, stride);
    const std::int64_t times = to_integer(factor, "factor");
    run_on(window, [&](const Window& where, tracenet::ThreadPool& pool) {
        if (times == 0) {
            tracenet::mask_head(head, input, output, where, pool);
        } else {
            tracenet::mask_head_upsampled(head, times, input, output, where, pool);
        }
    });
}

void normalise_pixels(py::handle photo, py::handle out, py::handle window, py::handle mean, py::handle std,
                      bool reverse) {
    const auto pixels = to_view<const std::uint8_t>(photo, "photo");
    const auto output = writable(out);
    const float* const means = to_vector<float>(mean, 3, "mean");
    const float* const deviations = to_vector<float>(std, 3, "std");
    if (means == nullptr || deviations == nullptr) throw InputError("mean and std: pass 3 floats each");
    tracenet::PixelNorm norm;
    norm.reverse = reverse;
    for (int c = 0; c < 3; ++c) {
        norm.mean[c] = means[c];
        norm.std[c] = deviations[c];
    }
    run_on(window, [&](const Window& where, tracenet::ThreadPool& pool) {
        tracenet::normalise_pixels(norm, pixels, output, where, pool);
    });
}

void from_planar(py::handle planar, py::handle out, py::handle window) {
    const auto output = writable(out);
    const py::array planes = to_array(planar, py::dtype::of<float>(), false, "planar");
    if (planes.ndim() != 3 || planes.shape(0) != output.channels || planes.shape(1) != output.height ||
        planes.shape(2) != output.width) {
        throw InputError("planar: pass the output's channels, height and width, in this order");
    }
    constexpr auto kSize = static_cast<py::ssize_t>(sizeof(float));
    const bool contiguous = planes.shape(2) <= 1 || planes.strides(2) == kSize;
    if (!contiguous || planes.strides(0) < 0 || planes.strides(1) < 0 || planes.strides(0) % kSize != 0 ||
        planes.strides(1) % kSize != 0) {
        throw InputError("planar: pass rows of contiguous floats, in rising order");
    }
    const auto* const data = static_cast<const float*>(planes.data());
    run_on(window, [&](const Window& where, tracenet::ThreadPool& pool) {
        tracenet::from_planar(data, planes.strides(0) / kSize, planes.strides(1) / kSize, output, where, pool);
    });
}

void stem(const OwnedConv& conv, py::handle bias, py::handle conv_height, py::handle conv_width, py::handle x,
          py::handle out, py::handle window, const py::tuple& geometry) {
    const float* const biases = to_vector<float>(bias, conv.spec().out_channels, "bias");
    const std::int64_t height = to_integer(conv_height, "conv_height");
    const std::int64_t width = to_integer(conv_width, "conv_width");
    const auto input = readable(x, "x");
    const auto output = writable(out);
    const tracenet::PoolSpec spec = to_pool_spec(geometry);
    run_on(window, [&](const Window& where, tracenet::ThreadPool& pool) {
        tracenet::stem(conv.packed(), biases, height, width, spec, input, output, where, pool);
    });
}

}  // namespace

void bind_window_ops(py::module_& module) {
    using py::arg;
    module.def("max_pool2d", &max_pool2d, arg("x"), arg("out"), arg("window"), arg("geometry"));
    module.def("avg_pool2d", &avg_pool2d, arg("x"), arg("out"), arg("window"), arg("geometry"),
               arg("count_include_pad"), arg("divisor"));
    module.def("resize", &resize, arg("x"), arg("addend"), arg("out"), arg("window"), arg("mode"), arg("ratio_y"),
               arg("ratio_x"), arg("factor"));
    module.def("add", &add, arg("a"), arg("b"), arg("out"), arg("window"), arg("relu"));
    module.def("sigmoid", &sigmoid, arg("x"), arg("out"), arg("window"));
    module.def("activate", &activate, arg("x"), arg("out"), arg("window"), arg("kind"), arg("a"), arg("b"));
    module.def("multiply", &multiply, arg("a"), arg("b"), arg("out"), arg("window"));
    module.def("plane_mean", &plane_mean, arg("x"), arg("out"), arg("window"));
    module.def("group_norm", &group_norm, arg("x"), arg("out"), arg("window"), arg("groups"), arg("epsilon"),
               arg("scale"), arg("bias"));
    module.def("take_channels", &take_channels, arg("x"), arg("first"), arg("out"), arg("window"));
    module.def("copy_channels", &copy_channels, arg("x"), arg("first"), arg("out"), arg("window"));
    module.def("mask_head", &mask_head, arg("features"), arg("theta"), arg("origin_x"), arg("origin_y"),
               arg("size_of_interest"), arg("stride"), arg("factor"), arg("out"), arg("window"));
    module.def("normalise_pixels", &normalise_pixels, arg("photo"), arg("out"), arg("window"), arg("mean"), arg("std"),
               arg("reverse"));
    module.def("from_planar", &from_planar, arg("planar"), arg("out"), arg("window"));
    module.def("stem", &stem, arg("packed"), arg("bias"), arg("conv_height"), arg("conv_width"), arg("x"), arg("out"),
               arg("window"), arg("geometry"));
}
