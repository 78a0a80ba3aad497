// Convolution against fp64 on every instruction set of this processor, bit for bit between them and between windows.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "cpu/isa.hpp"
#include "tests/check.hpp"
#include "tracenet/conv.hpp"
#include "tracenet/error.hpp"
#include "tracenet/kernels.hpp"

namespace {

using tracenet::Activation;
using tracenet::AxisGeometry;
using tracenet::ConvJob;
using tracenet::ConvSpec;
using tracenet::Isa;
using tracenet::PackedConv;
using tracenet::ThreadPool;
using tracenet::View;
using tracenet::Window;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct AlignedDelete {
    void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
};
using Packed = std::unique_ptr<float[], AlignedDelete>;

Packed pack(const ConvSpec& spec, Isa isa, const std::vector<float>& weights) {
    const auto elements = static_cast<std::size_t>(tracenet::packed_conv_elements(spec, isa));
    Packed packed(static_cast<float*>(::operator new[](elements * sizeof(float), std::align_val_t(64))));
    tracenet::pack_conv(spec, isa, weights.data(), packed.get());
    return packed;
}

std::vector<float> random_values(std::size_t count, unsigned seed) {
    std::mt19937 engine(seed);
    std::uniform_real_distribution<float> uniform(-1.0F, 1.0F);
    std::vector<float> values(count);
    for (float& value : values) value = uniform(engine);
    return values;
}

std::vector<Isa> instruction_sets() {
    std::vector<Isa> sets;
    for (const Isa isa : {Isa::portable, Isa::neon, Isa::avx2, Isa::avx512}) {
        if (tracenet::isa_available(isa)) sets.push_back(isa);
    }
    return sets;
}

struct Case {
    ConvSpec spec;
    std::int64_t height;
    std::int64_t width;
};

std::int64_t length(std::int64_t size, const AxisGeometry& axis) {
    return (size + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1) / axis.stride + 1;
}

const std::vector<Case>& cases() {
    static const std::vector<Case> all = {
        {{3, 64, 1, {7, 2, 3, 1}, {7, 2, 3, 1}}, 21, 29}, {{24, 40, 1, {1, 1, 0, 1}, {1, 1, 0, 1}}, 9, 11},
        {{16, 169, 1, {3, 1, 1, 1}, {3, 1, 1, 1}}, 9, 9}, {{5, 7, 1, {3, 2, 1, 1}, {3, 1, 1, 2}}, 12, 13},
        {{12, 20, 4, {3, 1, 1, 1}, {3, 1, 1, 1}}, 6, 7},  {{45, 45, 45, {3, 1, 1, 1}, {3, 2, 1, 1}}, 8, 9},
        {{8, 1, 1, {3, 1, 4, 2}, {2, 1, 3, 1}}, 5, 4},    {{32, 8, 1, {1, 2, 0, 1}, {1, 2, 0, 1}}, 17, 15},
        {{1024, 5, 1, {1, 1, 0, 1}, {1, 1, 0, 1}}, 5, 6},
    };
    return all;
}

// The sum in fp64, with the epilogue.
double reference(const Case& test, const std::vector<float>& x, const std::vector<float>& weights, std::int64_t oy,
                 std::int64_t ox, std::int64_t o, double scale, double bias, double residual) {
    const ConvSpec& spec = test.spec;
    const std::int64_t inputs = spec.in_channels / spec.groups;
    const std::int64_t first = o / (spec.out_channels / spec.groups) * inputs;
    double sum = 0.0;
    for (std::int64_t ky = 0; ky < spec.y.kernel; ++ky) {
        for (std::int64_t kx = 0; kx < spec.x.kernel; ++kx) {
            const std::int64_t y = oy * spec.y.stride - spec.y.padding + ky * spec.y.dilation;
            const std::int64_t x_in = ox * spec.x.stride - spec.x.padding + kx * spec.x.dilation;
            if (y < 0 || y >= test.height || x_in < 0 || x_in >= test.width) continue;
            for (std::int64_t i = 0; i < inputs; ++i) {
                const auto weight = ((o * inputs + i) * spec.y.kernel + ky) * spec.x.kernel + kx;
                const auto cell = (y * test.width + x_in) * spec.in_channels + first + i;
                sum += static_cast<double>(weights[static_cast<std::size_t>(weight)]) *
                       static_cast<double>(x[static_cast<std::size_t>(cell)]);
            }
        }
    }
    return std::max(scale * sum + bias + residual, 0.0);
}

std::size_t size(std::int64_t count) { return static_cast<std::size_t>(count); }

struct Run {
    explicit Run(const Case& which) : test(which) {
        const ConvSpec& spec = test.spec;
        rows = length(test.height, spec.y);
        columns = length(test.width, spec.x);
        x = random_values(size(test.height * test.width * spec.in_channels), 1);
        weights = random_values(
            size(spec.out_channels * (spec.in_channels / spec.groups) * spec.y.kernel * spec.x.kernel), 2);
        scale = random_values(size(spec.out_channels), 3);
        bias = random_values(size(spec.out_channels), 4);
        residual = random_values(size(((rows + 1) / 2) * ((columns + 1) / 2) * spec.out_channels), 5);
    }

