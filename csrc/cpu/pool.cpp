// Maximum and average pooling: per output cell, the taps on the plane as a list of pointers.
#include "cpu/pool.hpp"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/cells.hpp"
#include "cpu/window_tasks.hpp"
#include "tracenet/error.hpp"
#include "tracenet/kernels.hpp"

namespace tracenet {

namespace {

// The taps of one output cell along one axis: cells first, first + dilation, ..., `count` of them, all on the plane.
struct AxisTaps {
    std::int64_t first = 0;
    std::int64_t count = 0;
    std::int64_t padded = 0;  // with those on the padding of either side, but not past it
};

AxisTaps taps_of(std::int64_t out, const AxisGeometry& axis, std::int64_t size) {
    const std::int64_t start = out * axis.stride - axis.padding;
    const std::int64_t begin = std::max<std::int64_t>(0, ceil_div(-start, axis.dilation));
    const std::int64_t end = std::min(axis.kernel, ceil_div(size - start, axis.dilation));
    const std::int64_t padded = std::min(axis.kernel, ceil_div(size + axis.padding - start, axis.dilation));
    return {start + begin * axis.dilation, std::max<std::int64_t>(0, end - begin), std::max<std::int64_t>(0, padded)};
}

// cell(taps, count, padded cells, out) for every cell of the window.
template <typename Cell>
void pool_cells(const PoolSpec& spec, const View<const float>& input, const View<float>& output, const Window& window,
                ThreadPool& pool, const Cell& cell) {
    check_pool(spec);
    check_same_channels(shape_of(input), "the input", shape_of(output));
    const Window demand = pool_demand(spec, window, input.height, input.width);
    check_reads_and_writes(shape_of(input), demand, "the input", shape_of(output), window);

    std::vector<AxisTaps> across;
    across.reserve(static_cast<std::size_t>(window.x1 - window.x0));
    for (std::int64_t x = window.x0; x < window.x1; ++x) across.push_back(taps_of(x, spec.x, input.width));
    const std::int64_t most =
        std::min(spec.y.kernel, demand.y1 - demand.y0) * std::min(spec.x.kernel, demand.x1 - demand.x0);
    const std::int64_t bytes = 4 * (window.x1 - window.x0) * output.channels * (1 + std::min<std::int64_t>(most, 64));
    for_bands(pool, window, bytes, [&](std::int64_t y0, std::int64_t y1) {
        std::vector<const float*> taps(static_cast<std::size_t>(most));
        for (std::int64_t y = y0; y < y1; ++y) {
            const AxisTaps down = taps_of(y, spec.y, input.height);
            float* out = output.at(y, window.x0);
            for (const AxisTaps& right : across) {
                std::size_t count = 0;
                for (std::int64_t ky = 0; ky < down.count && right.count > 0; ++ky) {
                    const float* from = input.at(down.first + ky * spec.y.dilation, right.first);
                    for (std::int64_t kx = 0; kx < right.count; ++kx) {
                        taps[count++] = from + kx * spec.x.dilation * input.pixel_stride;
                    }
                }
                cell(taps.data(), static_cast<std::int64_t>(count), down.padded * right.padded, out);
                out += output.pixel_stride;
            }
        }
    });
}

}  // namespace

void check_pool(const PoolSpec& spec) {
    for (const AxisGeometry& axis : {spec.y, spec.x}) {
        if (axis.kernel < 1 || axis.stride < 1 || axis.dilation < 1 || axis.padding < 0) {
            throw InputError("pooling with kernel " + std::to_string(axis.kernel) + ", stride " +
                             std::to_string(axis.stride) + ", padding " + std::to_string(axis.padding) + ", dilation " +
                             std::to_string(axis.dilation) +
                             "; pass kernel, stride and dilation >= 1 and padding >= 0");
        }
    }
}

Window pool_demand(const PoolSpec& spec, const Window& window, std::int64_t height, std::int64_t width) {
    const Span rows = conv_demand({window.y0, window.y1}, spec.y);
    const Span columns = conv_demand({window.x0, window.x1}, spec.x);
    return clip({rows.begin, rows.end, columns.begin, columns.end}, height, width);
}

void max_pool2d(const PoolSpec& spec, View<const float> input, View<float> output, const Window& window,
                ThreadPool& pool) {
    const CellKernels& kernels = cell_kernels();
    pool_cells(spec, input, output, window, pool,
               [&](const float* const* taps, std::int64_t count, std::int64_t, float* out) {
                   kernels.maximum(taps, count, output.channels, out);
               });
}

void avg_pool2d(const PoolSpec& spec, View<const float> input, View<float> output, const Window& window,
                ThreadPool& pool) {
    if (spec.y.dilation != 1 || spec.x.dilation != 1) {
        throw InputError("average pooling with dilation " + std::to_string(spec.y.dilation) + " x " +
                         std::to_string(spec.x.dilation) + "; it has none, pass 1");
    }
    if (spec.divisor < 0) {
        throw InputError("average pooling with divisor " + std::to_string(spec.divisor) +
                         "; pass a positive one, or 0 for the number of cells");
    }
    const CellKernels& kernels = cell_kernels();
    pool_cells(spec, input, output, window, pool,
               [&](const float* const* taps, std::int64_t count, std::int64_t padded, float* out) {
                   std::int64_t divisor = spec.count_include_pad ? padded : count;
                   if (spec.divisor > 0) divisor = spec.divisor;
                   if (count == 0) divisor = 1;  // nothing but padding: 0
                   kernels.mean(taps, count, static_cast<float>(divisor), output.channels, out);
               });
}

}  // namespace tracenet
