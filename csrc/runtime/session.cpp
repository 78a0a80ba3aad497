// Sessions: inputs, kept planes, the workspace, and the walk over a schedule's steps.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "cpu/views.hpp"
#include "runtime/memory.hpp"
#include "runtime/pieces.hpp"
#include "runtime/planner.hpp"
#include "runtime/profile.hpp"
#include "runtime/rules.hpp"
#include "tracenet/error.hpp"
#include "tracenet/runtime.hpp"

namespace tracenet {

namespace {

using Clock = std::chrono::steady_clock;

// Windows kept per plane; planning looks at each of them.
constexpr std::size_t kMaxKeptWindows = 24;

std::size_t at(int number) { return static_cast<std::size_t>(number); }

double microseconds_since(Clock::time_point start) {
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// What an input is filled from.
struct Source {
    enum class Kind { none, planar, pixels };

    Kind kind = Kind::none;
    const float* planar = nullptr;  // channel 0 of the extent's first cell
    Window extent;
    std::int64_t channel_stride = 0;
    std::int64_t row_stride = 0;
    View<const std::uint8_t> photo;
    PixelNorm norm;
    std::shared_ptr<void> owner;
};

// NHWC window -> planar [channels, rows, columns].
void copy_to_planar(const View<float>& view, const Window& window, float* values) {
    const std::int64_t rows = window.y1 - window.y0, columns = window.x1 - window.x0;
    for (std::int64_t y = 0; y < rows; ++y) {
        const float* row = view.at(window.y0 + y, window.x0);
        for (std::int64_t c = 0; c < view.channels; ++c) {
            float* target = values + (c * rows + y) * columns;
            for (std::int64_t x = 0; x < columns; ++x) target[x] = row[x * view.pixel_stride + c];
        }
    }
}

// Bytes that show where a cell is read before it is written: NaN in fp32; uint8 has none, so a value that is unlikely.
void fill_poison(std::uint8_t* bytes, std::int64_t count, Dtype dtype) {
    if (dtype == Dtype::uint8) {
        std::fill(bytes, bytes + count, std::uint8_t{0xA5});
        return;
    }
    auto* const values = reinterpret_cast<float*>(bytes);
    std::fill(values, values + count / static_cast<std::int64_t>(sizeof(float)),
              std::numeric_limits<float>::quiet_NaN());
}

bool covers(const std::vector<Window>& windows, const Window& window) {
    std::vector<Window> rest;
    subtract_all(window, windows, rest);
    return rest.empty();
}

}  // namespace

struct Session::State {
    State(const Program& program, ThreadPool& pool, SessionOptions options)
        : program(program), schedule(program.schedule()), pool(pool), options(options) {
        const std::size_t planes = schedule.planes.size();
        valid.resize(planes);
        memory.resize(planes);
        kept_plane.assign(planes, false);
        elsewhere.assign(planes, false);
        sources.resize(schedule.inputs.size());
        for (std::size_t i = 0; i < planes; ++i) {
            const int plane = static_cast<int>(i);
            kept_plane[i] = options.keep && schedule.planes[i].keep && !program.depends_on_flat(plane) &&
                            program.producer(plane) >= 0;
            const bool flat_input = schedule.planes[i].is_flat() && program.input_position(plane) >= 0;
            elsewhere[i] = kept_plane[i] || flat_input;
        }
    }

    const Plane& plane(int number) const { return schedule.planes[at(number)]; }

    const KeptWindows* kept() const {
        const bool any = std::any_of(valid.begin(), valid.end(), [](const auto& list) { return !list.empty(); });
        return any ? &valid : nullptr;
    }

    void check_demand(const Demand& demand) const {
        if (demand.plane < 0 || at(demand.plane) >= schedule.planes.size()) {
            throw RequestError("plane " + std::to_string(demand.plane) + " is asked for; there are " +
                               std::to_string(schedule.planes.size()));
        }
        const Plane& asked = plane(demand.plane);
        const Window& w = demand.window;
        if (w.y1 <= w.y0 || w.x1 <= w.x0 || !contains(asked.whole(), w)) {
            throw WindowError("the window asked of '" + asked.name + "' is " + to_text(w) + ", its plane is " +
                              std::to_string(asked.height) + " x " + std::to_string(asked.width) +
                              " (rows x columns); ask for at least one cell of it");
        }
        if (program.producer(demand.plane) < 0 && program.input_position(demand.plane) < 0) {
            throw RequestError("plane '" + asked.name + "' is asked for, but no step computes it");
        }
    }

