// What makes a schedule consistent.
#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <set>
#include <string>

#include "runtime/limits.hpp"
#include "tracenet/conv_int8.hpp"
#include "tracenet/error.hpp"
#include "tracenet/schedule.hpp"

namespace tracenet {

namespace {

class StepChecker {
  public:
    StepChecker(const Schedule& schedule, Step& step) : schedule_(schedule), step_(step) {}

    void run() {
        step_.attributes = Attributes{};
        dtypes();
        switch (step_.op) {
            case Op::conv2d:
                return conv2d();
            case Op::max_pool2d:
                return pool(false);
            case Op::avg_pool2d:
                return pool(true);
            case Op::stem:
                return stem();
            case Op::resize:
                return resize();
            case Op::add:
                return add();
            case Op::sigmoid:
                inputs(1, 1);
                allow_ints({});
                same_plane(input(0), output());
                return;
            case Op::concat:
                return concat();
            case Op::mask_head:
                return mask_head();
            case Op::convert:
                inputs(1, 1);
                allow_ints({});
                same_plane(input(0), output());
                return;
            case Op::mul:
                return mul();
            case Op::plane_mean:
                return plane_mean();
            case Op::take_channels:
                return take_channels();
            case Op::group_norm:
                return group_norm();
            case Op::external:
                return;
        }
    }

  private:
    [[noreturn]] void fail(const std::string& what) const {
        throw ScheduleError("step '" + step_.name + "' (" + op_name(step_.op) + ") " + what);
    }

    const Plane& input(std::size_t i) const { return schedule_.planes[static_cast<std::size_t>(step_.inputs[i])]; }
    const Plane& output() const { return schedule_.planes[static_cast<std::size_t>(step_.output)]; }

    // Only convolutions of a uint8 plane and conversions read or give bytes.
    void dtypes() const {
        if (step_.op == Op::convert || schedule_.is_int8(step_)) return;
        bool bytes = output().is_bytes();
        for (std::size_t i = 0; i < step_.inputs.size(); ++i) bytes = bytes || input(i).is_bytes();
        if (bytes) fail("reads or gives a uint8 plane; only conversions and convolutions of a uint8 plane do");
    }

    void inputs(std::size_t least, std::size_t most) const {
        if (step_.inputs.size() < least || step_.inputs.size() > most) {
            fail("reads " + std::to_string(step_.inputs.size()) + " planes; it takes " + std::to_string(least) +
                 (most > least ? " to " + std::to_string(most) : std::string()));
        }
    }

    template <typename Pairs>
    void allow(const Pairs& pairs, std::initializer_list<const char*> allowed) const {
        std::set<std::string> seen;
        for (const auto& pair : pairs) {
            if (std::none_of(allowed.begin(), allowed.end(), [&](const char* name) { return pair.first == name; })) {
                fail("has an attribute '" + pair.first + "' that the operation does not know");
            }
            if (!seen.insert(pair.first).second) fail("has the attribute '" + pair.first + "' twice");
        }
    }

    // Integer attributes; everything but a resize has no other, and only convolutions have tensors.
    void allow_ints(std::initializer_list<const char*> names) const {
        allow(step_.ints, names);
        const bool activated = step_.op == Op::conv2d || step_.op == Op::add || step_.op == Op::mul;
        if (activated) {
            allow(step_.floats, {"a", "b"});
        } else if (step_.op == Op::group_norm) {
            allow(step_.floats, {"a", "b", "epsilon"});
        } else if (step_.op != Op::resize) {
            allow(step_.floats, {});
        }
        const bool weighted = step_.op == Op::conv2d || step_.op == Op::stem || step_.op == Op::group_norm;
        if (!weighted) allow(step_.tensors, {});
    }

    std::int64_t integer(const std::string& name, std::int64_t absent, std::int64_t least, std::int64_t most) const {
        for (const auto& [key, value] : step_.ints) {
            if (key != name) continue;
            if (value < least || value > most) {
                fail("has " + name + " " + std::to_string(value) + "; it lies in " + std::to_string(least) + ".." +
                     std::to_string(most));
            }
            return value;
        }
        return absent < least ? (fail("lacks the attribute '" + name + "'"), 0) : absent;
    }

