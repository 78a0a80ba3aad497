// The bodies of CellKernels for vectors of TRACENET_LANES floats, which the including file defines.
//
// Compiled once per instruction set: everything has internal linkage, and no header with code of its own is included,
// so that the linker cannot hand one set's instructions to another. Vectors are the compiler's own vector types, whose
// operators work on floats as well; one generic body serves full vectors, short ones and the last few elements.

#include <cstdint>

#include "cpu/cells.hpp"

namespace {

template <int N>
struct Lanes {
    static constexpr int width = N;
    typedef float Float __attribute__((vector_size(4 * N)));
    typedef std::uint32_t Bits __attribute__((vector_size(4 * N)));
    typedef float Unaligned __attribute__((vector_size(4 * N), aligned(4), may_alias));

    static Float load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
    static void store(float* to, Float value) { *reinterpret_cast<Unaligned*>(to) = value; }
};

template <>
struct Lanes<1> {
    static constexpr int width = 1;
    using Float = float;
    using Bits = std::uint32_t;

    static Float load(const float* from) { return *from; }
    static void store(float* to, Float value) { *to = value; }
};

// body(Lanes<N>{}, i) for every run of N elements from i on.
template <typename Body>
inline void each(std::int64_t n, const Body& body) {
    std::int64_t i = 0;
    for (; i + TRACENET_LANES <= n; i += TRACENET_LANES) body(Lanes<TRACENET_LANES>{}, i);
    if (TRACENET_LANES > 4) {
        for (; i + 4 <= n; i += 4) body(Lanes<4>{}, i);
    }
    for (; i < n; ++i) body(Lanes<1>{}, i);
}

template <typename V>
inline V relu(V value) {
    const V zero{};
    return value < zero ? zero : value;  // NaN stays
}

// Cephes-style: 2^n * p(r) with z = n ln 2 + r, |r| <= ln 2 / 2; relative error below 2e-7 for |z| <= 87.
template <typename L>
inline typename L::Float exponential(typename L::Float z) {
    using V = typename L::Float;
    using Bits = typename L::Bits;
    const V zero{};
    const V top = zero + 87.0F;
    const V bottom = zero - 87.0F;
    z = z > top ? top : z;
    z = z < bottom ? bottom : z;
    // Adding 1.5 * 2^23 leaves the rounded n in the low bits, without a conversion that NaN would make undefined.
    const float magic = 12582912.0F;
    const V shifted = z * 1.44269504088896341F + magic;
    const V n = shifted - magic;
    const V r = (z - n * 0.693359375F) - n * -2.12194440e-4F;
    V p = zero + 1.9875691500e-4F;
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    p = p * r * r + r + 1.0F;
    Bits bits;
    __builtin_memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits - 0x4B400000U + 127U) << 23;
    V power;
    __builtin_memcpy(&power, &bits, sizeof(power));
    return p * power;
}

void maximum(const float* const* taps, std::int64_t count, std::int64_t n, float* out) {
    each(n, [=](auto lanes, std::int64_t i) {
        using L = decltype(lanes);
        using V = typename L::Float;
        V best = V{} - __builtin_inff();
        V nan{};  // the last NaN met: apart from the maximum, so that neither waits for the other
        for (std::int64_t t = 0; t < count; ++t) {
            const V value = L::load(taps[t] + i);
            best = value > best ? value : best;
            nan = value == value ? nan : value;
        }
        L::store(out + i, nan == nan ? best : nan);
    });
}

void mean(const float* const* taps, std::int64_t count, float divisor, std::int64_t n, float* out) {
    each(n, [=](auto lanes, std::int64_t i) {
        using L = decltype(lanes);
        typename L::Float sum{};
        for (std::int64_t t = 0; t < count; ++t) sum = sum + L::load(taps[t] + i);
        L::store(out + i, sum / divisor);
    });
}

void blend(const tracenet::BlendCell& cell, const float* addend, std::int64_t n, float* out) {
    const tracenet::BlendCell c = cell;
    const auto mixed = [=](auto lanes, std::int64_t i) {
        using L = decltype(lanes);
        const auto top = L::load(c.taps[0] + i) * c.x0 + L::load(c.taps[1] + i) * c.x1;
        const auto bottom = L::load(c.taps[2] + i) * c.x0 + L::load(c.taps[3] + i) * c.x1;
        return top * c.y0 + bottom * c.y1;
    };
    if (addend == nullptr) {
        each(n, [=](auto lanes, std::int64_t i) { decltype(lanes)::store(out + i, mixed(lanes, i)); });
        return;
    }
    each(n, [=](auto lanes, std::int64_t i) {
        using L = decltype(lanes);
        L::store(out + i, mixed(lanes, i) + L::load(addend + i));
    });
}

