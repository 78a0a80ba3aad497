// Nearest and bilinear resizes, with an optional addend.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/cells.hpp"
#include "cpu/resize_taps.hpp"
#include "cpu/window_tasks.hpp"
#include "tracenet/error.hpp"
#include "tracenet/kernels.hpp"

namespace tracenet {

namespace {

// Beyond this, float32 indices skip cells and an aligned factor could leave 64 bits.
constexpr std::int64_t kLongestAxis = std::int64_t{1} << 31;

void check_spec(const ResizeSpec& spec, const View<const float>& input, const View<float>& output) {
    const auto mode = static_cast<std::int32_t>(spec.mode);
    if (mode < 0 || mode > static_cast<std::int32_t>(ResizeMode::aligned_bilinear)) {
        throw InputError("resize mode " + std::to_string(mode) + "; pass 0 (nearest) to 3 (aligned bilinear)");
    }
    for (const std::int64_t side : {input.height, input.width, output.height, output.width}) {
        if (side < 1 || side > kLongestAxis) {
            throw InputError("resize from " + std::to_string(input.height) + " x " + std::to_string(input.width) +
                             " to " + std::to_string(output.height) + " x " + std::to_string(output.width) +
                             "; pass planes with sides of 1 to 2^31 cells");
        }
    }
    if (spec.mode == ResizeMode::aligned_bilinear) {
        if (spec.factor < 1 || spec.factor > kLongestAxis || output.height != spec.factor * input.height ||
            output.width != spec.factor * input.width) {
            throw InputError("aligned bilinear resize by " + std::to_string(spec.factor) + " from " +
                             std::to_string(input.height) + " x " + std::to_string(input.width) + " to " +
                             std::to_string(output.height) + " x " + std::to_string(output.width) +
                             "; pass a factor >= 1 and an output plane that many times as large");
        }
        return;
    }
    for (const float ratio : {spec.ratio_y, spec.ratio_x}) {
        if (!(ratio >= 0.0F) || !(ratio <= static_cast<float>(kLongestAxis))) {
            throw InputError("resize with " + std::to_string(ratio) +
                             " input cells per output cell; pass a ratio >= 0 that is finite");
        }
    }
}

void check_addend(const View<const float>& addend, const View<float>& output, const Window& window) {
    if (addend.data != nullptr) check_cellwise(shape_of(addend), "the addend", shape_of(output), window);
}

}  // namespace

void resize(const ResizeSpec& spec, View<const float> input, View<const float> addend, View<float> output,
            const Window& window, ThreadPool& pool) {
    check_spec(spec, input, output);
    check_same_channels(shape_of(input), "the input", shape_of(output));
    check_view(output, "the output");
    check_window(window, output, "the output");
    if (window.is_empty()) return;
    const std::vector<AxisTap> down =
        resize_taps(spec.mode, spec.ratio_y, spec.factor, input.height, output.height, {window.y0, window.y1});
    const std::vector<AxisTap> across =
        resize_taps(spec.mode, spec.ratio_x, spec.factor, input.width, output.width, {window.x0, window.x1});
    const Span rows = taps_demand(down);
    const Span columns = taps_demand(across);
    check_reads_and_writes(shape_of(input), {rows.begin, rows.end, columns.begin, columns.end}, "the input",
                           shape_of(output), window);
    check_addend(addend, output, window);

    const CellKernels& kernels = cell_kernels();
    const std::int64_t channels = output.channels;
    const bool nearest = spec.mode == ResizeMode::nearest;
    const auto cell = [&](const AxisTap& y, std::int64_t column, float* out, const float* plus) {
        const AxisTap& x = across[static_cast<std::size_t>(column)];
        const float* const top_left = input.at(y.low, x.low);
        if (!nearest) {
            const BlendCell blend{
                {top_left, input.at(y.low, x.high), input.at(y.high, x.low), input.at(y.high, x.high)},
                x.low_weight,
                x.high_weight,
                y.low_weight,
                y.high_weight};
            kernels.blend(blend, plus, channels, out);
        } else if (plus != nullptr) {
            kernels.add(top_left, plus, false, channels, out);
        } else {
            std::memcpy(out, top_left, static_cast<std::size_t>(channels) * sizeof(float));
        }
    };
    const std::int64_t width = window.x1 - window.x0;
    for_bands(pool, window, 4 * width * channels * (nearest ? 3 : 5), [&](std::int64_t y0, std::int64_t y1) {
        for (std::int64_t y = y0; y < y1; ++y) {
            const AxisTap& tap = down[static_cast<std::size_t>(y - window.y0)];
            for (std::int64_t column = 0; column < width; ++column) {
                const std::int64_t x = window.x0 + column;
                cell(tap, column, output.at(y, x), addend.data == nullptr ? nullptr : addend.at(y, x));
            }
        }
    });
}

}  // namespace tracenet