    std::vector<bool> asked_planes(const std::vector<Demand>& request) const {
        std::vector<bool> planes(schedule.planes.size(), false);
        for (const Demand& demand : request) planes[at(demand.plane)] = true;
        return planes;
    }

    std::shared_ptr<const Plan> plan(const std::vector<Demand>& request, bool to_the_end) const {
        const auto start = Clock::now();
        if (request.empty()) throw RequestError("the request is empty; ask for at least one window");
        for (const Demand& demand : request) check_demand(demand);
        auto plan = std::make_shared<Plan>();
        plan_request(program, request, kept(), *plan);
        std::vector<bool> stay(schedule.planes.size(), false);
        for (const Demand& demand : request) {
            if (to_the_end || program.input_position(demand.plane) >= 0) stay[at(demand.plane)] = true;
        }
        place_buffers(program, elsewhere, stay, *plan);
        plan->planning_us = microseconds_since(start);
        return plan;
    }

    std::shared_ptr<const Plan> plan_windows(const std::vector<std::vector<Window>>& pieces) const {
        const auto start = Clock::now();
        auto plan = std::make_shared<Plan>();
        plan_given(program, pieces, kept(), *plan);
        std::vector<bool> stay(schedule.planes.size(), false);
        for (const auto& output : schedule.outputs) stay[at(output.second)] = true;
        for (const Step& step : schedule.steps) {
            if (step.op != Op::external) continue;
            for (const int input : step.inputs) {
                if (program.input_position(input) >= 0) stay[at(input)] = true;
            }
        }
        place_buffers(program, elsewhere, stay, *plan);
        plan->planning_us = microseconds_since(start);
        return plan;
    }

    Source& source(int index) {
        if (index < 0 || at(index) >= sources.size()) {
            throw InputError("input " + std::to_string(index) + " is set; the network has " +
                             std::to_string(sources.size()));
        }
        return sources[at(index)];
    }

    const Plane& input_plane(int index) const { return plane(schedule.inputs[at(index)]); }

    void take_flat(const std::vector<FlatValues>& values) {
        flat.assign(sources.size(), {});
        for (const FlatValues& one : values) {
            source(one.input);
            const Plane& target = input_plane(one.input);
            if (!target.is_flat()) {
                throw InputError("input " + std::to_string(one.input) + " ('" + target.name +
                                 "') is an image; set it before the run");
            }
            if (one.count != target.channels || one.values == nullptr) {
                throw InputError("input " + std::to_string(one.input) + " ('" + target.name + "') got " +
                                 std::to_string(one.count) + " values; pass " + std::to_string(target.channels));
            }
            flat[at(one.input)].assign(one.values, one.values + one.count);
        }
    }

    // Before anything is computed: every input the plan reads is there.
    void check_inputs() {
        for (std::size_t i = 0; i < sources.size(); ++i) {
            const int number = schedule.inputs[i];
            const Plan::Range range = current->pieces[at(number)];
            if (range.count == 0) continue;
            const Source& from = sources[i];
            const Plane& target = plane(number);
            const std::string what = "input " + std::to_string(i) + " ('" + target.name + "')";
            if (target.is_flat() && !flat[i].empty()) continue;
            if (from.kind == Source::Kind::none) {
                throw InputError(what + " is read but not set; " +
                                 (target.is_flat() ? "pass its values with the run" : "set it before the run"));
            }
            if (from.kind == Source::Kind::planar) {
                for (const Window* piece = current->begin(range); piece != current->end(range); ++piece) {
                    if (contains(from.extent, *piece)) continue;
                    throw InputError(what + " is set for " + to_text(from.extent) + ", this run reads " +
                                     to_text(*piece) + "; set more of it");
                }
            }
            if (target.is_flat()) {
                flat[i].resize(static_cast<std::size_t>(target.channels));
                View<float> view = dense_view(flat[i].data(), target.whole(), 1, 1, target.channels);
                fill_input(from, view, target.whole());
            }
        }
    }

