// The backward rules of a schedule's operations: which windows of its inputs a step reads for a window of its output.
#pragma once

#include <cstddef>

#include "tracenet/schedule.hpp"
#include "tracenet/window.hpp"

namespace tracenet {

// The window of the plane a step computes inside itself: the convolution of a stem, the logits before upsampling of a
// mask head. For other steps `window` itself.
Window inner_window(const Schedule& schedule, const Step& step, const Window& window);

// Cells of input `position` that the step reads for the inner window; on the plane, empty where only padding is read.
Window demand(const Schedule& schedule, const Step& step, std::size_t position, const Window& inner);

}  // namespace tracenet
