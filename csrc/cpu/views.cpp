#include "cpu/views.hpp"

#include <algorithm>

namespace tracenet {

namespace {

bool meet(std::int64_t a_begin, std::int64_t a_end, std::int64_t b_begin, std::int64_t b_end) {
    return std::max(a_begin, b_begin) < std::min(a_end, b_end);
}

// Elements from channel 0 of the extent's first cell to that of (y, x).
std::int64_t offset(const ViewShape& view, std::int64_t y, std::int64_t x) {
    return (y - view.extent.y0) * view.row_stride + (x - view.extent.x0) * view.pixel_stride;
}

// [first, last) in bytes of the cells of a window that is not empty.
Span byte_range(const ViewShape& view, const Window& window) {
    const auto size = static_cast<std::int64_t>(view.element);
    const auto base = static_cast<std::int64_t>(view.address);
    return {base + size * offset(view, window.y0, window.x0),
            base + size * (offset(view, window.y1 - 1, window.x1 - 1) + view.channels)};
}

// `b` starts `rows` rows, `columns` columns and `channels` channels after `a`.
bool shifted_windows_meet(const ViewShape& a, const Window& a_window, const ViewShape& b, const Window& b_window,
                          std::int64_t rows, std::int64_t columns, std::int64_t channels) {
    const std::int64_t down = rows - b.extent.y0 + a.extent.y0;
    const std::int64_t right = columns - b.extent.x0 + a.extent.x0;
    return meet(a_window.y0, a_window.y1, b_window.y0 + down, b_window.y1 + down) &&
           meet(a_window.x0, a_window.x1, b_window.x0 + right, b_window.x1 + right) &&
           meet(0, a.channels, channels, channels + b.channels);
}

}  // namespace

std::string to_text(const Window& window) {
    return "[" + std::to_string(window.y0) + ", " + std::to_string(window.y1) + ") x [" + std::to_string(window.x0) +
           ", " + std::to_string(window.x1) + ")";
}

void check_view(const ViewShape& view, const char* name) {
    const std::string what(name);
    if (view.channels < 1) {
        throw InputError(what + " has " + std::to_string(view.channels) + " channels; pass at least 1");
    }
    const Window plane{0, view.height, 0, view.width};
    const Window& extent = view.extent;
    if (view.height < 0 || view.width < 0 || extent.y1 < extent.y0 || extent.x1 < extent.x0 ||
        !contains(plane, extent)) {
        throw InputError(what + " has extent " + to_text(extent) + " on a plane of " + std::to_string(view.height) +
                         " x " + std::to_string(view.width) + "; pass an extent that lies on the plane");
    }
    if (extent.is_empty()) return;
    const std::int64_t rows = extent.y1 - extent.y0;
    const std::int64_t columns = extent.x1 - extent.x0;
    try {
        const std::int64_t row = checked_add(checked_mul(view.pixel_stride, columns - 1), view.channels);
        if ((columns > 1 && view.pixel_stride < view.channels) || (rows > 1 && view.row_stride < row)) {
            throw InputError(what + " has pixels " + std::to_string(view.pixel_stride) + " and rows " +
                             std::to_string(view.row_stride) + " elements apart, which overlap with " +
                             std::to_string(columns) + " columns of " + std::to_string(view.channels) +
                             " channels; pass larger strides");
        }
        const std::int64_t last = checked_add(checked_mul(view.row_stride, rows - 1), row);
        checked_add(static_cast<std::int64_t>(view.address),
                    checked_mul(last, static_cast<std::int64_t>(view.element)));
    } catch (const WindowError&) {
        throw InputError(what + " reaches past the address space: " + std::to_string(rows) + " rows, " +
                         std::to_string(view.row_stride) + " elements apart");
    }
    if (view.address == 0) throw InputError(what + " has no memory (null pointer); pass a buffer");
    if (view.address % view.element != 0) {
        throw InputError(what + " starts at an address that is no multiple of its element size, " +
                         std::to_string(view.element) + " bytes; pass an aligned buffer");
    }
}

void check_window(const Window& window, const ViewShape& view, const char* name) {
    if (window.y1 < window.y0 || window.x1 < window.x0) {
        throw InputError("the window " + to_text(window) + " ends before it starts; pass y0 <= y1 and x0 <= x1");
    }
    if (!contains(view.extent, window)) {
        throw InputError("the window " + to_text(window) + " is not inside the extent " + to_text(view.extent) +
                         " of " + name + "; clip it, or pass a larger buffer");
    }
}

bool overlap(const ViewShape& a, const Window& a_window, const ViewShape& b, const Window& b_window) {
    if (a_window.is_empty() || b_window.is_empty()) return false;
    const Span a_bytes = byte_range(a, a_window);
    const Span b_bytes = byte_range(b, b_window);
    if (!meet(a_bytes.begin, a_bytes.end, b_bytes.begin, b_bytes.end)) return false;
    const std::int64_t bytes = static_cast<std::int64_t>(b.address) - static_cast<std::int64_t>(a.address);
    const auto size = static_cast<std::int64_t>(a.element);
    if (a.element != b.element || a.row_stride != b.row_stride || a.pixel_stride != b.pixel_stride ||
        a.pixel_stride < 1 || a.row_stride < a.pixel_stride || bytes % size != 0) {
        return true;
    }
    // Two windows of one grid meet where one is reached from the other by whole rows, columns and channels. Floor
    // division gives one such path; the others wrap round the end of a row or of a pixel.
    const std::int64_t distance = bytes / size;
    const std::int64_t row = floor_div(distance, a.row_stride);
    for (const std::int64_t rows : {row, row + 1}) {
        const std::int64_t rest = distance - rows * a.row_stride;
        const std::int64_t column = floor_div(rest, a.pixel_stride);
        for (const std::int64_t columns : {column, column + 1}) {
            if (shifted_windows_meet(a, a_window, b, b_window, rows, columns, rest - columns * a.pixel_stride)) {
                return true;
            }
        }
    }
    return false;
}

}  // namespace tracenet