    void fill_input(const Source& from, const View<float>& view, const Window& window) {
        if (from.kind == Source::Kind::pixels) {
            normalise_pixels(from.norm, from.photo, view, window, pool);
            return;
        }
        // from_planar counts from cell (0, 0), which need not lie in memory.
        const std::int64_t first = from.extent.y0 * from.row_stride + from.extent.x0;
        const auto origin =
            reinterpret_cast<std::uintptr_t>(from.planar) - static_cast<std::uintptr_t>(first) * sizeof(float);
        from_planar(reinterpret_cast<const float*>(origin), from.channel_stride, from.row_stride, view, window, pool);
    }

    void load(int number) {
        const int position = program.input_position(number);
        if (position < 0 || done[at(number)]) return;
        const Plan::Range range = current->apart[at(number)];
        if (!plane(number).is_flat()) {
            poison(number);
            for (const Window* piece = current->begin(range); piece != current->end(range); ++piece) {
                fill_input(sources[at(position)], views[at(number)], *piece);
            }
        }
        done[at(number)] = true;
        deliver(number);
    }

    std::int64_t plane_bytes(int number) const {
        const Plane& p = plane(number);
        return p.channels * p.height * p.width * p.element_bytes();
    }

    void reserve_memory() {
        const auto bytes = static_cast<std::size_t>(current->workspace_bytes);
        try {
            if (arena.size() < bytes) {
                arena = Block();  // not both at once
                arena = Block(bytes, false);
            }
            for (std::size_t i = 0; i < memory.size(); ++i) {
                const int number = static_cast<int>(i);
                if (!kept_plane[i] || current->pieces[i].count == 0 || memory[i].data() != nullptr) continue;
                memory[i] = Block(static_cast<std::size_t>(plane_bytes(number)), true);
                if (options.poison) fill_poison(memory[i].data(), plane_bytes(number), plane(number).dtype);
            }
        } catch (const std::bad_alloc&) {
            throw ExecutionError("out of memory: the workspace of this run has " + std::to_string(bytes) +
                                 " bytes; ask for smaller windows or a smaller input");
        }
        views.assign(schedule.planes.size(), {});
        byte_views.assign(schedule.planes.size(), {});
        for (std::size_t i = 0; i < views.size(); ++i) {
            const Plane& p = schedule.planes[i];
            if (p.is_bytes()) {
                byte_views[i] = view_of<std::uint8_t>(static_cast<int>(i), &no_byte);
            } else {
                views[i] = view_of<float>(static_cast<int>(i), &nothing);
            }
        }
    }

    // elsewhere: where a plane lies that is read for its padding alone, or not at all.
    template <typename T>
    View<T> view_of(int number, T* elsewhere) {
        const std::size_t i = at(number);
        const Plane& p = schedule.planes[i];
        const int position = program.input_position(number);
        if (kept_plane[i] && memory[i].data() != nullptr) {
            return dense_view(reinterpret_cast<T*>(memory[i].data()), p.whole(), p.height, p.width, p.channels);
        }
        if (position >= 0 && p.is_flat() && !flat[at(position)].empty()) {
            return dense_view(reinterpret_cast<T*>(flat[at(position)].data()), p.whole(), 1, 1, p.channels);
        }
        if (current->offsets[i] >= 0) {
            return dense_view(reinterpret_cast<T*>(arena.data() + current->offsets[i]), current->extents[i], p.height,
                              p.width, p.channels);
        }
        return dense_view(elsewhere, Window{}, p.height, p.width, p.channels);
    }

    // A window of a plane as real values; those of a uint8 plane are put into `storage`.
    View<float> real_view(int number, const Window& window, std::vector<float>& storage) {
        const Plane& p = plane(number);
        if (!p.is_bytes()) return views[at(number)];
        storage.resize(static_cast<std::size_t>(area(window) * p.channels));
        const View<float> view = dense_view(storage.data(), window, p.height, p.width, p.channels);
        dequantise(byte_views[at(number)], p.quantisation, view, window, pool);
        return view;
    }

    // What is about to be written holds NaN, so that a cell that is read before shows.
    void poison(int number) {
        if (!options.poison || current->offsets[at(number)] < 0) return;
        const Window& extent = current->extents[at(number)];
        const Plane& p = plane(number);
        fill_poison(arena.data() + current->offsets[at(number)], area(extent) * p.channels * p.element_bytes(),
                    p.dtype);
    }

