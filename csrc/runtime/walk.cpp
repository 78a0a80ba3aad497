// The walk over a schedule's steps; see walk.hpp.
#include "runtime/walk.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <utility>

#include "cpu/views.hpp"
#include "runtime/pieces.hpp"
#include "runtime/profile.hpp"
#include "tracenet/error.hpp"

namespace tracenet {

namespace {

using Clock = std::chrono::steady_clock;

std::size_t at(int number) { return static_cast<std::size_t>(number); }

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

bool debug_prints() {
    const char* debug = std::getenv("TRACENET_DEBUG");
    return debug != nullptr && std::strcmp(debug, "2") == 0;
}

}  // namespace

const Plane& Walk::plane(int number) const { return schedule_.planes[at(number)]; }

bool Walk::is_computed(std::size_t step) const { return plan_->pieces[at(schedule_.steps[step].output)].count > 0; }

bool Walk::is_written(std::size_t step) const {
    const int plane = schedule_.steps[step].output;
    const Plan::Range range = plan_->pieces[at(plane)];
    return std::all_of(plan_->begin(range), plan_->end(range),
                       [&](const Window& piece) { return covers(written_[at(plane)], piece); });
}

void Walk::open(std::shared_ptr<const Plan> plan, const std::vector<FlatValues>& flat, bool profile,
                std::vector<OutputRequest> outputs) {
    plan_ = std::move(plan);
    try {
        done_.assign(schedule_.planes.size(), false);
        written_.assign(schedule_.planes.size(), {});
        cursor_ = 0;
        gone_before_ = 0;
        outputs_ = std::move(outputs);
        profile_ = profile;
        print_ = debug_prints();
        rows_.clear();
        take_flat(flat);
        check_inputs();
        memory_.lay_out(*plan_, flat_);
        // Inputs that are asked for themselves, or read by external steps.
        for (const int number : schedule_.inputs) {
            const bool early = plan_->last_launch[at(number)] == std::numeric_limits<int>::max();
            if (early && plan_->pieces[at(number)].count > 0) load(number);
        }
    } catch (...) {
        abandon();
        throw;
    }
}

void Walk::take_flat(const std::vector<FlatValues>& values) {
    flat_.assign(sources_.size(), {});
    for (const FlatValues& one : values) {
        if (one.input < 0 || at(one.input) >= sources_.size()) {
            throw InputError("input " + std::to_string(one.input) + " gets values; the network has " +
                             std::to_string(sources_.size()));
        }
        const Plane& target = schedule_.planes[at(schedule_.inputs[at(one.input)])];
        const std::string what = "input " + std::to_string(one.input) + " ('" + target.name + "')";
        if (!target.is_flat()) throw InputError(what + " is an image; set it before the run");
        if (one.count != target.channels || one.values == nullptr) {
            throw InputError(what + " got " + std::to_string(one.count) + " values; pass " +
                             std::to_string(target.channels));
        }
        flat_[at(one.input)].assign(one.values, one.values + one.count);
    }
}

void Walk::check_inputs() {
    for (std::size_t i = 0; i < sources_.size(); ++i) {
        const int number = schedule_.inputs[i];
        const Plan::Range range = plan_->pieces[at(number)];
        const Plane& target = schedule_.planes[at(number)];
        if (range.count == 0 || (target.is_flat() && !flat_[i].empty())) continue;
        const Source& source = sources_[i];
        const std::string what = "input " + std::to_string(i) + " ('" + target.name + "')";
        if (source.kind == Source::Kind::none) {
            throw InputError(what + " is read but not set; " +
                             (target.is_flat() ? "pass its values with the run" : "set it before the run"));
        }
        if (source.kind == Source::Kind::planar) {
            for (const Window* piece = plan_->begin(range); piece != plan_->end(range); ++piece) {
                if (contains(source.extent, *piece)) continue;
                throw InputError(what + " is set for " + to_text(source.extent) + ", this run reads " +
                                 to_text(*piece) + "; set more of it");
            }
        }
        if (target.is_flat()) {
            flat_[i].resize(static_cast<std::size_t>(target.channels));
            source.fill(dense_view(flat_[i].data(), target.whole(), 1, 1, target.channels), target.whole(), pool_);
        }
    }
}

void Walk::load(int plane) {
    const int position = program_.input_position(plane);
    if (position < 0 || done_[at(plane)]) return;
    if (!schedule_.planes[at(plane)].is_flat()) {
        memory_.poison(*plan_, plane);
        const Plan::Range range = plan_->apart[at(plane)];
        for (const Window* piece = plan_->begin(range); piece != plan_->end(range); ++piece) {
            sources_[at(position)].fill(memory_.floats(plane), *piece, pool_);
        }
    }
    done_[at(plane)] = true;
    deliver(plane);
}

// Copies what was asked of a plane as soon as it is there, so that its memory is free afterwards.
void Walk::deliver(int plane) {
    for (const OutputRequest& output : outputs_) {
        if (output.plane != plane) continue;
        std::vector<float> storage;
        copy_to_planar(memory_.real(plane, output.window, storage, pool_), output.window, output.values);
    }
}

void Walk::require_written(std::size_t step) {
    const int plane = schedule_.steps[step].output;
    if (!is_written(step)) {
        throw RequestError("external step '" + schedule_.steps[step].name +
                           "' has not written all windows of its plane; write them before the steps after it run");
    }
    done_[at(plane)] = true;
}

void Walk::run_steps(std::size_t first, std::size_t last) {
    if (first < cursor_ || last < first || last > schedule_.steps.size()) {
        throw RequestError("steps " + std::to_string(first) + " to " + std::to_string(last) +
                           " are to run; the next one is " + std::to_string(cursor_) + " of " +
                           std::to_string(schedule_.steps.size()));
    }
    for (std::size_t i = cursor_; i < first; ++i) {
        if (!is_computed(i)) continue;
        if (schedule_.steps[i].op != Op::external) {
            throw RequestError("step '" + schedule_.steps[i].name + "' would be skipped; steps run in order");
        }
        require_written(i);
    }
    for (std::size_t i = first; i < last; ++i) {
        if (schedule_.steps[i].op == Op::external && is_computed(i)) require_written(i);
    }
    try {
        execute(first, last);
    } catch (...) {
        abandon();
        throw;
    }
    cursor_ = last;
    if (last > first) gone_before_ = std::max(gone_before_, program_.launches()[last - 1] + 1);
}

void Walk::execute(std::size_t first, std::size_t last) {
    const std::vector<int>& launches = program_.launches();
    for (std::size_t i = first; i < last;) {
        std::size_t end = i + 1;
        while (end < last && launches[end] == launches[i]) ++end;
        launch(i, end);
        i = end;
    }
}

void Walk::launch(std::size_t first, std::size_t last) {
    members_.clear();
    for (std::size_t i = first; i < last; ++i) {
        if (is_computed(i) && schedule_.steps[i].op != Op::external) members_.push_back(i);
    }
    if (members_.empty()) return;
    const Step& head = schedule_.steps[members_.front()];
    try {
        for (const std::size_t i : members_) {
            const Step& step = schedule_.steps[i];
            for (const int input : step.inputs) {
                if (plan_->pieces[at(input)].count > 0) load(input);
            }
            const bool in_place = std::any_of(step.inputs.begin(), step.inputs.end(), [&](int input) {
                return plan_->offsets[at(input)] == plan_->offsets[at(step.output)];
            });
            if (!in_place) memory_.poison(*plan_, step.output);
        }
        const bool timed = profile_ || print_;
        const auto start = timed ? Clock::now() : Clock::time_point();
        compute(head);
        if (timed) {
            const double time = std::chrono::duration<double, std::micro>(Clock::now() - start).count();
            rows_.push_back(profile_row(program_, *plan_, members_, time));
            if (print_) print_row(rows_.back());
        }
        for (const std::size_t i : members_) {
            done_[at(schedule_.steps[i].output)] = true;
            deliver(schedule_.steps[i].output);
        }
    } catch (const std::bad_alloc&) {
        throw ExecutionError("step '" + head.name + "' (" + op_name(head.op) + ") ran out of memory");
    } catch (const std::exception& error) {
        throw ExecutionError("step '" + head.name + "' (" + op_name(head.op) + "): " + error.what());
    }
}

void Walk::compute(const Step& head) {
    if (schedule_.is_int8(head)) return convolve_int8();
    if (head.op == Op::conv2d) return convolve();
    const StepWeights& weights = program_.weights(members_.front());
    const Plan::Range range = plan_->apart[at(head.output)];
    for (const Window* piece = plan_->begin(range); piece != plan_->end(range); ++piece) {
        compute_piece(head, weights, *piece);
    }
}

void Walk::compute_piece(const Step& step, const StepWeights& weights, const Window& piece) {
    const Attributes& a = step.attributes;
    const View<float>& out = memory_.floats(step.output);
    const auto input = [&](std::size_t position) -> const View<float>& {
        return memory_.floats(step.inputs[position]);
    };
    const View<const float> second = step.inputs.size() > 1 ? View<const float>(input(1)) : View<const float>{};
    switch (step.op) {
        case Op::max_pool2d:
            return max_pool2d(a.pool, input(0), out, piece, pool_);
        case Op::avg_pool2d:
            return avg_pool2d(a.pool, input(0), out, piece, pool_);
        case Op::stem:
            return stem(weights.conv, weights.bias, a.conv_height, a.conv_width, a.pool, input(0), out, piece, pool_);
        case Op::resize:
            return resize(a.resize, input(0), second, out, piece, pool_);
        case Op::add:
            return add(input(0), second, {a.activation, a.a, a.b}, out, piece, pool_);
        case Op::mul:
            return multiply(input(0), second, {a.activation, a.a, a.b}, out, piece, pool_);
        case Op::plane_mean:
            return plane_mean(input(0), out, pool_);
        case Op::group_norm:
            return group_norm({a.groups, a.epsilon, weights.scale, weights.bias}, input(0), {a.activation, a.a, a.b},
                              out, piece, pool_);
        case Op::take_channels:
            return take_channels(input(0), a.first, out, piece, pool_);
        case Op::sigmoid:
            return sigmoid(input(0), out, piece, pool_);
        case Op::concat: {
            std::int64_t channel = 0;
            for (const int part : step.inputs) {
                copy_channels(memory_.floats(part), channel, out, piece, pool_);
                channel += schedule_.planes[at(part)].channels;
            }
            return;
        }
        case Op::mask_head: {
            MaskHead head;
            head.theta = input(1).data;
            head.origin_x = input(2).data[0];
            head.origin_y = input(2).data[1];
            head.size_of_interest = input(3).data[0];
            head.stride = a.stride;
            if (a.factor > 0) return mask_head_upsampled(head, a.factor, input(0), out, piece, pool_);
            return mask_head(head, input(0), out, piece, pool_);
        }
        case Op::convert:
            return convert(step.inputs[0], step.output, piece);
        case Op::conv2d:
        case Op::external:
            return;
    }
}

void Walk::convolve() {
    jobs_.clear();
    for (const std::size_t i : members_) {
        const Step& step = schedule_.steps[i];
        const StepWeights& weights = program_.weights(i);
        ConvJob job;
        job.input = memory_.floats(step.inputs[0]);
        job.output = memory_.floats(step.output);
        job.scale = weights.scale;
        job.bias = weights.bias;
        if (step.inputs.size() > 1) {
            job.residual = memory_.floats(step.inputs[1]);
            job.residual_factor = step.attributes.residual_factor;
        }
        job.activation = step.attributes.activation;
        job.a = step.attributes.a;
        job.b = step.attributes.b;
        const Plan::Range range = plan_->apart[at(step.output)];
        for (const Window* piece = plan_->begin(range); piece != plan_->end(range); ++piece) {
            job.window = *piece;
            jobs_.push_back(job);
        }
    }
    conv2d(program_.weights(members_.front()).conv, jobs_.data(), jobs_.size(), pool_);
}

void Walk::convolve_int8() {
    int8_jobs_.clear();
    for (const std::size_t i : members_) {
        const Step& step = schedule_.steps[i];
        const StepWeights& weights = program_.weights(i);
        Int8ConvJob job;
        job.input = memory_.bytes(step.inputs[0]);
        job.input_quantisation = plane(step.inputs[0]).quantisation;
        job.output = memory_.floats(step.output);
        job.quantised_output = memory_.bytes(step.output);
        job.output_quantisation = plane(step.output).quantisation;
        job.scale = weights.scale;
        job.bias = weights.bias;
        if (step.inputs.size() > 1) {
            job.residual = memory_.floats(step.inputs[1]);
            job.quantised_residual = memory_.bytes(step.inputs[1]);
            job.residual_quantisation = plane(step.inputs[1]).quantisation;
            job.residual_factor = step.attributes.residual_factor;
        }
        job.activation = step.attributes.activation;
        const Plan::Range range = plan_->apart[at(step.output)];
        for (const Window* piece = plan_->begin(range); piece != plan_->end(range); ++piece) {
            job.window = *piece;
            int8_jobs_.push_back(job);
        }
    }
    conv2d_int8(program_.weights(members_.front()).int8, int8_jobs_.data(), int8_jobs_.size(), pool_,
                active_int8_kernel());
}

void Walk::convert(int from, int to, const Window& piece) {
    if (plane(to).is_bytes()) {
        std::vector<float> storage;
        const View<float> real = memory_.real(from, piece, storage, pool_);
        quantise(real, plane(to).quantisation, memory_.bytes(to), piece, pool_);
    } else if (plane(from).is_bytes()) {
        dequantise(memory_.bytes(from), plane(from).quantisation, memory_.floats(to), piece, pool_);
    } else {
        add(memory_.floats(from), {}, Activate{}, memory_.floats(to), piece, pool_);
    }
}

void Walk::read(int plane, const Window& window, float* values) const {
    const std::string& name = schedule_.planes[at(plane)].name;
    const bool in_memory = memory_.is_kept(plane) || plan_->last_launch[at(plane)] >= gone_before_;
    if (!in_memory) {
        throw RequestError("plane '" + name + "' is no longer in memory; read it before the last step that needs it");
    }
    std::vector<Window> known = memory_.windows()[at(plane)];
    if (done_[at(plane)]) {
        const Plan::Range range = plan_->pieces[at(plane)];
        known.insert(known.end(), plan_->begin(range), plan_->end(range));
    }
    known.insert(known.end(), written_[at(plane)].begin(), written_[at(plane)].end());
    if (!covers(known, window)) {
        throw RequestError(to_text(window) + " of plane '" + name + "' is not computed; run the steps before it");
    }
    std::vector<float> storage;
    const View<float> view = memory_.real(plane, window, storage, pool_);
    const std::int64_t row = (window.x1 - window.x0) * view.channels;
    for (std::int64_t y = window.y0; y < window.y1; ++y) {
        std::copy_n(view.at(y, window.x0), row, values + (y - window.y0) * row);
    }
}

void Walk::write(int plane, const Window& window, const float* values) {
    const int step = program_.producer(plane);
    const std::string& name = schedule_.planes[at(plane)].name;
    if (step < 0 || schedule_.steps[at(step)].op != Op::external) {
        throw RequestError("plane '" + name + "' is not that of an external step; the session computes it itself");
    }
    for (std::size_t i = cursor_; i < at(step); ++i) {
        if (is_computed(i) && schedule_.steps[i].op != Op::external) {
            throw RequestError("plane '" + name + "' is written before step '" + schedule_.steps[i].name +
                               "' ran; steps run in order");
        }
    }
    const Plan::Range range = plan_->pieces[at(plane)];
    if (at(step) < cursor_ || !covers({plan_->begin(range), plan_->end(range)}, window)) {
        throw RequestError(to_text(window) + " of plane '" + name + "' is written, which is not to be computed now");
    }
    const View<float>& view = memory_.floats(plane);
    const std::int64_t row = (window.x1 - window.x0) * view.channels;
    for (std::int64_t y = window.y0; y < window.y1; ++y) {
        std::copy_n(values + (y - window.y0) * row, row, view.at(y, window.x0));
    }
    written_[at(plane)].push_back(window);
    gone_before_ = std::max(gone_before_, program_.launches()[at(step)]);
}

RunReport Walk::close() {
    for (std::size_t i = cursor_; i < schedule_.steps.size(); ++i) {
        if (schedule_.steps[i].op != Op::external || !is_computed(i)) continue;
        done_[at(schedule_.steps[i].output)] = is_written(i);
    }
    // What was kept altogether has no step that delivers it.
    for (const OutputRequest& output : outputs_) {
        if (!done_[at(output.plane)]) deliver(output.plane);
    }
    RunReport report;
    report.plan = plan_;
    report.profile = std::move(rows_);
    for (std::size_t i = 0; i < done_.size(); ++i) {
        if (done_[i]) memory_.keep(*plan_, static_cast<int>(i));
    }
    report.kept_bytes = memory_.kept_bytes();
    report.peak_bytes = plan_->workspace_bytes + report.kept_bytes;
    abandon();
    return report;
}

void Walk::abandon() {
    plan_.reset();
    outputs_.clear();
    rows_.clear();
}

}  // namespace tracenet
