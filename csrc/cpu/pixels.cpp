// Photos and planar images to NHWC floats.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>

#include "cpu/window_tasks.hpp"
#include "tracenet/error.hpp"
#include "tracenet/kernels.hpp"

namespace tracenet {

namespace {

// Every value a normalised pixel can take: (value - mean[c]) / std[c], per output channel.
using Table = std::array<std::array<float, 256>, 3>;

Table table_of(const PixelNorm& norm) {
    Table table{};
    for (std::size_t c = 0; c < 3; ++c) {
        if (!std::isfinite(norm.mean[c]) || !std::isfinite(norm.std[c]) || norm.std[c] == 0.0F) {
            throw InputError("mean " + std::to_string(norm.mean[c]) + " and std " + std::to_string(norm.std[c]) +
                             " of channel " + std::to_string(c) + " must be finite, and std not 0");
        }
        for (std::size_t value = 0; value < 256; ++value) {
            table[c][value] = (static_cast<float>(value) - norm.mean[c]) / norm.std[c];
        }
    }
    return table;
}

}  // namespace

void normalise_pixels(const PixelNorm& norm, View<const std::uint8_t> photo, View<float> output, const Window& window,
                      ThreadPool& pool) {
    if (photo.channels != 3 || output.channels != 3) {
        throw InputError("the photo has " + std::to_string(photo.channels) + " channels and the output " +
                         std::to_string(output.channels) + "; pass 3 and 3");
    }
    if (output.height < photo.height || output.width < photo.width) {
        throw InputError("the photo is " + std::to_string(photo.height) + " x " + std::to_string(photo.width) +
                         ", the padded plane " + std::to_string(output.height) + " x " + std::to_string(output.width) +
                         "; pass a plane that holds the photo");
    }
    check_view(output, "the output");
    check_window(window, output, "the output");
    const Window inside = intersect(window, {0, photo.height, 0, photo.width});
    check_reads_and_writes(shape_of(photo), inside, "the photo", shape_of(output), window);
    const Table table = table_of(norm);
    const std::int64_t first = norm.reverse ? 2 : 0;
    const std::int64_t last = 2 - first;
    const std::int64_t photo_columns = inside.x1 - inside.x0;
    for_bands(pool, window, (window.x1 - window.x0) * 24, [&](std::int64_t y0, std::int64_t y1) {
        for (std::int64_t y = y0; y < y1; ++y) {
            float* out = output.at(y, window.x0);
            const std::int64_t pixels = inside.y0 <= y && y < inside.y1 ? photo_columns : 0;
            if (pixels > 0) {
                const std::uint8_t* in = photo.at(y, inside.x0);
                for (std::int64_t i = 0; i < pixels; ++i, in += photo.pixel_stride, out += output.pixel_stride) {
                    out[0] = table[0][in[first]];
                    out[1] = table[1][in[1]];
                    out[2] = table[2][in[last]];
                }
            }
            for (std::int64_t x = window.x0 + pixels; x < window.x1; ++x, out += output.pixel_stride) {
                std::fill_n(out, 3, 0.0F);
            }
        }
    });
}

void from_planar(const float* planes, std::int64_t channel_stride, std::int64_t row_stride, View<float> output,
                 const Window& window, ThreadPool& pool) {
    check_view(output, "the output");
    check_window(window, output, "the output");
    if (window.is_empty()) return;
    const std::int64_t rows = window.y1 - window.y0, width = window.x1 - window.x0;
    if (output.channels > 1 && channel_stride < checked_mul(row_stride, rows - 1) + width) {
        throw InputError("planes " + std::to_string(channel_stride) + " elements apart with rows " +
                         std::to_string(row_stride) + " apart overlap on a window of " + std::to_string(rows) + " x " +
                         std::to_string(width) + "; pass larger strides");
    }
    const std::int64_t channels = output.channels;
    const std::int64_t first = window.y0 * row_stride + window.x0;
    for (std::int64_t c = 0; c < channels; ++c) {
        const float* const data = planes == nullptr ? nullptr : planes + c * channel_stride + first;
        const View<const float> one{data, window, output.height, output.width, 1, row_stride, 1};
        check_reads_and_writes(shape_of(one), window, "the planar image", shape_of(output), window);
    }
    for_bands(pool, window, width * channels * 8, [&](std::int64_t y0, std::int64_t y1) {
        // Blocks of columns: the planes are read in lines and the pixels written while they are in the cache.
        constexpr std::int64_t kBlock = 64;
        for (std::int64_t y = y0; y < y1; ++y) {
            for (std::int64_t x0 = window.x0; x0 < window.x1; x0 += kBlock) {
                const std::int64_t x1 = std::min(x0 + kBlock, window.x1);
                for (std::int64_t c = 0; c < channels; ++c) {
                    const float* in = planes + c * channel_stride + y * row_stride;
                    float* out = output.at(y, x0) + c;
                    for (std::int64_t x = x0; x < x1; ++x, out += output.pixel_stride) *out = in[x];
                }
            }
        }
    });
}

}  // namespace tracenet
