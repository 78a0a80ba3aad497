// 8-bit convolution: checks, packing, and the cutting of windows into tiles.
//
// A window's pixels are numbered row by row and cut into runs of up to 14 of nearly equal length, whatever the window's
// width, so a narrow window costs no more per pixel than a wide one. Each tile gets a table of pointers, one per tap
// and pixel; taps off the plane point to a pixel that holds the zero point. All blocks of 32 outputs share the table.
#include "tracenet/conv_int8.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cpu/conv_check.hpp"
#include "cpu/conv_int8_tile.hpp"
#include "cpu/views.hpp"
#include "tracenet/cpu_features.hpp"
#include "tracenet/error.hpp"

namespace tracenet {

namespace {

constexpr std::int64_t kAlignment = 64;
constexpr std::int64_t kBlock = kInt8TileChannels;
constexpr std::int64_t kQuadBytes = 4 * kBlock;
// Products per task: about 10 us on one core, long against the hand-over of a task.
constexpr std::int64_t kTaskProducts = std::int64_t{1} << 21;
constexpr std::int64_t kTilesPerTask = 4;  // that read a block of weights one after the other, while it is in cache

struct Geometry {
    std::int64_t in_channels;   // of a group
    std::int64_t out_channels;  // of a group
    std::int64_t groups;
    std::int64_t taps;
    std::int64_t blocks;       // of 32 outputs, in a group
    std::int64_t block_bytes;  // packed weights of one block
    std::int64_t all_blocks() const { return groups * blocks; }
};

void check_positive(std::int64_t value, const char* name) {
    if (value < 1) throw InputError(std::string(name) + " is " + std::to_string(value) + "; pass at least 1");
}

Geometry geometry_of(const ConvSpec& spec) {
    check_positive(spec.in_channels, "in_channels");
    check_positive(spec.out_channels, "out_channels");
    check_positive(spec.groups, "groups");
    if (spec.in_channels % spec.groups != 0 || spec.out_channels % spec.groups != 0) {
        throw InputError(std::to_string(spec.groups) + " groups do not divide " + std::to_string(spec.in_channels) +
                         " input and " + std::to_string(spec.out_channels) + " output channels");
    }
    try {
        check_axis(Span{}, spec.y);
        check_axis(Span{}, spec.x);
        Geometry geometry{};
        geometry.in_channels = spec.in_channels / spec.groups;
        geometry.out_channels = spec.out_channels / spec.groups;
        geometry.groups = spec.groups;
        geometry.taps = checked_mul(spec.y.kernel, spec.x.kernel);
        const std::int64_t terms = checked_mul(geometry.taps, geometry.in_channels);
        if (terms > kMaxInt8Terms) {
            throw InputError("a sum has " + std::to_string(terms) + " terms; 32-bit sums hold " +
                             std::to_string(kMaxInt8Terms) + ", use the fp32 convolution");
        }
        geometry.blocks = ceil_div(geometry.out_channels, kBlock);
        geometry.block_bytes = geometry.taps * ceil_div(geometry.in_channels, 4) * kQuadBytes;
        checked_mul(geometry.block_bytes + kBlock * 4, geometry.all_blocks());
        return geometry;
    } catch (const WindowError& error) {
        throw InputError(std::string("not a convolution: ") + error.what());
    }
}

const std::int32_t* weight_sums(const Geometry& geometry, const std::int8_t* packed) {
    return reinterpret_cast<const std::int32_t*>(packed + geometry.block_bytes * geometry.all_blocks());
}

void check_quantisation(const Quantisation& quantisation, const char* name) {
    if (!(quantisation.scale > 0.0F) || !std::isfinite(quantisation.scale) ||
        !std::isfinite(1.0F / quantisation.scale)) {
        throw InputError(std::string(name) + " has scale " + std::to_string(quantisation.scale) +
                         "; pass a positive one that is finite, as its reciprocal is");
    }
    if (quantisation.zero_point < 0 || quantisation.zero_point > 255) {
        throw InputError(std::string(name) + " has zero point " + std::to_string(quantisation.zero_point) +
                         "; pass 0 to 255");
    }
}

void check_packed(const std::int8_t* weights) {
    if (weights == nullptr) throw InputError("the packed weights have no memory (null pointer); pass a buffer");
    if (reinterpret_cast<std::uintptr_t>(weights) % kAlignment != 0) {
        throw InputError("the packed weights are not 64-byte aligned; pass an aligned buffer");
    }
}

void check_channels(std::int64_t channels, std::int64_t expected, const char* name) {
    if (channels != expected) {
        throw InputError(std::string(name) + " has " + std::to_string(channels) + " channels, the convolution " +
                         std::to_string(expected));
    }
}

// What one job reads or writes, for the checks.
struct Access {
    ViewShape view;
    Window window;
    const char* name;
};

struct Accesses {
    std::vector<Access> reads;
    Access write;
};

// A residual that is the output itself: each value is read just before it is written.
bool in_place(const ViewShape& residual, const ViewShape& output, std::int64_t factor) {
    return factor == 1 && residual.address == output.address && residual.element == output.element &&
           residual.extent == output.extent && residual.row_stride == output.row_stride &&
           residual.pixel_stride == output.pixel_stride;
}

Accesses check_job(const ConvSpec& spec, const Int8ConvJob& job) {
    Accesses accesses;
    if ((job.output.data == nullptr) == (job.quantised_output.data == nullptr)) {
        throw InputError("a job has no output or two; pass either an fp32 or an 8-bit one");
    }
    if (job.residual.data != nullptr && job.quantised_residual.data != nullptr) {
        throw InputError("a job has two residuals; pass at most one");
    }
    check_view(job.input, "the input");
    check_channels(job.input.channels, spec.in_channels, "the input");
    check_quantisation(job.input_quantisation, "the input");
    const bool quantised = job.quantised_output.data != nullptr;
    accesses.write = {quantised ? shape_of(job.quantised_output) : shape_of(job.output), job.window, "the output"};
    check_view(accesses.write.view, "the output");
    check_channels(accesses.write.view.channels, spec.out_channels, "the output");
    check_window(job.window, accesses.write.view, "the output");
    if (quantised) check_quantisation(job.output_quantisation, "the output");
    const Window demand = conv_reads(spec, job.window, job.input.height, job.input.width);
    check_window(demand, job.input, "the input");
    accesses.reads.push_back({shape_of(job.input), demand, "the input"});
    if (job.residual.data != nullptr || job.quantised_residual.data != nullptr) {
        if (job.residual_factor < 1) {
            throw InputError("residual_factor is " + std::to_string(job.residual_factor) + "; pass at least 1");
        }
        const ViewShape view = job.residual.data != nullptr ? shape_of(job.residual) : shape_of(job.quantised_residual);
        check_view(view, "the residual");
        check_channels(view.channels, spec.out_channels, "the residual");
        check_window(residual_reads(job.window, job.residual_factor), view, "the residual");
        if (job.quantised_residual.data != nullptr) check_quantisation(job.residual_quantisation, "the residual");
        if (!in_place(view, accesses.write.view, job.residual_factor)) {
            accesses.reads.push_back({view, residual_reads(job.window, job.residual_factor), "the residual"});
        }
    }
    return accesses;
}

void check_jobs(const ConvSpec& spec, const Int8ConvJob* jobs, std::size_t count) {
    if (count != 0 && jobs == nullptr) throw InputError("the jobs are a null pointer; pass as many as you say");
    std::vector<Accesses> all;
    for (std::size_t i = 0; i < count; ++i) all.push_back(check_job(spec, jobs[i]));
    for (std::size_t i = 0; i < count; ++i) {
        const Access& write = all[i].write;
        for (std::size_t j = 0; j < count; ++j) {
            for (const Access& read : all[j].reads) {
                if (overlap(write.view, write.window, read.view, read.window)) {
                    throw InputError(std::string("the output shares memory with ") + read.name +
                                     " where it is read; pass separate buffers");
                }
            }
            if (j > i && overlap(write.view, write.window, all[j].write.view, all[j].write.window)) {
                throw InputError("two jobs write the same cells; pass separate windows");
            }
        }
    }
}

// What the tiles of one job share: per output channel, in packed order (groups and blocks padded to 32).
struct Prepared {
    std::vector<std::int32_t> start;
    std::vector<float> multiplier;
    std::vector<float> bias;
    std::vector<std::uint8_t> nothing;  // a pixel off the plane
    std::int64_t pixels = 0;
    std::int64_t tiles = 0;
};

Prepared prepare(const Geometry& geometry, const PackedInt8Conv& conv, const Int8ConvJob& job) {
    Prepared prepared;
    const auto channels = static_cast<std::size_t>(geometry.all_blocks() * kBlock);
    prepared.start.assign(channels, 0);
    prepared.multiplier.assign(channels, 0.0F);
    prepared.bias.assign(channels, 0.0F);
    const std::int32_t* sums = weight_sums(geometry, conv.weights);
    for (std::int64_t channel = 0; channel < conv.spec.out_channels; ++channel) {
        const std::int64_t group = channel / geometry.out_channels;
        const auto place = static_cast<std::size_t>(group * geometry.blocks * kBlock + channel % geometry.out_channels);
        prepared.start[place] = -job.input_quantisation.zero_point * sums[place];
        float multiplier = job.input_quantisation.scale * conv.weight_scale[channel];
        if (job.scale != nullptr) multiplier *= job.scale[channel];
        prepared.multiplier[place] = multiplier;
        if (job.bias != nullptr) prepared.bias[place] = job.bias[channel];
    }
    prepared.nothing.assign(static_cast<std::size_t>(geometry.in_channels),
                            static_cast<std::uint8_t>(job.input_quantisation.zero_point));
    const Window& window = job.window;
    prepared.pixels = (window.y1 - window.y0) * (window.x1 - window.x0);
    prepared.tiles = ceil_div(prepared.pixels, kInt8TilePixels);
    return prepared;
}

// Pointers of one tile.
struct TileTable {
    std::vector<const std::uint8_t*> pixels;  // [taps][kInt8TilePixels], for group 0
    const float* residual[kInt8TilePixels];
    const std::uint8_t* quantised_residual[kInt8TilePixels];
    float* output[kInt8TilePixels];
    std::uint8_t* quantised_output[kInt8TilePixels];
    std::int64_t count;
};

// Pixels [tile * n / tiles, (tile + 1) * n / tiles) of the window. `group_offset` is added to input channels; pixels
// off the plane have one group's channels only.
void fill_table(const ConvSpec& spec, const Int8ConvJob& job, const Prepared& prepared, std::int64_t tile,
                std::int64_t group_offset, TileTable& table) {
    const Window& window = job.window;
    const std::int64_t width = window.x1 - window.x0;
    const std::int64_t first = tile * prepared.pixels / prepared.tiles;
    table.count = (tile + 1) * prepared.pixels / prepared.tiles - first;
    std::int64_t y = window.y0 + first / width;
    std::int64_t x = window.x0 + first % width;
    for (std::int64_t pixel = 0; pixel < table.count; ++pixel) {
        const std::uint8_t** place = table.pixels.data() + pixel;
        for (std::int64_t ky = 0; ky < spec.y.kernel; ++ky) {
            const std::int64_t row = y * spec.y.stride - spec.y.padding + ky * spec.y.dilation;
            const bool on_rows = row >= 0 && row < job.input.height;
            for (std::int64_t kx = 0; kx < spec.x.kernel; ++kx, place += kInt8TilePixels) {
                const std::int64_t column = x * spec.x.stride - spec.x.padding + kx * spec.x.dilation;
                const bool on_plane = on_rows && column >= 0 && column < job.input.width;
                *place = on_plane ? job.input.at(row, column) + group_offset : prepared.nothing.data();
            }
        }
        if (job.output.data != nullptr) {
            table.output[pixel] = job.output.at(y, x);
        } else {
            table.quantised_output[pixel] = job.quantised_output.at(y, x);
        }
        const std::int64_t f = job.residual_factor;
        if (job.residual.data != nullptr) {
            table.residual[pixel] = f == 1 ? job.residual.at(y, x) : job.residual.at(y / f, x / f);
        } else if (job.quantised_residual.data != nullptr) {
            table.quantised_residual[pixel] =
                f == 1 ? job.quantised_residual.at(y, x) : job.quantised_residual.at(y / f, x / f);
        }
        if (++x == window.x1) {
            x = window.x0;
            ++y;
        }
    }
}

void run_tile(const Int8Tile& tile, Int8Kernel kernel) {
    std::int32_t sums[kInt8TilePixels * kInt8TileChannels];
    switch (kernel) {
#if defined(__x86_64__) || defined(__i386__)
        case Int8Kernel::avx512_vnni:
            conv_int8_tile_avx512_vnni(tile);
            return;
        case Int8Kernel::avx2:
            conv_int8_sums_avx2(tile, sums);
            break;
#endif
        default:
            conv_int8_sums_portable(tile, sums);
            break;
    }
    finish_int8_tile(tile, sums);
}

// Tiles [first, last) of a job times blocks [first_block, last_block) of all groups.
struct Task {
    std::size_t job;
    std::int64_t first;
    std::int64_t last;
    std::int64_t first_block;
    std::int64_t last_block;
};

std::vector<Task> cut(const Geometry& geometry, const std::vector<Prepared>& prepared, int threads) {
    const std::int64_t tile_products =
        geometry.block_bytes * geometry.all_blocks() * kInt8TilePixels;  // padded ones included
    std::int64_t tiles = 0;
    for (const Prepared& job : prepared) tiles += job.tiles;
    const std::int64_t wanted = threads > 1 ? 4 * threads : 1;
    const std::int64_t by_size = std::max<std::int64_t>(kTaskProducts / tile_products, kTilesPerTask);
    const std::int64_t per_task = std::max<std::int64_t>(std::min(by_size, tiles / wanted), 1);
    const std::int64_t tile_tasks = std::max<std::int64_t>(ceil_div(tiles, per_task), 1);
    // Too few tiles for all threads: blocks of outputs are shared out as well.
    const std::int64_t pieces = std::min({geometry.all_blocks(), ceil_div(wanted, tile_tasks),
                                          std::max<std::int64_t>(tile_products * per_task / kTaskProducts, 1)});
    std::vector<Task> tasks;
    for (std::size_t job = 0; job < prepared.size(); ++job) {
        for (std::int64_t first = 0; first < prepared[job].tiles; first += per_task) {
            const std::int64_t last = std::min(first + per_task, prepared[job].tiles);
            for (std::int64_t piece = 0; piece < pieces; ++piece) {
                tasks.push_back({job, first, last, piece * geometry.all_blocks() / pieces,
                                 (piece + 1) * geometry.all_blocks() / pieces});
            }
        }
    }
    return tasks;
}

void run_task(const Geometry& geometry, const PackedInt8Conv& conv, const Int8ConvJob& job, const Prepared& prepared,
              const Task& task, Int8Kernel kernel, std::vector<TileTable>& tables) {
    Int8Tile tile{};
    tile.taps = geometry.taps;
    tile.quads = geometry.in_channels / 4;
    tile.tail = geometry.in_channels % 4;
    tile.residual_scale = job.residual_quantisation.scale;
    tile.residual_zero_point = job.residual_quantisation.zero_point;
    tile.relu = job.activation == Activation::relu;
    tile.inverse_scale = 1.0F / job.output_quantisation.scale;
    tile.zero_point = job.output_quantisation.zero_point;
    std::int64_t filled = -1;  // the group whose pointers the tables hold
    for (std::int64_t block = task.first_block; block < task.last_block; ++block) {
        const std::int64_t group = block / geometry.blocks;
        const std::int64_t channel = block % geometry.blocks * kBlock;  // of the group
        if (group != filled) {
            for (std::int64_t i = task.first; i < task.last; ++i) {
                TileTable& table = tables[static_cast<std::size_t>(i - task.first)];
                table.pixels.resize(static_cast<std::size_t>(geometry.taps * kInt8TilePixels));
                fill_table(conv.spec, job, prepared, i, group * geometry.in_channels, table);
            }
            filled = group;
        }
        tile.weights = conv.weights + block * geometry.block_bytes;
        tile.start = prepared.start.data() + block * kBlock;
        tile.multiplier = prepared.multiplier.data() + block * kBlock;
        tile.bias = prepared.bias.data() + block * kBlock;
        tile.channels = std::min(kBlock, geometry.out_channels - channel);
        tile.first_channel = group * geometry.out_channels + channel;
        for (std::int64_t i = task.first; i < task.last; ++i) {
            const TileTable& table = tables[static_cast<std::size_t>(i - task.first)];
            tile.pixels = table.pixels.data();
            tile.count = table.count;
            tile.residual = job.residual.data != nullptr ? table.residual : nullptr;
            tile.quantised_residual = job.quantised_residual.data != nullptr ? table.quantised_residual : nullptr;
            tile.output = job.output.data != nullptr ? table.output : nullptr;
            tile.quantised_output = job.quantised_output.data != nullptr ? table.quantised_output : nullptr;
            run_tile(tile, kernel);
        }
    }
}

bool has_vnni() { return active_isa() == Isa::avx512 && detect_cpu_features().avx512_vnni; }

void check_kernel(Int8Kernel kernel) {
    const CpuFeatures features = detect_cpu_features();
    const bool there = kernel == Int8Kernel::portable || (kernel == Int8Kernel::avx2 && features.avx2_fma) ||
                       (kernel == Int8Kernel::avx512_vnni && features.avx512_vnni);
    if (!there) {
        throw InputError(std::string("the 8-bit kernel ") + int8_kernel_name(kernel) +
                         " needs instructions this processor lacks; it has " + int8_kernel_name(active_int8_kernel()));
    }
}

struct RowKernels {
    void (*quantise)(const float*, std::int64_t, float, std::int32_t, std::uint8_t*);
    void (*dequantise)(const std::uint8_t*, std::int64_t, float, std::int32_t, float*);
};

RowKernels rows_of(Int8Kernel kernel) {
#if defined(__x86_64__) || defined(__i386__)
    if (kernel == Int8Kernel::avx512_vnni) return {&quantise_row_avx512_vnni, &dequantise_row_avx512_vnni};
#endif
    (void)kernel;
    return {&quantise_row_portable, &dequantise_row_portable};
}

// Rows of a window, element by element.
template <typename In, typename Out, typename Row>
void map_rows(const View<const In>& input, const View<Out>& output, const Window& window, ThreadPool& pool,
              const Row& row) {
    check_view(input, "the input");
    check_view(output, "the output");
    check_channels(output.channels, input.channels, "the output");
    check_window(window, input, "the input");
    check_window(window, output, "the output");
    if (overlap(input, window, output, window)) {
        throw InputError("the output shares memory with the input; pass separate buffers");
    }
    if (window.is_empty()) return;
    const std::int64_t width = window.x1 - window.x0;
    const bool dense = input.pixel_stride == input.channels && output.pixel_stride == output.channels;
    pool.run(window.y1 - window.y0, [&](std::int64_t task, int) {
        const std::int64_t y = window.y0 + task;
        if (dense) {
            row(input.at(y, window.x0), width * input.channels, output.at(y, window.x0));
            return;
        }
        for (std::int64_t x = window.x0; x < window.x1; ++x) row(input.at(y, x), input.channels, output.at(y, x));
    });
}

}  // namespace

std::int64_t packed_int8_conv_bytes(const ConvSpec& spec) {
    const Geometry geometry = geometry_of(spec);
    return geometry.all_blocks() * (geometry.block_bytes + kBlock * static_cast<std::int64_t>(sizeof(std::int32_t)));
}

void quantise_weights(const float* weights, std::int64_t channels, std::int64_t terms, std::int8_t* quantised,
                      float* scale) {
    constexpr float kLimit = 127.0F;
    for (std::int64_t channel = 0; channel < channels; ++channel, weights += terms, quantised += terms) {
        float largest = 0.0F;
        for (std::int64_t i = 0; i < terms; ++i) {
            if (!std::isfinite(weights[i])) {
                throw InputError("a weight of output channel " + std::to_string(channel) +
                                 " is not finite; 8 bits hold finite ones");
            }
            largest = std::max(largest, std::fabs(weights[i]));
        }
        const float step = largest / kLimit;
        scale[channel] = step > 0.0F ? step : 1.0F;
        for (std::int64_t i = 0; i < terms; ++i) {
            const float rounded = std::nearbyint(weights[i] / scale[channel]);
            quantised[i] = static_cast<std::int8_t>(std::clamp(rounded, -kLimit, kLimit));
        }
    }
}

void pack_int8_conv(const ConvSpec& spec, const std::int8_t* weights, std::int8_t* packed) {
    const Geometry geometry = geometry_of(spec);
    if (weights == nullptr) throw InputError("the weights have no memory (null pointer); pass a buffer");
    check_packed(packed);
    std::fill_n(packed, packed_int8_conv_bytes(spec), std::int8_t{0});
    auto* sums = const_cast<std::int32_t*>(weight_sums(geometry, packed));
    const std::int64_t quads = ceil_div(geometry.in_channels, 4);
    for (std::int64_t channel = 0; channel < spec.out_channels; ++channel) {
        const std::int64_t inside = channel % geometry.out_channels;
        const std::int64_t block = channel / geometry.out_channels * geometry.blocks + inside / kBlock;
        const std::int64_t lane = inside % kBlock;
        std::int8_t* const place = packed + block * geometry.block_bytes + 4 * lane;
        const std::int8_t* const row = weights + channel * geometry.in_channels * geometry.taps;
        std::int32_t sum = 0;
        for (std::int64_t input = 0; input < geometry.in_channels; ++input) {
            for (std::int64_t tap = 0; tap < geometry.taps; ++tap) {
                const std::int8_t weight = row[input * geometry.taps + tap];
                place[(tap * quads + input / 4) * kQuadBytes + input % 4] = weight;
                sum += weight;
            }
        }
        sums[block * kBlock + lane] = sum;
    }
}

void conv2d_int8(const PackedInt8Conv& conv, const Int8ConvJob* jobs, std::size_t count, ThreadPool& pool,
                 Int8Kernel kernel) {
    const Geometry geometry = geometry_of(conv.spec);
    check_packed(conv.weights);
    if (conv.weight_scale == nullptr) throw InputError("the weights have no scales (null pointer); pass one a channel");
    check_kernel(kernel);
    check_jobs(conv.spec, jobs, count);
    std::vector<Prepared> prepared;
    prepared.reserve(count);
    for (std::size_t i = 0; i < count; ++i) prepared.push_back(prepare(geometry, conv, jobs[i]));
    const std::vector<Task> tasks = cut(geometry, prepared, pool.threads());
    std::int64_t most = 0;
    for (const Task& task : tasks) most = std::max(most, task.last - task.first);
    std::vector<std::vector<TileTable>> tables(static_cast<std::size_t>(pool.threads()));
    for (auto& own : tables) own.resize(static_cast<std::size_t>(most));
    pool.run(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t index, int worker) {
        const Task& task = tasks[static_cast<std::size_t>(index)];
        run_task(geometry, conv, jobs[task.job], prepared[task.job], task, kernel,
                 tables[static_cast<std::size_t>(worker)]);
    });
}

