// One axis of a resize: which two input cells an output cell mixes, and how.
#pragma once

#include <cstdint>
#include <vector>

#include "tracenet/kernels.hpp"
#include "tracenet/window.hpp"

namespace tracenet {

struct AxisTap {
    std::int64_t low = 0;
    std::int64_t high = 0;  // low where one cell is all that is read
    float low_weight = 1.0F;
    float high_weight = 0.0F;
};

// Taps of the outputs [begin, end) of an axis of `out` cells, resized from one of `length` cells.
std::vector<AxisTap> resize_taps(ResizeMode mode, float ratio, std::int64_t factor, std::int64_t length,
                                 std::int64_t out, const Span& outputs);

// The input cells that taps read; empty where there are no taps.
Span taps_demand(const std::vector<AxisTap>& taps);

}  // namespace tracenet
