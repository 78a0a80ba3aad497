// Every kernel that is not a convolution against plain double arithmetic: odd sizes, borders, single cells, inputs of
// which exactly the demanded part is in memory (a sanitizer sees any read past it), several callers, forks.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "cpu/cells.hpp"
#include "cpu/pool.hpp"
#include "cpu/resize_taps.hpp"
#include "tests/check.hpp"
#include "tracenet/cpu_features.hpp"
#include "tracenet/error.hpp"
#include "tracenet/kernels.hpp"

namespace {

using namespace tracenet;  // NOLINT: the whole file is about it

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Part of a plane and its memory, which ends where the part does.
template <typename T>
struct Image {
    Image(const Window& part, std::int64_t plane_height, std::int64_t plane_width, std::int64_t channel_count, T value)
        : extent(part),
          height(plane_height),
          width(plane_width),
          channels(channel_count),
          cells(static_cast<std::size_t>((part.y1 - part.y0) * (part.x1 - part.x0) * channel_count), value) {}

    View<T> view() { return dense_view(cells.data(), extent, height, width, channels); }
    View<const T> reading() const { return dense_view<const T>(cells.data(), extent, height, width, channels); }
    T at(std::int64_t y, std::int64_t x, std::int64_t c) const { return reading().at(y, x)[c]; }

    Image part(const Window& window) const {
        Image result(window, height, width, channels, T{});
        for (std::int64_t y = window.y0; y < window.y1; ++y) {
            for (std::int64_t x = window.x0; x < window.x1; ++x) {
                std::copy_n(reading().at(y, x), channels, result.view().at(y, x));
            }
        }
        return result;
    }

