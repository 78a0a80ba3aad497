// 8-bit tiles with vpdpbusd: four products of u8 activations and s8 weights into each 32-bit sum, no saturation.
//
// 14 pixels x 2 vectors of 16 channels are 28 accumulators. An activation is broadcast by its load, so a step of four
// input channels is 14 loads, 2 weight vectors and 28 dot products: the dot products bound the loop.
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12 warns of its own intrinsics, whose "undefined" operands start from themselves.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "cpu/conv_int8_tile.hpp"

namespace tracenet {

namespace {

inline __m512i broadcast_quad(const std::uint8_t* channels) {
    std::int32_t quad;
    __builtin_memcpy(&quad, channels, 4);
    return _mm512_set1_epi32(quad);
}

// The last one to three channels, one by one: reading four would pass the end of the plane.
inline __m512i broadcast_tail(const std::uint8_t* channels, std::int64_t tail) {
    std::int32_t quad = channels[0];
    if (tail > 1) quad |= static_cast<std::int32_t>(channels[1]) << 8;
    if (tail > 2) quad |= static_cast<std::int32_t>(channels[2]) << 16;
    return _mm512_set1_epi32(quad);
}

// Real values to integers.
struct Grid {
    __m512 inverse_scale;
    __m512 low;  // bounds before the zero point is added
    __m512 high;
    __m512i zero_point;
};

inline Grid grid_of(float inverse_scale, std::int32_t zero_point, bool relu) {
    return {_mm512_set1_ps(inverse_scale), _mm512_set1_ps(relu ? 0.0F : static_cast<float>(-zero_point)),
            _mm512_set1_ps(static_cast<float>(255 - zero_point)), _mm512_set1_epi32(zero_point)};
}

inline __m128i to_bytes(__m512 y, const Grid& grid) {
    // The second operand of max where NaN: low.
    const __m512 clamped = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(y, grid.inverse_scale), grid.low), grid.high);
    const __m512i rounded = _mm512_cvt_roundps_epi32(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // To a register and then to memory: the form that stores is microcoded.
    return _mm512_cvtepi32_epi8(_mm512_add_epi32(rounded, grid.zero_point));
}

inline __m512 to_floats(__m128i bytes, float scale, std::int32_t zero_point) {
    const __m512i centred = _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(zero_point));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(centred), _mm512_set1_ps(scale));
}

inline __mmask16 first_lanes(std::int64_t count) {
    return static_cast<__mmask16>(count >= 16 ? 0xFFFFU : (1U << count) - 1U);
}

// Values, not references into the tile: a store of bytes may alias anything, and would make the compiler read all of
// them again for every pixel.
struct Epilogue {
    __m512 multiplier;
    __m512 bias;
    Grid grid;
    __mmask16 mask;
    std::int64_t channel;
    const float* const* residual;
    const std::uint8_t* const* quantised_residual;
    float residual_scale;
    std::int32_t residual_zero_point;
    bool relu;
    float* const* output;
    std::uint8_t* const* quantised_output;
};

inline void finish(const Epilogue& epilogue, int pixel, __m512i sums) {
    const std::int64_t channel = epilogue.channel;
    const __mmask16 mask = epilogue.mask;
    __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), epilogue.multiplier), epilogue.bias);
    if (epilogue.residual != nullptr) {
        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, epilogue.residual[pixel] + channel));
    } else if (epilogue.quantised_residual != nullptr) {
        const __m128i bytes = _mm_maskz_loadu_epi8(mask, epilogue.quantised_residual[pixel] + channel);
        y = _mm512_add_ps(y, to_floats(bytes, epilogue.residual_scale, epilogue.residual_zero_point));
    }
    if (epilogue.output != nullptr) {
        if (epilogue.relu) y = _mm512_max_ps(_mm512_setzero_ps(), y);  // the second operand where NaN
        _mm512_mask_storeu_ps(epilogue.output[pixel] + channel, mask, y);
        return;
    }
    const __m128i bytes = to_bytes(y, epilogue.grid);
    std::uint8_t* const place = epilogue.quantised_output[pixel] + channel;
    if (mask == 0xFFFF) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(place), bytes);
    } else {
        _mm_mask_storeu_epi8(place, mask, bytes);
    }
}

