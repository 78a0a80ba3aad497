// Sessions: one image's inputs, the memory of its planes, and runs one after the other.
#include <chrono>
#include <string>
#include <utility>

#include "cpu/views.hpp"
#include "runtime/plane_memory.hpp"
#include "runtime/planner.hpp"
#include "runtime/source.hpp"
#include "runtime/walk.hpp"
#include "tracenet/error.hpp"
#include "tracenet/runtime.hpp"

namespace tracenet {

namespace {

using Clock = std::chrono::steady_clock;

std::size_t at(int number) { return static_cast<std::size_t>(number); }

}  // namespace

struct Session::State {
    State(const Program& program, ThreadPool& pool, const SessionOptions& options)
        : program(program),
          memory(program, options),
          sources(program.schedule().inputs.size()),
          walk(program, pool, memory, sources) {}

    void refuse_open() const {
        if (walk.is_open()) throw RequestError("a run is open between begin and finish; finish it first");
    }

    void require_open() const {
        if (!walk.is_open()) throw RequestError("no run is open; begin one first");
    }

    Source& source_to_set(int index) {
        refuse_open();
        if (index < 0 || at(index) >= sources.size()) {
            throw InputError("input " + std::to_string(index) + " is set; the network has " +
                             std::to_string(sources.size()));
        }
        return sources[at(index)];
    }

    const Plane& input_plane(int index) const {
        return program.schedule().planes[at(program.schedule().inputs[at(index)])];
    }

    // to_the_end: what is asked for stays in memory, instead of being copied as soon as it is there.
    std::shared_ptr<const Plan> plan(const std::vector<Demand>& request, bool to_the_end) const {
        const auto start = Clock::now();
        if (request.empty()) throw RequestError("the request is empty; ask for at least one window");
        for (const Demand& demand : request) check_demand(program, demand);
        auto plan = std::make_shared<Plan>();
        plan_request(program, request, known(memory.windows()), *plan);
        std::vector<bool> stay(program.schedule().planes.size(), false);
        for (const Demand& demand : request) {
            if (to_the_end || program.input_position(demand.plane) >= 0) stay[at(demand.plane)] = true;
        }
        return placed(std::move(plan), stay, start);
    }

    std::shared_ptr<const Plan> plan_windows(const std::vector<std::vector<Window>>& pieces) const {
        const auto start = Clock::now();
        const Schedule& schedule = program.schedule();
        auto plan = std::make_shared<Plan>();
        plan_given(program, pieces, known(memory.windows()), *plan);
        std::vector<bool> stay(schedule.planes.size(), false);
        for (const auto& output : schedule.outputs) stay[at(output.second)] = true;
        for (const Step& step : schedule.steps) {
            if (step.op != Op::external) continue;
            for (const int input : step.inputs) {
                if (program.input_position(input) >= 0) stay[at(input)] = true;
            }
        }
        return placed(std::move(plan), stay, start);
    }

    std::shared_ptr<const Plan> placed(std::shared_ptr<Plan> plan, const std::vector<bool>& stay,
                                       Clock::time_point start) const {
        place_buffers(program, memory.elsewhere(), stay, *plan);
        plan->planning_us = std::chrono::duration<double, std::micro>(Clock::now() - start).count();
        return plan;
    }

    RunReport close(std::int64_t max_kept_bytes) {
        RunReport report = walk.close();
        if (report.kept_bytes > max_kept_bytes) {
            memory.forget(true);
            report.kept_bytes = 0;
        }
        return report;
    }

    const Program& program;
    PlaneMemory memory;
    std::vector<Source> sources;  // per input
    Walk walk;
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
    Source& source = state_->source_to_set(index);
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
    state_->memory.forget(false);
}

void Session::set_pixels(int index, View<const std::uint8_t> photo, const PixelNorm& norm,
                         std::shared_ptr<void> owner) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Source& source = state_->source_to_set(index);
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
    state_->memory.forget(false);
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
    state_->walk.open(state_->plan(request, false), flat, profile, outputs);
    state_->walk.run_steps(0, program_->schedule().steps.size());
    return state_->close(options_.max_kept_bytes);
}

std::shared_ptr<const Plan> Session::begin(const std::vector<Demand>& request, const std::vector<FlatValues>& flat,
                                           bool profile) {
    const std::lock_guard<std::mutex> lock(mutex_);
    state_->refuse_open();
    auto plan = state_->plan(request, true);
    state_->walk.open(plan, flat, profile, {});
    return plan;
}

std::shared_ptr<const Plan> Session::begin_windows(const std::vector<std::vector<Window>>& pieces,
                                                   const std::vector<FlatValues>& flat, bool profile) {
    const std::lock_guard<std::mutex> lock(mutex_);
    state_->refuse_open();
    auto plan = state_->plan_windows(pieces);
    state_->walk.open(plan, flat, profile, {});
    return plan;
}

void Session::run_steps(std::size_t first, std::size_t last) {
    const std::lock_guard<std::mutex> lock(mutex_);
    state_->require_open();
    state_->walk.run_steps(first, last);
}

void Session::read(int plane, const Window& window, float* values) {
    const std::lock_guard<std::mutex> lock(mutex_);
    state_->require_open();
    check_demand(*program_, {plane, window});
    state_->walk.read(plane, window, values);
}

void Session::write(int plane, const Window& window, const float* values) {
    const std::lock_guard<std::mutex> lock(mutex_);
    state_->require_open();
    check_demand(*program_, {plane, window});
    state_->walk.write(plane, window, values);
}

RunReport Session::finish() {
    const std::lock_guard<std::mutex> lock(mutex_);
    state_->require_open();
    return state_->close(options_.max_kept_bytes);
}

void Session::forget() {
    const std::lock_guard<std::mutex> lock(mutex_);
    state_->refuse_open();
    state_->memory.forget(false);
}

std::vector<std::vector<Window>> Session::kept_windows() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return state_->memory.windows();
}

std::int64_t Session::kept_bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return state_->memory.kept_bytes();
}

}  // namespace tracenet