Int8Kernel active_int8_kernel() {
    if (has_vnni()) return Int8Kernel::avx512_vnni;
    const Isa isa = active_isa();
    return isa == Isa::avx512 || isa == Isa::avx2 ? Int8Kernel::avx2 : Int8Kernel::portable;
}

const char* int8_kernel_name(Int8Kernel kernel) {
    switch (kernel) {
        case Int8Kernel::avx512_vnni:
            return "avx512_vnni";
        case Int8Kernel::avx2:
            return "avx2";
        case Int8Kernel::portable:
            break;
    }
    return "portable";
}

void quantise(View<const float> input, const Quantisation& quantisation, View<std::uint8_t> output,
              const Window& window, ThreadPool& pool) {
    check_quantisation(quantisation, "the output");
    auto* const row = rows_of(active_int8_kernel()).quantise;
    const float inverse = 1.0F / quantisation.scale;
    map_rows(input, output, window, pool, [&](const float* from, std::int64_t count, std::uint8_t* to) {
        row(from, count, inverse, quantisation.zero_point, to);
    });
}

void dequantise(View<const std::uint8_t> input, const Quantisation& quantisation, View<float> output,
                const Window& window, ThreadPool& pool) {
    check_quantisation(quantisation, "the input");
    auto* const row = rows_of(active_int8_kernel()).dequantise;
    map_rows(input, output, window, pool, [&](const std::uint8_t* from, std::int64_t count, float* to) {
        row(from, count, quantisation.scale, quantisation.zero_point, to);
    });
}

}  // namespace tracenet
