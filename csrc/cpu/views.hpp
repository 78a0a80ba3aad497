// Checks of views that every kernel makes before it writes anything.
#pragma once

#include <cstdint>
#include <string>

#include "tracenet/buffer.hpp"
#include "tracenet/error.hpp"
#include "tracenet/window.hpp"

namespace tracenet {

// "[y0, y1) x [x0, x1)", for messages.
std::string to_text(const Window& window);

// What check_view and overlap look at, whatever the element type. Strides and offsets in elements.
struct ViewShape {
    std::uintptr_t address = 0;
    std::size_t element = 0;
    Window extent;
    std::int64_t height = 0;
    std::int64_t width = 0;
    std::int64_t channels = 0;
    std::int64_t row_stride = 0;
    std::int64_t pixel_stride = 0;
};

template <typename T>
ViewShape shape_of(const View<T>& view) {
    return {reinterpret_cast<std::uintptr_t>(view.data),
            sizeof(T),
            view.extent,
            view.height,
            view.width,
            view.channels,
            view.row_stride,
            view.pixel_stride};
}

// Throws InputError unless the extent lies on the plane, the strides keep pixels and rows apart, and the pointer is
// neither null nor misaligned. An empty extent may have any pointer.
void check_view(const ViewShape& view, const char* name);

// Throws InputError unless the window is well-formed and inside the extent.
void check_window(const Window& window, const ViewShape& view, const char* name);

// Do the cells of `a_window` in `a` share memory with those of `b_window` in `b`? Exact where both have the same
// strides (slices of one buffer, by cells or by channels); otherwise their ranges of addresses are compared.
bool overlap(const ViewShape& a, const Window& a_window, const ViewShape& b, const Window& b_window);

template <typename T>
void check_view(const View<T>& view, const char* name) {
    check_view(shape_of(view), name);
}

template <typename T>
void check_window(const Window& window, const View<T>& view, const char* name) {
    check_window(window, shape_of(view), name);
}

template <typename T, typename U>
bool overlap(const View<T>& a, const Window& a_window, const View<U>& b, const Window& b_window) {
    return overlap(shape_of(a), a_window, shape_of(b), b_window);
}

}  // namespace tracenet
