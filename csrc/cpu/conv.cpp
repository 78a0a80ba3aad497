// The convolution driver: cuts windows into tiles, finds where each tile's inputs lie, and hands them to the kernels.
//
// The pixels of all jobs form one list, cut into tiles of nearly equal size; a tile may cross rows and jobs. A task is
// a chunk of tiles by a range of panels: the chunk's inputs and one panel stay in the second-level cache while its
// tiles run, and the pointers to a chunk's inputs are found once for all panels.
#include "tracenet/conv.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "cpu/cells.hpp"
#include "cpu/conv_check.hpp"
#include "cpu/conv_layout.hpp"
#include "cpu/conv_tile.hpp"
#include "cpu/isa.hpp"
#include "tracenet/error.hpp"

namespace tracenet {

namespace {

// Tasks below this many multiply-adds (some 10 us) cost more to hand out than they save.
constexpr double kTaskMacs = 5e5;
constexpr std::int64_t kTasksPerThread = 6;
// Bytes of inputs that a chunk may touch, so that they and a panel of weights fit into the second-level cache.
constexpr std::int64_t kChunkBytes = 320 * 1024;
// Bytes of weights that a tile meets before the next one: what stays in the second-level cache beside a chunk.
constexpr std::int64_t kGroupBytes = 256 * 1024;
// A first-level cache has few ways: pixels this many bytes apart, or a multiple, push each other out of it.
constexpr std::int64_t kAliasBytes = 4096;
constexpr std::int64_t kAliasPixels = 7;
constexpr std::int64_t kMinChunkTiles = 4;
constexpr std::int64_t kMaxChunkTiles = 24;

const ConvKernels& kernels_of(Isa isa) {
    switch (isa) {
#if defined(__x86_64__)
        case Isa::avx512:
            return kConvKernelsAvx512;
        case Isa::avx2:
            return kConvKernelsAvx2;
#endif
#if defined(__aarch64__)
        case Isa::neon:
            return kConvKernelsNeon;
#endif
        default:
            return kConvKernelsPortable;
    }
}

struct Pixel {
    const ConvJob* job;
    std::int64_t y;
    std::int64_t x;
};

// The pixels of all jobs, one after another, row by row.
class Pixels {
  public:
    Pixels(const ConvJob* jobs, std::size_t count) : jobs_(jobs) {
        ends_.reserve(count);
        for (std::size_t i = 0; i < count; ++i) {
            const Window& w = jobs[i].window;
            total_ += (w.y1 - w.y0) * (w.x1 - w.x0);
            ends_.push_back(total_);
        }
    }

    std::int64_t total() const { return total_; }

    Pixel at(std::int64_t index) const {
        const auto job = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), index) - ends_.begin());
        const Window& w = jobs_[job].window;
        const std::int64_t rest = index - (job == 0 ? 0 : ends_[job - 1]);
        const std::int64_t width = w.x1 - w.x0;
        return {jobs_ + job, w.y0 + rest / width, w.x0 + rest % width};
    }

    // The first pixel of the next row; past the last job it must not be used.
    void to_next_row(Pixel& pixel) const {
        const ConvJob* const end = jobs_ + ends_.size();
        if (++pixel.y == pixel.job->window.y1) {
            do ++pixel.job;
            while (pixel.job != end && pixel.job->window.is_empty());
            if (pixel.job == end) return;
            pixel.y = pixel.job->window.y0;
        }
        pixel.x = pixel.job->window.x0;
    }

  private:
    const ConvJob* jobs_;
    std::vector<std::int64_t> ends_;
    std::int64_t total_ = 0;
};

// Pixels of a tile that lie side by side in a row.
struct Stretch {
    Pixel first;
    std::int64_t length;
};

// Where the pixels of a tile are read from and written to; the runs' pointers lie elsewhere.
struct TilePlan {
    int pixels = 0;
    bool merged = false;  // a run is a whole row of taps
    bool uniform = false;
    std::size_t runs = 0;  // index of the first run's pointers
    float* outputs[kMaxTilePixels];
    const float* scales[kMaxTilePixels];
    const float* biases[kMaxTilePixels];
    const float* addends[kMaxTilePixels];
    float lowest[kMaxTilePixels];
    const ConvJob* jobs[kMaxTilePixels];
};

