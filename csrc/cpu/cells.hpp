// Arithmetic on runs of contiguous floats, one set of functions per instruction set.
//
// The bodies are in cells_body.hpp, which each cells_<isa>.cpp compiles for its own vector width. Every element is
// computed by the same operations in the same order wherever in a run it lies. Plain declarations only: the files of
// instruction sets include this.
#pragma once

#include <cstdint>

namespace tracenet {

// Sources and weights of a bilinear cell: (t0 * x0 + t1 * x1) * y0 + (t2 * x0 + t3 * x1) * y1.
struct BlendCell {
    const float* taps[4];  // top left, top right, bottom left, bottom right
    float x0;
    float x1;
    float y0;
    float y1;
};

// A run of cells of one row of the dynamic mask head; see MaskHead in kernels.hpp.
struct MaskRun {
    const float* theta;
    const float* features;  // 8 channels of the first cell
    std::int64_t pixel_stride;
    std::int64_t count;
    float rel_y;
    float origin_x;
    float size_of_interest;
    float first_x;  // pixel of the first cell
    float stride;
};

struct CellKernels {
    // out = max over taps, -infinity where there is none; NaN wins.
    void (*maximum)(const float* const* taps, std::int64_t count, std::int64_t n, float* out);
    // out = (sum over taps) / divisor.
    void (*mean)(const float* const* taps, std::int64_t count, float divisor, std::int64_t n, float* out);
    // out = blend + addend; addend may be null.
    void (*blend)(const BlendCell& cell, const float* addend, std::int64_t n, float* out);
    // out = a + b, then ReLU where asked for; b may be null.
    void (*add)(const float* a, const float* b, bool relu, std::int64_t n, float* out);
    // out = 1 / (1 + exp(-in)).
    void (*sigmoid)(const float* in, std::int64_t n, float* out);
    // out = f(in) of the activation with that number; none copies. May be in place.
    void (*activate)(int kind, float a, float b, const float* in, std::int64_t n, float* out);
    // out = a * b.
    void (*multiply)(const float* a, const float* b, std::int64_t n, float* out);
    // sums[c] = the sum over pixels of in[pixel * pixel_stride + c] - centres[c], in rising order of pixels.
    void (*sum_pixels)(const float* in, const float* centres, std::int64_t pixels, std::int64_t pixel_stride,
                       std::int64_t n, float* sums);
    // The same of their squares.
    void (*sum_squares)(const float* in, const float* centres, std::int64_t pixels, std::int64_t pixel_stride,
                        std::int64_t n, float* sums);
    // out = (in - centres) * factors + shifts.
    void (*normalise)(const float* in, const float* centres, const float* factors, const float* shifts, std::int64_t n,
                      float* out);
    // out = a * y0 + b * y1.
    void (*mix)(const float* a, const float* b, float y0, float y1, std::int64_t n, float* out);
    // out[i] = logit of cell i.
    void (*mask_logits)(const MaskRun& run, float* out);
};

const CellKernels* cells_portable();
const CellKernels* cells_avx2();
const CellKernels* cells_avx512();

// The set of active_isa().
const CellKernels& cell_kernels();

}  // namespace tracenet
