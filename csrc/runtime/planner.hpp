// Per click: which windows of every plane are computed, and where they lie in the workspace.
#pragma once

#include <vector>

#include "tracenet/runtime.hpp"

namespace tracenet {

// Per plane: disjoint windows whose values are known already.
using KeptWindows = std::vector<std::vector<Window>>;

// The same lists, null where none holds a window.
const KeptWindows* known(const KeptWindows& kept);

// Throws RequestError or WindowError unless the window is asked of a plane that is computed, and lies on it.
void check_demand(const Program& program, const Demand& demand);

// Traces the request back to the inputs, as tracenet/rft/trace.py does. kept == nullptr: nothing is, and every plane
// has one piece. Throws RequestError where an external step is reached.
void plan_request(const Program& program, const std::vector<Demand>& request, const KeptWindows* kept, Plan& plan);

// Takes the pieces of every plane from outside and adds the windows of inputs that steps read. Throws RequestError
// where a step would read what is neither computed nor kept.
void plan_given(const Program& program, const std::vector<std::vector<Window>>& pieces, const KeptWindows* kept,
                Plan& plan);

// Offsets for every computed plane that is not `elsewhere`. Memory is used again after the last launch that reads it;
// planes in `to_the_end` stay. An elementwise step writes over an input that ends with it.
void place_buffers(const Program& program, const std::vector<bool>& elsewhere, const std::vector<bool>& to_the_end,
                   Plan& plan);

}  // namespace tracenet