    std::int64_t kept_bytes() const {
        std::int64_t bytes = 0;
        for (std::size_t i = 0; i < valid.size(); ++i) {
            for (const Window& window : valid[i]) {
                bytes += area(window) * schedule.planes[i].channels * schedule.planes[i].element_bytes();
            }
        }
        return bytes;
    }

    void forget(bool give_back) {
        for (auto& windows : valid) windows.clear();
        // Pages stay for the next image while they are few.
        if (give_back || touched_bytes > options.max_kept_bytes) {
            for (Block& block : memory) block.release_pages();
            touched_bytes = 0;
        }
        if (!options.poison) return;
        for (std::size_t i = 0; i < memory.size(); ++i) {
            if (memory[i].data() == nullptr) continue;
            fill_poison(memory[i].data(), plane_bytes(static_cast<int>(i)), schedule.planes[i].dtype);
        }
    }

    void open(std::shared_ptr<const Plan> plan, const std::vector<FlatValues>& values, bool with_profile) {
        refuse_open();
        take_flat(values);
        current = std::move(plan);
        done.assign(schedule.planes.size(), false);
        written.assign(schedule.planes.size(), {});
        cursor = 0;
        gone_before = 0;
        rows.clear();
        outputs.clear();
        profile = with_profile;
        const char* debug = std::getenv("TRACENET_DEBUG");
        print = debug != nullptr && std::strcmp(debug, "2") == 0;
        check_inputs();
        reserve_memory();
        is_open = true;
    }

    void refuse_open() const {
        if (is_open) throw RequestError("a run is open between begin and finish; finish it first");
    }

    void require_open() const {
        if (!is_open) throw RequestError("no run is open; begin one first");
    }

    // Inputs that are asked for themselves, or read by external steps.
    void load_early() {
        for (const int number : schedule.inputs) {
            const bool early = current->last_launch[at(number)] == std::numeric_limits<int>::max();
            if (early && current->pieces[at(number)].count > 0) load(number);
        }
    }

    void execute(std::size_t first, std::size_t last) {
        const std::vector<int>& launches = program.launches();
        for (std::size_t i = first; i < last;) {
            std::size_t end = i + 1;
            while (end < last && launches[end] == launches[i]) ++end;
            launch(i, end);
            i = end;
        }
    }

    bool is_computed(std::size_t step) const { return current->pieces[at(schedule.steps[step].output)].count > 0; }

    // Steps [first, last) of one launch.
    void launch(std::size_t first, std::size_t last) {
        members.clear();
        for (std::size_t i = first; i < last; ++i) {
            if (!is_computed(i)) continue;
            if (schedule.steps[i].op == Op::external) {
                check_written(i);
            } else {
                members.push_back(i);
            }
        }
        if (members.empty()) return;
        const Step& head = schedule.steps[members.front()];
        try {
            for (const std::size_t i : members) {
                for (const int input : schedule.steps[i].inputs) {
                    if (current->pieces[at(input)].count > 0) load(input);
                }
            }
            if (options.poison) poison_outputs();
            const bool timed = profile || print;
            const auto start = timed ? Clock::now() : Clock::time_point();
            compute(head);
            if (timed) {
                rows.push_back(profile_row(program, *current, members, microseconds_since(start)));
                if (print) print_row(rows.back());
            }
            for (const std::size_t i : members) {
                done[at(schedule.steps[i].output)] = true;
                deliver(schedule.steps[i].output);
            }
        } catch (const std::bad_alloc&) {
            throw ExecutionError("step '" + head.name + "' (" + op_name(head.op) + ") ran out of memory");
        } catch (const std::exception& error) {
            throw ExecutionError("step '" + head.name + "' (" + op_name(head.op) + "): " + error.what());
        }
    }

    void poison_outputs() {
        for (const std::size_t i : members) {
            const Step& step = schedule.steps[i];
            const bool in_place = std::any_of(step.inputs.begin(), step.inputs.end(), [&](int input) {
                return current->offsets[at(input)] == current->offsets[at(step.output)];
            });
            if (!in_place) poison(step.output);
        }
    }

