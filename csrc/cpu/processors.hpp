// How many processors this process may use.
#pragma once

namespace tracenet {

// Processors of the affinity mask, or fewer where a control group's quota allows less. At least 1.
int available_processors();

}  // namespace tracenet
