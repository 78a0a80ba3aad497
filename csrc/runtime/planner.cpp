// Window evaluation and buffer placement; see planner.hpp.
#include "runtime/planner.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "cpu/views.hpp"
#include "runtime/pieces.hpp"
#include "runtime/rules.hpp"
#include "tracenet/buffer.hpp"
#include "tracenet/error.hpp"

namespace tracenet {

namespace {

constexpr std::int64_t kAlignment = 64;

std::size_t at(int number) { return static_cast<std::size_t>(number); }

Plan::Range append(Plan& plan, const Window* windows, std::size_t count) {
    const Plan::Range range{static_cast<std::uint32_t>(plan.store.size()), static_cast<std::uint32_t>(count)};
    plan.store.insert(plan.store.end(), windows, windows + count);
    return range;
}

void reset(Plan& plan, std::size_t planes, std::size_t steps) {
    plan.windows.assign(planes, Window{});
    plan.extents.assign(planes, Window{});
    plan.pieces.assign(planes, Plan::Range{});
    plan.apart.assign(planes, Plan::Range{});
    plan.store.clear();
    plan.store.reserve(2 * planes);
    plan.step_macs.assign(steps, 0);
    plan.macs = 0;
}

// Records what is computed of a plane.
void set_pieces(Plan& plan, int plane, const std::vector<Window>& pieces) {
    Window whole{};
    for (const Window& piece : pieces) whole = join(whole, piece);
    plan.extents[at(plane)] = whole;
    plan.pieces[at(plane)] = append(plan, pieces.data(), pieces.size());
    plan.apart[at(plane)] = plan.pieces[at(plane)];
    bool overlapping = false;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
        for (std::size_t j = i + 1; j < pieces.size(); ++j) {
            overlapping = overlapping || !intersect(pieces[i], pieces[j]).is_empty();
        }
    }
    if (!overlapping) return;
    std::vector<Window> apart = pieces;
    make_disjoint(apart);
    plan.apart[at(plane)] = append(plan, apart.data(), apart.size());
}

void inner_windows(const Schedule& schedule, const Step& step, const std::vector<Window>& pieces,
                   std::vector<Window>& inner) {
    inner.clear();
    for (const Window& piece : pieces) inner.push_back(inner_window(schedule, step, piece));
    const bool inside = step.op == Op::stem || (step.op == Op::mask_head && step.attributes.factor > 0);
    if (inside && inner.size() > 1) merge_windows(inner);
}

void count_macs(const Program& program, std::size_t step, const std::vector<Window>& inner, Plan& plan) {
    std::int64_t cells = 0;
    for (const Window& window : inner) cells += area(window);
    plan.step_macs[step] = cells * program.macs_per_cell(step);
    plan.macs += plan.step_macs[step];
}

// What has to be computed so that, with the kept windows, every demand is covered.
void missing(const Plane& plane, const Window& whole, const std::vector<Window>& demands,
             const std::vector<Window>& kept, std::vector<Window>& pieces) {
    pieces.clear();
    if (plane.is_flat()) {
        if (kept.empty()) pieces.push_back(whole);
        return;
    }
    for (const Window& window : demands) subtract_all(window, kept, pieces);
    merge_windows(pieces);
}

// Elementwise steps and convolutions may be written over an input of the same geometry that they read cell by cell.
bool may_overwrite(const Schedule& schedule, const Step& step, std::size_t position) {
    const Plane &input = schedule.planes[at(step.inputs[position])], &output = schedule.planes[at(step.output)];
    if (input.dtype != output.dtype || input.channels != output.channels) return false;
    if (step.op == Op::add) return true;
    if (step.op == Op::mul) return input.height == output.height && input.width == output.width;
    return step.op == Op::conv2d && position == 1 && step.attributes.residual_factor == 1 &&
           step.inputs[0] != step.inputs[1];
}

// Is the step the only one of its launch?
bool is_alone(const std::vector<int>& launches, std::size_t step) {
    return (step == 0 || launches[step - 1] != launches[step]) &&
           (step + 1 == launches.size() || launches[step + 1] != launches[step]);
}

struct Buffer {
    std::int64_t bytes = 0;
    int first = 0;
    int last = 0;
    int plane = 0;
    std::int64_t offset = 0;
};

// Largest first, each into the tightest gap between those that live at the same time.
std::int64_t pack(std::vector<Buffer>& buffers) {
    std::sort(buffers.begin(), buffers.end(), [](const Buffer& a, const Buffer& b) {
        return a.bytes != b.bytes ? a.bytes > b.bytes : a.plane < b.plane;
    });
    std::vector<const Buffer*> placed;  // by offset
    placed.reserve(buffers.size());
    std::int64_t total = 0;
    for (Buffer& buffer : buffers) {
        std::int64_t end = 0, best = -1, least = std::numeric_limits<std::int64_t>::max();
        for (const Buffer* other : placed) {
            if (other->last < buffer.first || buffer.last < other->first) continue;
            const std::int64_t gap = other->offset - end;
            if (gap >= buffer.bytes && gap < least) {
                least = gap;
                best = end;
            }
            end = std::max(end, other->offset + other->bytes);
        }
        buffer.offset = best >= 0 ? best : end;
        total = std::max(total, buffer.offset + buffer.bytes);
        placed.insert(std::upper_bound(placed.begin(), placed.end(), &buffer,
                                       [](const Buffer* a, const Buffer* b) { return a->offset < b->offset; }),
                      &buffer);
    }
    return total;
}

}  // namespace

