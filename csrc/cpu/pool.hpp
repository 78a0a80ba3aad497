// Checks and demands of pooling, for kernels that pool in the same pass.
#pragma once

#include <cstdint>

#include "tracenet/kernels.hpp"
#include "tracenet/window.hpp"

namespace tracenet {

// Throws InputError for a spec that is not a pooling.
void check_pool(const PoolSpec& spec);

// The cells of a plane of that size that a window of the pooled plane reads; empty where it reads only padding.
Window pool_demand(const PoolSpec& spec, const Window& window, std::int64_t height, std::int64_t width);

}  // namespace tracenet
