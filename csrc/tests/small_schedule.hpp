// A small schedule with most operations, and what may be done with bytes that claim to be one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tracenet/error.hpp"
#include "tracenet/runtime.hpp"

namespace tracenet::test {

using Ints = std::vector<std::pair<std::string, std::int64_t>>;

inline int add_plane(Schedule& schedule, const char* name, std::int64_t channels, std::int64_t height,
                     std::int64_t width, bool keep = false) {
    Plane plane;
    plane.name = name;
    plane.channels = channels;
    plane.height = height;
    plane.width = width;
    plane.keep = keep;
    schedule.planes.push_back(plane);
    return static_cast<int>(schedule.planes.size()) - 1;
}

inline int add_tensor(Schedule& schedule, const char* name, std::vector<std::int64_t> shape) {
    schedule.tensors.push_back({name, std::move(shape)});
    return static_cast<int>(schedule.tensors.size()) - 1;
}

inline Step& add_step(Schedule& schedule, Op op, std::vector<int> inputs, int output, Ints ints = {}) {
    Step step;
    step.op = op;
    step.name = schedule.planes[static_cast<std::size_t>(output)].name;
    step.inputs = std::move(inputs);
    step.output = output;
    step.ints = std::move(ints);
    step.nodes = {step.name};
    schedule.steps.push_back(std::move(step));
    return schedule.steps.back();
}

// image 3 x 24 x 32 -> 8 x 12 x 16 -> a residual block -> pooled, enlarged, joined -> sigmoid.
inline Schedule small_schedule() {
    Schedule s;
    const Ints three{{"kernel_y", 3}, {"kernel_x", 3}, {"pad_y", 1}, {"pad_x", 1}};
    const auto with = [](Ints base, const Ints& more) {
        base.insert(base.end(), more.begin(), more.end());
        return base;
    };
    const int image = add_plane(s, "image", 3, 24, 32);
    const int first = add_plane(s, "first", 8, 12, 16, true);
    const int inside = add_plane(s, "inside", 8, 12, 16);
    const int block = add_plane(s, "block", 8, 12, 16, true);
    const int other = add_plane(s, "other", 8, 12, 16);
    const int pooled = add_plane(s, "pooled", 8, 6, 8);
    const int enlarged = add_plane(s, "enlarged", 8, 12, 16);
    const int joined = add_plane(s, "joined", 16, 12, 16);
    const int logits = add_plane(s, "logits", 2, 12, 16);
    const int result = add_plane(s, "result", 2, 12, 16);
    const int w0 = add_tensor(s, "w0", {8, 3, 3, 3});
    const int w1 = add_tensor(s, "w1", {8, 8, 3, 3});
    const int w2 = add_tensor(s, "w2", {2, 16, 1, 1});
    const int bias = add_tensor(s, "bias", {8});
    s.inputs = {image};
    add_step(s, Op::conv2d, {image}, first, with(three, {{"stride_y", 2}, {"stride_x", 2}, {"activation", 1}}))
        .tensors = {{"weight", w0}, {"bias", bias}};
    Step& a = add_step(s, Op::conv2d, {first}, inside, with(three, {{"activation", 1}}));
    a.tensors = {{"weight", w1}};
    a.group = 1;
    Step& b = add_step(s, Op::conv2d, {first}, other, three);
    b.tensors = {{"weight", w1}, {"scale", bias}};
    b.group = 1;
    add_step(s, Op::conv2d, {inside, first}, block, with(three, {{"activation", 1}})).tensors = {{"weight", w1}};
    add_step(s, Op::max_pool2d, {block}, pooled, with(three, {{"stride_y", 2}, {"stride_x", 2}}));
    add_step(s, Op::resize, {pooled, other}, enlarged, {{"mode", 0}}).floats = {{"ratio_y", 0.5}, {"ratio_x", 0.5}};
    add_step(s, Op::concat, {enlarged, block}, joined);
    add_step(s, Op::conv2d, {joined}, logits).tensors = {{"weight", w2}};
    add_step(s, Op::sigmoid, {logits}, result);
    s.outputs = {{"result", result}, {"pooled", pooled}};
    check_schedule(s);
    return s;
}

// Values of all tensors, a fixed function of their position.
inline std::vector<std::vector<float>> tensor_values(const Schedule& schedule) {
    std::vector<std::vector<float>> values;
    std::uint32_t state = 1;
    for (const TensorShape& tensor : schedule.tensors) {
        std::vector<float> one(static_cast<std::size_t>(tensor.elements()));
        for (float& value : one) {
            state = state * 1664525U + 1013904223U;
            value = static_cast<float>(state >> 8) / 16777216.0F - 0.5F;
        }
        values.push_back(std::move(one));
    }
    return values;
}

inline std::shared_ptr<const Program> build(const Schedule& schedule) {
    const auto values = tensor_values(schedule);
    std::vector<const float*> pointers;
    for (const auto& one : values) pointers.push_back(one.data());
    return Program::build(schedule, pointers);
}

// Reads bytes that may be anything. What passes must write back as it was, may be asked for another size, and runs
// where it is small. Any error but a typed one leaves this function. Returns whether it was a schedule.
inline bool consume(const std::uint8_t* data, std::size_t size) {
    Schedule schedule;
    try {
        schedule = read_schedule(data, size);
    } catch (const ScheduleError&) {
        return false;
    }
    const std::vector<std::uint8_t> again = write_schedule(schedule);
    if (again != std::vector<std::uint8_t>(data, data + size)) throw std::logic_error("a schedule changed");
    for (const std::int64_t side : {1, 16, 33}) {
        try {
            schedule_at_size(schedule, side, side + 7);
        } catch (const RequestError&) {
        }
    }
    constexpr std::int64_t kSmall = 1 << 16;
    std::int64_t numbers = 0;
    for (const Plane& plane : schedule.planes) numbers = std::max(numbers, plane.channels * plane.height * plane.width);
    for (const TensorShape& tensor : schedule.tensors) numbers = std::max(numbers, tensor.elements());
    if (numbers > kSmall || schedule.outputs.empty()) return true;
    try {
        static const auto pool = std::make_shared<ThreadPool>(1);
        Session session(build(schedule), pool, {true, 1 << 20, true});
        const std::vector<float> image(static_cast<std::size_t>(kSmall), 0.25F);
        for (std::size_t i = 0; i < schedule.inputs.size(); ++i) {
            const Plane& plane = schedule.planes[static_cast<std::size_t>(schedule.inputs[i])];
            session.set_planar(static_cast<int>(i), image.data(), plane.whole(), plane.height * plane.width,
                               plane.width, nullptr);
        }
        for (const auto& [name, number] : schedule.outputs) {
            const Plane& plane = schedule.planes[static_cast<std::size_t>(number)];
            std::vector<float> values(static_cast<std::size_t>(plane.channels * plane.height * plane.width));
            const Window part{plane.height / 3, plane.height / 2 + 1, plane.width / 3, plane.width / 2 + 1};
            session.run({{number, part, values.data()}}, {}, false);
            session.run({{number, plane.whole(), values.data()}}, {}, false);
        }
    } catch (const RequestError&) {  // an external step
    } catch (const InputError&) {
    }
    return true;
}

}  // namespace tracenet::test
