// The schedule as plain data: planes, the steps that compute them in order, and the shapes of the weights.
//
// The torch-free twin of tracenet/engine/schedule.py, which describes operations and attributes. Serialised form, all
// numbers little-endian, `str` = u32 length + UTF-8:
//
//     "TNSC" u32 version
//     u32 planes   { str name, i64 channels, i64 height, i64 width, u8 keep, u8 dtype, f64 scale, i64 zero_point }
//     u32 tensors  { str name, u8 axes, i64 length... }
//     u32 steps    { u8 op, str name, u32 inputs { u32 }, u32 output, u32 ints { str, i64 }, u32 floats { str, f64 },
//                    u32 tensors { str, u32 }, u32 group, u32 nodes { str } }
//     u32 inputs   { u32 }
//     u32 outputs  { str name, u32 plane }
//
// The tensors' values lie elsewhere. Everything read is checked; what a reader hands out is consistent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tracenet/conv.hpp"
#include "tracenet/conv_int8.hpp"
#include "tracenet/kernels.hpp"
#include "tracenet/window.hpp"

namespace tracenet {

inline constexpr std::uint32_t kScheduleVersion = 1;

// In the order of OPS in schedule.py.
enum class Op : std::uint8_t {
    conv2d,
    max_pool2d,
    avg_pool2d,
    stem,
    resize,
    add,
    sigmoid,
    concat,
    mask_head,
    external,
    convert,
    mul,
    plane_mean,
    take_channels,
    group_norm
};
inline constexpr int kOps = 15;
const char* op_name(Op op);

// In the order of DTYPES in schedule.py.
enum class Dtype : std::uint8_t { float32, uint8 };
inline constexpr int kDtypes = 2;

struct Plane {
    std::string name;
    std::int64_t channels = 0;
    std::int64_t height = 0;
    std::int64_t width = 0;
    bool keep = false;
    Dtype dtype = Dtype::float32;
    Quantisation quantisation;  // of a uint8 plane

    bool is_bytes() const { return dtype == Dtype::uint8; }
    std::int64_t element_bytes() const { return is_bytes() ? 1 : static_cast<std::int64_t>(sizeof(float)); }
    Window whole() const { return {0, height, 0, width}; }
    // One cell: flat values such as mask parameters.
    bool is_flat() const { return height == 1 && width == 1; }
};

struct TensorShape {
    std::string name;
    std::vector<std::int64_t> shape;

    std::int64_t elements() const;
};

// Attributes of every operation, decoded; those an operation does not have keep their defaults.
struct Attributes {
    AxisGeometry y;  // conv2d, pools, and the convolution of a stem
    AxisGeometry x;
    std::int64_t groups = 1;
    Activation activation = Activation::none;
    float a = 0.0F;  // of the activation
    float b = 0.0F;
    std::int64_t first = 0;  // take_channels
    double epsilon = 0.0;    // group_norm
    std::int64_t residual_factor = 1;
    PoolSpec pool;  // max_pool2d, avg_pool2d, and the pooling of a stem
    std::int64_t conv_height = 0;
    std::int64_t conv_width = 0;
    ResizeSpec resize;
    std::int64_t factor = 0;  // mask_head: upsampling, 0 none
    std::int64_t stride = 0;  // mask_head
    int weight = -1;          // positions in Schedule::tensors, -1: none
    int bias = -1;
    int scale = -1;
};

struct Step {
    Op op = Op::external;
    std::string name;
    std::vector<int> inputs;  // plane numbers
    int output = 0;
    std::vector<std::pair<std::string, std::int64_t>> ints;  // as stored
    std::vector<std::pair<std::string, double>> floats;
    std::vector<std::pair<std::string, int>> tensors;
    std::int64_t group = 0;
    std::vector<std::string> nodes;

    Attributes attributes;
};

struct Schedule {
    std::vector<Plane> planes;
    std::vector<TensorShape> tensors;
    std::vector<Step> steps;
    std::vector<int> inputs;
    std::vector<std::pair<std::string, int>> outputs;

    // Does a conv2d step read a uint8 plane? Then its weight is quantised when a program is built.
    bool is_int8(const Step& step) const;

    // The convolution of a conv2d or stem step.
    ConvSpec conv_spec(const Step& step) const;
};

// Throws ScheduleError where the bytes are truncated, foreign, of another version or inconsistent: unknown attributes,
// numbers out of range, steps that read what is not computed yet, channels, shapes and plane sizes that do not follow
// from the operation.
Schedule read_schedule(const std::uint8_t* data, std::size_t size);

std::vector<std::uint8_t> write_schedule(const Schedule& schedule);

// Decodes the attributes of every step and checks them and everything else. Throws ScheduleError.
void check_schedule(Schedule& schedule);

// The same network at another input size: every plane's size by the formula of its operation. Throws RequestError
// where a step's size does not follow from its inputs (external steps, padding that is not symmetric, resizes to a
// fixed size) or the schedule does not have exactly one input that is an image.
Schedule schedule_at_size(const Schedule& schedule, std::int64_t height, std::int64_t width);

}  // namespace tracenet