    AxisGeometry axis(const std::string& prefix, char letter) const {
        const std::string end = std::string("_") + letter;
        AxisGeometry geometry;
        geometry.kernel = integer(prefix + "kernel" + end, 1, 1, kMaxAttribute);
        geometry.stride = integer(prefix + "stride" + end, 1, 1, kMaxAttribute);
        geometry.padding = integer(prefix + "pad" + end, 0, 0, kMaxAttribute);
        geometry.dilation = integer(prefix + "dilation" + end, 1, 1, kMaxAttribute);
        return geometry;
    }

    int tensor(const char* name) const {
        for (const auto& [key, number] : step_.tensors) {
            if (key == name) return number;
        }
        return -1;
    }

    const std::vector<std::int64_t>& shape(int tensor) const {
        return schedule_.tensors[static_cast<std::size_t>(tensor)].shape;
    }

    void per_channel(int tensor, const char* what, std::int64_t channels) const {
        if (tensor >= 0 && shape(tensor) != std::vector<std::int64_t>{channels}) {
            fail("has a " + std::string(what) + " that is not one number for each of " + std::to_string(channels) +
                 " channels");
        }
    }

    void same_plane(const Plane& a, const Plane& b) const {
        if (a.channels != b.channels || a.height != b.height || a.width != b.width) {
            fail("joins '" + a.name + "' of " + std::to_string(a.channels) + " x " + size_text(a.height, a.width) +
                 " with '" + b.name + "' of " + std::to_string(b.channels) + " x " + size_text(b.height, b.width) +
                 "; they must agree");
        }
    }

    // The sizes a sliding window can give. A convolution may be padded after its last cell by anything up to its reach
    // or as much as before its first ('same' padding); a pooling may end inside a stride (ceil_mode).
    void follows(std::int64_t in, std::int64_t out, const AxisGeometry& g, bool pooling, const char* side) const {
        const std::int64_t reach = g.dilation * (g.kernel - 1) + 1;
        const auto outputs = [&](std::int64_t room) { return room < reach ? 0 : (room - reach) / g.stride + 1; };
        const std::int64_t lowest = outputs(in + (pooling ? 2 : 1) * g.padding);
        const std::int64_t highest =
            outputs(in + (pooling ? 2 * g.padding + g.stride - 1 : g.padding + std::max(g.padding, reach)));
        if (out < lowest || out > highest) {
            fail("gives a " + std::string(side) + " of " + std::to_string(out) + " from " + std::to_string(in) +
                 "; its window allows " + std::to_string(lowest) + ".." + std::to_string(highest));
        }
    }

    void convolution(std::int64_t in_channels, std::int64_t out_channels) {
        Attributes& a = step_.attributes;
        a.y = axis("", 'y');
        a.x = axis("", 'x');
        a.groups = integer("groups", 1, 1, kMaxAttribute);
        activation();
        allow(step_.tensors, {"weight", "bias", "scale"});
        a.weight = tensor("weight");
        a.bias = tensor("bias");
        a.scale = tensor("scale");
        if (a.weight < 0) fail("has no weight");
        if (in_channels % a.groups != 0 || out_channels % a.groups != 0) {
            fail("splits " + std::to_string(in_channels) + " channels to " + std::to_string(out_channels) + " in " +
                 std::to_string(a.groups) + " groups; both must divide");
        }
        const std::vector<std::int64_t> wanted{out_channels, in_channels / a.groups, a.y.kernel, a.x.kernel};
        if (shape(a.weight) != wanted) {
            fail("has a weight '" + schedule_.tensors[static_cast<std::size_t>(a.weight)].name +
                 "' of another shape than its channels, groups and kernel give");
        }
        if (schedule_.tensors[static_cast<std::size_t>(a.weight)].elements() >
            kMaxStepMacs / (output().height * output().width)) {
            fail("costs more than 2^48 multiply-adds");
        }
        if (schedule_.is_int8(step_)) {
            if (a.activation != Activation::none && a.activation != Activation::relu) {
                fail("has an activation other than ReLU; in 8 bits there is no other, let it read a float32 plane");
            }
            const std::int64_t terms = schedule_.tensors[static_cast<std::size_t>(a.weight)].elements() / out_channels;
            if (terms > kMaxInt8Terms) {
                fail("has sums of " + std::to_string(terms) + " terms; in 8 bits at most " +
                     std::to_string(kMaxInt8Terms) + " are allowed, let it read a float32 plane");
            }
        }
        per_channel(a.bias, "bias", out_channels);
        per_channel(a.scale, "scale", out_channels);
    }

