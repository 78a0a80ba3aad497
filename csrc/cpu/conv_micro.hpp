// The convolution's innermost loops, for any vector type. Included by one file per instruction set.
//
// Everything has internal linkage: the linker must not take another file's copy, compiled for other processors.
//
// A vector type V has Reg, kLanes and, with n < kLanes lanes in the partial ones:
//     zero() set(float) load(const float*) load_partial(const float*, n) store(float*, Reg) store_partial(float*, n,
//     Reg) fma(a, b, c) = a * b + c, rounded once; add(a, b); raise(x, low) = x < low ? low : x (NaN stays)
#pragma once

#include <cstdint>

#include "cpu/conv_tile.hpp"

namespace tracenet {

namespace {

constexpr std::int64_t kLine = 16;  // floats of a cache line

// Called once with sums that should stay in registers; a call would spill them.
#define TRACENET_INLINE inline __attribute__((always_inline))

// y = max(scale * sum + bias + addend, lowest)
template <typename V, int kPixels, int kVectors>
TRACENET_INLINE void finish(const ConvTile& tile, const typename V::Reg (&sums)[kPixels][kVectors]) {
    using Reg = typename V::Reg;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
        const std::int64_t first = tile.first + v * V::kLanes;
        const std::int64_t rest = tile.channels - v * V::kLanes;
        const bool whole = rest >= V::kLanes;
        const auto read = [&](const float* from) {
            return whole ? V::load(from + first) : V::load_partial(from + first, rest);
        };
        Reg scale = tile.scales[0] != nullptr ? read(tile.scales[0]) : V::set(1.0F);
        Reg bias = tile.biases[0] != nullptr ? read(tile.biases[0]) : V::zero();
#pragma GCC unroll 12
        for (int j = 0; j < kPixels; ++j) {
            if (!tile.uniform) {
                scale = tile.scales[j] != nullptr ? read(tile.scales[j]) : V::set(1.0F);
                bias = tile.biases[j] != nullptr ? read(tile.biases[j]) : V::zero();
            }
            Reg y = V::fma(sums[j][v], scale, bias);
            if (tile.addends[j] != nullptr) y = V::add(y, read(tile.addends[j]));
            y = V::raise(y, V::set(tile.lowest[j]));
            if (whole) {
                V::store(tile.outputs[j] + first, y);
            } else {
                V::store_partial(tile.outputs[j] + first, rest, y);
            }
        }
    }
}

// Starts to fetch what finish() reads and writes of pixel j: by then it is there.
template <typename V, int kVectors>
TRACENET_INLINE void fetch_output(const ConvTile& tile, std::int64_t j) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
        if (tile.addends[j] != nullptr) __builtin_prefetch(tile.addends[j] + tile.first + v * V::kLanes);
        __builtin_prefetch(tile.outputs[j] + tile.first + v * V::kLanes, 1);
    }
}

// Channel i of a run: one input per pixel, times the panel's weights for it.
template <typename V, int kPixels, int kVectors>
TRACENET_INLINE void accumulate(const float* const (&runs)[kPixels], std::int64_t i, const float* weights,
                                typename V::Reg (&sums)[kPixels][kVectors]) {
    typename V::Reg w[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) w[v] = V::load(weights + v * V::kLanes);
#pragma GCC unroll 12
    for (int j = 0; j < kPixels; ++j) {
        const typename V::Reg x = V::set(runs[j][i]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[j][v] = V::fma(x, w[v], sums[j][v]);
    }
}

template <typename V, int kPixels, int kVectors>
void dense_tile(const ConvTile& tile) {
    constexpr std::int64_t kWidth = kVectors * V::kLanes;
    typename V::Reg sums[kPixels][kVectors];
#pragma GCC unroll 12
    for (int j = 0; j < kPixels; ++j) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[j][v] = V::zero();
    }
    const float* weights = tile.weights;
    const float* const* const next = tile.next_inputs;
    for (std::int64_t s = 0; s < tile.segments; ++s) {
        const float* runs[kPixels];
#pragma GCC unroll 12
        for (int j = 0; j < kPixels; ++j) runs[j] = tile.inputs[s * kPixels + j] + tile.input_offset;
        std::int64_t i = 0;
        // Prefetches are spread over the sums: many at once would hold up the loads behind them.
        if (s == 0) {
            for (; i < kPixels && i < tile.length; ++i, weights += kWidth) {
                fetch_output<V, kVectors>(tile, i);
                if (next != nullptr) __builtin_prefetch(next[i], 0, 2);
                accumulate<V, kPixels, kVectors>(runs, i, weights, sums);
            }
        }
        if (next == nullptr) {
            for (; i < tile.length; ++i, weights += kWidth) {
                accumulate<V, kPixels, kVectors>(runs, i, weights, sums);
            }
        } else {
            for (; i < tile.length; ++i, weights += kWidth) {
                const std::int64_t j = i % kLine;
                if (j < kPixels) __builtin_prefetch(next[j] + (i - j), 0, 2);
                accumulate<V, kPixels, kVectors>(runs, i, weights, sums);
            }
        }
    }
    finish<V, kPixels, kVectors>(tile, sums);
}

template <typename V, int kPixels, int kVectors>
void depthwise_tile(const ConvTile& tile) {
    using Reg = typename V::Reg;
    Reg sums[kPixels][kVectors];
#pragma GCC unroll 12
    for (int j = 0; j < kPixels; ++j) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[j][v] = V::zero();
    }
    const float* weights = tile.weights;
    const float* const* runs = tile.inputs;
    for (std::int64_t s = 0; s < tile.segments; ++s) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
            const Reg w = V::load(weights + v * V::kLanes);
            const std::int64_t first = tile.input_offset + v * V::kLanes;
            const std::int64_t rest = tile.channels - v * V::kLanes;
#pragma GCC unroll 12
            for (int j = 0; j < kPixels; ++j) {
                const Reg x = rest >= V::kLanes ? V::load(runs[j] + first) : V::load_partial(runs[j] + first, rest);
                sums[j][v] = V::fma(x, w, sums[j][v]);
            }
        }
        weights += kVectors * V::kLanes;
        runs += kPixels;
    }
    finish<V, kPixels, kVectors>(tile, sums);
}

}  // namespace

}  // namespace tracenet

// Tables of kernels for tiles of 1 ... n pixels by half a vector (Half: a type of that many lanes, or V itself where
// there is none), one vector, two.
#define TRACENET_CONV_1(kernel, Half, V, j) {kernel<Half, j, 1>, kernel<V, j, 1>, kernel<V, j, 2>}
#define TRACENET_CONV_6(kernel, Half, V)                                                                           \
    TRACENET_CONV_1(kernel, Half, V, 1), TRACENET_CONV_1(kernel, Half, V, 2), TRACENET_CONV_1(kernel, Half, V, 3), \
        TRACENET_CONV_1(kernel, Half, V, 4), TRACENET_CONV_1(kernel, Half, V, 5), TRACENET_CONV_1(kernel, Half, V, 6)
#define TRACENET_CONV_12(kernel, Half, V)                                                                       \
    TRACENET_CONV_6(kernel, Half, V), TRACENET_CONV_1(kernel, Half, V, 7), TRACENET_CONV_1(kernel, Half, V, 8), \
        TRACENET_CONV_1(kernel, Half, V, 9), TRACENET_CONV_1(kernel, Half, V, 10),                              \
        TRACENET_CONV_1(kernel, Half, V, 11), TRACENET_CONV_1(kernel, Half, V, 12)