    void compute(const Step& head) {
        if (schedule.is_int8(head)) return convolve_int8();
        if (head.op == Op::conv2d) return convolve();
        if (head.op == Op::convert) return convert(head);
        const Attributes& a = head.attributes;
        const StepWeights& weights = program.weights(members.front());
        const Plan::Range range = current->apart[at(head.output)];
        const View<float>& out = views[at(head.output)];
        const auto input = [&](std::size_t position) -> const View<float>& { return views[at(head.inputs[position])]; };
        const View<const float> second = head.inputs.size() > 1 ? View<const float>(input(1)) : View<const float>{};
        for (const Window* piece = current->begin(range); piece != current->end(range); ++piece) {
            switch (head.op) {
                case Op::max_pool2d:
                    max_pool2d(a.pool, input(0), out, *piece, pool);
                    break;
                case Op::avg_pool2d:
                    avg_pool2d(a.pool, input(0), out, *piece, pool);
                    break;
                case Op::stem:
                    stem(weights.conv, weights.bias, a.conv_height, a.conv_width, a.pool, input(0), out, *piece, pool);
                    break;
                case Op::resize:
                    resize(a.resize, input(0), second, out, *piece, pool);
                    break;
                case Op::add:
                    add(input(0), second, a.activation, out, *piece, pool);
                    break;
                case Op::sigmoid:
                    sigmoid(input(0), out, *piece, pool);
                    break;
                case Op::concat: {
                    std::int64_t channel = 0;
                    for (const int part : head.inputs) {
                        copy_channels(views[at(part)], channel, out, *piece, pool);
                        channel += plane(part).channels;
                    }
                    break;
                }
                case Op::mask_head: {
                    MaskHead values;
                    values.theta = input(1).data;
                    values.origin_x = input(2).data[0];
                    values.origin_y = input(2).data[1];
                    values.size_of_interest = input(3).data[0];
                    values.stride = a.stride;
                    if (a.factor > 0) {
                        mask_head_upsampled(values, a.factor, input(0), out, *piece, pool);
                    } else {
                        mask_head(values, input(0), out, *piece, pool);
                    }
                    break;
                }
                case Op::conv2d:
                case Op::convert:
                case Op::external:
                    break;
            }
        }
    }

    void convolve() {
        jobs.clear();
        for (const std::size_t i : members) {
            const Step& step = schedule.steps[i];
            const StepWeights& weights = program.weights(i);
            ConvJob job;
            job.input = views[at(step.inputs[0])];
            job.output = views[at(step.output)];
            job.scale = weights.scale;
            job.bias = weights.bias;
            if (step.inputs.size() > 1) {
                job.residual = views[at(step.inputs[1])];
                job.residual_factor = step.attributes.residual_factor;
            }
            job.activation = step.attributes.activation;
            const Plan::Range range = current->apart[at(step.output)];
            for (const Window* piece = current->begin(range); piece != current->end(range); ++piece) {
                job.window = *piece;
                jobs.push_back(job);
            }
        }
        conv2d(program.weights(members.front()).conv, jobs.data(), jobs.size(), pool);
    }

    void convolve_int8() {
        int8_jobs.clear();
        for (const std::size_t i : members) {
            const Step& step = schedule.steps[i];
            const StepWeights& weights = program.weights(i);
            Int8ConvJob job;
            job.input = byte_views[at(step.inputs[0])];
            job.input_quantisation = plane(step.inputs[0]).quantisation;
            job.output = views[at(step.output)];
            job.quantised_output = byte_views[at(step.output)];
            job.output_quantisation = plane(step.output).quantisation;
            job.scale = weights.scale;
            job.bias = weights.bias;
            if (step.inputs.size() > 1) {
                job.residual = views[at(step.inputs[1])];
                job.quantised_residual = byte_views[at(step.inputs[1])];
                job.residual_quantisation = plane(step.inputs[1]).quantisation;
                job.residual_factor = step.attributes.residual_factor;
            }
            job.activation = step.attributes.activation;
            const Plan::Range range = current->apart[at(step.output)];
            for (const Window* piece = current->begin(range); piece != current->end(range); ++piece) {
                job.window = *piece;
                int8_jobs.push_back(job);
            }
        }
        conv2d_int8(program.weights(members.front()).int8, int8_jobs.data(), int8_jobs.size(), pool,
                    active_int8_kernel());
    }