    void conv2d() {
        inputs(1, 2);
        allow_ints({"kernel_y", "kernel_x", "stride_y", "stride_x", "pad_y", "pad_x", "dilation_y", "dilation_x",
                    "groups", "activation", "residual_factor"});
        convolution(input(0).channels, output().channels);
        Attributes& a = step_.attributes;
        follows(input(0).height, output().height, a.y, false, "height");
        follows(input(0).width, output().width, a.x, false, "width");
        a.residual_factor = integer("residual_factor", 1, 1, kMaxAttribute);
        if (step_.inputs.size() < 2) return;
        const Plane& residual = input(1);
        if (residual.channels != output().channels || residual.height * a.residual_factor != output().height ||
            residual.width * a.residual_factor != output().width) {
            fail("adds '" + residual.name + "' of " + std::to_string(residual.channels) + " x " +
                 size_text(residual.height, residual.width) + ", enlarged " + std::to_string(a.residual_factor) +
                 " times, to " + std::to_string(output().channels) + " x " +
                 size_text(output().height, output().width));
        }
    }

    void half_kernel(const AxisGeometry& g) const {
        if (2 * g.padding > g.dilation * (g.kernel - 1) + 1) {
            fail("pools with padding " + std::to_string(g.padding) + " over a kernel of " + std::to_string(g.kernel) +
                 "; at most half of it may be padding");
        }
    }

    void pool(bool average) {
        inputs(1, 1);
        if (average) {
            allow_ints({"kernel_y", "kernel_x", "stride_y", "stride_x", "pad_y", "pad_x", "dilation_y", "dilation_x",
                        "count_include_pad", "divisor"});
        } else {
            allow_ints({"kernel_y", "kernel_x", "stride_y", "stride_x", "pad_y", "pad_x", "dilation_y", "dilation_x"});
        }
        PoolSpec& pool = step_.attributes.pool;
        pool.y = axis("", 'y');
        pool.x = axis("", 'x');
        half_kernel(pool.y);
        half_kernel(pool.x);
        if (average) {
            if (pool.y.dilation != 1 || pool.x.dilation != 1) fail("is dilated; average pooling cannot be");
            pool.count_include_pad = integer("count_include_pad", 0, 0, 1) == 1;
            pool.divisor = integer("divisor", 0, 0, kMaxCells);
        }
        if (input(0).channels != output().channels) fail("changes the number of channels");
        follows(input(0).height, output().height, pool.y, true, "height");
        follows(input(0).width, output().width, pool.x, true, "width");
    }

    void stem() {
        inputs(1, 1);
        allow_ints({"kernel_y",      "kernel_x",        "stride_y",        "stride_x",      "pad_y",
                    "pad_x",         "dilation_y",      "dilation_x",      "groups",        "activation",
                    "pool_kernel_y", "pool_kernel_x",   "pool_stride_y",   "pool_stride_x", "pool_pad_y",
                    "pool_pad_x",    "pool_dilation_y", "pool_dilation_x", "conv_height",   "conv_width"});
        convolution(input(0).channels, output().channels);
        Attributes& a = step_.attributes;
        if (a.activation != Activation::relu) fail("has no ReLU; a stem is convolution, ReLU and pooling");
        if (a.scale >= 0) fail("has a scale; fold it into the weight");
        a.pool.y = axis("pool_", 'y');
        a.pool.x = axis("pool_", 'x');
        half_kernel(a.pool.y);
        half_kernel(a.pool.x);
        a.conv_height = integer("conv_height", 0, 1, kMaxSide);
        a.conv_width = integer("conv_width", 0, 1, kMaxSide);
        if (a.conv_height * a.conv_width > kMaxCells / output().channels ||
            schedule_.tensors[static_cast<std::size_t>(a.weight)].elements() >
                kMaxStepMacs / (a.conv_height * a.conv_width)) {
            fail("costs more than 2^48 multiply-adds");
        }
        follows(input(0).height, a.conv_height, a.y, false, "height of its convolution");
        follows(input(0).width, a.conv_width, a.x, false, "width of its convolution");
        follows(a.conv_height, output().height, a.pool.y, true, "height");
        follows(a.conv_width, output().width, a.pool.x, true, "width");
    }

    float ratio(const char* name) const {
        double value = 1.0;
        for (const auto& [key, given] : step_.floats) {
            if (key == name) value = given;
        }
        const auto narrow = static_cast<float>(value);
        if (!std::isfinite(value) || value < 0 || !std::isfinite(narrow)) fail("has a ratio that is no number >= 0");
        return narrow;
    }

