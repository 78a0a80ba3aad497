// Convolution, ReLU and maximum pooling strip by strip: the plane between them lives in a cache-sized buffer.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

#include "cpu/conv_check.hpp"
#include "cpu/pool.hpp"
#include "cpu/window_tasks.hpp"
#include "tracenet/conv.hpp"
#include "tracenet/error.hpp"
#include "tracenet/kernels.hpp"

namespace tracenet {

namespace {

// Part of a second-level cache, which the convolution's inputs and weights share.
constexpr std::int64_t kStripBytes = 512 * 1024;
// A band computes the rows it shares with the band above once more, so bands are not made thinner than this.
constexpr std::int64_t kRowsPerBand = 8;

// Rows of the convolution's plane, kept from strip to strip where the next one reads them again.
class Strip {
  public:
    Strip(const Window& columns, std::int64_t rows, const View<float>& plane)
        : columns_(columns),
          row_elements_((columns.x1 - columns.x0) * plane.channels),
          plane_(plane),
          memory_(new float[static_cast<std::size_t>(std::max<std::int64_t>(1, rows * row_elements_))]) {}

    // Makes the strip hold `rows`, which starts nowhere above the last one. compute(view, window) fills what is new.
    View<const float> move_to(const Span& rows, const std::function<void(const View<float>&, const Window&)>& compute) {
        const std::int64_t kept = std::max<std::int64_t>(0, held_.end - std::max(rows.begin, held_.begin));
        if (kept > 0 && rows.begin > held_.begin) {
            std::memmove(memory_.get(), memory_.get() + (rows.begin - held_.begin) * row_elements_,
                         static_cast<std::size_t>(kept * row_elements_) * sizeof(float));
        }
        held_ = rows;
        const Window extent{rows.begin, rows.end, columns_.x0, columns_.x1};
        const View<float> view = dense_view(memory_.get(), extent, plane_.height, plane_.width, plane_.channels);
        const Window fresh{rows.begin + kept, rows.end, columns_.x0, columns_.x1};
        if (fresh.y0 < fresh.y1) compute(view, fresh);
        return view;
    }

  private:
    const Window columns_;
    const std::int64_t row_elements_;
    const View<float> plane_;
    const std::unique_ptr<float[]> memory_;
    Span held_;
};

}  // namespace

void stem(const PackedConv& conv, const float* bias, std::int64_t conv_height, std::int64_t conv_width,
          const PoolSpec& pool_spec, View<const float> input, View<float> output, const Window& window,
          ThreadPool& pool) {
    check_pool(pool_spec);
    if (conv_height < 0 || conv_width < 0) {
        throw InputError("the convolution's plane is " + std::to_string(conv_height) + " x " +
                         std::to_string(conv_width) + "; pass its height and width");
    }
    View<float> plane;
    plane.height = conv_height;
    plane.width = conv_width;
    plane.channels = conv.spec.out_channels;
    ConvJob job;
    job.input = input;
    job.output = plane;
    job.bias = bias;
    job.activation = Activation::relu;
    check_conv(conv, &job, 1);  // all but the window, which is still empty
    check_same_channels(shape_of(plane), "the convolution", shape_of(output));
    job.window = pool_demand(pool_spec, window, conv_height, conv_width);
    check_reads_and_writes(shape_of(input), conv_reads(conv.spec, job.window, job.input.height, job.input.width),
                           "the input", shape_of(output), window);
    if (window.is_empty()) return;

    const Window columns{0, 0, job.window.x0, job.window.x1};
    const std::int64_t row_bytes = std::max<std::int64_t>(1, (columns.x1 - columns.x0) * plane.channels * 4);
    const auto rows_of = [&](std::int64_t y0, std::int64_t y1) {
        const Window demand = pool_demand(pool_spec, {y0, y1, window.x0, window.x1}, conv_height, conv_width);
        return demand.is_empty() ? Span{demand.y0, demand.y0} : Span{demand.y0, demand.y1};
    };
    const std::int64_t window_rows = window.y1 - window.y0;
    const std::int64_t reach = pool_spec.y.dilation * (pool_spec.y.kernel - 1) + 1;
    const std::int64_t spare = (kStripBytes / row_bytes - reach) / pool_spec.y.stride;
    const std::int64_t strip_rows = std::min(std::max<std::int64_t>(1, spare + 1), window_rows);
    const std::int64_t most = std::min((strip_rows - 1) * pool_spec.y.stride + reach, job.window.y1 - job.window.y0);
    const std::int64_t bands =
        std::max<std::int64_t>(1, std::min<std::int64_t>(window_rows / kRowsPerBand, 2 * pool.threads()));

    pool.run(bands, [&](std::int64_t band, int) {
        const std::int64_t last = window.y0 + window_rows * (band + 1) / bands;
        Strip strip(columns, most, plane);
        for (std::int64_t y = window.y0 + window_rows * band / bands; y < last; y += strip_rows) {
            const std::int64_t end = std::min(y + strip_rows, last);
            const View<const float> rows =
                strip.move_to(rows_of(y, end), [&](const View<float>& view, const Window& fresh) {
                    ConvJob part = job;
                    part.output = view;
                    part.window = fresh;
                    conv2d(conv, &part, 1, pool);
                });
            max_pool2d(pool_spec, rows, output, {y, end, window.x0, window.x1}, pool);
        }
    });
}

}  // namespace tracenet