    ConvJob job(std::vector<float>& output, const Window& window) const {
        const ConvSpec& spec = test.spec;
        ConvJob job;
        job.input =
            tracenet::dense_view(x.data(), {0, test.height, 0, test.width}, test.height, test.width, spec.in_channels);
        job.output = tracenet::dense_view(output.data(), {0, rows, 0, columns}, rows, columns, spec.out_channels);
        job.window = window;
        job.scale = scale.data();
        job.bias = bias.data();
        const std::int64_t half_rows = (rows + 1) / 2;
        const std::int64_t half_columns = (columns + 1) / 2;
        job.residual = tracenet::dense_view(residual.data(), {0, half_rows, 0, half_columns}, half_rows, half_columns,
                                            spec.out_channels);
        job.residual_factor = 2;
        job.activation = Activation::relu;
        return job;
    }

    std::vector<float> compute(Isa isa, const std::vector<Window>& windows, ThreadPool& pool) const {
        const Packed packed = pack(test.spec, isa, weights);
        std::vector<float> output(size(rows * columns * test.spec.out_channels), kNan);
        std::vector<ConvJob> jobs;
        for (const Window& window : windows) jobs.push_back(job(output, window));
        tracenet::conv2d({test.spec, isa, packed.get()}, jobs.data(), jobs.size(), pool);
        return output;
    }

