// 12 pixels x 8 channels: 24 sums, two vectors of weights and the inputs in the other six registers.
#include <arm_neon.h>

#include "cpu/conv_micro.hpp"

namespace tracenet {

namespace {

struct Neon {
    using Reg = float32x4_t;
    static constexpr int kLanes = 4;

    static Reg zero() { return vdupq_n_f32(0.0F); }
    static Reg set(float x) { return vdupq_n_f32(x); }
    static Reg load(const float* from) { return vld1q_f32(from); }
    static Reg load_partial(const float* from, std::int64_t n) {
        float lanes[kLanes] = {0.0F, 0.0F, 0.0F, 0.0F};
        for (std::int64_t i = 0; i < n; ++i) lanes[i] = from[i];
        return vld1q_f32(lanes);
    }
    static void store(float* to, Reg x) { vst1q_f32(to, x); }
    static void store_partial(float* to, std::int64_t n, Reg x) {
        float lanes[kLanes];
        vst1q_f32(lanes, x);
        for (std::int64_t i = 0; i < n; ++i) to[i] = lanes[i];
    }
    static Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
    static Reg add(Reg a, Reg b) { return vaddq_f32(a, b); }
    static Reg raise(Reg x, Reg low) { return vbslq_f32(vcltq_f32(x, low), low, x); }
};

}  // namespace

const ConvKernels kConvKernelsNeon = {{TRACENET_CONV_12(dense_tile, Neon, Neon)},
                                      {TRACENET_CONV_12(depthwise_tile, Neon, Neon)}};

}  // namespace tracenet
