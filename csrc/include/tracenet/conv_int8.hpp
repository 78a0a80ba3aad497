// Convolution of 8-bit planes in place on windows: u8 activations, s8 weights, exact 32-bit sums.
//
//     real(q) = (q - zero_point) * plane_scale
//     sum[o]  = sum_{ky, kx, i} w[o, i, ky, kx] * (x[oy * s - p + ky * d, ox * s - p + kx * d, i] - zero_point)
//     y[o]    = act(sum[o] * m[o] + bias[o] + residual[oy / f, ox / f, o]),  m[o] = plane_scale * weight_scale[o] *
//     scale[o] output  = y, or clamp(round_half_even(y / output_scale) + output_zero_point, 0, 255)
//
// Sums are integers and the rest is one rounding per operation in fp32, so every instruction set gives the same bits
// and a value does not depend on the window it is computed in. Cells off the plane are real 0, the zero point.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tracenet/buffer.hpp"
#include "tracenet/conv.hpp"
#include "tracenet/thread_pool.hpp"
#include "tracenet/window.hpp"

namespace tracenet {

// How the integers of an 8-bit plane stand for real values.
struct Quantisation {
    float scale = 1.0F;           // > 0, finite
    std::int32_t zero_point = 0;  // 0 to 255: the integer of real 0
};

// Terms of one sum, kernel_y * kernel_x * in_channels / groups, at most: then neither a sum nor any part of one leaves
// 32 bits, whatever the weights (2 * 255 * 128 * 32896 < 2^31).
constexpr std::int64_t kMaxInt8Terms = 32896;

enum class Int8Kernel : std::int32_t { portable = 0, avx2 = 1, avx512_vnni = 2 };

// Weights in the order the kernels read them (one order for all), followed by their sums; see pack_int8_conv.
struct PackedInt8Conv {
    ConvSpec spec;
    const std::int8_t* weights = nullptr;  // 64-byte aligned, packed_int8_conv_bytes(spec) bytes, not owned
    const float* weight_scale = nullptr;   // [out_channels], not owned
};

// One window of one plane; jobs of one call share weights. Exactly one of the outputs has data, at most one residual.
struct Int8ConvJob {
    View<const std::uint8_t> input;
    Quantisation input_quantisation;
    View<float> output;
    View<std::uint8_t> quantised_output;
    Quantisation output_quantisation;
    Window window;                 // on the output's plane, inside its extent
    const float* scale = nullptr;  // [out_channels] or null: 1
    const float* bias = nullptr;   // [out_channels] or null: 0
    View<const float> residual;
    View<const std::uint8_t> quantised_residual;
    Quantisation residual_quantisation;
    std::int64_t residual_factor = 1;
    Activation activation = Activation::none;
};

// Bytes that pack_int8_conv writes. Throws InputError for a spec that is not a convolution or has too many terms.
std::int64_t packed_int8_conv_bytes(const ConvSpec& spec);

// fp32 weights of that shape, in rows of `terms` for each of `channels` outputs, to the integers nearest to
// weight / scale[o], scale[o] = max|weight[o]| / 127 (1 where all are 0). Throws InputError where one is not finite.
void quantise_weights(const float* weights, std::int64_t channels, std::int64_t terms, std::int8_t* quantised,
                      float* scale);

// [out, in / groups, kernel_y, kernel_x] row-major -> packed order.
void pack_int8_conv(const ConvSpec& spec, const std::int8_t* weights, std::int8_t* packed);

// Throws InputError where a window, extent, channel count, scale, zero point or pointer does not fit, or a kernel is
// asked for that this processor cannot run, before anything is written.
void conv2d_int8(const PackedInt8Conv& conv, const Int8ConvJob* jobs, std::size_t count, ThreadPool& pool,
                 Int8Kernel kernel);

// The fastest kernel this processor has, within the instruction set of active_isa().
Int8Kernel active_int8_kernel();

const char* int8_kernel_name(Int8Kernel kernel);

// output = clamp(round_half_even(input / scale) + zero_point, 0, 255); NaN becomes 0. The quotient is the product with
// the float nearest to 1 / scale.
void quantise(View<const float> input, const Quantisation& quantisation, View<std::uint8_t> output,
              const Window& window, ThreadPool& pool);

// output = (input - zero_point) * scale
void dequantise(View<const std::uint8_t> input, const Quantisation& quantisation, View<float> output,
                const Window& window, ThreadPool& pool);

}  // namespace tracenet
