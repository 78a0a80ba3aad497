// The dynamic mask head, on the features' plane or upsampled in the same pass.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cpu/cells.hpp"
#include "cpu/resize_taps.hpp"
#include "cpu/window_tasks.hpp"
#include "tracenet/error.hpp"
#include "tracenet/kernels.hpp"

namespace tracenet {

namespace {

constexpr std::int64_t kFeatures = 8;
// Multiply-adds of a cell are worth about as much time as this many bytes of memory.
constexpr std::int64_t kBytesPerCell = 128;

void check_head(const MaskHead& head, const View<const float>& features, const View<float>& output) {
    if (head.theta == nullptr) throw InputError("the mask head has no parameters (null pointer); pass 169 floats");
    if (features.channels != kFeatures || output.channels != 1) {
        throw InputError("the mask head maps 8 channels to 1, but the features have " +
                         std::to_string(features.channels) + " and the output " + std::to_string(output.channels));
    }
    if (head.stride < 1 || head.stride > 65536) {
        throw InputError("mask features of stride " + std::to_string(head.stride) + "; pass 1 to 65536");
    }
    if (!std::isfinite(head.origin_x) || !std::isfinite(head.origin_y) || !std::isfinite(head.size_of_interest) ||
        head.size_of_interest == 0.0F) {
        throw InputError("the mask head's origin (" + std::to_string(head.origin_x) + ", " +
                         std::to_string(head.origin_y) + ") and size of interest " +
                         std::to_string(head.size_of_interest) + " must be finite, and the size not 0");
    }
}

float pixel_of(const MaskHead& head, std::int64_t cell) {
    return static_cast<float>(cell * head.stride + head.stride / 2);
}

// Logits of cells [x0, x1) of row y.
void logits_of_row(const CellKernels& kernels, const MaskHead& head, const View<const float>& features, std::int64_t y,
                   std::int64_t x0, std::int64_t x1, float* out) {
    const float rel_y = (head.origin_y - pixel_of(head, y)) / head.size_of_interest;
    kernels.mask_logits({head.theta, features.at(y, x0), features.pixel_stride, x1 - x0, rel_y, head.origin_x,
                         head.size_of_interest, pixel_of(head, x0), static_cast<float>(head.stride)},
                        out);
}

// Writes a row of values to a row of a view of one channel.
void scatter(const float* values, const View<float>& output, std::int64_t y, std::int64_t x0, std::int64_t x1) {
    float* out = output.at(y, x0);
    if (output.pixel_stride == 1) {
        std::copy_n(values, x1 - x0, out);
        return;
    }
    for (std::int64_t i = 0; i < x1 - x0; ++i) out[i * output.pixel_stride] = values[i];
}

}  // namespace

void mask_head(const MaskHead& head, View<const float> features, View<float> output, const Window& window,
               ThreadPool& pool) {
    check_head(head, features, output);
    check_same_plane(shape_of(features), "the features", shape_of(output));
    check_reads_and_writes(shape_of(features), window, "the features", shape_of(output), window);
    const CellKernels& kernels = cell_kernels();
    const std::int64_t width = window.x1 - window.x0;
    for_bands(pool, window, width * kBytesPerCell, [&](std::int64_t y0, std::int64_t y1) {
        std::vector<float> row(static_cast<std::size_t>(width));
        for (std::int64_t y = y0; y < y1; ++y) {
            logits_of_row(kernels, head, features, y, window.x0, window.x1, row.data());
            scatter(row.data(), output, y, window.x0, window.x1);
        }
    });
}

void mask_head_upsampled(const MaskHead& head, std::int64_t factor, View<const float> features, View<float> output,
                         const Window& window, ThreadPool& pool) {
    check_head(head, features, output);
    constexpr std::int64_t kLargest = std::int64_t{1} << 20;
    if (factor < 1 || factor > kLargest || features.height > kLargest || features.width > kLargest ||
        output.height != factor * features.height || output.width != factor * features.width) {
        throw InputError("upsampling by " + std::to_string(factor) + " from " + std::to_string(features.height) +
                         " x " + std::to_string(features.width) + " cells to " + std::to_string(output.height) + " x " +
                         std::to_string(output.width) +
                         "; pass a factor >= 1 and an output plane that many times as large");
    }
    check_view(output, "the output");
    check_window(window, output, "the output");
    if (window.is_empty()) return;
    const auto axis = [factor](std::int64_t length, const Span& outputs) {
        return resize_taps(ResizeMode::aligned_bilinear, 1.0F, factor, length, length * factor, outputs);
    };
    const std::vector<AxisTap> down = axis(features.height, {window.y0, window.y1});
    const std::vector<AxisTap> across = axis(features.width, {window.x0, window.x1});
    const Span rows = taps_demand(down);
    const Span columns = taps_demand(across);
    check_reads_and_writes(shape_of(features), {rows.begin, rows.end, columns.begin, columns.end}, "the features",
                           shape_of(output), window);

    const CellKernels& kernels = cell_kernels();
    const std::int64_t cells = columns.end - columns.begin;
    const std::int64_t width = window.x1 - window.x0;
    const std::int64_t bytes = cells * kBytesPerCell / factor + width * 16;
    for_bands(pool, window, bytes, [&](std::int64_t y0, std::int64_t y1) {
        // The logits of two rows of cells, the row between them, and that row upsampled.
        const std::unique_ptr<float[]> scratch(new float[static_cast<std::size_t>(3 * cells + width)]);
        float* low = scratch.get();
        float* high = low + cells;
        float* const between = high + cells;
        float* const upsampled = between + cells;
        std::int64_t low_row = -1;
        std::int64_t high_row = -1;
        for (std::int64_t y = y0; y < y1; ++y) {
            const AxisTap& tap = down[static_cast<std::size_t>(y - window.y0)];
            if (tap.low == high_row) {
                std::swap(low, high);
                std::swap(low_row, high_row);
            }
            if (tap.low != low_row) {
                logits_of_row(kernels, head, features, tap.low, columns.begin, columns.end, low);
                low_row = tap.low;
            }
            if (tap.high != tap.low && tap.high != high_row) {
                logits_of_row(kernels, head, features, tap.high, columns.begin, columns.end, high);
                high_row = tap.high;
            }
            kernels.mix(low, tap.high == tap.low ? low : high, tap.low_weight, tap.high_weight, cells, between);
            for (std::int64_t i = 0; i < width; ++i) {
                const AxisTap& x = across[static_cast<std::size_t>(i)];
                upsampled[i] =
                    between[x.low - columns.begin] * x.low_weight + between[x.high - columns.begin] * x.high_weight;
            }
            scatter(upsampled, output, y, window.x0, window.x1);
        }
    });
}

}  // namespace tracenet
