// What one call of an 8-bit kernel computes: up to 14 pixels times 32 output channels.
//
// Plain data only: included by files that are compiled for one instruction set.
#pragma once

#include <cstdint>

namespace tracenet {

constexpr int kInt8TilePixels = 14;
constexpr int kInt8TileChannels = 32;

struct Int8Tile {
    const std::uint8_t* const* pixels;  // [taps][kInt8TilePixels]: the first input channel of each pixel's tap
    std::int64_t taps;
    std::int64_t quads;            // whole groups of four input channels
    std::int64_t tail;             // input channels after the last whole group, 0 to 3
    const std::int8_t* weights;    // [taps][quads + (tail > 0)][kInt8TileChannels][4], 64-byte aligned
    const std::int32_t* start;     // [kInt8TileChannels]: what a sum starts from, -zero_point * (sum of the weights)
    const float* multiplier;       // [kInt8TileChannels]
    const float* bias;             // [kInt8TileChannels]
    std::int64_t count;            // pixels, 1 to kInt8TilePixels
    std::int64_t channels;         // that are written, 1 to kInt8TileChannels
    std::int64_t first_channel;    // added to the pointers below
    const float* const* residual;  // [count], null: none
    const std::uint8_t* const* quantised_residual;
    float residual_scale;
    std::int32_t residual_zero_point;
    bool relu;
    float* const* output;  // [count], null where the output is quantised
    std::uint8_t* const* quantised_output;
    float inverse_scale;  // of the quantised output
    std::int32_t zero_point;
};

// The sums alone, [count][kInt8TileChannels].
void conv_int8_sums_portable(const Int8Tile& tile, std::int32_t* sums);
void conv_int8_sums_avx2(const Int8Tile& tile, std::int32_t* sums);

// Everything after the sums, in plain C++.
void finish_int8_tile(const Int8Tile& tile, const std::int32_t* sums);

// Both at once.
void conv_int8_tile_avx512_vnni(const Int8Tile& tile);

// Rows of `count` contiguous elements.
void quantise_row_portable(const float* input, std::int64_t count, float inverse_scale, std::int32_t zero_point,
                           std::uint8_t* output);
void quantise_row_avx512_vnni(const float* input, std::int64_t count, float inverse_scale, std::int32_t zero_point,
                              std::uint8_t* output);
void dequantise_row_portable(const std::uint8_t* input, std::int64_t count, float scale, std::int32_t zero_point,
                             float* output);
void dequantise_row_avx512_vnni(const std::uint8_t* input, std::int64_t count, float scale, std::int32_t zero_point,
                                float* output);

}  // namespace tracenet
