#include "cpu/resize_taps.hpp"

#include <algorithm>
#include <cmath>

namespace tracenet {

namespace {

// floor(i * r) in float32, as torch computes it.
AxisTap nearest_tap(std::int64_t i, float ratio, std::int64_t length) {
    const float source = std::floor(static_cast<float>(i) * ratio);
    const std::int64_t cell = std::min(static_cast<std::int64_t>(source), length - 1);
    return {cell, cell, 1.0F, 0.0F};
}

// Both neighbours, the edge replicated; an axis that keeps its length is copied.
AxisTap linear_tap(std::int64_t i, float ratio, bool align_corners, std::int64_t length, std::int64_t out) {
    if (length == out) return {i, i, 1.0F, 0.0F};
    const auto index = static_cast<float>(i);
    const float source = std::max(align_corners ? index * ratio : (index + 0.5F) * ratio - 0.5F, 0.0F);
    const std::int64_t low = std::min(static_cast<std::int64_t>(std::floor(source)), length - 1);
    const float fraction = std::min(std::max(source - static_cast<float>(low), 0.0F), 1.0F);
    return {low, std::min(low + 1, length - 1), 1.0F - fraction, fraction};
}

// t = clamp((i - f / 2) / f, 0, n - 1), in integers: whole cells read one cell only.
AxisTap aligned_tap(std::int64_t i, std::int64_t factor, std::int64_t length) {
    const std::int64_t scaled = std::min(std::max<std::int64_t>(i - factor / 2, 0), (length - 1) * factor);
    const std::int64_t low = scaled / factor;
    const std::int64_t rest = scaled % factor;
    const double fraction = static_cast<double>(rest) / static_cast<double>(factor);
    return {low, low + (rest > 0 ? 1 : 0), static_cast<float>(1.0 - fraction), static_cast<float>(fraction)};
}

}  // namespace

std::vector<AxisTap> resize_taps(ResizeMode mode, float ratio, std::int64_t factor, std::int64_t length,
                                 std::int64_t out, const Span& outputs) {
    std::vector<AxisTap> taps;
    taps.reserve(static_cast<std::size_t>(outputs.end - outputs.begin));
    for (std::int64_t i = outputs.begin; i < outputs.end; ++i) {
        switch (mode) {
            case ResizeMode::nearest:
                taps.push_back(nearest_tap(i, ratio, length));
                break;
            case ResizeMode::bilinear:
            case ResizeMode::bilinear_align_corners:
                taps.push_back(linear_tap(i, ratio, mode == ResizeMode::bilinear_align_corners, length, out));
                break;
            case ResizeMode::aligned_bilinear:
                taps.push_back(aligned_tap(i, factor, length));
                break;
        }
    }
    return taps;
}

Span taps_demand(const std::vector<AxisTap>& taps) {
    if (taps.empty()) return {0, 0};
    Span demand{taps.front().low, taps.front().high + 1};
    for (const AxisTap& tap : taps) {
        demand.begin = std::min(demand.begin, tap.low);
        demand.end = std::max(demand.end, tap.high + 1);
    }
    return demand;
}

}  // namespace tracenet