void add(const float* a, const float* b, bool with_relu, std::int64_t n, float* out) {
    if (b == nullptr) {
        each(n, [=](auto lanes, std::int64_t i) {
            using L = decltype(lanes);
            const auto value = L::load(a + i);
            L::store(out + i, with_relu ? relu(value) : value);
        });
        return;
    }
    each(n, [=](auto lanes, std::int64_t i) {
        using L = decltype(lanes);
        const auto value = L::load(a + i) + L::load(b + i);
        L::store(out + i, with_relu ? relu(value) : value);
    });
}

void sigmoid(const float* in, std::int64_t n, float* out) {
    each(n, [=](auto lanes, std::int64_t i) {
        using L = decltype(lanes);
        const typename L::Float zero{};
        L::store(out + i, 1.0F / (exponential<L>(zero - L::load(in + i)) + 1.0F));
    });
}

template <typename Function>
inline void map(const float* in, std::int64_t n, float* out, const Function& function) {
    each(n, [=](auto lanes, std::int64_t i) {
        using L = decltype(lanes);
        L::store(out + i, function(lanes, L::load(in + i)));
    });
}

template <typename V>
inline V clamp(V value, float low, float high) {
    const V least = V{} + low;
    const V most = V{} + high;
    value = value < least ? least : value;  // NaN stays
    return value > most ? most : value;
}

template <typename L>
inline typename L::Float logistic(typename L::Float x) {
    return 1.0F / (exponential<L>(typename L::Float{} - x) + 1.0F);
}

// max(x, 0) - |x| * Q(|x|), Q the normal distribution's tail: no difference of near numbers on either side of 0.
// erfc(u) = exp(-u^2) * t * p(t), t = 1 / (1 + 0.45 u); p is a least-maximum fit, relative error 3e-8.
template <typename L>
inline typename L::Float gelu(typename L::Float x) {
    using V = typename L::Float;
    const V zero{};
    V size = x < zero ? zero - x : x;
    size = size > zero + 30.0F ? zero + 30.0F : size;
    const V t = 1.0F / (size * (0.45F * 0.70710678118654752F) + 1.0F);
    V p = zero - 4.2070876684e-2F;
    p = p * t + 1.9364123049e-1F;
    p = p * t - 3.0594886748e-1F;
    p = p * t + 1.4769413995e-1F;
    p = p * t - 2.5435628490e-2F;
    p = p * t + 1.2102267434e-1F;
    p = p * t + 1.7503461129e-1F;
    p = p * t + 2.2829536126e-1F;
    p = p * t + 2.5388199030e-1F;
    p = p * t + 2.5388533804e-1F;
    const V tail = p * t * exponential<L>(size * size * -0.5F);
    return (x < zero ? zero : x) - size * 0.5F * tail;
}

// (1 - e) / (1 + e) with e = exp(-2 |x|), and a series near 0, where that loses digits.
template <typename L>
inline typename L::Float hyperbolic_tangent(typename L::Float x) {
    using V = typename L::Float;
    const V zero{};
    const V size = x < zero ? zero - x : x;
    const V e = exponential<L>(size * -2.0F);
    const V far = (1.0F - e) / (1.0F + e);
    const V z = x * x;
    V p = zero - 5.70498872745e-3F;
    p = p * z + 2.06390887954e-2F;
    p = p * z - 5.37397155531e-2F;
    p = p * z + 1.33314422036e-1F;
    p = p * z - 3.33332819422e-1F;
    const V near = p * z * x + x;
    return size < zero + 0.625F ? near : (x < zero ? zero - far : far);
}

void activate(int kind, float a, float b, const float* in, std::int64_t n, float* out) {
    switch (kind) {
        case 1:
            return map(in, n, out, [](auto, auto x) { return relu(x); });
        case 2:
            return map(in, n, out, [=](auto, auto x) { return clamp(x, a, b); });
        case 3:
            return map(in, n, out, [=](auto, auto x) { return x < decltype(x){} ? x * a : x; });
        case 4:
            return map(in, n, out, [](auto lanes, auto x) { return logistic<decltype(lanes)>(x); });
        case 5:
            return map(in, n, out, [](auto, auto x) { return clamp(x + 3.0F, 0.0F, 6.0F) / 6.0F; });
        case 6:
            return map(in, n, out, [](auto, auto x) { return x * (clamp(x + 3.0F, 0.0F, 6.0F) / 6.0F); });
        case 7:
            return map(in, n, out, [](auto lanes, auto x) { return x * logistic<decltype(lanes)>(x); });
        case 8:
            return map(in, n, out, [](auto lanes, auto x) { return gelu<decltype(lanes)>(x); });
        case 9:
            return map(in, n, out, [](auto lanes, auto x) {
                return x * logistic<decltype(lanes)>((x * x * x * 0.044715F + x) * 1.5957691216057308F);
            });
        case 10:
            return map(in, n, out, [](auto lanes, auto x) { return hyperbolic_tangent<decltype(lanes)>(x); });
        default:
            return map(in, n, out, [](auto, auto x) { return x; });
    }
}