    Window extent;
    std::int64_t height;
    std::int64_t width;
    std::int64_t channels;
    std::vector<T> cells;
};

using Plane = Image<float>;

Plane random_plane(std::int64_t height, std::int64_t width, std::int64_t channels, unsigned seed = 1) {
    Plane plane({0, height, 0, width}, height, width, channels, 0.0F);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (float& value : plane.cells) value = normal(random);
    return plane;
}

std::vector<Window> windows_of(std::int64_t height, std::int64_t width) {
    return {{0, height, 0, width},
            {0, 1, 0, 1},
            {height - 1, height, width - 1, width},
            {height / 2, height / 2 + 1, width / 2, width / 2 + 1},
            {0, 1, width - 1, width},
            {height / 2, height / 2 + 1, 0, width},
            {0, height, width / 2, width / 2 + 1},
            {height / 3, height, width / 3, width},
            {1 % height, 1 % height, 0, width}};
}

ThreadPool& shared_pool() {
    static ThreadPool pool(3);
    return pool;
}

using Compute = std::function<void(View<float> output, const Window& window)>;
using Reference = std::function<double(std::int64_t y, std::int64_t x, std::int64_t c)>;

// A window is computed as the reference says, and nothing else is written.
void check_window(std::int64_t height, std::int64_t width, std::int64_t channels, const Window& window,
                  const Compute& compute, const Reference& reference) {
    Plane output({0, height, 0, width}, height, width, channels, kNan);
    compute(output.view(), window);
    for (std::int64_t y = 0; y < height; ++y) {
        for (std::int64_t x = 0; x < width; ++x) {
            const bool inside = window.y0 <= y && y < window.y1 && window.x0 <= x && x < window.x1;
            for (std::int64_t c = 0; c < channels; ++c) {
                const double expected = inside ? reference(y, x, c) : static_cast<double>(kNan);
                CHECK_NEAR(output.at(y, x, c), expected, 2e-5 * std::max(1.0, std::fabs(expected)));
            }
        }
    }
}

void check_windows(std::int64_t height, std::int64_t width, std::int64_t channels, const Compute& compute,
                   const Reference& reference) {
    for (const Window& window : windows_of(height, width)) {
        check_window(height, width, channels, window, compute, reference);
    }
}

// reference: maximum (or sum) over the taps of one output cell, and how many there were.
struct Pooled {
    double value;
    int taps;
};

Pooled pool_cell(const PoolSpec& spec, const Plane& input, std::int64_t y, std::int64_t x, std::int64_t c,
                 bool maximum) {
    Pooled result{maximum ? -std::numeric_limits<double>::infinity() : 0.0, 0};
    for (std::int64_t ky = 0; ky < spec.y.kernel; ++ky) {
        for (std::int64_t kx = 0; kx < spec.x.kernel; ++kx) {
            const std::int64_t iy = y * spec.y.stride - spec.y.padding + ky * spec.y.dilation;
            const std::int64_t ix = x * spec.x.stride - spec.x.padding + kx * spec.x.dilation;
            if (iy < 0 || iy >= input.height || ix < 0 || ix >= input.width) continue;
            const double value = input.at(iy, ix, c);
            result.value = maximum ? std::max(result.value, value) : result.value + value;
            ++result.taps;
        }
    }
    return result;
}

void pooling() {
    const PoolSpec specs[] = {{{3, 2, 1, 1}, {3, 2, 1, 1}, true, 0},
                              {{2, 1, 0, 1}, {3, 2, 1, 1}, false, 0},
                              {{1, 3, 0, 1}, {5, 1, 2, 1}, true, 7}};
    for (const PoolSpec& spec : specs) {
        for (const std::int64_t channels : {1, 5, 16, 37}) {
            const Plane input = random_plane(11, 13, channels);
            const std::int64_t height = (11 + 2 * spec.y.padding - spec.y.kernel) / spec.y.stride + 1;
            const std::int64_t width = (13 + 2 * spec.x.padding - spec.x.kernel) / spec.x.stride + 1;
            const auto demanded = [&](const Window& window) { return input.part(pool_demand(spec, window, 11, 13)); };
            check_windows(
                height, width, channels,
                [&](View<float> output, const Window& window) {
                    const Plane part = demanded(window);
                    max_pool2d(spec, part.reading(), output, window, shared_pool());
                },
                [&](std::int64_t y, std::int64_t x, std::int64_t c) {
                    return pool_cell(spec, input, y, x, c, true).value;
                });
            check_windows(
                height, width, channels,
                [&](View<float> output, const Window& window) {
                    const Plane part = demanded(window);
                    avg_pool2d(spec, part.reading(), output, window, shared_pool());
                },
                [&](std::int64_t y, std::int64_t x, std::int64_t c) {
                    const Pooled sum = pool_cell(spec, input, y, x, c, false);
                    double divisor = spec.count_include_pad ? static_cast<double>(spec.y.kernel * spec.x.kernel)
                                                            : static_cast<double>(sum.taps);
                    if (spec.divisor > 0) divisor = static_cast<double>(spec.divisor);
                    return sum.value / divisor;
                });
        }
    }
}

void nan_wins_a_maximum() {
    Plane input = random_plane(3, 3, 20);
    input.view().at(1, 1)[7] = kNan;
    Plane output({0, 1, 0, 1}, 1, 1, 20, 0.0F);
    max_pool2d({{3, 1, 0, 1}, {3, 1, 0, 1}, true, 0}, input.reading(), output.view(), {0, 1, 0, 1}, shared_pool());
    for (std::int64_t c = 0; c < 20; ++c) CHECK(std::isnan(output.at(0, 0, c)) == (c == 7));
}

// Where output cell i of an axis reads, in double; the edge is replicated.
double source_of(ResizeMode mode, std::int64_t i, std::int64_t length, std::int64_t out, std::int64_t factor) {
    const auto index = static_cast<double>(i);
    const auto last = static_cast<double>(length - 1);
    double source = 0.0;
    switch (mode) {
        case ResizeMode::nearest:
            return std::floor(index * static_cast<double>(length) / static_cast<double>(out));
        case ResizeMode::bilinear:
            source = (index + 0.5) * static_cast<double>(length) / static_cast<double>(out) - 0.5;
            break;
        case ResizeMode::bilinear_align_corners:
            source = out > 1 ? index * last / static_cast<double>(out - 1) : 0.0;
            break;
        case ResizeMode::aligned_bilinear:
            source = static_cast<double>(i - factor / 2) / static_cast<double>(factor);
            break;
    }
    return std::min(std::max(source, 0.0), last);
}

double sample(const Plane& input, double y, double x, std::int64_t c) {
    const auto y0 = static_cast<std::int64_t>(y);
    const auto x0 = static_cast<std::int64_t>(x);
    const std::int64_t y1 = std::min(y0 + 1, input.height - 1);
    const std::int64_t x1 = std::min(x0 + 1, input.width - 1);
    const double fy = y - static_cast<double>(y0);
    const double fx = x - static_cast<double>(x0);
    return (input.at(y0, x0, c) * (1 - fx) + input.at(y0, x1, c) * fx) * (1 - fy) +
           (input.at(y1, x0, c) * (1 - fx) + input.at(y1, x1, c) * fx) * fy;
}

ResizeSpec resize_spec(ResizeMode mode, std::int64_t height, std::int64_t width, std::int64_t out_height,
                       std::int64_t out_width, std::int64_t factor) {
    ResizeSpec spec;
    spec.mode = mode;
    spec.factor = factor;
    if (mode == ResizeMode::bilinear_align_corners) {
        spec.ratio_y = out_height > 1 ? static_cast<float>(height - 1) / static_cast<float>(out_height - 1) : 0.0F;
        spec.ratio_x = out_width > 1 ? static_cast<float>(width - 1) / static_cast<float>(out_width - 1) : 0.0F;
    } else {
        spec.ratio_y = static_cast<float>(height) / static_cast<float>(out_height);
        spec.ratio_x = static_cast<float>(width) / static_cast<float>(out_width);
    }
    return spec;
}

Window resize_demand(const ResizeSpec& spec, const Plane& input, const View<float>& output, const Window& window) {
    const Span rows = taps_demand(
        resize_taps(spec.mode, spec.ratio_y, spec.factor, input.height, output.height, {window.y0, window.y1}));
    const Span columns = taps_demand(
        resize_taps(spec.mode, spec.ratio_x, spec.factor, input.width, output.width, {window.x0, window.x1}));
    return {rows.begin, rows.end, columns.begin, columns.end};
}

void resizing() {
    for (const ResizeMode mode : {ResizeMode::nearest, ResizeMode::bilinear, ResizeMode::bilinear_align_corners,
                                  ResizeMode::aligned_bilinear}) {
        for (const std::int64_t channels : {1, 6, 19}) {
            for (const std::int64_t factor : {1, 2, 4}) {
                const Plane input = random_plane(5, 8, channels);
                const bool aligned = mode == ResizeMode::aligned_bilinear;
                const std::int64_t height = 5 * factor;
                const std::int64_t width = 8 * factor - (aligned ? 0 : 2);
                const Plane addend = random_plane(height, width, channels, 2);
                const ResizeSpec spec = resize_spec(mode, 5, 8, height, width, factor);
                for (const bool plus : {false, true}) {
                    check_windows(
                        height, width, channels,
                        [&](View<float> output, const Window& window) {
                            const Plane part = input.part(resize_demand(spec, input, output, window));
                            const Plane extra = addend.part(window);
                            const View<const float> none;
                            resize(spec, part.reading(), plus && !window.is_empty() ? extra.reading() : none, output,
                                   window, shared_pool());
                        },
                        [&](std::int64_t y, std::int64_t x, std::int64_t c) {
                            return sample(input, source_of(mode, y, 5, height, factor),
                                          source_of(mode, x, 8, width, factor), c) +
                                   (plus ? static_cast<double>(addend.at(y, x, c)) : 0.0);
                        });
                }
            }
        }
    }
}

void cell_by_cell() {
    for (const std::int64_t channels : {1, 3, 16, 29}) {
        const Plane a = random_plane(7, 9, channels);
        const Plane b = random_plane(7, 9, channels, 2);
        for (const Activation activation : {Activation::none, Activation::relu}) {
            check_windows(
                7, 9, channels,
                [&](View<float> output, const Window& window) {
                    const Plane first = a.part(window);
                    const Plane second = b.part(window);
                    add(first.reading(), second.reading(), Activate{activation}, output, window, shared_pool());
                },
                [&](std::int64_t y, std::int64_t x, std::int64_t c) {
                    const double sum = static_cast<double>(a.at(y, x, c)) + b.at(y, x, c);
                    return activation == Activation::relu ? std::max(sum, 0.0) : sum;
                });
        }
        check_windows(
            7, 9, channels,
            [&](View<float> output, const Window& window) {
                const Plane part = a.part(window);
                sigmoid(part.reading(), output, window, shared_pool());
            },
            [&](std::int64_t y, std::int64_t x, std::int64_t c) {
                return 1.0 / (1.0 + std::exp(-static_cast<double>(a.at(y, x, c))));
            });
        check_windows(
            7, 9, channels,
            [&](View<float> output, const Window& window) {
                // In place: the output starts as its own first addend.
                for (std::int64_t y = window.y0; y < window.y1; ++y) {
                    for (std::int64_t x = window.x0; x < window.x1; ++x) {
                        std::copy_n(a.reading().at(y, x), channels, output.at(y, x));
                    }
                }
                add(output, {}, Activate{Activation::relu}, output, window, shared_pool());
            },
            [&](std::int64_t y, std::int64_t x, std::int64_t c) {
                return std::max(static_cast<double>(a.at(y, x, c)), 0.0);
            });
    }
}

void sigmoid_of_extremes() {
    const float infinity = std::numeric_limits<float>::infinity();
    for (const std::int64_t columns : {1, 5, 16}) {  // one value per width of vectors
        for (const float value : {kNan, infinity, -infinity, 1e30F, -1e30F, 0.0F}) {
            Plane plane({0, 1, 0, columns}, 1, columns, 1, value);
            sigmoid(plane.reading(), plane.view(), plane.extent, shared_pool());
            for (const float result : plane.cells) CHECK_NEAR(result, 1.0 / (1.0 + std::exp(-value)), 1e-30);
        }
    }
}

void copied_channels() {
    const Plane input = random_plane(5, 6, 4);
    for (const Window& window : windows_of(5, 6)) {
        Plane output({0, 5, 0, 6}, 5, 6, 9, kNan);
        const Plane part = input.part(window);
        copy_channels(part.reading(), 3, output.view(), window, shared_pool());
        for (std::int64_t y = 0; y < 5; ++y) {
            for (std::int64_t x = 0; x < 6; ++x) {
                const bool inside = window.y0 <= y && y < window.y1 && window.x0 <= x && x < window.x1;
                for (std::int64_t c = 0; c < 9; ++c) {
                    const float expected = inside && 3 <= c && c < 7 ? input.at(y, x, c - 3) : kNan;
                    CHECK_NEAR(output.at(y, x, c), expected, 0.0);
                }
            }
        }
    }
}

double logit(const MaskHead& head, const Plane& features, std::int64_t y, std::int64_t x) {
    double in[10];
    in[0] = (head.origin_x - static_cast<double>(x * head.stride + head.stride / 2)) / head.size_of_interest;
    in[1] = (head.origin_y - static_cast<double>(y * head.stride + head.stride / 2)) / head.size_of_interest;
    for (std::int64_t c = 0; c < 8; ++c) in[2 + c] = features.at(y, x, c);
    const float* w = head.theta;
    double hidden[8];
    double second[8];
    double result = head.theta[168];
    for (int o = 0; o < 8; ++o) {
        hidden[o] = head.theta[152 + o];
        for (int i = 0; i < 10; ++i) hidden[o] += w[o * 10 + i] * in[i];
        hidden[o] = std::max(hidden[o], 0.0);
    }
    for (int o = 0; o < 8; ++o) {
        second[o] = head.theta[160 + o];
        for (int i = 0; i < 8; ++i) second[o] += w[80 + o * 8 + i] * hidden[i];
        result += w[144 + o] * std::max(second[o], 0.0);
    }
    return result;
}

void mask_heads() {
    const Plane theta = random_plane(1, 1, 169, 5);
    MaskHead head;
    head.theta = theta.cells.data();
    head.origin_x = 37.5F;
    head.origin_y = 21.0F;
    head.size_of_interest = 64.0F;
    const Plane features = random_plane(6, 19, 8);
    Plane logits({0, 6, 0, 19}, 6, 19, 1, 0.0F);
    for (std::int64_t y = 0; y < 6; ++y) {
        for (std::int64_t x = 0; x < 19; ++x)
            logits.view().at(y, x)[0] = static_cast<float>(logit(head, features, y, x));
    }
    check_windows(
        6, 19, 1,
        [&](View<float> output, const Window& window) {
            const Plane part = features.part(window);
            mask_head(head, part.reading(), output, window, shared_pool());
        },
        [&](std::int64_t y, std::int64_t x, std::int64_t) { return logit(head, features, y, x); });
    for (const std::int64_t factor : {1, 2, 4}) {
        const ResizeSpec spec = resize_spec(ResizeMode::aligned_bilinear, 6, 19, 6 * factor, 19 * factor, factor);
        check_windows(
            6 * factor, 19 * factor, 1,
            [&](View<float> output, const Window& window) {
                const Plane part = features.part(resize_demand(spec, features, output, window));
                mask_head_upsampled(head, factor, part.reading(), output, window, shared_pool());
            },
            [&](std::int64_t y, std::int64_t x, std::int64_t) {
                return sample(logits, source_of(spec.mode, y, 6, 6 * factor, factor),
                              source_of(spec.mode, x, 19, 19 * factor, factor), 0);
            });
    }
}

void pixels() {
    Image<std::uint8_t> photo({0, 7, 0, 9}, 7, 9, 3, 0);
    for (std::size_t i = 0; i < photo.cells.size(); ++i) photo.cells[i] = static_cast<std::uint8_t>(i * 37 % 256);
    PixelNorm norm;
    for (int c = 0; c < 3; ++c) {
        norm.mean[c] = 100.0F + static_cast<float>(c);
        norm.std[c] = 50.0F - static_cast<float>(c);
    }
    for (const bool reverse : {false, true}) {
        norm.reverse = reverse;
        check_windows(
            8, 12, 3,
            [&](View<float> output, const Window& window) {
                const auto part = photo.part(intersect(window, {0, 7, 0, 9}));
                normalise_pixels(norm, part.reading(), output, window, shared_pool());
            },
            [&](std::int64_t y, std::int64_t x, std::int64_t c) {
                if (y >= 7 || x >= 9) return 0.0;
                return (static_cast<double>(photo.at(y, x, reverse ? 2 - c : c)) - norm.mean[c]) / norm.std[c];
            });
    }
    const Plane planar = random_plane(5 * 7, 70, 1);  // five planes of 7 x 70
    check_windows(
        7, 70, 5,
        [&](View<float> output, const Window& window) {
            from_planar(planar.cells.data(), 7 * 70, 70, output, window, shared_pool());
        },
        [&](std::int64_t y, std::int64_t x, std::int64_t c) {
            return static_cast<double>(planar.at(c * 7 + y, x, 0));
        });
}

// Packed weights of a random 7x7 or smaller convolution and their own memory.
struct Stem {
    Stem(std::int64_t channels, std::int64_t kernel) {
        conv.spec.in_channels = 3;
        conv.spec.out_channels = channels;
        conv.spec.y = {kernel, 2, kernel / 2, 1};
        conv.spec.x = {kernel, 2, kernel / 2, 1};
        conv.isa = active_isa();
        weights = random_plane(1, 1, channels * 3 * kernel * kernel, 9).cells;
        const auto elements = static_cast<std::size_t>(packed_conv_elements(conv.spec, conv.isa));
        memory.assign(elements + 16, 0.0F);
        void* start = memory.data();
        std::size_t space = memory.size() * sizeof(float);
        float* const packed = static_cast<float*>(std::align(64, elements * sizeof(float), start, space));
        pack_conv(conv.spec, conv.isa, weights.data(), packed);
        conv.weights = packed;
    }

