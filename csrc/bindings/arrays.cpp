#include "bindings/arrays.hpp"

namespace py = pybind11;

namespace {

template <std::size_t N>
void to_integers(py::handle value, const char* name, std::int64_t (&numbers)[N]) {
    if (!py::isinstance<py::sequence>(value) || py::len(value) != N) {
        throw tracenet::InputError(std::string(name) + ": pass a sequence of " + std::to_string(N) + " integers");
    }
    const auto values = py::reinterpret_borrow<py::sequence>(value);
    for (std::size_t i = 0; i < N; ++i) numbers[i] = to_integer(values[i], name);
}

}  // namespace

std::int64_t to_integer(py::handle value, const char* name) {
    if (!PyLong_Check(value.ptr()) || PyBool_Check(value.ptr())) {
        throw tracenet::InputError(py::str("{} is {!r}; pass an integer").format(name, value).cast<std::string>());
    }
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    if (overflow != 0) throw tracenet::InputError(std::string(name) + " does not fit in 64 bits");
    return number;
}

tracenet::Window to_ordered_window(py::handle value, const char* name) {
    std::int64_t sides[4];
    to_integers(value, name, sides);
    return tracenet::make_window(sides[0], sides[1], sides[2], sides[3]);
}

py::array to_array(py::handle value, const py::dtype& dtype, bool writable, const char* name) {
    if (!py::isinstance<py::array>(value)) {
        throw tracenet::InputError(
            py::str("{} is {}; pass a NumPy array").format(name, py::type::of(value)).cast<std::string>());
    }
    py::array array = py::reinterpret_borrow<py::array>(value);
    if (!array.dtype().equal(dtype)) {
        throw tracenet::InputError(
            py::str("{} holds {}; pass {}").format(name, array.dtype(), dtype).cast<std::string>());
    }
    if (writable && !array.writeable()) {
        throw tracenet::InputError(std::string(name) + " is read-only; pass an array that may be written");
    }
    return array;
}

PlaneLayout to_layout(py::handle plane, const py::dtype& dtype, bool writable, const char* name) {
    const std::string what(name);
    if (!py::isinstance<py::tuple>(plane) || py::len(plane) != 3) {
        throw tracenet::InputError(what + ": pass (array, extent, (height, width))");
    }
    const auto parts = py::reinterpret_borrow<py::tuple>(plane);
    const py::array array = to_array(parts[0], dtype, writable, name);
    if (array.ndim() != 3) {
        throw tracenet::InputError(what + " has " + std::to_string(array.ndim()) +
                                   " axes; pass [rows, columns, channels], without a batch axis");
    }
    PlaneLayout layout;
    layout.data = array.data();
    layout.extent = to_ordered_window(parts[1], name);
    std::int64_t sides[2];
    to_integers(parts[2], name, sides);
    layout.height = sides[0];
    layout.width = sides[1];
    layout.channels = array.shape(2);
    if (array.shape(0) != tracenet::checked_sub(layout.extent.y1, layout.extent.y0) ||
        array.shape(1) != tracenet::checked_sub(layout.extent.x1, layout.extent.x0)) {
        throw tracenet::InputError(what + " has " + std::to_string(array.shape(0)) + " rows and " +
                                   std::to_string(array.shape(1)) +
                                   " columns, which is not its extent's size; pass an array of the extent's size");
    }
    if (array.size() == 0) {  // strides mean nothing
        layout.pixel_stride = layout.channels;
        layout.row_stride = array.shape(1) * layout.channels;
        return layout;
    }
    const py::ssize_t size = array.itemsize();
    for (int axis = 0; axis < 3; ++axis) {
        const bool used = array.shape(axis) > 1;
        if (used && (array.strides(axis) < 0 || array.strides(axis) % size != 0)) {
            throw tracenet::InputError(what + " runs backwards or is misaligned along axis " + std::to_string(axis) +
                                       "; pass a C-ordered array or a slice of one");
        }
    }
    if (layout.channels > 1 && array.strides(2) != size) {
        throw tracenet::InputError(what + " has channels that are not contiguous; pass a C-ordered array");
    }
    // NumPy leaves the stride of an axis of length 1 open.
    layout.pixel_stride = array.shape(1) > 1 ? array.strides(1) / size : layout.channels;
    layout.row_stride = array.shape(0) > 1 ? array.strides(0) / size : array.shape(1) * layout.pixel_stride;
    return layout;
}