    // Input cells per output cell, up to the rounding of a size that is not an exact multiple.
    void ratio_fits(std::int64_t in, std::int64_t out, float ratio, bool corners, const char* side) const {
        const auto n = static_cast<double>(corners ? in - 1 : in), m = static_cast<double>(corners ? out - 1 : out);
        const double slack = 1e-3 * n + 1e-6;
        const double reached = static_cast<double>(ratio) * m;
        const bool fits = corners ? std::abs(reached - n) <= slack || out == 1
                                  : reached <= n + slack && reached >= n - slack - static_cast<double>(ratio);
        if (!fits) {
            fail("resizes a " + std::string(side) + " of " + std::to_string(in) + " to " + std::to_string(out) +
                 " with a ratio of " + std::to_string(ratio) + ", which do not belong together");
        }
    }

    void resize() {
        inputs(1, 2);
        allow_ints({"mode", "factor"});
        allow(step_.floats, {"ratio_y", "ratio_x"});
        ResizeSpec& spec = step_.attributes.resize;
        spec.mode = static_cast<ResizeMode>(integer("mode", 0, 0, 3));
        spec.factor = integer("factor", 1, 1, kMaxAttribute);
        spec.ratio_y = ratio("ratio_y");
        spec.ratio_x = ratio("ratio_x");
        const Plane& in = input(0);
        if (in.channels != output().channels) fail("changes the number of channels");
        if (step_.inputs.size() == 2) same_plane(input(1), output());
        if (spec.mode == ResizeMode::aligned_bilinear) {
            enlarged(in, spec.factor);
        } else {
            const bool corners = spec.mode == ResizeMode::bilinear_align_corners;
            ratio_fits(in.height, output().height, spec.ratio_y, corners, "height");
            ratio_fits(in.width, output().width, spec.ratio_x, corners, "width");
        }
    }

    void enlarged(const Plane& in, std::int64_t factor) const {
        if (in.height * factor != output().height || in.width * factor != output().width) {
            fail("enlarges " + size_text(in.height, in.width) + " " + std::to_string(factor) + " times to " +
                 size_text(output().height, output().width));
        }
    }

    void add() {
        inputs(1, 2);
        allow_ints({"activation"});
        activation();
        for (std::size_t i = 0; i < step_.inputs.size(); ++i) same_plane(input(i), output());
    }

    void mul() {
        inputs(2, 2);
        allow_ints({"activation"});
        activation();
        same_plane(input(0), output());
        if (!input(1).is_flat() || input(1).channels != output().channels) same_plane(input(1), output());
    }

    void plane_mean() const {
        inputs(1, 1);
        allow_ints({});
        if (!output().is_flat() || output().channels != input(0).channels) {
            fail("gives " + std::to_string(output().channels) + " x " + size_text(output().height, output().width) +
                 " from " + std::to_string(input(0).channels) + " channels; it gives one cell of as many");
        }
    }

    void take_channels() {
        inputs(1, 1);
        allow_ints({"first"});
        const std::int64_t room = input(0).channels - output().channels;
        if (room < 0 || input(0).height != output().height || input(0).width != output().width) {
            fail("takes " + std::to_string(output().channels) + " channels of " + std::to_string(input(0).channels) +
                 " or changes the size of the plane");
        }
        step_.attributes.first = integer("first", 0, 0, room);
    }

    void group_norm() {
        inputs(1, 1);
        allow_ints({"groups", "activation"});
        allow(step_.tensors, {"bias", "scale"});
        same_plane(input(0), output());
        activation();
        Attributes& a = step_.attributes;
        a.groups = integer("groups", 1, 1, kMaxAttribute);
        if (output().channels % a.groups != 0) {
            fail("splits " + std::to_string(output().channels) + " channels in " + std::to_string(a.groups) +
                 " groups; they must divide");
        }
        a.bias = tensor("bias");
        a.scale = tensor("scale");
        per_channel(a.bias, "bias", output().channels);
        per_channel(a.scale, "scale", output().channels);
        for (const auto& [key, value] : step_.floats) {
            if (key != "epsilon") continue;
            if (!std::isfinite(value) || value < 0) fail("has an epsilon that is no number >= 0");
            a.epsilon = value;
        }
    }

