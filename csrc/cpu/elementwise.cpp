// Cell by cell: addition, activation, sigmoid and copies into a range of channels.
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>

#include "cpu/cells.hpp"
#include "cpu/window_tasks.hpp"
#include "tracenet/error.hpp"
#include "tracenet/kernels.hpp"

namespace tracenet {

namespace {

// run(y, x, elements): whole rows where their pixels lie without gaps in every view, else pixel by pixel.
template <typename Run>
void for_runs(ThreadPool& pool, const Window& window, std::int64_t channels,
              std::initializer_list<std::int64_t> pixel_strides, const Run& run) {
    bool dense = true;
    for (const std::int64_t stride : pixel_strides) dense = dense && stride == channels;
    const std::int64_t columns = window.x1 - window.x0;
    const std::int64_t step = dense ? columns : 1;
    const auto views = static_cast<std::int64_t>(pixel_strides.size());
    for_bands(pool, window, 4 * columns * channels * views, [&](std::int64_t y0, std::int64_t y1) {
        for (std::int64_t y = y0; y < y1; ++y) {
            for (std::int64_t x = window.x0; x < window.x1; x += step) run(y, x, step * channels);
        }
    });
}

}  // namespace

void add(View<const float> a, View<const float> b, Activation activation, View<float> output, const Window& window,
         ThreadPool& pool) {
    const bool both = b.data != nullptr;
    check_cellwise(shape_of(a), "the first addend", shape_of(output), window);
    if (both) check_cellwise(shape_of(b), "the second addend", shape_of(output), window);
    const CellKernels& kernels = cell_kernels();
    const bool relu = activation == Activation::relu;
    for_runs(pool, window, output.channels,
             {a.pixel_stride, both ? b.pixel_stride : a.pixel_stride, output.pixel_stride},
             [&](std::int64_t y, std::int64_t x, std::int64_t n) {
                 kernels.add(a.at(y, x), both ? b.at(y, x) : nullptr, relu, n, output.at(y, x));
             });
}

void sigmoid(View<const float> input, View<float> output, const Window& window, ThreadPool& pool) {
    check_cellwise(shape_of(input), "the input", shape_of(output), window);
    const CellKernels& kernels = cell_kernels();
    for_runs(
        pool, window, output.channels, {input.pixel_stride, output.pixel_stride},
        [&](std::int64_t y, std::int64_t x, std::int64_t n) { kernels.sigmoid(input.at(y, x), n, output.at(y, x)); });
}

void copy_channels(View<const float> input, std::int64_t first, View<float> output, const Window& window,
                   ThreadPool& pool) {
    if (first < 0 || input.channels < 1 || input.channels > output.channels ||
        first > output.channels - input.channels) {
        throw InputError("channels [" + std::to_string(first) + ", " + std::to_string(first) + " + " +
                         std::to_string(input.channels) + ") are not among the output's " +
                         std::to_string(output.channels) + "; pass first >= 0 and room for the input's channels");
    }
    check_view(output, "the output");
    View<float> part = output;
    part.channels = input.channels;
    if (part.data != nullptr) part.data += first;
    check_same_plane(shape_of(input), "the input", shape_of(part));
    check_reads_and_writes(shape_of(input), window, "the input", shape_of(part), window);
    for_runs(pool, window, input.channels, {input.pixel_stride, part.pixel_stride},
             [&](std::int64_t y, std::int64_t x, std::int64_t n) {
                 std::memcpy(part.at(y, x), input.at(y, x), static_cast<std::size_t>(n) * sizeof(float));
             });
}

}  // namespace tracenet