struct ChunkPlan {
    std::vector<TilePlan> tiles;
    std::vector<const float*> runs;
};

class Conv {
  public:
    Conv(const PackedConv& conv, const ConvJob* jobs, std::size_t count)
        : spec_(conv.spec),
          weights_(conv.weights),
          kernels_(kernels_of(conv.isa)),
          layout_(conv.spec, conv.isa),
          depthwise_(is_depthwise(conv.spec)),
          inputs_per_group_(conv.spec.in_channels / conv.spec.groups),
          conv_shape_(conv_shape(conv.isa)),
          pixels_(jobs, count) {
        std::int64_t tile_pixels = conv_shape_.pixels;
        for (std::size_t i = 0; i < count; ++i) {
            const std::int64_t step = spec_.x.stride * jobs[i].input.pixel_stride * std::int64_t{sizeof(float)};
            if (step % kAliasBytes == 0 && !depthwise_) tile_pixels = std::min(tile_pixels, kAliasPixels);
        }
        tiles_ = ceil_div(pixels_.total(), tile_pixels);
        for (std::size_t i = 0; i < count; ++i) curved_ = curved_ || is_curved(jobs[i]);
        for (std::size_t i = 0; i < count; ++i) {
            if (!needs_zeros(jobs[i])) continue;
            zeros_.assign(static_cast<std::size_t>(spec_.in_channels * spec_.x.kernel), 0.0F);
            break;
        }
    }

    void run(ThreadPool& pool) const {
        if (tiles_ == 0) return;
        const double macs = static_cast<double>(pixels_.total()) * static_cast<double>(layout_.taps()) *
                            static_cast<double>(spec_.out_channels);
        const auto worthwhile = static_cast<std::int64_t>(std::min(macs / kTaskMacs, 1e6));
        const std::int64_t wanted = std::max<std::int64_t>(1, std::min(worthwhile, kTasksPerThread * pool.threads()));
        const std::int64_t chunk = chunk_tiles();
        std::int64_t chunks = ceil_div(tiles_, chunk);
        std::int64_t ranges = std::min(layout_.panels(), ceil_div(wanted, chunks));
        if (chunks * ranges < wanted) chunks = std::min(tiles_, ceil_div(wanted, ranges));
        pool.run(chunks * ranges, [&](std::int64_t task, int) {
            const std::int64_t c = task / ranges;
            const std::int64_t r = task % ranges;
            run_task(c * tiles_ / chunks, (c + 1) * tiles_ / chunks, r * layout_.panels() / ranges,
                     (r + 1) * layout_.panels() / ranges);
        });
    }

  private:
    // Has a tile's kernel not finished the job's values? It knows ReLU alone.
    static bool is_curved(const ConvJob& job) {
        return job.activation != Activation::none && job.activation != Activation::relu;
    }

    bool needs_zeros(const ConvJob& job) const {
        if (job.window.is_empty()) return false;
        const Span rows = conv_demand({job.window.y0, job.window.y1}, spec_.y);
        const Span columns = conv_demand({job.window.x0, job.window.x1}, spec_.x);
        return rows.begin < 0 || rows.end > job.input.height || columns.begin < 0 || columns.end > job.input.width;
    }

    std::int64_t chunk_tiles() const {
        const std::int64_t per_pixel =
            spec_.y.stride * spec_.x.stride * spec_.in_channels * static_cast<std::int64_t>(sizeof(float));
        const std::int64_t per_tile = per_pixel * ceil_div(pixels_.total(), tiles_);
        return std::min(std::max(kChunkBytes / std::max<std::int64_t>(per_tile, 1), kMinChunkTiles), kMaxChunkTiles);
    }