void multiply(const float* a, const float* b, std::int64_t n, float* out) {
    each(n, [=](auto lanes, std::int64_t i) {
        using L = decltype(lanes);
        L::store(out + i, L::load(a + i) * L::load(b + i));
    });
}

void sum_pixels(const float* in, const float* centres, std::int64_t pixels, std::int64_t pixel_stride, std::int64_t n,
                float* sums) {
    each(n, [=](auto lanes, std::int64_t i) {
        using L = decltype(lanes);
        const auto centre = L::load(centres + i);
        typename L::Float sum{};
        for (std::int64_t p = 0; p < pixels; ++p) sum = sum + (L::load(in + p * pixel_stride + i) - centre);
        L::store(sums + i, sum);
    });
}

void sum_squares(const float* in, const float* centres, std::int64_t pixels, std::int64_t pixel_stride, std::int64_t n,
                 float* sums) {
    each(n, [=](auto lanes, std::int64_t i) {
        using L = decltype(lanes);
        const auto centre = L::load(centres + i);
        typename L::Float sum{};
        for (std::int64_t p = 0; p < pixels; ++p) {
            const auto rest = L::load(in + p * pixel_stride + i) - centre;
            sum = sum + rest * rest;
        }
        L::store(sums + i, sum);
    });
}

void normalise(const float* in, const float* centres, const float* factors, const float* shifts, std::int64_t n,
               float* out) {
    each(n, [=](auto lanes, std::int64_t i) {
        using L = decltype(lanes);
        const auto scaled = (L::load(in + i) - L::load(centres + i)) * L::load(factors + i);
        L::store(out + i, scaled + L::load(shifts + i));
    });
}

void mix(const float* a, const float* b, float y0, float y1, std::int64_t n, float* out) {
    each(n, [=](auto lanes, std::int64_t i) {
        using L = decltype(lanes);
        L::store(out + i, L::load(a + i) * y0 + L::load(b + i) * y1);
    });
}

// Eight sums at a time: out[o] = relu?(b[o] + sum_i w[o, i] * in[i]), one cell per lane.
template <int inputs, typename V>
inline void dense8(const float* weights, const float* biases, const V* in, V* out) {
    for (int o = 0; o < 8; ++o) out[o] = V{} + biases[o];
    for (int i = 0; i < inputs; ++i) {
        for (int o = 0; o < 8; ++o) out[o] = out[o] + in[i] * weights[o * inputs + i];
    }
    for (int o = 0; o < 8; ++o) out[o] = relu(out[o]);
}

void mask_logits(const tracenet::MaskRun& run, float* out) {
    constexpr int kLanes = TRACENET_LANES;
    using L = Lanes<kLanes>;
    using V = typename L::Float;
    constexpr int kFeatures = 8;
    const float* const w1 = run.theta;
    const float* const w2 = w1 + 80;
    const float* const w3 = w2 + 64;
    const float* const b1 = w3 + 8;
    const float* const b2 = b1 + 8;
    const float* const b3 = b2 + 8;
    for (std::int64_t first = 0; first < run.count; first += kLanes) {
        const int used = run.count - first < kLanes ? static_cast<int>(run.count - first) : kLanes;
        float planar[10][kLanes];  // rel_x, rel_y, features, one cell per column
        for (int k = 0; k < kLanes; ++k) {
            const int cell = k < used ? k : used - 1;  // lanes past the end repeat the last cell
            const float* const features = run.features + (first + cell) * run.pixel_stride;
            const float pixel = run.first_x + static_cast<float>(first + cell) * run.stride;
            planar[0][k] = (run.origin_x - pixel) / run.size_of_interest;
            planar[1][k] = run.rel_y;
            for (int c = 0; c < kFeatures; ++c) planar[2 + c][k] = features[c];
        }
        V in[10];
        V hidden[8];
        V second[8];
        for (int i = 0; i < 10; ++i) in[i] = L::load(planar[i]);
        dense8<10>(w1, b1, in, hidden);
        dense8<8>(w2, b2, hidden, second);
        V logit = V{} + b3[0];
        for (int i = 0; i < 8; ++i) logit = logit + second[i] * w3[i];
        if (used == kLanes) {
            L::store(out + first, logit);
            continue;
        }
        float last[kLanes];
        L::store(last, logit);
        for (int k = 0; k < used; ++k) out[first + k] = last[k];
    }
}

const tracenet::CellKernels kCellKernels{&maximum,  &mean,       &blend,       &add,       &sigmoid, &activate,
                                         &multiply, &sum_pixels, &sum_squares, &normalise, &mix,     &mask_logits};

}  // namespace
