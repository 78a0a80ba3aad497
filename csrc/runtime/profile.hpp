// What one launch did and how long it took.
#pragma once

#include <cstddef>
#include <vector>

#include "tracenet/runtime.hpp"

namespace tracenet {

// members: the steps of the launch, in order.
ProfileRow profile_row(const Program& program, const Plan& plan, const std::vector<std::size_t>& members,
                       double microseconds);

// One aligned line on stderr.
void print_row(const ProfileRow& row);

}  // namespace tracenet
