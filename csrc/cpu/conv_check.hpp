// What conv2d asks of its arguments before anything is written.
#pragma once

#include <cstddef>

#include "tracenet/conv.hpp"

namespace tracenet {

// Throws InputError; the message says what came, what is allowed and what to do.
void check_conv(const PackedConv& conv, const ConvJob* jobs, std::size_t count);

// Cells that a window reads of the input, on its plane.
Window conv_reads(const ConvSpec& spec, const ConvJob& job);

// Cells that a window reads of the residual.
Window residual_reads(const ConvJob& job);

}  // namespace tracenet