    PackedConv conv;
    PoolSpec pool{{3, 2, 1, 1}, {3, 2, 1, 1}, true, 0};
    std::vector<float> weights;
    std::vector<float> memory;
};

void stems() {
    struct Size {
        std::int64_t channels;
        std::int64_t kernel;
        std::int64_t width;
    };
    // Rows of the last one are so long that a strip holds few of them.
    for (const auto [channels, kernel, width] : {Size{5, 5, 14}, Size{16, 5, 14}, Size{64, 3, 300}}) {
        const Stem net(channels, kernel);
        const Plane input = random_plane(39, 2 * width - 1, 3);
        const std::vector<float> bias(static_cast<std::size_t>(channels), 0.25F);
        constexpr std::int64_t kHeight = 20;
        Plane middle({0, kHeight, 0, width}, kHeight, width, channels, kNan);
        ConvJob job;
        job.input = input.reading();
        job.output = middle.view();
        job.window = middle.extent;
        job.bias = bias.data();
        job.activation = Activation::relu;
        conv2d(net.conv, &job, 1, shared_pool());
        Plane expected({0, 10, 0, width / 2}, 10, width / 2, channels, kNan);
        max_pool2d(net.pool, middle.reading(), expected.view(), expected.extent, shared_pool());
        for (const Window& window : windows_of(10, width / 2)) {
            Plane output({0, 10, 0, width / 2}, 10, width / 2, channels, kNan);
            const Window demand = pool_demand(net.pool, window, kHeight, width);
            Window reads{};
            if (!demand.is_empty()) {
                const Span rows = conv_demand({demand.y0, demand.y1}, net.conv.spec.y);
                const Span columns = conv_demand({demand.x0, demand.x1}, net.conv.spec.x);
                reads = clip({rows.begin, rows.end, columns.begin, columns.end}, 39, 2 * width - 1);
            }
            const Plane part = input.part(reads);
            stem(net.conv, bias.data(), kHeight, width, net.pool, part.reading(), output.view(), window, shared_pool());
            for (std::int64_t y = 0; y < 10; ++y) {
                for (std::int64_t x = 0; x < width / 2; ++x) {
                    const bool inside = window.y0 <= y && y < window.y1 && window.x0 <= x && x < window.x1;
                    for (std::int64_t c = 0; c < channels; ++c) {
                        CHECK_NEAR(output.at(y, x, c), inside ? expected.at(y, x, c) : kNan, 0.0);
                    }
                }
            }
        }
    }
}

// All sets of cell kernels give the same bits at every length: they use no operation that one of them lacks.
void instruction_sets_agree() {
    std::vector<const CellKernels*> sets{cells_portable()};
#if defined(__x86_64__)
    const CpuFeatures features = detect_cpu_features();
    if (features.avx2_fma) sets.push_back(cells_avx2());
    if (features.avx512f) sets.push_back(cells_avx512());
#endif
    for (std::int64_t n = 1; n < 50; ++n) {
        const Plane in = random_plane(4, 1, n);
        const float* const taps[4] = {in.reading().at(0, 0), in.reading().at(1, 0), in.reading().at(2, 0),
                                      in.reading().at(3, 0)};
        const BlendCell blend{{taps[0], taps[1], taps[2], taps[3]}, 0.3F, 0.7F, 0.9F, 0.1F};
        std::vector<std::vector<float>> results;
        for (const CellKernels* set : sets) {
            constexpr std::int64_t kResults = 11 + kActivations;
            std::vector<float> out(static_cast<std::size_t>(kResults * n), kNan);
            float* to = out.data();
            set->maximum(taps, 4, n, to);
            set->mean(taps, 4, 3.0F, n, to + n);
            set->blend(blend, nullptr, n, to + 2 * n);
            set->blend(blend, taps[1], n, to + 3 * n);
            set->add(taps[0], taps[1], true, n, to + 4 * n);
            set->sigmoid(taps[0], n, to + 5 * n);
            set->mix(taps[0], taps[1], 0.2F, 0.8F, n, to + 6 * n);
            set->multiply(taps[0], taps[1], n, to + 7 * n);
            set->sum_pixels(taps[0], taps[1], 4, n, n, to + 8 * n);
            set->sum_squares(taps[0], taps[1], 4, n, n, to + 9 * n);
            set->normalise(taps[0], taps[1], taps[2], taps[3], n, to + 10 * n);
            for (int kind = 0; kind < kActivations; ++kind) {
                set->activate(kind, -0.3F, 0.4F, taps[0], n, to + (11 + kind) * n);
            }
            CHECK(std::none_of(out.begin(), out.end(), [](float value) { return std::isnan(value); }));
            results.push_back(out);
        }
        for (const std::vector<float>& result : results) {
            CHECK(std::memcmp(result.data(), results[0].data(), result.size() * sizeof(float)) == 0);
        }
    }
}

void bad_input_is_refused() {
    const Plane input = random_plane(6, 6, 4);
    Plane output({0, 6, 0, 6}, 6, 6, 4, kNan);
    const PoolSpec pool{{3, 1, 1, 1}, {3, 1, 1, 1}, true, 0};
    ThreadPool& threads = shared_pool();
    View<const float> null = input.reading();
    null.data = nullptr;
    CHECK_THROWS(max_pool2d(pool, null, output.view(), {0, 1, 0, 1}, threads), InputError);
    View<const float> odd = input.reading();
    odd.data = reinterpret_cast<const float*>(reinterpret_cast<std::uintptr_t>(odd.data) + 1);
    CHECK_THROWS(sigmoid(odd, output.view(), {0, 1, 0, 1}, threads), InputError);
    CHECK_THROWS(sigmoid(input.reading(), output.view(), {0, 7, 0, 1}, threads), InputError);
    CHECK_THROWS(sigmoid(input.reading(), output.view(), {3, 1, 0, 1}, threads), InputError);
    CHECK_THROWS(max_pool2d(pool, output.view(), output.view(), {0, 6, 0, 6}, threads), InputError);
    const Plane part = input.part({0, 3, 0, 6});
    CHECK_THROWS(max_pool2d(pool, part.reading(), output.view(), {0, 3, 0, 6}, threads), InputError);
    CHECK_THROWS(copy_channels(input.reading(), 1, output.view(), {0, 1, 0, 1}, threads), InputError);
    CHECK_THROWS(mask_head({}, input.reading(), output.view(), {0, 1, 0, 1}, threads), InputError);
    CHECK_THROWS(from_planar(nullptr, 36, 6, output.view(), {0, 1, 0, 1}, threads), InputError);
    CHECK_THROWS(from_planar(input.cells.data(), 35, 6, output.view(), {0, 6, 0, 6}, threads), InputError);
    CHECK(std::all_of(output.cells.begin(), output.cells.end(), [](float value) { return std::isnan(value); }));
}

// Large enough for several tasks; two planes so that callers do not share an output.
std::vector<float> pooled(ThreadPool& pool, const Plane& input) {
    Plane output({0, 100, 0, 60}, 100, 60, 16, kNan);
    max_pool2d({{3, 1, 1, 1}, {3, 1, 1, 1}, true, 0}, input.reading(), output.view(), output.extent, pool);
    return output.cells;
}

void several_callers_at_once() {
    const Plane input = random_plane(100, 60, 16);
    ThreadPool one(1);
    const std::vector<float> expected = pooled(one, input);
    std::vector<std::thread> callers;
    std::atomic<int> different{0};
    for (int i = 0; i < 4; ++i) {
        callers.emplace_back([&] {
            for (int k = 0; k < 5; ++k) {
                if (pooled(shared_pool(), input) != expected) different.fetch_add(1);
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK(different.load() == 0);
}

void fork_after_use() {
    const Plane input = random_plane(100, 60, 16);
    const std::vector<float> expected = pooled(shared_pool(), input);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(60);
        _exit(pooled(shared_pool(), input) == expected ? 0 : 1);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(pooled(shared_pool(), input) == expected);
}

}  // namespace

int main() {
    return tracenet::test::run({
        {"pooling", &pooling},
        {"NaN wins a maximum", &nan_wins_a_maximum},
        {"resizing", &resizing},
        {"cell by cell", &cell_by_cell},
        {"sigmoid of extremes", &sigmoid_of_extremes},
        {"copied channels", &copied_channels},
        {"mask heads", &mask_heads},
        {"pixels", &pixels},
        {"stems", &stems},
        {"instruction sets agree", &instruction_sets_agree},
        {"bad input is refused", &bad_input_is_refused},
        {"several callers at once", &several_callers_at_once},
        {"fork after use", &fork_after_use},
    });
}
