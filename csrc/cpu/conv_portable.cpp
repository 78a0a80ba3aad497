// Plain C++: for processors without kernels of their own, and what the others are compared with. A multiply-add is
// std::fma, which costs a library call where the compiler may not assume the instruction.
#include <cmath>

#include "cpu/conv_micro.hpp"

namespace tracenet {

namespace {

struct Scalar4 {
    struct Reg {
        float lane[4];
    };
    static constexpr int kLanes = 4;

    static Reg zero() { return set(0.0F); }
    static Reg set(float x) { return {{x, x, x, x}}; }
    static Reg load(const float* from) { return load_partial(from, kLanes); }
    static Reg load_partial(const float* from, std::int64_t n) {
        Reg x = zero();
        for (std::int64_t i = 0; i < n; ++i) x.lane[i] = from[i];
        return x;
    }
    static void store(float* to, const Reg& x) { store_partial(to, kLanes, x); }
    static void store_partial(float* to, std::int64_t n, const Reg& x) {
        for (std::int64_t i = 0; i < n; ++i) to[i] = x.lane[i];
    }
    static Reg fma(const Reg& a, const Reg& b, Reg c) {
        for (int i = 0; i < kLanes; ++i) c.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
        return c;
    }
    static Reg add(Reg a, const Reg& b) {
        for (int i = 0; i < kLanes; ++i) a.lane[i] += b.lane[i];
        return a;
    }
    static Reg raise(Reg x, const Reg& low) {
        for (int i = 0; i < kLanes; ++i) x.lane[i] = x.lane[i] < low.lane[i] ? low.lane[i] : x.lane[i];
        return x;
    }
};

}  // namespace

const ConvKernels kConvKernelsPortable = {{TRACENET_CONV_6(dense_tile, Scalar4, Scalar4)},
                                          {TRACENET_CONV_6(depthwise_tile, Scalar4, Scalar4)}};

}  // namespace tracenet
