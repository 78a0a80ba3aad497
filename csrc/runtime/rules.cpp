// Backward rules, in the arithmetic of the kernels: coordinates of resizes are float32.
#include "runtime/rules.hpp"

#include <algorithm>
#include <cmath>

#include "tracenet/error.hpp"

namespace tracenet {

namespace {

Window slide(const Window& window, const AxisGeometry& y, const AxisGeometry& x, std::int64_t height,
             std::int64_t width) {
    const Span rows = conv_demand({window.y0, window.y1}, y);
    const Span columns = conv_demand({window.x0, window.x1}, x);
    return clip({rows.begin, rows.end, columns.begin, columns.end}, height, width);
}

std::int64_t nearest_cell(std::int64_t i, float ratio, std::int64_t length) {
    return std::min(static_cast<std::int64_t>(std::floor(static_cast<float>(i) * ratio)), length - 1);
}

// The lower of the two cells between which output i lies.
std::int64_t lower_cell(std::int64_t i, float ratio, bool corners, std::int64_t length) {
    const auto at = static_cast<float>(i);
    const float source = corners ? at * ratio : (at + 0.5F) * ratio - 0.5F;
    return std::min(static_cast<std::int64_t>(std::floor(std::max(source, 0.0F))), length - 1);
}

Span resized(const Span& out, const ResizeSpec& spec, float ratio, std::int64_t in_length, std::int64_t out_length) {
    if (spec.mode == ResizeMode::nearest) {
        return {nearest_cell(out.begin, ratio, in_length), nearest_cell(out.end - 1, ratio, in_length) + 1};
    }
    if (in_length == out_length) return out;
    const bool corners = spec.mode == ResizeMode::bilinear_align_corners;
    const std::int64_t last = lower_cell(out.end - 1, ratio, corners, in_length);
    return {lower_cell(out.begin, ratio, corners, in_length), std::min(last + 1, in_length - 1) + 1};
}

// Output i lies at clamp((i - f / 2) / f, 0, n - 1); a tap of weight 0 is not read.
Span aligned(const Span& out, std::int64_t factor, std::int64_t length) {
    const auto numerator = [&](std::int64_t i) {
        return std::clamp<std::int64_t>(i - factor / 2, 0, (length - 1) * factor);
    };
    return {numerator(out.begin) / factor, ceil_div(numerator(out.end - 1), factor) + 1};
}

Window aligned(const Window& window, std::int64_t factor, const Plane& plane) {
    const Span rows = aligned(Span{window.y0, window.y1}, factor, plane.height);
    const Span columns = aligned(Span{window.x0, window.x1}, factor, plane.width);
    return {rows.begin, rows.end, columns.begin, columns.end};
}

}  // namespace

Window inner_window(const Schedule& schedule, const Step& step, const Window& window) {
    const Attributes& a = step.attributes;
    if (step.op == Op::stem) return slide(window, a.pool.y, a.pool.x, a.conv_height, a.conv_width);
    if (step.op == Op::mask_head && a.factor > 0) {
        return aligned(window, a.factor, schedule.planes[static_cast<std::size_t>(step.inputs[0])]);
    }
    return window;
}

Window demand(const Schedule& schedule, const Step& step, std::size_t position, const Window& inner) {
    if (inner.is_empty()) return {};
    const Attributes& a = step.attributes;
    const Plane& plane = schedule.planes[static_cast<std::size_t>(step.inputs[position])];
    const Plane& output = schedule.planes[static_cast<std::size_t>(step.output)];
    switch (step.op) {
        case Op::conv2d:
            if (position == 1) {
                const std::int64_t f = a.residual_factor;
                return {inner.y0 / f, (inner.y1 - 1) / f + 1, inner.x0 / f, (inner.x1 - 1) / f + 1};
            }
            return slide(inner, a.y, a.x, plane.height, plane.width);
        case Op::stem:
            return slide(inner, a.y, a.x, plane.height, plane.width);
        case Op::max_pool2d:
        case Op::avg_pool2d:
            return slide(inner, a.pool.y, a.pool.x, plane.height, plane.width);
        case Op::resize: {
            if (position == 1) return inner;
            if (a.resize.mode == ResizeMode::aligned_bilinear) return aligned(inner, a.resize.factor, plane);
            const Span rows = resized({inner.y0, inner.y1}, a.resize, a.resize.ratio_y, plane.height, output.height);
            const Span columns = resized({inner.x0, inner.x1}, a.resize, a.resize.ratio_x, plane.width, output.width);
            return {rows.begin, rows.end, columns.begin, columns.end};
        }
        case Op::mask_head:
            return position == 0 ? inner : plane.whole();
        case Op::plane_mean:
        case Op::group_norm:
            return plane.whole();
        case Op::mul:
            return plane.is_flat() ? plane.whole() : inner;
        case Op::add:
        case Op::take_channels:
        case Op::sigmoid:
        case Op::concat:
        case Op::convert:
            return inner;
        case Op::external:
            break;
    }
    throw RequestError("step '" + step.name +
                       "' runs outside the schedule, so its windows must come from outside; "
                       "begin the run with windows of all planes");
}

}  // namespace tracenet
