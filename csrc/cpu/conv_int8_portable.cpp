// 8-bit tiles in plain C++: what every other instruction set must agree with, bit for bit.
#include <cstdint>
#include <cstring>

#include "cpu/conv_int8_tile.hpp"

namespace tracenet {

namespace {

// Clamped first: the bounds are integers, so rounding cannot leave them, and for such small numbers adding 1.5 * 2^23
// rounds half to even. (Comparisons are written so that NaN becomes the lower bound.)
inline std::uint8_t to_byte(float y, float inverse_scale, std::int32_t zero_point, bool relu) {
    constexpr float kRound = 12582912.0F;
    const float low = relu ? 0.0F : static_cast<float>(-zero_point);
    const float high = static_cast<float>(255 - zero_point);
    const float scaled = y * inverse_scale;
    const float raised = scaled > low ? scaled : low;
    const float clamped = raised < high ? raised : high;
    return static_cast<std::uint8_t>(static_cast<std::int32_t>((clamped + kRound) - kRound) + zero_point);
}

inline float to_float(std::uint8_t byte, float scale, std::int32_t zero_point) {
    return static_cast<float>(static_cast<std::int32_t>(byte) - zero_point) * scale;
}

void multiply(const std::uint8_t* channels, std::int64_t count, const std::int8_t* weights, std::int32_t* sums) {
    std::int32_t x[4] = {0, 0, 0, 0};
    for (std::int64_t i = 0; i < count; ++i) x[i] = channels[i];
    for (int channel = 0; channel < kInt8TileChannels; ++channel) {
        const std::int8_t* w = weights + 4 * channel;
        sums[channel] += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
    }
}

}  // namespace

void conv_int8_sums_portable(const Int8Tile& tile, std::int32_t* sums) {
    for (std::int64_t pixel = 0; pixel < tile.count; ++pixel) {
        std::int32_t local[kInt8TileChannels];
        for (int channel = 0; channel < kInt8TileChannels; ++channel) local[channel] = tile.start[channel];
        const std::int8_t* weights = tile.weights;
        for (std::int64_t tap = 0; tap < tile.taps; ++tap) {
            const std::uint8_t* channels = tile.pixels[tap * kInt8TilePixels + pixel];
            for (std::int64_t quad = 0; quad < tile.quads; ++quad, weights += 4 * kInt8TileChannels) {
                multiply(channels + 4 * quad, 4, weights, local);
            }
            if (tile.tail != 0) {
                multiply(channels + 4 * tile.quads, tile.tail, weights, local);
                weights += 4 * kInt8TileChannels;
            }
        }
        for (int channel = 0; channel < kInt8TileChannels; ++channel) {
            sums[pixel * kInt8TileChannels + channel] = local[channel];
        }
    }
}

void finish_int8_tile(const Int8Tile& tile, const std::int32_t* sums) {
    for (std::int64_t pixel = 0; pixel < tile.count; ++pixel, sums += kInt8TileChannels) {
        // All channels, written or not: loops of a known length become vector code.
        float y[kInt8TileChannels];
        for (int channel = 0; channel < kInt8TileChannels; ++channel) {
            y[channel] = static_cast<float>(sums[channel]) * tile.multiplier[channel] + tile.bias[channel];
        }
        if (tile.residual != nullptr) {
            const float* residual = tile.residual[pixel] + tile.first_channel;
            for (std::int64_t channel = 0; channel < tile.channels; ++channel) y[channel] += residual[channel];
        } else if (tile.quantised_residual != nullptr) {
            const std::uint8_t* residual = tile.quantised_residual[pixel] + tile.first_channel;
            for (std::int64_t channel = 0; channel < tile.channels; ++channel) {
                y[channel] += to_float(residual[channel], tile.residual_scale, tile.residual_zero_point);
            }
        }
        if (tile.output != nullptr) {
            float* output = tile.output[pixel] + tile.first_channel;
            for (std::int64_t channel = 0; channel < tile.channels; ++channel) {
                output[channel] = tile.relu && y[channel] < 0.0F ? 0.0F : y[channel];
            }
        } else {
            std::uint8_t bytes[kInt8TileChannels];
            for (int channel = 0; channel < kInt8TileChannels; ++channel) {
                bytes[channel] = to_byte(y[channel], tile.inverse_scale, tile.zero_point, tile.relu);
            }
            std::memcpy(tile.quantised_output[pixel] + tile.first_channel, bytes,
                        static_cast<std::size_t>(tile.channels));
        }
    }
}

void quantise_row_portable(const float* input, std::int64_t count, float inverse_scale, std::int32_t zero_point,
                           std::uint8_t* output) {
    for (std::int64_t i = 0; i < count; ++i) output[i] = to_byte(input[i], inverse_scale, zero_point, false);
}

void dequantise_row_portable(const std::uint8_t* input, std::int64_t count, float scale, std::int32_t zero_point,
                             float* output) {
    for (std::int64_t i = 0; i < count; ++i) output[i] = to_float(input[i], scale, zero_point);
}

}  // namespace tracenet
