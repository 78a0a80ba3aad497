// Views of planes in memory: what every kernel reads and writes.
#pragma once

#include <cstdint>

#include "tracenet/window.hpp"

namespace tracenet {

// Part of a plane in NHWC order, batch 1. The channels of a pixel are contiguous; strides are in elements.
template <typename T>
struct View {
    T* data = nullptr;        // channel 0 of the cell (extent.y0, extent.x0)
    Window extent;            // the cells of the plane that lie in memory
    std::int64_t height = 0;  // of the whole plane: where padding begins
    std::int64_t width = 0;
    std::int64_t channels = 0;
    std::int64_t row_stride = 0;    // from one row to the next
    std::int64_t pixel_stride = 0;  // from one column to the next, >= channels

    T* at(std::int64_t y, std::int64_t x) const {
        return data + (y - extent.y0) * row_stride + (x - extent.x0) * pixel_stride;
    }

    // Mutable views are readable ones.
    operator View<const T>() const { return {data, extent, height, width, channels, row_stride, pixel_stride}; }
};

// A dense view: no gaps between pixels or rows.
template <typename T>
View<T> dense_view(T* data, const Window& extent, std::int64_t height, std::int64_t width, std::int64_t channels) {
    return {data, extent, height, width, channels, (extent.x1 - extent.x0) * channels, channels};
}

inline bool contains(const Window& outer, const Window& inner) {
    return inner.is_empty() ||
           (outer.y0 <= inner.y0 && inner.y1 <= outer.y1 && outer.x0 <= inner.x0 && inner.x1 <= outer.x1);
}

}  // namespace tracenet