    void convert(const Step& step) {
        const int from = step.inputs[0], to = step.output;
        const Plan::Range range = current->apart[at(to)];
        for (const Window* piece = current->begin(range); piece != current->end(range); ++piece) {
            if (plane(to).is_bytes()) {
                std::vector<float> storage;
                quantise(real_view(from, *piece, storage), plane(to).quantisation, byte_views[at(to)], *piece, pool);
            } else if (plane(from).is_bytes()) {
                dequantise(byte_views[at(from)], plane(from).quantisation, views[at(to)], *piece, pool);
            } else {
                add(views[at(from)], {}, Activation::none, views[at(to)], *piece, pool);
            }
        }
    }

    // Copies what was asked of a plane as soon as it is there, so that its memory is free afterwards.
    void deliver(int number) {
        for (const OutputRequest& output : outputs) {
            if (output.plane != number) continue;
            std::vector<float> storage;
            copy_to_planar(real_view(number, output.window, storage), output.window, output.values);
        }
    }

    void check_written(std::size_t step) {
        const int number = schedule.steps[step].output;
        const Plan::Range range = current->pieces[at(number)];
        for (const Window* piece = current->begin(range); piece != current->end(range); ++piece) {
            if (covers(written[at(number)], *piece)) continue;
            throw RequestError("external step '" + schedule.steps[step].name + "' has not written " + to_text(*piece) +
                               " of its plane; write it before the steps after it run");
        }
        done[at(number)] = true;
    }

    RunReport close() {
        RunReport report;
        report.plan = current;
        report.profile = std::move(rows);
        rows.clear();
        for (std::size_t i = 0; i < kept_plane.size(); ++i) {
            if (!kept_plane[i] || !done[i]) continue;
            const Plan::Range range = current->apart[i];
            for (const Window* piece = current->begin(range); piece != current->end(range); ++piece) {
                touched_bytes += area(*piece) * schedule.planes[i].channels * schedule.planes[i].element_bytes();
                add_disjoint(valid[i], *piece, kMaxKeptWindows);
            }
        }
        report.kept_bytes = kept_bytes();
        report.peak_bytes = current->workspace_bytes + report.kept_bytes;
        if (report.kept_bytes > options.max_kept_bytes) {
            forget(true);
            report.kept_bytes = 0;
        }
        abandon();
        return report;
    }

    void abandon() {
        is_open = false;
        current.reset();
        outputs.clear();
    }

    const Program& program;
    const Schedule& schedule;
    ThreadPool& pool;
    SessionOptions options;

    std::vector<Source> sources;  // per input
    KeptWindows valid;            // per plane: what memory[plane] holds
    std::vector<Block> memory;    // per kept plane: all of it, reserved
    std::vector<bool> kept_plane;
    std::vector<bool> elsewhere;  // not in the workspace
    std::int64_t touched_bytes = 0;
    Block arena;
    float nothing = 0;
    std::uint8_t no_byte = 0;

