// Python's planes as views: (array [rows, columns, channels], (y0, y1, x0, x1), (height, width)).
//
// tracenet_kernels/arrays.py makes these triples; what is checked here keeps any caller from reading wild memory.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "tracenet/buffer.hpp"
#include "tracenet/error.hpp"
#include "tracenet/window.hpp"

// Any Python integer, booleans excepted; InputError otherwise.
std::int64_t to_integer(pybind11::handle value, const char* name);

// (y0, y1, x0, x1), in order.
tracenet::Window to_ordered_window(pybind11::handle value, const char* name);

// The array itself: never a copy. InputError unless it holds T in native byte order and, for mutable T, may be written.
pybind11::array to_array(pybind11::handle value, const pybind11::dtype& dtype, bool writable, const char* name);

struct PlaneLayout {
    const void* data = nullptr;
    tracenet::Window extent;
    std::int64_t height = 0;
    std::int64_t width = 0;
    std::int64_t channels = 0;
    std::int64_t row_stride = 0;
    std::int64_t pixel_stride = 0;
};

PlaneLayout to_layout(pybind11::handle plane, const pybind11::dtype& dtype, bool writable, const char* name);

// The view borrows: the triple must outlive it. None gives a view without data.
template <typename T>
tracenet::View<T> to_view(pybind11::handle plane, const char* name) {
    if (plane.is_none()) return {};
    const PlaneLayout layout =
        to_layout(plane, pybind11::dtype::of<std::remove_const_t<T>>(), !std::is_const_v<T>, name);
    return {static_cast<T*>(const_cast<void*>(layout.data)),
            layout.extent,
            layout.height,
            layout.width,
            layout.channels,
            layout.row_stride,
            layout.pixel_stride};
}

// A vector of `size` elements, or null for None.
template <typename T>
const T* to_vector(pybind11::handle value, std::int64_t size, const char* name) {
    if (value.is_none()) return nullptr;
    const pybind11::array array = to_array(value, pybind11::dtype::of<T>(), false, name);
    if (array.ndim() != 1 || array.shape(0) != size ||
        (size > 1 && array.strides(0) != static_cast<pybind11::ssize_t>(sizeof(T)))) {
        throw tracenet::InputError(std::string(name) + ": pass " + std::to_string(size) +
                                   " contiguous elements on one axis");
    }
    return static_cast<const T*>(array.data());
}