    void run_task(std::int64_t first_tile, std::int64_t last_tile, std::int64_t first_panel,
                  std::int64_t last_panel) const {
        thread_local ChunkPlan plan;  // keeps its memory from call to call
        plan_chunk(first_tile, last_tile, plan);
        const std::int64_t panel_bytes =
            layout_.taps() * conv_shape_.widths[kPanelWidths - 1] * static_cast<std::int64_t>(sizeof(float));
        const std::int64_t group = std::max<std::int64_t>(1, kGroupBytes / panel_bytes);
        const bool fetch = spec_.y.kernel * spec_.x.kernel == 1 && spec_.groups == 1;
        for (std::int64_t p = first_panel; p < last_panel; p += group) {
            for (std::size_t t = 0; t < plan.tiles.size(); ++t) {
                const TilePlan& tile = plan.tiles[t];
                const float* const* next = nullptr;
                if (fetch && t + 1 < plan.tiles.size() && plan.tiles[t + 1].pixels >= tile.pixels) {
                    next = plan.runs.data() + plan.tiles[t + 1].runs;
                }
                for (std::int64_t q = p; q < std::min(p + group, last_panel); ++q) {
                    run_tile(tile, plan.runs.data() + tile.runs, q == p ? next : nullptr, layout_.panel(q));
                }
                if (curved_) activate_tile(tile, layout_.panel(p), layout_.panel(std::min(p + group, last_panel) - 1));
            }
        }
    }

    void run_tile(const TilePlan& plan, const float* const* runs, const float* const* next,
                  const PanelLayout::Panel& panel) const {
        ConvTile tile;
        tile.inputs = runs;
        tile.segments = plan.merged ? spec_.y.kernel : spec_.y.kernel * spec_.x.kernel;
        tile.length = plan.merged ? spec_.x.kernel * inputs_per_group_ : inputs_per_group_;
        tile.input_offset = panel.input;
        tile.weights = weights_ + panel.offset;
        tile.next_inputs = next;
        tile.first = panel.first;
        tile.channels = panel.channels;
        tile.outputs = plan.outputs;
        tile.scales = plan.scales;
        tile.biases = plan.biases;
        tile.addends = plan.addends;
        tile.lowest = plan.lowest;
        tile.uniform = plan.uniform;
        const auto& kernels = depthwise_ ? kernels_.depthwise : kernels_.dense;
        kernels[plan.pixels - 1][panel.kind](tile);
    }

    // The channels from one panel to another of a tile's pixels, while they are in the first-level cache.
    void activate_tile(const TilePlan& tile, const PanelLayout::Panel& from, const PanelLayout::Panel& to) const {
        const std::int64_t channels = to.first + to.channels - from.first;
        const CellKernels& kernels = cell_kernels();
        for (int j = 0; j < tile.pixels;) {
            const ConvJob& job = *tile.jobs[j];
            float* const values = tile.outputs[j] + from.first;
            std::int64_t n = channels;
            for (++j; j < tile.pixels && tile.jobs[j] == &job && tile.outputs[j] + from.first == values + n; ++j) {
                n += channels;
            }
            if (is_curved(job)) kernels.activate(static_cast<int>(job.activation), job.a, job.b, values, n, values);
        }
    }

    void plan_chunk(std::int64_t first_tile, std::int64_t last_tile, ChunkPlan& plan) const {
        plan.tiles.resize(static_cast<std::size_t>(last_tile - first_tile));
        plan.runs.clear();
        std::int64_t begin = first_tile * pixels_.total() / tiles_;
        Pixel pixel = pixels_.at(begin);
        for (std::int64_t t = first_tile; t < last_tile; ++t) {
            const std::int64_t end = (t + 1) * pixels_.total() / tiles_;
            Stretch stretches[kMaxTilePixels];
            int count = 0;
            for (std::int64_t left = end - begin; left > 0; ++count) {
                const std::int64_t length = std::min(left, pixel.job->window.x1 - pixel.x);
                stretches[count] = {pixel, length};
                left -= length;
                pixel.x += length;
                if (pixel.x == pixel.job->window.x1) pixels_.to_next_row(pixel);
            }
            plan_tile(stretches, count, plan.tiles[static_cast<std::size_t>(t - first_tile)], plan.runs);
            begin = end;
        }
    }

    void plan_tile(const Stretch* stretches, int count, TilePlan& tile, std::vector<const float*>& runs) const {
        const ConvJob& job = *stretches[0].first.job;
        tile.pixels = 0;
        tile.merged = true;
        tile.uniform = true;
        for (int i = 0; i < count; ++i) {
            const ConvJob& other = *stretches[i].first.job;
            tile.merged = tile.merged && rows_are_runs(stretches[i]);
            tile.uniform = tile.uniform && other.scale == job.scale && other.bias == job.bias;
            tile.pixels += static_cast<int>(stretches[i].length);
        }
        tile.runs = runs.size();
        const std::int64_t columns = tile.merged ? 1 : spec_.x.kernel;
        runs.resize(tile.runs + static_cast<std::size_t>(spec_.y.kernel * columns * tile.pixels));
        int j = 0;
        for (int i = 0; i < count; ++i) {
            plan_outputs(stretches[i], j, tile);
            plan_inputs(stretches[i], columns, tile.pixels, runs.data() + tile.runs + j);
            j += static_cast<int>(stretches[i].length);
        }
    }

