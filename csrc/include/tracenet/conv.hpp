// Convolution in place on windows: reads NHWC planes where they lie, copies no crops.
//
//     y[oy, ox, o] = act(scale[o] * sum_{ky, kx, i} w[o, i, ky, kx] * x[oy * s - p + ky * d, ox * s - p + kx * d, i]
//                        + bias[o] + residual[oy / f, ox / f, o])
//
// The sum runs over ky, then kx, then i, one fused multiply-add each, starting from 0, whatever the window: a value
// does not depend on the window it is computed in. Cells off the plane count as 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tracenet/buffer.hpp"
#include "tracenet/cpu_features.hpp"
#include "tracenet/thread_pool.hpp"
#include "tracenet/window.hpp"

namespace tracenet {

// In the order of ACTIVATIONS in schedule.py. `a` and `b` are the step's numbers, see Activate.
enum class Activation : std::int32_t {
    none = 0,
    relu = 1,
    clip = 2,          // min(max(x, a), b)
    leaky_relu = 3,    // x < 0 ? a * x : x
    sigmoid = 4,       // 1 / (1 + exp(-x))
    hard_sigmoid = 5,  // min(max(x + 3, 0), 6) / 6
    hard_swish = 6,    // x * hard_sigmoid(x)
    silu = 7,          // x * sigmoid(x)
    gelu = 8,          // x * P(X <= x) of a standard normal X
    gelu_tanh = 9,     // x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 * x^3))
    tanh = 10
};
constexpr int kActivations = 11;

// A function of one number, and the numbers that belong to it. NaN stays NaN.
struct Activate {
    Activation kind = Activation::none;
    float a = 0.0F;
    float b = 0.0F;
};

struct ConvSpec {
    std::int64_t in_channels = 0;  // of all groups
    std::int64_t out_channels = 0;
    std::int64_t groups = 1;
    AxisGeometry y;
    AxisGeometry x;
};

// Weights in the order a kernel reads them. The layout belongs to the instruction set; see pack_conv.
struct PackedConv {
    ConvSpec spec;
    Isa isa = Isa::portable;
    const float* weights = nullptr;  // 64-byte aligned, packed_conv_elements(spec, isa) floats, not owned
};

// One window of one plane. Several jobs of one call share weights and run in one parallel region: pieces of a window,
// or the levels of a pyramid.
struct ConvJob {
    View<const float> input;
    View<float> output;
    Window window;                 // on the output's plane, inside output.extent
    const float* scale = nullptr;  // [out_channels] or null: 1
    const float* bias = nullptr;   // [out_channels] or null: 0
    View<const float> residual;    // data == nullptr: none
    std::int64_t residual_factor =
        1;  // cell (y / f, x / f) of the residual is added: 1 a shortcut, 2 nearest upsampling
    Activation activation = Activation::none;
    float a = 0.0F;  // of the activation
    float b = 0.0F;
};

// Floats that pack_conv writes. Throws InputError for a spec that is not a convolution.
std::int64_t packed_conv_elements(const ConvSpec& spec, Isa isa);

// [out, in / groups, kernel_y, kernel_x] row-major -> packed order.
void pack_conv(const ConvSpec& spec, Isa isa, const float* weights, float* packed);

// Throws InputError where a window, extent, channel count or pointer does not fit, before anything is written.
void conv2d(const PackedConv& conv, const ConvJob* jobs, std::size_t count, ThreadPool& pool);

// The instruction set that conv2d uses here: the best this processor has, or a weaker one asked for with
// TRACENET_ISA=avx512|avx2|neon|portable (read once; one this processor lacks throws InputError).
Isa active_isa();

}  // namespace tracenet