    // Kind and numbers of what follows a sum or product.
    void activation() {
        Attributes& at = step_.attributes;
        at.activation = static_cast<Activation>(integer("activation", 0, 0, kActivations - 1));
        for (const auto& [key, value] : step_.floats) {
            if (key != "a" && key != "b") continue;
            if (std::isnan(value)) fail("has an activation with NaN");
            (key == "a" ? at.a : at.b) = static_cast<float>(value);
        }
    }

    void concat() {
        inputs(1, schedule_.planes.size());
        allow_ints({});
        std::int64_t channels = 0;
        for (std::size_t i = 0; i < step_.inputs.size(); ++i) {
            channels += input(i).channels;
            if (input(i).height != output().height || input(i).width != output().width) {
                fail("joins planes of different sizes");
            }
        }
        if (channels != output().channels) {
            fail("joins " + std::to_string(channels) + " channels to a plane of " + std::to_string(output().channels));
        }
    }

    void mask_head() {
        inputs(4, 4);
        allow_ints({"stride", "factor"});
        step_.attributes.stride = integer("stride", 0, 1, kMaxAttribute);
        step_.attributes.factor = integer("factor", 0, 0, kMaxAttribute);
        const std::int64_t wanted[4] = {8, 169, 2, 1};
        for (std::size_t i = 0; i < 4; ++i) {
            if (input(i).channels != wanted[i] || (i > 0 && !input(i).is_flat())) {
                fail("reads '" + input(i).name + "' of " + std::to_string(input(i).channels) + " x " +
                     size_text(input(i).height, input(i).width) + "; input " + std::to_string(i) + " has " +
                     std::to_string(wanted[i]) + " channels" + (i > 0 ? " on one cell" : ""));
            }
        }
        if (output().channels != 1) fail("gives more than one channel");
        enlarged(input(0), std::max<std::int64_t>(step_.attributes.factor, 1));
    }

