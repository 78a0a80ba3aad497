#include "cpu/conv_check.hpp"

#include <string>

#include "cpu/conv_layout.hpp"
#include "cpu/views.hpp"
#include "tracenet/error.hpp"

namespace tracenet {

namespace {

void check_channels(std::int64_t channels, std::int64_t wanted, const char* name) {
    if (channels != wanted) {
        throw InputError(std::string(name) + " has " + std::to_string(channels) + " channels; the weights need " +
                         std::to_string(wanted));
    }
}

void check_reads(const Window& reads, const Window& extent, const char* name) {
    if (!contains(extent, reads)) {
        throw InputError(std::string("the window reads ") + to_text(reads) + " of the " + name + ", which holds " +
                         to_text(extent) + "; pass a smaller window or a buffer with that part");
    }
}

// The residual may be the output itself: each element is read just before it is written, by the same thread.
bool same_cells(const ConvJob& job) {
    return job.residual_factor == 1 && job.residual.row_stride == job.output.row_stride &&
           job.residual.pixel_stride == job.output.pixel_stride &&
           job.residual.at(job.window.y0, job.window.x0) == job.output.at(job.window.y0, job.window.x0);
}

void check_job(const ConvSpec& spec, const ConvJob& job) {
    check_view(job.input, "the input");
    check_view(job.output, "the output");
    check_channels(job.input.channels, spec.in_channels, "the input");
    check_channels(job.output.channels, spec.out_channels, "the output");
    check_window(job.window, job.output, "the output");
    const auto activation = static_cast<std::int32_t>(job.activation);
    if (activation < 0 || activation >= kActivations) {
        throw InputError("activation " + std::to_string(activation) + " is not known; pass 0 to " +
                         std::to_string(kActivations - 1));
    }
    check_reads(conv_reads(spec, job.window, job.input.height, job.input.width), job.input.extent, "input");
    if (job.residual.data == nullptr) return;
    if (job.residual_factor < 1) {
        throw InputError("residual_factor is " + std::to_string(job.residual_factor) + "; pass at least 1");
    }
    check_view(job.residual, "the residual");
    check_channels(job.residual.channels, spec.out_channels, "the residual");
    check_reads(residual_reads(job.window, job.residual_factor), job.residual.extent, "residual");
}

void check_apart(const ConvSpec& spec, const ConvJob& writer, const ConvJob& reader) {
    if (overlap(writer.output, writer.window, reader.input,
                conv_reads(spec, reader.window, reader.input.height, reader.input.width))) {
        throw InputError("the output shares memory with what the window reads of the input; pass another buffer");
    }
    if (reader.residual.data != nullptr && !(&writer == &reader && same_cells(reader)) &&
        overlap(writer.output, writer.window, reader.residual, residual_reads(reader.window, reader.residual_factor))) {
        throw InputError(
            "the output shares memory with the residual; pass another buffer, or the very same cells with factor 1");
    }
    if (&writer != &reader && overlap(writer.output, writer.window, reader.output, reader.window)) {
        throw InputError("two jobs write the same memory; pass windows that do not overlap");
    }
}

}  // namespace

Window conv_reads(const ConvSpec& spec, const Window& window, std::int64_t height, std::int64_t width) {
    if (window.is_empty()) return {};
    try {
        const Span rows = conv_demand({window.y0, window.y1}, spec.y);
        const Span columns = conv_demand({window.x0, window.x1}, spec.x);
        return clip({rows.begin, rows.end, columns.begin, columns.end}, height, width);
    } catch (const WindowError& error) {
        throw InputError(error.what());
    }
}

Window residual_reads(const Window& window, std::int64_t factor) {
    if (window.is_empty()) return {};
    return {window.y0 / factor, (window.y1 - 1) / factor + 1, window.x0 / factor, (window.x1 - 1) / factor + 1};
}

void check_conv(const PackedConv& conv, const ConvJob* jobs, std::size_t count) {
    check_spec(conv.spec);
    if (conv.weights == nullptr || reinterpret_cast<std::uintptr_t>(conv.weights) % 64 != 0) {
        throw InputError("packed weights lie at a null or unaligned address; pass 64-byte aligned ones");
    }
    if (jobs == nullptr && count > 0) throw InputError("conv2d: no jobs behind a null pointer; pass an array");
    for (std::size_t i = 0; i < count; ++i) check_job(conv.spec, jobs[i]);
    for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t j = 0; j < count; ++j) check_apart(conv.spec, jobs[i], jobs[j]);
    }
}

}  // namespace tracenet