    const Case& test;
    std::int64_t rows;
    std::int64_t columns;
    std::vector<float> x;
    std::vector<float> weights;
    std::vector<float> scale;
    std::vector<float> bias;
    std::vector<float> residual;
};

void matches_fp64() {
    ThreadPool pool(2);
    for (const Case& test : cases()) {
        const Run run(test);
        for (const Isa isa : instruction_sets()) {
            const std::vector<float> output = run.compute(isa, {{0, run.rows, 0, run.columns}}, pool);
            double largest = 0.0;
            double worst = 0.0;
            std::size_t at = 0;
            for (std::int64_t y = 0; y < run.rows; ++y) {
                for (std::int64_t x = 0; x < run.columns; ++x) {
                    for (std::int64_t o = 0; o < test.spec.out_channels; ++o, ++at) {
                        const auto cell = (y / 2 * ((run.columns + 1) / 2) + x / 2) * test.spec.out_channels + o;
                        const double expected = reference(
                            test, run.x, run.weights, y, x, o, static_cast<double>(run.scale[size(o)]),
                            static_cast<double>(run.bias[size(o)]), static_cast<double>(run.residual[size(cell)]));
                        const double error = std::fabs(static_cast<double>(output[at]) - expected);
                        largest = std::max(largest, expected);
                        CHECK(!std::isnan(output[at]));
                        worst = std::max(worst, error);
                    }
                }
            }
            CHECK(worst <= 1e-5 * largest);
        }
    }
}

void same_bits_everywhere() {
    ThreadPool alone(1);
    ThreadPool many(3);
    for (const Case& test : cases()) {
        const Run run(test);
        const std::vector<float> expected = run.compute(Isa::portable, {{0, run.rows, 0, run.columns}}, alone);
        const std::int64_t y = run.rows / 2;
        const std::int64_t x = run.columns / 3;
        const std::vector<Window> pieces = {
            {0, y, 0, run.columns}, {y, run.rows, 0, x}, {y, y, x, x}, {y, run.rows, x, run.columns}};
        for (const Isa isa : instruction_sets()) {
            const std::vector<float> output = run.compute(isa, pieces, many);
            CHECK(std::memcmp(output.data(), expected.data(), expected.size() * sizeof(float)) == 0);
        }
    }
}

// What follows the sums in a tile is what a pass over the plane gives, wherever a tile or a panel ends.
void activations_are_those_of_planes() {
    ThreadPool pool(2);
    for (const Case& test : cases()) {
        const Run run(test);
        for (const Isa isa : instruction_sets()) {
            const Packed packed = pack(test.spec, isa, run.weights);
            const Window whole{0, run.rows, 0, run.columns};
            const auto compute = [&](const tracenet::Activate& function) {
                std::vector<float> output(size(run.rows * run.columns * test.spec.out_channels), kNan);
                ConvJob job = run.job(output, whole);
                job.activation = function.kind;
                job.a = function.a;
                job.b = function.b;
                tracenet::conv2d({test.spec, isa, packed.get()}, &job, 1, pool);
                return output;
            };
            for (int kind = 2; kind < tracenet::kActivations; ++kind) {
                const tracenet::Activate function{static_cast<Activation>(kind), -0.3F, 0.4F};
                const std::vector<float> fused = compute(function);
                std::vector<float> output = compute({});
                const auto view =
                    tracenet::dense_view(output.data(), whole, run.rows, run.columns, test.spec.out_channels);
                tracenet::activate(view, function, view, whole, pool);
                CHECK(std::memcmp(output.data(), fused.data(), fused.size() * sizeof(float)) == 0);
            }
        }
    }
}

void writes_and_reads_only_its_window() {
    ThreadPool pool(2);
    // Exactly the demand is allocated, so that a sanitizer sees any other read.
    const Case test{{9, 35, 1, {3, 1, 1, 1}, {3, 2, 1, 1}}, 10, 20};
    Run run(test);
    for (const Isa isa : instruction_sets()) {
        const std::vector<float> full = run.compute(isa, {{0, run.rows, 0, run.columns}}, pool);
        const Packed packed = pack(test.spec, isa, run.weights);
        const Window window{3, 4, 5, 7};
        const Window demand{2, 5, 9, 14};
        std::vector<float> part;
        for (std::int64_t y = demand.y0; y < demand.y1; ++y) {
            const auto row = run.x.begin() + (y * test.width + demand.x0) * 9;
            part.insert(part.end(), row, row + (demand.x1 - demand.x0) * 9);
        }
        std::vector<float> output(full.size(), kNan);
        ConvJob job = run.job(output, window);
        job.input = tracenet::dense_view<const float>(part.data(), demand, test.height, test.width, 9);
        tracenet::conv2d({test.spec, isa, packed.get()}, &job, 1, pool);
        std::size_t at = 0;
        for (std::int64_t y = 0; y < run.rows; ++y) {
            for (std::int64_t x = 0; x < run.columns; ++x) {
                const bool inside = y == 3 && 5 <= x && x < 7;
                for (std::int64_t o = 0; o < 35; ++o, ++at) {
                    CHECK(inside ? output[at] == full[at] : std::isnan(output[at]));
                }
            }
        }
    }
}

void bad_jobs_throw() {
    ThreadPool pool(1);
    const Run run(cases()[1]);
    const Isa isa = tracenet::active_isa();
    const Packed packed = pack(run.test.spec, isa, run.weights);
    const PackedConv conv{run.test.spec, isa, packed.get()};
    std::vector<float> output(size(run.rows * run.columns * run.test.spec.out_channels), kNan);
    const ConvJob good = run.job(output, {0, run.rows, 0, run.columns});
    const auto refuse = [&](const PackedConv& which, const ConvJob& job) {
        CHECK_THROWS(tracenet::conv2d(which, &job, 1, pool), tracenet::InputError);
    };
    ConvJob bad = good;
    bad.input.data = nullptr;
    refuse(conv, bad);
    bad = good;
    bad.output.data = reinterpret_cast<float*>(reinterpret_cast<char*>(output.data()) + 1);
    refuse(conv, bad);
    bad = good;
    bad.window.y1 += 1;
    refuse(conv, bad);
    bad = good;
    bad.window = {2, 1, 0, 1};
    refuse(conv, bad);
    bad = good;
    bad.input.channels -= 1;
    refuse(conv, bad);
    bad = good;
    bad.input.row_stride = 1;
    refuse(conv, bad);
    bad = good;
    bad.output.row_stride = std::numeric_limits<std::int64_t>::max() / 2;
    refuse(conv, bad);
    bad = good;
    bad.activation = static_cast<Activation>(tracenet::kActivations);
    refuse(conv, bad);
    refuse({run.test.spec, isa, nullptr}, good);
    refuse({run.test.spec, isa, packed.get() + 1}, good);
    ConvSpec spec = run.test.spec;
    spec.groups = 3;
    spec.in_channels = 25;
    refuse({spec, isa, packed.get()}, good);
    const Isa missing = tracenet::isa_available(Isa::neon) ? Isa::avx2 : Isa::neon;
    refuse({run.test.spec, missing, packed.get()}, good);
    const std::vector<ConvJob> twice(2, good);
    CHECK_THROWS(tracenet::conv2d(conv, twice.data(), 2, pool), tracenet::InputError);
    for (const float value : output) CHECK(std::isnan(value));
}

}  // namespace

int main() {
    return tracenet::test::run({{"convolutions match fp64", &matches_fp64},
                                {"instruction sets, windows and threads give the same bits", &same_bits_everywhere},
                                {"only the demand is read, only the window written", &writes_and_reads_only_its_window},
                                {"activations are those of planes", &activations_are_those_of_planes},
                                {"bad jobs throw before anything is written", &bad_jobs_throw}});
}
