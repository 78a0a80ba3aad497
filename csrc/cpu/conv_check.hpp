// What conv2d asks of its arguments before anything is written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tracenet/conv.hpp"

namespace tracenet {

// Throws InputError; the message says what came, what is allowed and what to do.
void check_conv(const PackedConv& conv, const ConvJob* jobs, std::size_t count);

// Cells that a window reads of an input whose plane is height x width.
Window conv_reads(const ConvSpec& spec, const Window& window, std::int64_t height, std::int64_t width);

// Cells that a window reads of a residual that is enlarged by `factor`.
Window residual_reads(const Window& window, std::int64_t factor);

}  // namespace tracenet