    const Schedule& schedule_;
    Step& step_;
};

void check_planes(const Schedule& schedule) {
    std::set<std::string> names;
    for (const Plane& plane : schedule.planes) {
        const bool sane = plane.channels >= 1 && plane.channels <= kMaxSide && plane.height >= 1 &&
                          plane.height <= kMaxSide && plane.width >= 1 && plane.width <= kMaxSide &&
                          plane.height * plane.width <= kMaxCells / plane.channels;
        if (!sane) {
            throw ScheduleError("plane '" + plane.name + "' has " + std::to_string(plane.channels) + " channels of " +
                                size_text(plane.height, plane.width) + "; sides lie in 1.." + std::to_string(kMaxSide) +
                                ", and there are at most 2^36 numbers");
        }
        const float scale = plane.quantisation.scale;
        const std::int32_t zero = plane.quantisation.zero_point;
        const bool grid = std::isfinite(scale) && scale > 0 && std::isfinite(1 / scale) && zero >= 0 && zero <= 255;
        if (plane.is_bytes() && !grid) {
            throw ScheduleError("plane '" + plane.name + "' is uint8 with scale " + std::to_string(scale) +
                                " and zero point " + std::to_string(zero) +
                                "; scales are above 0 and finite, zero points 0..255");
        }
        if (!names.insert(plane.name).second) throw ScheduleError("two planes are called '" + plane.name + "'");
    }
    names.clear();
    for (const TensorShape& tensor : schedule.tensors) {
        std::int64_t elements = 1;
        for (const std::int64_t length : tensor.shape) {
            if (length < 1 || length > kMaxCells / elements) {
                throw ScheduleError("tensor '" + tensor.name + "' has a side of " + std::to_string(length) +
                                    "; sides are at least 1, and there are at most 2^36 numbers");
            }
            elements *= length;
        }
        if (!names.insert(tensor.name).second) throw ScheduleError("two tensors are called '" + tensor.name + "'");
    }
}

// Every plane is written once, by an input or a step, before it is read.
void check_order(const Schedule& schedule) {
    std::vector<bool> ready(schedule.planes.size(), false);
    const auto check_number = [&](int plane) {
        if (plane < 0 || static_cast<std::size_t>(plane) >= ready.size()) {
            throw ScheduleError("plane " + std::to_string(plane) + " is named; there are " +
                                std::to_string(ready.size()));
        }
    };
    const auto write = [&](int plane, const std::string& who) {
        check_number(plane);
        if (ready[static_cast<std::size_t>(plane)]) {
            throw ScheduleError(who + " writes plane '" + schedule.planes[static_cast<std::size_t>(plane)].name +
                                "' a second time");
        }
        ready[static_cast<std::size_t>(plane)] = true;
    };
    for (const int plane : schedule.inputs) {
        write(plane, "an input");
        if (schedule.planes[static_cast<std::size_t>(plane)].is_bytes()) {
            throw ScheduleError("the input '" + schedule.planes[static_cast<std::size_t>(plane)].name +
                                "' is uint8; what goes into a network is float32");
        }
    }
    for (const Step& step : schedule.steps) {
        for (const int plane : step.inputs) {
            check_number(plane);
            if (!ready[static_cast<std::size_t>(plane)]) {
                throw ScheduleError("step '" + step.name + "' reads plane '" +
                                    schedule.planes[static_cast<std::size_t>(plane)].name +
                                    "', which is not computed yet");
            }
        }
        write(step.output, "step '" + step.name + "'");
    }
    std::set<std::string> names;
    for (const auto& [name, plane] : schedule.outputs) {
        check_number(plane);
        if (!ready[static_cast<std::size_t>(plane)]) throw ScheduleError("output '" + name + "' is never computed");
        if (!names.insert(name).second) throw ScheduleError("two outputs are called '" + name + "'");
    }
}

bool same_axis(const AxisGeometry& a, const AxisGeometry& b) {
    return a.kernel == b.kernel && a.stride == b.stride && a.padding == b.padding && a.dilation == b.dilation;
}

// Neighbours of one group are one launch: one weight, one geometry, and none reads what another writes.
void check_groups(const Schedule& schedule) {
    for (std::size_t first = 0; first < schedule.steps.size();) {
        const Step& head = schedule.steps[first];
        std::size_t last = first + 1;
        if (head.group != 0) {
            while (last < schedule.steps.size() && schedule.steps[last].group == head.group) ++last;
        }
        for (std::size_t i = first + 1; i < last; ++i) {
            const Step& step = schedule.steps[i];
            const Attributes &a = head.attributes, &b = step.attributes;
            if (head.op != Op::conv2d || step.op != Op::conv2d || a.weight != b.weight || a.groups != b.groups ||
                schedule.is_int8(head) != schedule.is_int8(step) || !same_axis(a.y, b.y) || !same_axis(a.x, b.x)) {
                throw ScheduleError("step '" + step.name + "' is in one group with '" + head.name +
                                    "' but is not the same convolution");
            }
            for (std::size_t j = first; j < i; ++j) {
                const int written = schedule.steps[j].output;
                if (std::find(step.inputs.begin(), step.inputs.end(), written) != step.inputs.end()) {
                    throw ScheduleError("step '" + step.name + "' reads what '" + schedule.steps[j].name +
                                        "' of its own group computes");
                }
            }
        }
        first = last;
    }
}

}  // namespace

const char* op_name(Op op) {
    constexpr const char* kNames[kOps] = {"conv2d",  "max_pool2d", "avg_pool2d", "stem",          "resize",
                                          "add",     "sigmoid",    "concat",     "mask_head",     "external",
                                          "convert", "mul",        "plane_mean", "take_channels", "group_norm"};
    return kNames[static_cast<int>(op)];
}

std::int64_t TensorShape::elements() const {
    std::int64_t product = 1;
    for (const std::int64_t length : shape) product *= length;
    return product;
}

bool Schedule::is_int8(const Step& step) const {
    return step.op == Op::conv2d && planes[static_cast<std::size_t>(step.inputs[0])].is_bytes();
}

ConvSpec Schedule::conv_spec(const Step& step) const {
    ConvSpec spec;
    spec.in_channels = planes[static_cast<std::size_t>(step.inputs[0])].channels;
    spec.out_channels = planes[static_cast<std::size_t>(step.output)].channels;
    spec.groups = step.attributes.groups;
    spec.y = step.attributes.y;
    spec.x = step.attributes.x;
    return spec;
}

void check_schedule(Schedule& schedule) {
    if (schedule.steps.size() > kMaxSteps) {
        throw ScheduleError("the schedule has " + std::to_string(schedule.steps.size()) + " steps; at most " +
                            std::to_string(kMaxSteps) + " are allowed");
    }
    check_planes(schedule);
    check_order(schedule);
    for (Step& step : schedule.steps) {
        if (step.inputs.empty() && step.op != Op::external) {
            throw ScheduleError("step '" + step.name + "' (" + op_name(step.op) + ") reads nothing");
        }
        StepChecker(schedule, step).run();
    }
    check_groups(schedule);
}

}  // namespace tracenet
