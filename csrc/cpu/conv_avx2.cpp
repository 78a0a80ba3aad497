// 6 pixels x 16 channels: 12 sums, two vectors of weights and one broadcast input fill 15 of 16 registers.
#include <immintrin.h>

#include "cpu/conv_micro.hpp"

namespace tracenet {

namespace {

struct Avx2 {
    using Reg = __m256;
    static constexpr int kLanes = 8;

    static Reg zero() { return _mm256_setzero_ps(); }
    static Reg set(float x) { return _mm256_set1_ps(x); }
    static Reg load(const float* from) { return _mm256_loadu_ps(from); }
    static Reg load_partial(const float* from, std::int64_t n) { return _mm256_maskload_ps(from, lanes(n)); }
    static void store(float* to, Reg x) { _mm256_storeu_ps(to, x); }
    static void store_partial(float* to, std::int64_t n, Reg x) { _mm256_maskstore_ps(to, lanes(n), x); }
    static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
    static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
    static Reg raise(Reg x, Reg low) { return _mm256_max_ps(low, x); }  // gives its second operand where one is NaN

  private:
    static __m256i lanes(std::int64_t n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
};

struct HalfAvx2 {
    using Reg = __m128;
    static constexpr int kLanes = 4;

    static Reg zero() { return _mm_setzero_ps(); }
    static Reg set(float x) { return _mm_set1_ps(x); }
    static Reg load(const float* from) { return _mm_loadu_ps(from); }
    static Reg load_partial(const float* from, std::int64_t n) { return _mm_maskload_ps(from, lanes(n)); }
    static void store(float* to, Reg x) { _mm_storeu_ps(to, x); }
    static void store_partial(float* to, std::int64_t n, Reg x) { _mm_maskstore_ps(to, lanes(n), x); }
    static Reg fma(Reg a, Reg b, Reg c) { return _mm_fmadd_ps(a, b, c); }
    static Reg add(Reg a, Reg b) { return _mm_add_ps(a, b); }
    static Reg raise(Reg x, Reg low) { return _mm_max_ps(low, x); }

  private:
    static __m128i lanes(std::int64_t n) {
        return _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(n)), _mm_setr_epi32(0, 1, 2, 3));
    }
};

}  // namespace

const ConvKernels kConvKernelsAvx2 = {{TRACENET_CONV_6(dense_tile, HalfAvx2, Avx2)},
                                      {TRACENET_CONV_6(depthwise_tile, HalfAvx2, Avx2)}};

}  // namespace tracenet
