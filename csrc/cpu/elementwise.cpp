// Cell by cell: sums, products, activations, copies from and into a range of channels; and what needs the mean of a
// plane.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

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

int number(const Activate& function) { return static_cast<int>(function.kind); }

void check_activation(Activation kind) {
    const auto value = static_cast<int>(kind);
    if (value < 0 || value >= kActivations) {
        throw InputError("activation " + std::to_string(value) + " is not known; pass 0 to " +
                         std::to_string(kActivations - 1));
    }
}

Window whole_plane(const View<const float>& view) { return {0, view.height, 0, view.width}; }

double cells_of(const View<const float>& view) {
    if (view.height < 1 || view.width < 1) {
        throw InputError("the input is an empty plane, which has no mean; pass at least one cell");
    }
    return static_cast<double>(view.height) * static_cast<double>(view.width);
}

// Of each channel the sum over the plane of distances from its centre, or of their squares. Bands of rows are summed in
// float, then in order in double: how many bands there are depends on the plane alone.
std::vector<double> sums_over_plane(const View<const float>& input, const float* centres, bool squares,
                                    ThreadPool& pool) {
    constexpr std::int64_t kPixels = 512;  // of a band, at least
    const std::int64_t channels = input.channels;
    const std::int64_t rows = ceil_div(kPixels, input.width);
    const std::int64_t bands = ceil_div(input.height, rows);
    std::vector<float> sums(static_cast<std::size_t>(bands * 2 * channels));
    const CellKernels& kernels = cell_kernels();
    const auto sum = squares ? kernels.sum_squares : kernels.sum_pixels;
    pool.run(bands, [&](std::int64_t band, int) {
        float* const total = sums.data() + 2 * band * channels;
        float* const row = total + channels;
        for (std::int64_t y = band * rows; y < std::min((band + 1) * rows, input.height); ++y) {
            sum(input.at(y, 0), centres, input.width, input.pixel_stride, channels, row);
            kernels.add(total, row, false, channels, total);
        }
    });
    std::vector<double> totals(static_cast<std::size_t>(channels));
    for (std::int64_t band = 0; band < bands; ++band) {
        const float* const from = sums.data() + 2 * band * channels;
        for (std::size_t c = 0; c < totals.size(); ++c) totals[c] += static_cast<double>(from[c]);
    }
    return totals;
}

}  // namespace

void add(View<const float> a, View<const float> b, const Activate& function, View<float> output, const Window& window,
         ThreadPool& pool) {
    check_activation(function.kind);
    const bool both = b.data != nullptr;
    check_cellwise(shape_of(a), "the first addend", shape_of(output), window);
    if (both) check_cellwise(shape_of(b), "the second addend", shape_of(output), window);
    const CellKernels& kernels = cell_kernels();
    const bool relu = function.kind == Activation::relu;
    const bool more = !relu && function.kind != Activation::none;
    for_runs(pool, window, output.channels,
             {a.pixel_stride, both ? b.pixel_stride : a.pixel_stride, output.pixel_stride},
             [&](std::int64_t y, std::int64_t x, std::int64_t n) {
                 float* const to = output.at(y, x);
                 if (both || !more) kernels.add(a.at(y, x), both ? b.at(y, x) : nullptr, relu, n, to);
                 if (more) kernels.activate(number(function), function.a, function.b, both ? to : a.at(y, x), n, to);
             });
}

void activate(View<const float> input, const Activate& function, View<float> output, const Window& window,
              ThreadPool& pool) {
    add(input, {}, function, output, window, pool);
}

void multiply(View<const float> a, View<const float> b, const Activate& function, View<float> output,
              const Window& window, ThreadPool& pool) {
    check_activation(function.kind);
    check_cellwise(shape_of(a), "the first factor", shape_of(output), window);
    const bool cell = b.height == 1 && b.width == 1 && (output.height != 1 || output.width != 1);
    if (cell) {
        check_same_channels(shape_of(b), "the second factor", shape_of(output));
        check_reads_and_writes(shape_of(b), {0, 1, 0, 1}, "the second factor", shape_of(output), window);
    } else {
        check_cellwise(shape_of(b), "the second factor", shape_of(output), window);
    }
    const CellKernels& kernels = cell_kernels();
    const bool activated = function.kind != Activation::none;
    // The channels of one pixel at a time where they meet one cell.
    const std::int64_t apart = cell ? output.channels + 1 : b.pixel_stride;
    for_runs(pool, window, output.channels, {a.pixel_stride, apart, output.pixel_stride},
             [&](std::int64_t y, std::int64_t x, std::int64_t n) {
                 float* const to = output.at(y, x);
                 kernels.multiply(a.at(y, x), cell ? b.data : b.at(y, x), n, to);
                 if (activated) kernels.activate(number(function), function.a, function.b, to, n, to);
             });
}

