// Every kernel that is not a convolution. All write exactly `window` of the output and read inside extents only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tracenet/buffer.hpp"
#include "tracenet/conv.hpp"
#include "tracenet/thread_pool.hpp"
#include "tracenet/window.hpp"

namespace tracenet {

struct PoolSpec {
    AxisGeometry y;
    AxisGeometry x;
    bool count_include_pad = true;  // average pooling only
    std::int64_t divisor = 0;       // average pooling only: a fixed divisor, 0: the number of cells
};

// Maximum over the cells on the plane; NaN wins, as in torch.
void max_pool2d(const PoolSpec& spec, View<const float> input, View<float> output, const Window& window,
                ThreadPool& pool);

// Mean over the cells; what lies past the padding of the plane (ceil_mode) never counts, as in torch.
void avg_pool2d(const PoolSpec& spec, View<const float> input, View<float> output, const Window& window,
                ThreadPool& pool);

enum class ResizeMode : std::int32_t { nearest = 0, bilinear = 1, bilinear_align_corners = 2, aligned_bilinear = 3 };

struct ResizeSpec {
    ResizeMode mode = ResizeMode::nearest;
    float ratio_y = 1.0F;  // input cells per output cell, as torch computes it in float32; unused by aligned_bilinear
    float ratio_x = 1.0F;
    std::int64_t factor = 1;  // aligned_bilinear: output i reads clamp((i - f / 2) / f, 0, n - 1)
};

// output = resize(input) + addend; addend.data == nullptr: none. Coordinates are those of the whole plane.
void resize(const ResizeSpec& spec, View<const float> input, View<const float> addend, View<float> output,
            const Window& window, ThreadPool& pool);

// output = f(a + b); b.data == nullptr: f(a). In place where a or b is the output.
void add(View<const float> a, View<const float> b, const Activate& function, View<float> output, const Window& window,
         ThreadPool& pool);

void sigmoid(View<const float> input, View<float> output, const Window& window, ThreadPool& pool);

// output = f(input). In place where the input is the output.
void activate(View<const float> input, const Activate& function, View<float> output, const Window& window,
              ThreadPool& pool);

// output = f(a * b). b is a plane of the output's size or one cell, whose channels then multiply every pixel. In place
// where a or b is the output.
void multiply(View<const float> a, View<const float> b, const Activate& function, View<float> output,
              const Window& window, ThreadPool& pool);

// The one cell of output = the mean of each channel over the whole plane of input, the same bits on any number of
// threads.
void plane_mean(View<const float> input, View<float> output, ThreadPool& pool);

// Channels in `groups` equal groups, each brought to mean 0 and variance 1 over the whole plane.
struct GroupNorm {
    std::int64_t groups = 1;
    double epsilon = 1e-5;         // added to the variance
    const float* scale = nullptr;  // [channels] or null: 1
    const float* bias = nullptr;   // [channels] or null: 0
};

// output = f((input - mean) / sqrt(variance + epsilon) * scale + bias): a window of it, from all of the input's plane.
// A cell has the same bits whatever the window and the number of threads.
void group_norm(const GroupNorm& norm, View<const float> input, const Activate& function, View<float> output,
                const Window& window, ThreadPool& pool);

// output = input[..., first : first + output.channels]
void take_channels(View<const float> input, std::int64_t first, View<float> output, const Window& window,
                   ThreadPool& pool);

// output[..., first : first + input.channels] = input
void copy_channels(View<const float> input, std::int64_t first, View<float> output, const Window& window,
                   ThreadPool& pool);

// The dynamic mask head (CondInst, arXiv 2003.05664): three 1x1 layers 10 -> 8 -> 8 -> 1 over
// [(origin_x - px) / soi, (origin_y - py) / soi, 8 features], p = stride * i + stride / 2; ReLU after the first two.
struct MaskHead {
    const float* theta = nullptr;  // 169: weights (80, 64, 8; each row-major out, in), then biases (8, 8, 1)
    float origin_x = 0.0F;
    float origin_y = 0.0F;
    float size_of_interest = 1.0F;
    std::int64_t stride = 8;
};

// features: 8 channels. output: 1 channel, the same plane (logits).
void mask_head(const MaskHead& head, View<const float> features, View<float> output, const Window& window,
               ThreadPool& pool);

// mask_head, then aligned bilinear upsampling by `factor` in one pass: features' plane h x w -> output f*h x f*w.
void mask_head_upsampled(const MaskHead& head, std::int64_t factor, View<const float> features, View<float> output,
                         const Window& window, ThreadPool& pool);

// Photo pixels to network input: (pixel - mean) / std; zeros outside the photo (right and below).
struct PixelNorm {
    float mean[3] = {0, 0, 0};
    float std[3] = {1, 1, 1};
    bool reverse = false;  // BGR networks: channel c of the output is pixel channel 2 - c (mean and std already are in
                           // output order)
};

// photo: 3 channels of the un-padded image (its height and width); output: 3 channels, the padded plane.
void normalise_pixels(const PixelNorm& norm, View<const std::uint8_t> photo, View<float> output, const Window& window,
                      ThreadPool& pool);

// Planar floats [3 or any C, H, W] (what torch holds) to NHWC. planes: channel 0 of cell (0, 0), which need not lie in
// memory: cells of the window alone are read.
void from_planar(const float* planes, std::int64_t channel_stride, std::int64_t row_stride, View<float> output,
                 const Window& window, ThreadPool& pool);

// Convolution + ReLU + max-pooling in one pass over strips of rows; the convolution's plane is never stored.
// conv_height, conv_width: the plane between the two. Values are those of conv2d followed by max_pool2d, bit for bit.
void stem(const PackedConv& conv, const float* bias, std::int64_t conv_height, std::int64_t conv_width,
          const PoolSpec& pool_spec, View<const float> input, View<float> output, const Window& window,
          ThreadPool& pool);

}  // namespace tracenet