const KeptWindows* known(const KeptWindows& kept) {
    const bool any = std::any_of(kept.begin(), kept.end(), [](const auto& list) { return !list.empty(); });
    return any ? &kept : nullptr;
}

void check_demand(const Program& program, const Demand& demand) {
    const std::vector<Plane>& planes = program.schedule().planes;
    if (demand.plane < 0 || at(demand.plane) >= planes.size()) {
        throw RequestError("plane " + std::to_string(demand.plane) + " is asked for; there are " +
                           std::to_string(planes.size()));
    }
    const Plane& asked = planes[at(demand.plane)];
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

void plan_request(const Program& program, const std::vector<Demand>& request, const KeptWindows* kept, Plan& plan) {
    const Schedule& schedule = program.schedule();
    reset(plan, schedule.planes.size(), schedule.steps.size());
    std::vector<std::vector<Window>> demands(kept == nullptr ? 0 : schedule.planes.size());
    const auto ask = [&](int plane, const Window& window) {
        if (window.is_empty()) return;
        plan.windows[at(plane)] = join(plan.windows[at(plane)], window);
        if (kept != nullptr) demands[at(plane)].push_back(window);
    };
    for (const Demand& one : request) ask(one.plane, one.window);
    std::vector<Window> pieces, inner;
    for (std::size_t i = schedule.steps.size(); i-- > 0;) {
        const Step& step = schedule.steps[i];
        const Window& window = plan.windows[at(step.output)];
        if (window.is_empty()) continue;
        if (kept == nullptr) {
            pieces.assign(1, window);
        } else {
            missing(schedule.planes[at(step.output)], window, demands[at(step.output)], (*kept)[at(step.output)],
                    pieces);
            if (pieces.empty()) continue;
        }
        set_pieces(plan, step.output, pieces);
        inner_windows(schedule, step, pieces, inner);
        count_macs(program, i, inner, plan);
        for (std::size_t position = 0; position < step.inputs.size(); ++position) {
            for (const Window& part : inner) ask(step.inputs[position], demand(schedule, step, position, part));
        }
    }
    for (const int plane : schedule.inputs) {
        const Window& window = plan.windows[at(plane)];
        if (window.is_empty()) continue;
        pieces.assign(1, window);
        if (kept != nullptr && !schedule.planes[at(plane)].is_flat()) {
            pieces = demands[at(plane)];
            merge_windows(pieces);
        }
        set_pieces(plan, plane, pieces);
    }
}

void plan_given(const Program& program, const std::vector<std::vector<Window>>& pieces, const KeptWindows* kept,
                Plan& plan) {
    const Schedule& schedule = program.schedule();
    if (pieces.size() != schedule.planes.size()) {
        throw RequestError("windows of " + std::to_string(pieces.size()) + " planes came, the schedule has " +
                           std::to_string(schedule.planes.size()));
    }
    reset(plan, schedule.planes.size(), schedule.steps.size());
    std::vector<std::vector<Window>> given = pieces;
    for (std::size_t plane = 0; plane < given.size(); ++plane) {
        auto& windows = given[plane];
        windows.erase(
            std::remove_if(windows.begin(), windows.end(), [](const Window& window) { return window.is_empty(); }),
            windows.end());
        const bool computed =
            program.producer(static_cast<int>(plane)) >= 0 || program.input_position(static_cast<int>(plane)) >= 0;
        for (const Window& window : windows) {
            if (!computed || window.y1 < window.y0 || window.x1 < window.x0 ||
                !contains(schedule.planes[plane].whole(), window)) {
                throw RequestError("a window given for plane '" + schedule.planes[plane].name +
                                   (computed ? "' does not lie on it" : "', which nothing computes"));
            }
        }
    }
    std::vector<std::vector<Window>> inner(schedule.steps.size());
    for (std::size_t i = 0; i < schedule.steps.size(); ++i) {
        const Step& step = schedule.steps[i];
        if (step.op == Op::external || given[at(step.output)].empty()) continue;
        inner_windows(schedule, step, given[at(step.output)], inner[i]);
        count_macs(program, i, inner[i], plan);
        for (std::size_t position = 0; position < step.inputs.size(); ++position) {
            const int plane = step.inputs[position];
            for (const Window& part : inner[i]) {
                const Window window = demand(schedule, step, position, part);
                if (window.is_empty()) continue;
                if (program.input_position(plane) >= 0) {
                    given[at(plane)].push_back(window);
                    continue;
                }
                std::vector<Window> rest;
                subtract_all(window, given[at(plane)], rest);
                if (kept != nullptr) {
                    std::vector<Window> still;
                    for (const Window& piece : rest) subtract_all(piece, (*kept)[at(plane)], still);
                    rest = std::move(still);
                }
                if (!rest.empty()) {
                    throw RequestError("step '" + step.name + "' reads cells of plane '" +
                                       schedule.planes[at(plane)].name +
                                       "' that are neither given a window nor kept; give them one");
                }
            }
        }
    }
    for (std::size_t plane = 0; plane < given.size(); ++plane) {
        if (given[plane].empty()) continue;
        if (program.input_position(static_cast<int>(plane)) >= 0) merge_windows(given[plane]);
        set_pieces(plan, static_cast<int>(plane), given[plane]);
        plan.windows[plane] = plan.extents[plane];
    }
}

void place_buffers(const Program& program, const std::vector<bool>& elsewhere, const std::vector<bool>& to_the_end,
                   Plan& plan) {
    const Schedule& schedule = program.schedule();
    const std::vector<int>& launches = program.launches();
    const std::size_t planes = schedule.planes.size();
    constexpr int kNever = std::numeric_limits<int>::max();
    std::vector<int> first(planes, kNever);
    plan.last_launch.assign(planes, -1);
    plan.offsets.assign(planes, -1);
    for (std::size_t i = 0; i < schedule.steps.size(); ++i) {
        const Step& step = schedule.steps[i];
        if (plan.pieces[at(step.output)].count == 0) continue;
        first[at(step.output)] = launches[i];
        plan.last_launch[at(step.output)] = launches[i];
        for (const int plane : step.inputs) {
            first[at(plane)] = std::min(first[at(plane)], launches[i]);  // when an input is loaded
            plan.last_launch[at(plane)] = launches[i];
        }
    }
    for (std::size_t plane = 0; plane < planes; ++plane) {
        if (!to_the_end[plane]) continue;
        plan.last_launch[plane] = kNever;
        if (program.input_position(static_cast<int>(plane)) >= 0) first[plane] = 0;
    }

    // Which plane's memory a plane uses: its own, or that of an input it is written over, which may cover more cells.
    std::vector<int> home(planes);
    for (std::size_t plane = 0; plane < planes; ++plane) home[plane] = static_cast<int>(plane);
    for (std::size_t i = 0; i < schedule.steps.size(); ++i) {
        const Step& step = schedule.steps[i];
        const std::size_t output = at(step.output);
        if (plan.pieces[output].count == 0 || elsewhere[output] || !is_alone(launches, i)) continue;
        for (std::size_t position = 0; position < step.inputs.size(); ++position) {
            const int input = step.inputs[position];
            if (!may_overwrite(schedule, step, position) || elsewhere[at(input)] || plan.pieces[at(input)].count == 0 ||
                plan.last_launch[at(input)] != launches[i]) {
                continue;
            }
            const Window &has = plan.extents[at(input)], &needs = plan.extents[output];
            if (!contains(has, needs) || 2 * area(has) > 3 * area(needs)) continue;
            home[output] = home[at(input)];
            plan.extents[output] = has;
            break;
        }
    }
    // Owners first, then the planes that lengthen an owner's life.
    std::vector<Buffer> buffers;
    std::vector<int> slot(planes, -1);
    for (std::size_t i = 0; i < planes; ++i) {
        if (plan.pieces[i].count == 0 || elsewhere[i] || at(home[i]) != i) continue;
        const std::int64_t cells = area(plan.extents[i]);
        const std::int64_t bytes = cells * schedule.planes[i].channels * schedule.planes[i].element_bytes();
        slot[i] = static_cast<int>(buffers.size());
        const int start = first[i] == kNever ? 0 : first[i];
        buffers.push_back({(bytes + kAlignment - 1) / kAlignment * kAlignment, start,
                           std::max(plan.last_launch[i], start), static_cast<int>(i), 0});
    }
    for (std::size_t i = 0; i < planes; ++i) {
        if (plan.pieces[i].count == 0 || elsewhere[i] || at(home[i]) == i) continue;
        Buffer& owner = buffers[at(slot[at(home[i])])];
        owner.last = std::max(owner.last, plan.last_launch[i]);
    }
    plan.workspace_bytes = pack(buffers);
    for (const Buffer& buffer : buffers) plan.offsets[at(buffer.plane)] = buffer.offset;
    for (std::size_t i = 0; i < planes; ++i) {
        if (plan.pieces[i].count > 0 && !elsewhere[i]) plan.offsets[i] = plan.offsets[at(home[i])];
    }
}

Planner::Planner(Schedule schedule, const std::vector<bool>& keep) : program_(Program::outline(std::move(schedule))) {
    const std::size_t planes = program_->schedule().planes.size();
    if (keep.size() != planes) {
        throw InputError("keep speaks of " + std::to_string(keep.size()) + " planes, the schedule has " +
                         std::to_string(planes));
    }
    for (std::size_t plane = 0; plane < planes; ++plane) {
        const int number = static_cast<int>(plane);
        keep_.push_back(keep[plane] && program_->producer(number) >= 0 && !program_->depends_on_flat(number));
    }
    kept_.resize(planes);
}

std::shared_ptr<const Plan> Planner::plan(const std::vector<Demand>& request) {
    const auto start = std::chrono::steady_clock::now();
    if (request.empty()) throw RequestError("the request is empty; ask for at least one window");
    for (const Demand& demand : request) check_demand(*program_, demand);
    auto plan = std::make_shared<Plan>();
    plan_request(*program_, request, known(kept_), *plan);
    plan->planning_us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
    planned_ = plan;
    return plan;
}

void Planner::commit() {
    if (planned_ == nullptr) throw RequestError("nothing is planned that could be kept; plan first");
    for (std::size_t plane = 0; plane < kept_.size(); ++plane) {
        const Plan::Range range = planned_->apart[plane];
        for (const Window* piece = planned_->begin(range); piece != planned_->end(range); ++piece) add(plane, *piece);
    }
    planned_ = nullptr;
}

void Planner::record(const Demand& computed) {
    check_demand(*program_, computed);
    add(at(computed.plane), computed.window);
}

void Planner::forget() {
    for (auto& windows : kept_) windows.clear();
    planned_ = nullptr;
}

void Planner::add(std::size_t plane, const Window& window) {
    if (keep_[plane]) add_disjoint(kept_[plane], window, kMaxKeptWindows);
}

}  // namespace tracenet
