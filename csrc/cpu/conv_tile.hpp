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
    std::int64_t input_offset;  // added to every pointer: the first channel of the group
    // [pixels], `length` channels each, to be fetched while this tile is computed; null: nothing.
    const float* const* next_inputs;
    const float* weights;         // [segments][length][lanes of the panel]
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

constexpr int kMaxTilePixels = 12;
constexpr int kPanelWidths = 3;

// The widths that fix the packed layout.
struct ConvShape {
    std::int64_t widths[kPanelWidths];  // output channels of a panel, rising; all but a group's last are the widest
    std::int64_t pixels;                // of the largest tile
};

// [pixels - 1][which width]
struct ConvKernels {
    ConvTileKernel dense[kMaxTilePixels][kPanelWidths];
    // One input channel per output channel: channels of a panel are read side by side. length == 1.
    ConvTileKernel depthwise[kMaxTilePixels][kPanelWidths];
};

extern const ConvKernels kConvKernelsPortable;
extern const ConvKernels kConvKernelsNeon;
extern const ConvKernels kConvKernelsAvx2;
extern const ConvKernels kConvKernelsAvx512;

}  // namespace tracenet