void plane_mean(View<const float> input, View<float> output, ThreadPool& pool) {
    if (output.height != 1 || output.width != 1) {
        throw InputError("the output is " + std::to_string(output.height) + " x " + std::to_string(output.width) +
                         " cells; pass one cell");
    }
    check_same_channels(shape_of(input), "the input", shape_of(output));
    check_reads_and_writes(shape_of(input), whole_plane(input), "the input", shape_of(output), {0, 1, 0, 1});
    const double cells = cells_of(input);
    const std::vector<float> zeros(static_cast<std::size_t>(input.channels));
    const std::vector<double> sums = sums_over_plane(input, zeros.data(), false, pool);
    float* const to = output.at(0, 0);
    for (std::size_t c = 0; c < sums.size(); ++c) to[c] = static_cast<float>(sums[c] / cells);
}

void group_norm(const GroupNorm& norm, View<const float> input, const Activate& function, View<float> output,
                const Window& window, ThreadPool& pool) {
    check_activation(function.kind);
    if (norm.groups < 1 || input.channels % norm.groups != 0) {
        throw InputError(std::to_string(input.channels) + " channels are not " + std::to_string(norm.groups) +
                         " equal groups; pass a number that divides them");
    }
    check_same_channels(shape_of(input), "the input", shape_of(output));
    check_same_plane(shape_of(input), "the input", shape_of(output));
    check_reads_and_writes(shape_of(input), whole_plane(input), "the input", shape_of(output), window);
    const auto channels = static_cast<std::size_t>(input.channels);
    const std::size_t size = channels / static_cast<std::size_t>(norm.groups);
    const double count = cells_of(input) * static_cast<double>(size);
    const auto group_mean = [&](const std::vector<double>& sums, std::size_t first) {
        double total = 0.0;
        for (std::size_t c = first; c < first + size; ++c) total += sums[c];
        return total / count;
    };
    // Distances from the first pixel: the float sums of values far from 0 would lose the digits that vary.
    const float* const first = input.at(0, 0);
    std::vector<double> sums = sums_over_plane(input, first, false, pool);
    for (std::size_t c = 0; c < channels; ++c) sums[c] += cells_of(input) * static_cast<double>(first[c]);
    std::vector<float> means(channels);
    std::vector<float> factors(channels);
    std::vector<float> shifts(channels);
    for (std::size_t c = 0; c < channels; ++c) means[c] = static_cast<float>(group_mean(sums, c - c % size));
    const std::vector<double> squares = sums_over_plane(input, means.data(), true, pool);
    for (std::size_t c = 0; c < channels; ++c) {
        // What is subtracted is the mean rounded to float; the shift makes up for the rest.
        const double moved = group_mean(sums, c - c % size) - static_cast<double>(means[c]);
        const double variance = std::max(group_mean(squares, c - c % size) - moved * moved, 0.0);
        const double scale = norm.scale == nullptr ? 1.0 : static_cast<double>(norm.scale[c]);
        const double factor = scale / std::sqrt(variance + norm.epsilon);
        factors[c] = static_cast<float>(factor);
        shifts[c] =
            static_cast<float>((norm.bias == nullptr ? 0.0 : static_cast<double>(norm.bias[c])) - moved * factor);
    }
    const CellKernels& kernels = cell_kernels();
    const bool activated = function.kind != Activation::none;
    for_bands(pool, window, 8 * (window.x1 - window.x0) * input.channels, [&](std::int64_t y0, std::int64_t y1) {
        for (std::int64_t y = y0; y < y1; ++y) {
            for (std::int64_t x = window.x0; x < window.x1; ++x) {
                float* const to = output.at(y, x);
                kernels.normalise(input.at(y, x), means.data(), factors.data(), shifts.data(), input.channels, to);
                if (activated) kernels.activate(number(function), function.a, function.b, to, input.channels, to);
            }
        }
    });
}

void take_channels(View<const float> input, std::int64_t first, View<float> output, const Window& window,
                   ThreadPool& pool) {
    if (first < 0 || output.channels < 1 || output.channels > input.channels ||
        first > input.channels - output.channels) {
        throw InputError("channels [" + std::to_string(first) + ", " + std::to_string(first) + " + " +
                         std::to_string(output.channels) + ") are not among the input's " +
                         std::to_string(input.channels) + "; pass first >= 0 and as many as there are");
    }
    check_view(input, "the input");
    View<const float> part = input;
    part.channels = output.channels;
    if (part.data != nullptr) part.data += first;
    check_same_plane(shape_of(part), "the input", shape_of(output));
    check_reads_and_writes(shape_of(part), window, "the input", shape_of(output), window);
    for_runs(pool, window, output.channels, {part.pixel_stride, output.pixel_stride},
             [&](std::int64_t y, std::int64_t x, std::int64_t n) {
                 std::memcpy(output.at(y, x), part.at(y, x), static_cast<std::size_t>(n) * sizeof(float));
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
