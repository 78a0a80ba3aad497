// The sizes of all planes at another input size.
#include <algorithm>
#include <string>

#include "runtime/limits.hpp"
#include "tracenet/error.hpp"
#include "tracenet/schedule.hpp"

namespace tracenet {

namespace {

class Resizer {
  public:
    Resizer(const Schedule& old, Schedule& fresh) : old_(old), fresh_(fresh) {}

    void run(Step& step) {
        const Attributes& a = step.attributes;
        const Plane &was = old_.planes[at(step.inputs[0])], &is = fresh_.planes[at(step.inputs[0])];
        const Plane& old_out = old_.planes[at(step.output)];
        Plane& out = fresh_.planes[at(step.output)];
        switch (step.op) {
            case Op::conv2d:
                out.height = slid(step, was.height, old_out.height, is.height, a.y);
                out.width = slid(step, was.width, old_out.width, is.width, a.x);
                return;
            case Op::max_pool2d:
            case Op::avg_pool2d:
                out.height = slid(step, was.height, old_out.height, is.height, a.pool.y);
                out.width = slid(step, was.width, old_out.width, is.width, a.pool.x);
                return;
            case Op::stem: {
                const std::int64_t height = slid(step, was.height, a.conv_height, is.height, a.y);
                const std::int64_t width = slid(step, was.width, a.conv_width, is.width, a.x);
                out.height = slid(step, a.conv_height, old_out.height, height, a.pool.y);
                out.width = slid(step, a.conv_width, old_out.width, width, a.pool.x);
                set(step, "conv_height", height);
                set(step, "conv_width", width);
                return;
            }
            case Op::resize:
                return resize(step, was, old_out, is, out);
            case Op::plane_mean:
                return;  // one cell of any plane
            case Op::add:
            case Op::mul:
            case Op::group_norm:
            case Op::take_channels:
            case Op::sigmoid:
            case Op::concat:
            case Op::convert:
                out.height = is.height;
                out.width = is.width;
                return;
            case Op::mask_head: {
                const std::int64_t factor = std::max<std::int64_t>(a.factor, 1);
                out.height = is.height * factor;
                out.width = is.width * factor;
                return;
            }
            case Op::external:
                break;
        }
        refuse(step, "runs outside the schedule");
    }

  private:
    static std::size_t at(int plane) { return static_cast<std::size_t>(plane); }

    [[noreturn]] static void refuse(const Step& step, const std::string& why) {
        throw RequestError("the size of step '" + step.name + "' (" + op_name(step.op) +
                           ") does not follow from the input's: it " + why +
                           "; lower the network at that size instead");
    }

    static std::int64_t symmetric(std::int64_t in, const AxisGeometry& g) {
        const std::int64_t room = in + 2 * g.padding - g.dilation * (g.kernel - 1) - 1;
        return room < 0 ? 0 : room / g.stride + 1;
    }

    static std::int64_t slid(const Step& step, std::int64_t old_in, std::int64_t old_out, std::int64_t in,
                             const AxisGeometry& g) {
        if (symmetric(old_in, g) != old_out) refuse(step, "is not padded alike on both sides");
        const std::int64_t out = symmetric(in, g);
        if (out < 1) refuse(step, "has nothing left of " + std::to_string(in) + " cells");
        return out;
    }

    // out / in of the old size, applied to the new one.
    static std::int64_t scaled(const Step& step, std::int64_t old_in, std::int64_t old_out, std::int64_t in) {
        if ((in * old_out) % old_in != 0) {
            refuse(step, "resizes " + std::to_string(old_in) + " to " + std::to_string(old_out) + ", which takes " +
                             std::to_string(in) + " to no whole number");
        }
        return in * old_out / old_in;
    }

    void resize(Step& step, const Plane& was, const Plane& old_out, const Plane& is, Plane& out) {
        const ResizeSpec& spec = step.attributes.resize;
        if (spec.mode == ResizeMode::aligned_bilinear) {
            out.height = is.height * spec.factor;
            out.width = is.width * spec.factor;
            return;
        }
        const bool corners = spec.mode == ResizeMode::bilinear_align_corners;
        const auto axis = [&](std::int64_t old_in, std::int64_t old_size, std::int64_t in, float ratio,
                              const char* name) {
            const std::int64_t size = scaled(step, old_in, old_size, in);
            if (corners) {
                const float fresh = size > 1 ? static_cast<float>(in - 1) / static_cast<float>(size - 1) : 0.0F;
                set_real(step, name, static_cast<double>(fresh));
            } else if (ratio != static_cast<float>(old_in) / static_cast<float>(old_size)) {
                refuse(step, "resizes to a size that its scale factor does not give exactly");
            }
            return size;
        };
        out.height = axis(was.height, old_out.height, is.height, spec.ratio_y, "ratio_y");
        out.width = axis(was.width, old_out.width, is.width, spec.ratio_x, "ratio_x");
    }

    static void set(Step& step, const char* name, std::int64_t value) {
        for (auto& [key, stored] : step.ints) {
            if (key == name) stored = value;
        }
    }

    static void set_real(Step& step, const char* name, double value) {
        for (auto& [key, stored] : step.floats) {
            if (key != name) continue;
            stored = value;
            return;
        }
        step.floats.emplace_back(name, value);
    }

    const Schedule& old_;
    Schedule& fresh_;
};

}  // namespace

Schedule schedule_at_size(const Schedule& schedule, std::int64_t height, std::int64_t width) {
    int image = -1;
    for (const int input : schedule.inputs) {
        if (schedule.planes[static_cast<std::size_t>(input)].is_flat()) continue;
        if (image >= 0) throw RequestError("the network has more than one image input; its sizes are not one number");
        image = input;
    }
    if (image < 0) throw RequestError("the network has no image input, so it has no size to change");
    if (height < 1 || width < 1 || height > kMaxSide || width > kMaxSide) {
        throw RequestError("the size is " + size_text(height, width) + "; sides lie in 1.." + std::to_string(kMaxSide));
    }
    Schedule fresh = schedule;
    fresh.planes[static_cast<std::size_t>(image)].height = height;
    fresh.planes[static_cast<std::size_t>(image)].width = width;
    Resizer resizer(schedule, fresh);
    for (Step& step : fresh.steps) {
        // What reads flat values alone keeps its size.
        const bool moved = std::any_of(step.inputs.begin(), step.inputs.end(), [&](int plane) {
            const Plane &a = schedule.planes[static_cast<std::size_t>(plane)],
                        &b = fresh.planes[static_cast<std::size_t>(plane)];
            return a.height != b.height || a.width != b.width;
        });
        if (moved) resizer.run(step);
    }
    try {
        check_schedule(fresh);
    } catch (const ScheduleError& error) {
        throw RequestError("the network does not fit an input of " + size_text(height, width) + ": " + error.what());
    }
    return fresh;
}

}  // namespace tracenet
