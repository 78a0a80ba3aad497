#pragma once

#include "tracenet/cpu_features.hpp"

namespace tracenet {

// Can kernels for this instruction set run here?
bool isa_available(Isa isa);

}  // namespace tracenet