    bool is_open = false;
    std::shared_ptr<const Plan> current;
    std::vector<View<float>> views;              // per fp32 plane
    std::vector<View<std::uint8_t>> byte_views;  // per uint8 plane
    std::vector<std::vector<float>> flat;        // per input
    std::vector<bool> done;                      // per plane: its pieces are computed
    std::vector<std::vector<Window>> written;    // per plane of an external step
    std::size_t cursor = 0;                      // steps before it have run
    int gone_before = 0;                         // planes whose last launch lies before it may be overwritten
    std::vector<OutputRequest> outputs;
    bool profile = false;
    bool print = false;
    std::vector<ProfileRow> rows;
    std::vector<std::size_t> members;  // of the launch at hand
    std::vector<ConvJob> jobs;
    std::vector<Int8ConvJob> int8_jobs;
};

Session::Session(std::shared_ptr<const Program> program, std::shared_ptr<ThreadPool> pool, SessionOptions options)
    : program_(std::move(program)), pool_(std::move(pool)), options_(options) {
    if (program_ == nullptr || pool_ == nullptr) throw InputError("a session needs a program and a thread pool");
    if (options_.max_kept_bytes < 0) {
        throw InputError("max_kept_bytes is " + std::to_string(options_.max_kept_bytes) + "; pass 0 or more");
    }
    state_ = std::make_unique<State>(*program_, *pool_, options_);
}

Session::~Session() = default;

void Session::set_planar(int index, const float* values, const Window& extent, std::int64_t channel_stride,
                         std::int64_t row_stride, std::shared_ptr<void> owner) {
    const std::lock_guard<std::mutex> lock(mutex_);
    state_->refuse_open();
    Source& source = state_->source(index);
    const Plane& plane = state_->input_plane(index);
    if (values == nullptr || extent.is_empty() || !contains(plane.whole(), extent)) {
        throw WindowError("input " + std::to_string(index) + " is set for " + to_text(extent) + "; its plane is " +
                          std::to_string(plane.height) + " x " + std::to_string(plane.width));
    }
    source = Source{};
    source.kind = Source::Kind::planar;
    source.planar = values;
    source.extent = extent;
    source.channel_stride = channel_stride;
    source.row_stride = row_stride;
    source.owner = std::move(owner);
    state_->forget(false);
}

void Session::set_pixels(int index, View<const std::uint8_t> photo, const PixelNorm& norm,
                         std::shared_ptr<void> owner) {
    const std::lock_guard<std::mutex> lock(mutex_);
    state_->refuse_open();
    Source& source = state_->source(index);
    const Plane& plane = state_->input_plane(index);
    if (plane.channels != 3 || photo.channels != 3) {
        throw InputError("input " + std::to_string(index) + " has " + std::to_string(plane.channels) +
                         " channels and the photo " + std::to_string(photo.channels) + "; both must have 3");
    }
    if (photo.data == nullptr || photo.height < 1 || photo.width < 1 || photo.height > plane.height ||
        photo.width > plane.width) {
        throw InputError("the photo has " + std::to_string(photo.height) + " x " + std::to_string(photo.width) +
                         " pixels, input " + std::to_string(index) + " " + std::to_string(plane.height) + " x " +
                         std::to_string(plane.width) + "; pass a photo that fits");
    }
    source = Source{};
    source.kind = Source::Kind::pixels;
    source.photo = photo;
    source.norm = norm;
    source.owner = std::move(owner);
    state_->forget(false);
}

std::shared_ptr<const Plan> Session::plan(const std::vector<Demand>& request) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return state_->plan(request, false);
}

RunReport Session::run(const std::vector<OutputRequest>& outputs, const std::vector<FlatValues>& flat, bool profile) {
    const std::lock_guard<std::mutex> lock(mutex_);
    state_->refuse_open();
    std::vector<Demand> request;
    for (const OutputRequest& output : outputs) {
        if (output.values == nullptr) throw InputError("an output has nowhere to go");
        request.push_back({output.plane, output.window});
    }
    state_->open(state_->plan(request, false), flat, profile);
    try {
        state_->outputs = outputs;
        state_->load_early();
        state_->execute(0, state_->schedule.steps.size());
        // What was kept altogether has no step that delivers it.
        for (const OutputRequest& output : outputs) {
            if (!state_->done[at(output.plane)]) state_->deliver(output.plane);
        }
    } catch (...) {
        state_->abandon();
        throw;
    }
    return state_->close();
}

std::shared_ptr<const Plan> Session::begin(const std::vector<Demand>& request, const std::vector<FlatValues>& flat,
                                           bool profile) {
    const std::lock_guard<std::mutex> lock(mutex_);
    state_->refuse_open();
    auto plan = state_->plan(request, true);
    state_->open(plan, flat, profile);
    state_->load_early();
    return plan;
}

std::shared_ptr<const Plan> Session::begin_windows(const std::vector<std::vector<Window>>& pieces,
                                                   const std::vector<FlatValues>& flat, bool profile) {
    const std::lock_guard<std::mutex> lock(mutex_);
    state_->refuse_open();
    auto plan = state_->plan_windows(pieces);
    state_->open(plan, flat, profile);
    state_->load_early();
    return plan;
}

void Session::run_steps(std::size_t first, std::size_t last) {
    const std::lock_guard<std::mutex> lock(mutex_);
    State& state = *state_;
    state.require_open();
    if (first < state.cursor || last < first || last > state.schedule.steps.size()) {
        throw RequestError("steps " + std::to_string(first) + " to " + std::to_string(last) +
                           " are to run; the next one is " + std::to_string(state.cursor) + " of " +
                           std::to_string(state.schedule.steps.size()));
    }
    for (std::size_t i = state.cursor; i < first; ++i) {
        if (!state.is_computed(i)) continue;
        const Step& step = state.schedule.steps[i];
        if (step.op != Op::external) {
            throw RequestError("step '" + step.name + "' would be skipped; steps run in order");
        }
        state.check_written(i);
    }
    try {
        state.execute(first, last);
    } catch (...) {
        state.abandon();
        throw;
    }
    state.cursor = last;
    if (last > first) state.gone_before = std::max(state.gone_before, state.program.launches()[last - 1] + 1);
}

void Session::read(int plane, const Window& window, float* values) {
    const std::lock_guard<std::mutex> lock(mutex_);
    State& state = *state_;
    state.require_open();
    state.check_demand({plane, window});
    const std::string& name = state.plane(plane).name;
    const bool in_memory = state.kept_plane[at(plane)] || state.current->last_launch[at(plane)] >= state.gone_before ||
                           state.program.input_position(plane) >= 0;
    if (!in_memory) {
        throw RequestError("plane '" + name + "' is no longer in memory; read it before the last step that needs it");
    }
    std::vector<Window> known = state.valid[at(plane)];
    if (state.done[at(plane)]) {
        const Plan::Range range = state.current->pieces[at(plane)];
        known.insert(known.end(), state.current->begin(range), state.current->end(range));
    }
    known.insert(known.end(), state.written[at(plane)].begin(), state.written[at(plane)].end());
    if (!covers(known, window)) {
        throw RequestError(to_text(window) + " of plane '" + name + "' is not computed; run the steps before it");
    }
    std::vector<float> storage;
    const View<float> view = state.real_view(plane, window, storage);
    const std::int64_t row = (window.x1 - window.x0) * view.channels;
    for (std::int64_t y = window.y0; y < window.y1; ++y) {
        std::copy_n(view.at(y, window.x0), row, values + (y - window.y0) * row);
    }
}

void Session::write(int plane, const Window& window, const float* values) {
    const std::lock_guard<std::mutex> lock(mutex_);
    State& state = *state_;
    state.require_open();
    state.check_demand({plane, window});
    const int step = state.program.producer(plane);
    const std::string& name = state.plane(plane).name;
    if (step < 0 || state.schedule.steps[at(step)].op != Op::external) {
        throw RequestError("plane '" + name + "' is not that of an external step; the session computes it itself");
    }
    for (std::size_t i = state.cursor; i < at(step); ++i) {
        if (state.is_computed(i) && state.schedule.steps[i].op != Op::external) {
            throw RequestError("plane '" + name + "' is written before step '" + state.schedule.steps[i].name +
                               "' ran; steps run in order");
        }
    }
    const Plan::Range range = state.current->pieces[at(plane)];
    if (at(step) < state.cursor || range.count == 0 ||
        !covers({state.current->begin(range), state.current->end(range)}, window)) {
        throw RequestError(to_text(window) + " of plane '" + name + "' is written, which this run does not compute");
    }
    const View<float>& view = state.views[at(plane)];
    const std::int64_t row = (window.x1 - window.x0) * view.channels;
    for (std::int64_t y = window.y0; y < window.y1; ++y) {
        std::copy_n(values + (y - window.y0) * row, row, view.at(y, window.x0));
    }
    state.written[at(plane)].push_back(window);
    state.gone_before = std::max(state.gone_before, state.program.launches()[at(step)]);
}

RunReport Session::finish() {
    const std::lock_guard<std::mutex> lock(mutex_);
    State& state = *state_;
    state.require_open();
    // Planes of external steps after the last step that ran.
    for (std::size_t i = state.cursor; i < state.schedule.steps.size(); ++i) {
        if (state.schedule.steps[i].op != Op::external || !state.is_computed(i)) continue;
        const int plane = state.schedule.steps[i].output;
        const Plan::Range range = state.current->pieces[at(plane)];
        state.done[at(plane)] = std::all_of(state.current->begin(range), state.current->end(range),
                                            [&](const Window& w) { return covers(state.written[at(plane)], w); });
    }
    return state.close();
}

void Session::forget() {
    const std::lock_guard<std::mutex> lock(mutex_);
    state_->refuse_open();
    state_->forget(false);
}

std::vector<std::vector<Window>> Session::kept_windows() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return state_->valid;
}

std::int64_t Session::kept_bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return state_->kept_bytes();
}

}  // namespace tracenet