    void plan_outputs(const Stretch& stretch, int j, TilePlan& tile) const {
        const ConvJob& job = *stretch.first.job;
        const std::int64_t f = job.residual_factor;
        const float lowest = job.activation == Activation::relu ? 0.0F : -std::numeric_limits<float>::infinity();
        float* output = job.output.at(stretch.first.y, stretch.first.x);
        for (std::int64_t i = 0; i < stretch.length; ++i, ++j, output += job.output.pixel_stride) {
            tile.outputs[j] = output;
            tile.jobs[j] = &job;
            tile.scales[j] = job.scale;
            tile.biases[j] = job.bias;
            tile.lowest[j] = lowest;
            tile.addends[j] = job.residual.data == nullptr
                                  ? nullptr
                                  : job.residual.at(stretch.first.y / f, (stretch.first.x + i) / f);
        }
    }

    // Pointers of a stretch, `pixels` apart from one run to the next.
    void plan_inputs(const Stretch& stretch, std::int64_t columns, std::int64_t pixels, const float** to) const {
        const View<const float>& input = stretch.first.job->input;
        const std::int64_t top = stretch.first.y * spec_.y.stride - spec_.y.padding;
        const std::int64_t left = stretch.first.x * spec_.x.stride - spec_.x.padding;
        const std::int64_t reach = (stretch.length - 1) * spec_.x.stride;
        const std::int64_t step = spec_.x.stride * input.pixel_stride;
        for (std::int64_t ky = 0; ky < spec_.y.kernel; ++ky) {
            const std::int64_t y = top + ky * spec_.y.dilation;
            const bool row_exists = 0 <= y && y < input.height;
            for (std::int64_t kx = 0; kx < columns; ++kx, to += pixels) {
                const std::int64_t x = left + kx * spec_.x.dilation;
                if (row_exists && 0 <= x && x + reach < input.width) {
                    const float* from = input.at(y, x);
                    for (std::int64_t j = 0; j < stretch.length; ++j, from += step) to[j] = from;
                    continue;
                }
                for (std::int64_t j = 0; j < stretch.length; ++j) {
                    const std::int64_t column = x + j * spec_.x.stride;
                    const bool exists = row_exists && 0 <= column && column < input.width;
                    to[j] = exists ? input.at(y, column) : zeros_.data();
                }
            }
        }
    }

    // Do the taps of a kernel row lie side by side in memory, all on the plane?
    bool rows_are_runs(const Stretch& stretch) const {
        if (spec_.x.kernel == 1) return true;
        const View<const float>& input = stretch.first.job->input;
        const std::int64_t left = stretch.first.x * spec_.x.stride - spec_.x.padding;
        const std::int64_t reach = (stretch.length - 1) * spec_.x.stride + spec_.x.kernel;
        return spec_.groups == 1 && spec_.x.dilation == 1 && input.pixel_stride == input.channels && left >= 0 &&
               left + reach <= input.width;
    }

    const ConvSpec& spec_;
    const float* weights_;
    const ConvKernels& kernels_;
    PanelLayout layout_;
    bool depthwise_;
    std::int64_t inputs_per_group_;
    ConvShape conv_shape_;
    Pixels pixels_;
    std::int64_t tiles_ = 0;
    bool curved_ = false;  // some job has an activation besides ReLU
    std::vector<float> zeros_;
};

}  // namespace

void conv2d(const PackedConv& conv, const ConvJob* jobs, std::size_t count, ThreadPool& pool) {
    if (!isa_available(conv.isa)) {
        throw InputError(std::string("weights are packed for ") + isa_name(conv.isa) +
                         ", which this processor or build lacks; pack them for active_isa()");
    }
    check_conv(conv, jobs, count);
    Conv(conv, jobs, count).run(pool);
}

}  // namespace tracenet
