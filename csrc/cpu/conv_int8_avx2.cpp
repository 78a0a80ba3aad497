// 8-bit tiles in AVX2. vpmaddubsw would saturate its 16-bit sums, so even and odd channels are widened to 16 bits and
// multiplied apart: two vpmaddwd and two additions per four channels of eight outputs.
#include <immintrin.h>

#include <cstdint>

#include "cpu/conv_int8_tile.hpp"

namespace tracenet {

namespace {

constexpr int kVectors = kInt8TileChannels / 8;
constexpr int kStep = 2;  // pixels at a time: 8 accumulators, room for two activations and two weights

inline std::int32_t read_quad(const std::uint8_t* channels, std::int64_t count) {
    std::int32_t quad = 0;
    if (count == 4) {
        __builtin_memcpy(&quad, channels, 4);
    } else {
        for (std::int64_t i = 0; i < count; ++i) quad |= static_cast<std::int32_t>(channels[i]) << (8 * i);
    }
    return quad;
}

template <int kPixels>
inline void multiply(const std::uint8_t* const* pixels, std::int64_t channel, std::int64_t count,
                     const std::int8_t* weights, __m256i (&sums)[kPixels][kVectors]) {
    __m256i even[kPixels];
    __m256i odd[kPixels];
    for (int pixel = 0; pixel < kPixels; ++pixel) {
        const __m256i x = _mm256_set1_epi32(read_quad(pixels[pixel] + channel, count));
        even[pixel] = _mm256_and_si256(x, _mm256_set1_epi16(0xFF));
        odd[pixel] = _mm256_srli_epi16(x, 8);
    }
    for (int vector = 0; vector < kVectors; ++vector) {
        const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + 32 * vector));
        const __m256i w_even = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8);
        const __m256i w_odd = _mm256_srai_epi16(w, 8);
        for (int pixel = 0; pixel < kPixels; ++pixel) {
            __m256i& sum = sums[pixel][vector];
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even[pixel], w_even));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(odd[pixel], w_odd));
        }
    }
}

template <int kPixels>
void run(const Int8Tile& tile, int first, std::int32_t* out) {
    __m256i sums[kPixels][kVectors];
    for (int pixel = 0; pixel < kPixels; ++pixel) {
        for (int vector = 0; vector < kVectors; ++vector) {
            sums[pixel][vector] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile.start + 8 * vector));
        }
    }
    const std::int8_t* weights = tile.weights;
    for (std::int64_t tap = 0; tap < tile.taps; ++tap) {
        const std::uint8_t* const* pixels = tile.pixels + tap * kInt8TilePixels + first;
        for (std::int64_t quad = 0; quad < tile.quads; ++quad, weights += 128) {
            multiply<kPixels>(pixels, 4 * quad, 4, weights, sums);
        }
        if (tile.tail != 0) {
            multiply<kPixels>(pixels, 4 * tile.quads, tile.tail, weights, sums);
            weights += 128;
        }
    }
    for (int pixel = 0; pixel < kPixels; ++pixel) {
        for (int vector = 0; vector < kVectors; ++vector) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + kInt8TileChannels * (first + pixel) + 8 * vector),
                                sums[pixel][vector]);
        }
    }
}

}  // namespace

void conv_int8_sums_avx2(const Int8Tile& tile, std::int32_t* sums) {
    int pixel = 0;
    for (; pixel + kStep <= tile.count; pixel += kStep) run<kStep>(tile, pixel, sums);
    if (pixel < tile.count) run<1>(tile, pixel, sums);
}

}  // namespace tracenet