template <int kPixels>
void run(const Int8Tile& tile) {
    __m512i sums[kPixels][2];
    for (int pixel = 0; pixel < kPixels; ++pixel) {
        sums[pixel][0] = _mm512_loadu_si512(tile.start);
        sums[pixel][1] = _mm512_loadu_si512(tile.start + 16);
    }
    const std::int8_t* weights = tile.weights;
    for (std::int64_t tap = 0; tap < tile.taps; ++tap) {
        const std::uint8_t* const* pixels = tile.pixels + tap * kInt8TilePixels;
        for (std::int64_t quad = 0; quad < tile.quads; ++quad, weights += 128) {
            const __m512i left = _mm512_load_si512(weights);
            const __m512i right = _mm512_load_si512(weights + 64);
#pragma GCC unroll 14
            for (int pixel = 0; pixel < kPixels; ++pixel) {
                const __m512i x = broadcast_quad(pixels[pixel] + 4 * quad);
                sums[pixel][0] = _mm512_dpbusd_epi32(sums[pixel][0], x, left);
                sums[pixel][1] = _mm512_dpbusd_epi32(sums[pixel][1], x, right);
            }
        }
        if (tile.tail != 0) {
            const __m512i left = _mm512_load_si512(weights);
            const __m512i right = _mm512_load_si512(weights + 64);
            weights += 128;
#pragma GCC unroll 14
            for (int pixel = 0; pixel < kPixels; ++pixel) {
                const __m512i x = broadcast_tail(pixels[pixel] + 4 * tile.quads, tile.tail);
                sums[pixel][0] = _mm512_dpbusd_epi32(sums[pixel][0], x, left);
                sums[pixel][1] = _mm512_dpbusd_epi32(sums[pixel][1], x, right);
            }
        }
    }
    for (int half = 0; half < 2; ++half) {
        const std::int64_t left_over = tile.channels - 16 * half;
        if (left_over <= 0) return;
        const Epilogue epilogue{_mm512_loadu_ps(tile.multiplier + 16 * half),
                                _mm512_loadu_ps(tile.bias + 16 * half),
                                grid_of(tile.inverse_scale, tile.zero_point, tile.relu),
                                first_lanes(left_over),
                                tile.first_channel + 16 * half,
                                tile.residual,
                                tile.quantised_residual,
                                tile.residual_scale,
                                tile.residual_zero_point,
                                tile.relu,
                                tile.output,
                                tile.quantised_output};
#pragma GCC unroll 14
        for (int pixel = 0; pixel < kPixels; ++pixel) finish(epilogue, pixel, sums[pixel][half]);
    }
}

}  // namespace

void conv_int8_tile_avx512_vnni(const Int8Tile& tile) {
    using Run = void (*)(const Int8Tile&);
    static constexpr Run kRuns[kInt8TilePixels] = {&run<1>, &run<2>, &run<3>,  &run<4>,  &run<5>,  &run<6>,  &run<7>,
                                                   &run<8>, &run<9>, &run<10>, &run<11>, &run<12>, &run<13>, &run<14>};
    kRuns[tile.count - 1](tile);
}

void quantise_row_avx512_vnni(const float* input, std::int64_t count, float inverse_scale, std::int32_t zero_point,
                              std::uint8_t* output) {
    const Grid grid = grid_of(inverse_scale, zero_point, false);
    for (std::int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = first_lanes(count - i);
        _mm_mask_storeu_epi8(output + i, mask, to_bytes(_mm512_maskz_loadu_ps(mask, input + i), grid));
    }
}

void dequantise_row_avx512_vnni(const std::uint8_t* input, std::int64_t count, float scale, std::int32_t zero_point,
                                float* output) {
    for (std::int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = first_lanes(count - i);
        _mm512_mask_storeu_ps(output + i, mask, to_floats(_mm_maskz_loadu_epi8(mask, input + i), scale, zero_point));
    }
}

}  // namespace tracenet
