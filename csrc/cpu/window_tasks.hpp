// What the kernels that are not convolutions share: checks of what they read and write, and a window's rows as tasks.
#pragma once

#include <cstdint>
#include <functional>

#include "cpu/views.hpp"
#include "tracenet/buffer.hpp"
#include "tracenet/thread_pool.hpp"
#include "tracenet/window.hpp"

namespace tracenet {

// Throws InputError unless both views are sound, `window` is inside the output's extent, `demand` (on the input's
// plane) inside the input's, and none of the cells read are among those written.
void check_reads_and_writes(const ViewShape& input, const Window& demand, const char* name, const ViewShape& output,
                            const Window& window);

// The same where each cell is read before it is written, so that the input may be the output itself.
void check_cellwise(const ViewShape& input, const char* name, const ViewShape& output, const Window& window);

// Throws InputError unless the two have as many channels, or planes of one size.
void check_same_channels(const ViewShape& input, const char* name, const ViewShape& output);
void check_same_plane(const ViewShape& input, const char* name, const ViewShape& output);

// body(first_row, last_row + 1) for bands that cover the window's rows. `bytes_per_row`, read and written, decides how
// many bands are worth their hand-out.
void for_bands(ThreadPool& pool, const Window& window, std::int64_t bytes_per_row,
               const std::function<void(std::int64_t y0, std::int64_t y1)>& body);

}  // namespace tracenet
