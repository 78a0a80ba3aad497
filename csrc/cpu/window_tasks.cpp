#include "cpu/window_tasks.hpp"

#include <algorithm>
#include <string>

#include "tracenet/error.hpp"

namespace tracenet {

namespace {

// Less memory traffic than this takes less time than waking a thread.
constexpr std::int64_t kBytesPerTask = 64 * 1024;
// More bands than threads, so that a late thread does not leave the others waiting.
constexpr std::int64_t kTasksPerThread = 4;

void check_views(const ViewShape& input, const Window& demand, const char* name, const ViewShape& output,
                 const Window& window) {
    check_view(input, name);
    check_view(output, "the output");
    check_window(window, output, "the output");
    const bool inside = demand.is_empty() || (input.extent.y0 <= demand.y0 && demand.y1 <= input.extent.y1 &&
                                              input.extent.x0 <= demand.x0 && demand.x1 <= input.extent.x1);
    if (!inside) {
        throw InputError("the window " + to_text(window) + " reads " + to_text(demand) + " of " + name +
                         ", whose extent is only " + to_text(input.extent) + "; compute more of it first");
    }
}

[[noreturn]] void throw_overlap(const char* name) {
    throw InputError(std::string(name) + " shares memory with what is written; pass separate buffers");
}

}  // namespace

void check_reads_and_writes(const ViewShape& input, const Window& demand, const char* name, const ViewShape& output,
                            const Window& window) {
    check_views(input, demand, name, output, window);
    if (overlap(input, demand, output, window)) throw_overlap(name);
}

void check_cellwise(const ViewShape& input, const char* name, const ViewShape& output, const Window& window) {
    check_same_plane(input, name, output);
    check_same_channels(input, name, output);
    check_views(input, window, name, output, window);
    if (!overlap(input, window, output, window)) return;
    const auto first_cell = [&window](const ViewShape& view) {
        const std::int64_t cells =
            (window.y0 - view.extent.y0) * view.row_stride + (window.x0 - view.extent.x0) * view.pixel_stride;
        return static_cast<std::int64_t>(view.address) + cells * static_cast<std::int64_t>(view.element);
    };
    const bool same_cells = first_cell(input) == first_cell(output) &&
                            (window.y1 - window.y0 == 1 || input.row_stride == output.row_stride) &&
                            (window.x1 - window.x0 == 1 || input.pixel_stride == output.pixel_stride);
    if (!same_cells) throw_overlap(name);
}

void check_same_channels(const ViewShape& input, const char* name, const ViewShape& output) {
    if (input.channels == output.channels) return;
    throw InputError(std::string(name) + " has " + std::to_string(input.channels) + " channels, the output " +
                     std::to_string(output.channels) + "; pass as many");
}

void check_same_plane(const ViewShape& input, const char* name, const ViewShape& output) {
    if (input.height == output.height && input.width == output.width) return;
    throw InputError(std::string(name) + " is on a plane of " + std::to_string(input.height) + " x " +
                     std::to_string(input.width) + ", the output on one of " + std::to_string(output.height) + " x " +
                     std::to_string(output.width) + "; pass planes of one size");
}

void for_bands(ThreadPool& pool, const Window& window, std::int64_t bytes_per_row,
               const std::function<void(std::int64_t y0, std::int64_t y1)>& body) {
    if (window.is_empty()) return;
    const std::int64_t rows = window.y1 - window.y0;
    const std::int64_t worth = std::max<std::int64_t>(1, bytes_per_row / 1024 * rows / (kBytesPerTask / 1024));
    const std::int64_t bands = std::min({rows, worth, pool.threads() == 1 ? 1 : pool.threads() * kTasksPerThread});
    pool.run(bands, [&](std::int64_t band, int) {
        body(window.y0 + rows * band / bands, window.y0 + rows * (band + 1) / bands);
    });
}

}  // namespace tracenet
