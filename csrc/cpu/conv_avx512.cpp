// 11 pixels x 32 channels: 22 sums, more than the latency of two units needs. The vector registers would hold 14
// pixels, but then the pointers to their inputs leave the general registers, which costs more than it saves.
#include <immintrin.h>

#include "cpu/conv_micro.hpp"

namespace tracenet {

namespace {

struct Avx512 {
    using Reg = __m512;
    static constexpr int kLanes = 16;

    static Reg zero() { return _mm512_setzero_ps(); }
    static Reg set(float x) { return _mm512_set1_ps(x); }
    static Reg load(const float* from) { return _mm512_loadu_ps(from); }
    static Reg load_partial(const float* from, std::int64_t n) { return _mm512_maskz_loadu_ps(lanes(n), from); }
    static void store(float* to, Reg x) { _mm512_storeu_ps(to, x); }
    static void store_partial(float* to, std::int64_t n, Reg x) { _mm512_mask_storeu_ps(to, lanes(n), x); }
    static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
    static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
    // Gives its second operand where one is NaN. The unmasked form trips gcc 12's check for uninitialised variables.
    static Reg raise(Reg x, Reg low) { return _mm512_maskz_max_ps(0xFFFF, low, x); }

  private:
    static __mmask16 lanes(std::int64_t n) { return static_cast<__mmask16>(n > 0 ? (1U << n) - 1U : 0U); }
};

// Eight lanes, for the last channels of a layer: a 512-bit operation for them would do twice the work.
struct HalfAvx512 {
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

}  // namespace

const ConvKernels kConvKernelsAvx512 = {{TRACENET_CONV_12(dense_tile, HalfAvx512, Avx512)},
                                        {TRACENET_CONV_12(depthwise_tile, HalfAvx512, Avx512)}};

}  // namespace tracenet
