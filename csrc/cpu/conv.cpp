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

    // The pixel after one that is not the last.
    void advance(Pixel& pixel) const {
        if (++pixel.x < pixel.job->window.x1) return;
        if (++pixel.y == pixel.job->window.y1) {
            do ++pixel.job;
            while (pixel.job->window.is_empty());
            pixel.y = pixel.job->window.y0;
        }
        pixel.x = pixel.job->window.x0;
    }

  private:
    const ConvJob* jobs_;
    std::vector<std::int64_t> ends_;
    std::int64_t total_ = 0;
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
          pixels_(jobs, count),
          tiles_(ceil_div(pixels_.total(), conv_shape(conv.isa).pixels)) {
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
        for (std::int64_t p = first_panel; p < last_panel; ++p) {
            const PanelLayout::Panel panel = layout_.panel(p);
            for (const TilePlan& tile : plan.tiles) run_tile(tile, plan.runs.data() + tile.runs, panel);
        }
    }

    void run_tile(const TilePlan& plan, const float* const* runs, const PanelLayout::Panel& panel) const {
        ConvTile tile;
        tile.inputs = runs;
        tile.segments = plan.merged ? spec_.y.kernel : spec_.y.kernel * spec_.x.kernel;
        tile.length = plan.merged ? spec_.x.kernel * inputs_per_group_ : inputs_per_group_;
        tile.input_offset = panel.input;
        tile.weights = weights_ + panel.offset;
        tile.next_weights = nullptr;
        tile.first = panel.first;
        tile.channels = panel.channels;
        tile.outputs = plan.outputs;
        tile.scales = plan.scales;
        tile.biases = plan.biases;
        tile.addends = plan.addends;
        tile.lowest = plan.lowest;
        tile.uniform = plan.uniform;
        const auto& kernels = depthwise_ ? kernels_.depthwise : kernels_.dense;
        kernels[plan.pixels - 1][panel.vectors - 1](tile);
    }

    void plan_chunk(std::int64_t first_tile, std::int64_t last_tile, ChunkPlan& plan) const {
        plan.tiles.resize(static_cast<std::size_t>(last_tile - first_tile));
        plan.runs.clear();
        Pixel pixel = pixels_.at(first_tile * pixels_.total() / tiles_);
        for (std::int64_t t = first_tile; t < last_tile; ++t) {
            TilePlan& tile = plan.tiles[static_cast<std::size_t>(t - first_tile)];
            const std::int64_t begin = t * pixels_.total() / tiles_;
            const std::int64_t end = (t + 1) * pixels_.total() / tiles_;
            Pixel members[kMaxTilePixels];
            tile.pixels = static_cast<int>(end - begin);
            for (int j = 0; j < tile.pixels; ++j) {
                members[j] = pixel;
                if (begin + j + 1 < pixels_.total()) pixels_.advance(pixel);
            }
            plan_tile(members, tile, plan.runs);
        }
    }

    void plan_tile(const Pixel* members, TilePlan& tile, std::vector<const float*>& runs) const {
        tile.merged = true;
        tile.uniform = true;
        for (int j = 0; j < tile.pixels; ++j) {
            const ConvJob& job = *members[j].job;
            tile.outputs[j] = job.output.at(members[j].y, members[j].x);
            tile.scales[j] = job.scale;
            tile.biases[j] = job.bias;
            const std::int64_t f = job.residual_factor;
            tile.addends[j] =
                job.residual.data == nullptr ? nullptr : job.residual.at(members[j].y / f, members[j].x / f);
            tile.lowest[j] = job.activation == Activation::relu ? 0.0F : -std::numeric_limits<float>::infinity();
            tile.merged = tile.merged && rows_are_runs(members[j]);
            tile.uniform = tile.uniform && job.scale == members[0].job->scale && job.bias == members[0].job->bias;
        }
        tile.runs = runs.size();
        const std::int64_t columns = tile.merged ? 1 : spec_.x.kernel;
        const auto pixels = static_cast<std::size_t>(tile.pixels);
        runs.resize(tile.runs + static_cast<std::size_t>(spec_.y.kernel * columns) * pixels);
        for (int j = 0; j < tile.pixels; ++j) {
            const View<const float>& input = members[j].job->input;
            const std::int64_t top = members[j].y * spec_.y.stride - spec_.y.padding;
            const std::int64_t left = members[j].x * spec_.x.stride - spec_.x.padding;
            const float** to = runs.data() + tile.runs + j;
            for (std::int64_t ky = 0; ky < spec_.y.kernel; ++ky) {
                const std::int64_t y = top + ky * spec_.y.dilation;
                const bool row_exists = 0 <= y && y < input.height;
                for (std::int64_t kx = 0; kx < columns; ++kx, to += pixels) {
                    const std::int64_t x = left + kx * spec_.x.dilation;
                    *to = row_exists && 0 <= x && x < input.width ? input.at(y, x) : zeros_.data();
                }
            }
        }
    }

    // Do the taps of a kernel row lie side by side in memory, all on the plane?
    bool rows_are_runs(const Pixel& pixel) const {
        if (spec_.x.kernel == 1) return true;
        const View<const float>& input = pixel.job->input;
        const std::int64_t left = pixel.x * spec_.x.stride - spec_.x.padding;
        return spec_.groups == 1 && spec_.x.dilation == 1 && input.pixel_stride == input.channels && left >= 0 &&
               left + spec_.x.kernel <= input.width;
    }

    const ConvSpec& spec_;
    const float* weights_;
    const ConvKernels& kernels_;
    PanelLayout layout_;
    bool depthwise_;
    std::int64_t inputs_per_group_;
    Pixels pixels_;
    std::int64_t tiles_;
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
