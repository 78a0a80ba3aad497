// What the convolution driver (conv.cpp) hands to the kernels of an instruction set: plain data, nothing inline.
#pragma once

#include <cstdint>

namespace tracenet {

// One tile: a few output pixels, anywhere, by one panel of output channels.
//
// A pixel's sum runs over `segments` runs of `length` input channels. inputs[s * pixels + j] points at run s of pixel j
// (into a buffer of zeros where it lies off the plane), so that borders, strides and windows of any shape are all the
// same to a kernel.
struct ConvTile {
    const float* const* inputs;
    std::int64_t segments;
    std::int64_t length;
    std::int64_t input_offset;    // added to every pointer: the first channel of the group
    const float* weights;         // [segments][length][lanes of the panel]
    const float* next_weights;    // what is read after this tile, to be fetched ahead; null: nothing
    std::int64_t first;           // of the output channels
    std::int64_t channels;        // of the panel that exist; lanes past them are neither read nor written
    float* const* outputs;        // [pixels], channel 0
    const float* const* scales;   // [pixels], channel 0; a null element: 1
    const float* const* biases;   // [pixels], channel 0; a null element: 0
    const float* const* addends;  // [pixels], channel 0; a null element: none
    const float* lowest;          // [pixels], values are raised to it: 0 is ReLU, -infinity nothing
    bool uniform;                 // all pixels have the same scale and bias
};

using ConvTileKernel = void (*)(const ConvTile&);

constexpr int kMaxTilePixels = 14;
constexpr int kMaxPanelVectors = 2;

// The widths that fix the packed layout.
struct ConvShape {
    std::int64_t lanes = 0;  // of a vector
    std::int64_t panel = 0;  // output channels of a panel, kMaxPanelVectors vectors; a group's last one may be narrower
    std::int64_t pixels = 0;  // of the largest tile
};

// [pixels - 1][vectors - 1]
struct ConvKernels {
    ConvTileKernel dense[kMaxTilePixels][kMaxPanelVectors];
    // One input channel per output channel: channels of a panel are read side by side. length == 1.
    ConvTileKernel depthwise[kMaxTilePixels][kMaxPanelVectors];
};

extern const ConvKernels kConvKernelsPortable;
extern const ConvKernels kConvKernelsNeon;
extern const ConvKernels kConvKernelsAvx2;
extern const ConvKernels kConvKernelsAvx512;

}  // namespace tracenet
