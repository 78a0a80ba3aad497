// Where a network input's values come from, and how windows of it are filled.
#pragma once

#include <cstdint>
#include <memory>

#include "tracenet/kernels.hpp"
#include "tracenet/thread_pool.hpp"
#include "tracenet/window.hpp"

namespace tracenet {

struct Source {
    enum class Kind { none, planar, pixels };

    Kind kind = Kind::none;
    const float* planar = nullptr;  // channel 0 of the extent's first cell
    Window extent;
    std::int64_t channel_stride = 0;
    std::int64_t row_stride = 0;
    View<const std::uint8_t> photo;
    PixelNorm norm;
    std::shared_ptr<void> owner;

    // Writes `window`. It and what the view covers lie inside the extent.
    void fill(const View<float>& view, const Window& window, ThreadPool& pool) const;
};

}  // namespace tracenet
