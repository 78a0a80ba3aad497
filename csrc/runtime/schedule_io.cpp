// Schedules from and to bytes. The reader trusts nothing: every count is held against the bytes that are left before
// memory is taken for it.
#include <cstring>
#include <string>
#include <type_traits>

#include "tracenet/error.hpp"
#include "tracenet/schedule.hpp"

namespace tracenet {

namespace {

constexpr char kMagic[4] = {'T', 'N', 'S', 'C'};

// Names are printed and handed to Python, so they must be text. No overlong forms, surrogates or values past U+10FFFF.
bool is_utf8(const std::uint8_t* bytes, std::size_t size) {
    for (std::size_t i = 0; i < size;) {
        const std::uint8_t lead = bytes[i++];
        if (lead < 0x80) continue;
        const std::size_t more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
        if (lead < 0xC2 || lead > 0xF4 || more > size - i) return false;
        const std::uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
        const std::uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
        if (bytes[i] < low || bytes[i] > high) return false;
        for (std::size_t j = 1; j < more; ++j) {
            if (bytes[i + j] < 0x80 || bytes[i + j] > 0xBF) return false;
        }
        i += more;
    }
    return true;
}

class Reader {
  public:
    Reader(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    template <typename T>
    T number() {
        static_assert(std::is_integral_v<T>);
        const std::uint8_t* bytes = take(sizeof(T));
        std::make_unsigned_t<T> value = 0;
        for (std::size_t i = 0; i < sizeof(T); ++i) {
            value = static_cast<std::make_unsigned_t<T>>(value |
                                                         (static_cast<std::make_unsigned_t<T>>(bytes[i]) << (8 * i)));
        }
        return static_cast<T>(value);
    }

    double real() {
        const std::uint64_t bits = number<std::uint64_t>();
        double value = 0;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }

    std::string text() {
        const std::uint32_t length = number<std::uint32_t>();
        const std::uint8_t* bytes = take(length);
        if (!is_utf8(bytes, length)) {
            throw ScheduleError("a name that ends at byte " + std::to_string(at_) + " is not UTF-8");
        }
        return std::string(reinterpret_cast<const char*>(bytes), length);
    }

    // A number of items that take at least `least` bytes each.
    std::size_t count(std::size_t least) {
        const std::uint32_t items = number<std::uint32_t>();
        if (items > (size_ - at_) / least) fail("promises " + std::to_string(items) + " items");
        return items;
    }

    const std::uint8_t* take(std::size_t length) {
        if (length > size_ - at_) fail("asks for " + std::to_string(length) + " bytes");
        const std::uint8_t* bytes = data_ + at_;
        at_ += length;
        return bytes;
    }

    bool at_end() const { return at_ == size_; }
    std::size_t left() const { return size_ - at_; }

  private:
    [[noreturn]] void fail(const std::string& what) const {
        throw ScheduleError("the schedule is truncated: byte " + std::to_string(at_) + " of " + std::to_string(size_) +
                            " " + what + ", " + std::to_string(size_ - at_) + " bytes are left; write it again");
    }

    const std::uint8_t* data_;
    std::size_t size_;
    std::size_t at_ = 0;
};

int plane_number(std::uint32_t number, const Schedule& schedule, const char* who) {
    if (number >= schedule.planes.size()) {
        throw ScheduleError(std::string(who) + " names plane " + std::to_string(number) + "; there are " +
                            std::to_string(schedule.planes.size()));
    }
    return static_cast<int>(number);
}

Step read_step(Reader& reader, const Schedule& schedule) {
    Step step;
    const auto op = reader.number<std::uint8_t>();
    step.name = reader.text();
    if (op >= kOps) {
        throw ScheduleError("step '" + step.name + "' has operation number " + std::to_string(op) + "; there are " +
                            std::to_string(kOps));
    }
    step.op = static_cast<Op>(op);
    for (std::size_t i = reader.count(4); i > 0; --i) {
        step.inputs.push_back(plane_number(reader.number<std::uint32_t>(), schedule, "a step's input"));
    }
    step.output = plane_number(reader.number<std::uint32_t>(), schedule, "a step's output");
    for (std::size_t i = reader.count(12); i > 0; --i) {
        std::string key = reader.text();
        step.ints.emplace_back(std::move(key), reader.number<std::int64_t>());
    }
    for (std::size_t i = reader.count(12); i > 0; --i) {
        std::string key = reader.text();
        step.floats.emplace_back(std::move(key), reader.real());
    }
    for (std::size_t i = reader.count(8); i > 0; --i) {
        std::string key = reader.text();
        const auto tensor = reader.number<std::uint32_t>();
        if (tensor >= schedule.tensors.size()) {
            throw ScheduleError("step '" + step.name + "' names tensor " + std::to_string(tensor) + "; there are " +
                                std::to_string(schedule.tensors.size()));
        }
        step.tensors.emplace_back(std::move(key), static_cast<int>(tensor));
    }
    step.group = reader.number<std::uint32_t>();
    for (std::size_t i = reader.count(4); i > 0; --i) step.nodes.push_back(reader.text());
    return step;
}

class Writer {
  public:
    template <typename T>
    void number(T value) {
        const auto bits = static_cast<std::uint64_t>(value);
        for (std::size_t i = 0; i < sizeof(T); ++i) bytes_.push_back(static_cast<std::uint8_t>(bits >> (8 * i)));
    }

    void real(double value) {
        std::uint64_t bits = 0;
        std::memcpy(&bits, &value, sizeof bits);
        number(bits);
    }

    void count(std::size_t items) { number(static_cast<std::uint32_t>(items)); }

    void text(const std::string& value) {
        count(value.size());
        bytes_.insert(bytes_.end(), value.begin(), value.end());
    }

    std::vector<std::uint8_t> take() { return std::move(bytes_); }

  private:
    std::vector<std::uint8_t> bytes_;
};

}  // namespace

Schedule read_schedule(const std::uint8_t* data, std::size_t size) {
    Reader reader(data, size);
    if (size < 8 || std::memcmp(reader.take(4), kMagic, 4) != 0) {
        throw ScheduleError("these " + std::to_string(size) +
                            " bytes are no schedule: they do not start with TNSC; pass what schedule_to_bytes wrote");
    }
    const auto version = reader.number<std::uint32_t>();
    if (version != kScheduleVersion) {
        throw ScheduleError("the schedule has version " + std::to_string(version) + ", this build reads version " +
                            std::to_string(kScheduleVersion) + "; write it again with this version");
    }
    Schedule schedule;
    for (std::size_t i = reader.count(46); i > 0; --i) {
        Plane plane;
        plane.name = reader.text();
        plane.channels = reader.number<std::int64_t>();
        plane.height = reader.number<std::int64_t>();
        plane.width = reader.number<std::int64_t>();
        const auto keep = reader.number<std::uint8_t>();
        if (keep > 1) throw ScheduleError("plane '" + plane.name + "' has a keep flag of " + std::to_string(keep));
        plane.keep = keep == 1;
        const auto dtype = reader.number<std::uint8_t>();
        if (dtype >= kDtypes) {
            throw ScheduleError("plane '" + plane.name + "' has dtype number " + std::to_string(dtype) +
                                "; there are " + std::to_string(kDtypes));
        }
        plane.dtype = static_cast<Dtype>(dtype);
        const double scale = reader.real();
        plane.quantisation.scale = static_cast<float>(scale);
        if (static_cast<double>(plane.quantisation.scale) != scale) {
            throw ScheduleError("plane '" + plane.name + "' has scale " + std::to_string(scale) +
                                ", which is no fp32 number");
        }
        const auto zero_point = reader.number<std::int64_t>();
        if (zero_point < 0 || zero_point > 255) {
            throw ScheduleError("plane '" + plane.name + "' has zero point " + std::to_string(zero_point) +
                                "; zero points lie in 0..255");
        }
        plane.quantisation.zero_point = static_cast<std::int32_t>(zero_point);
        schedule.planes.push_back(std::move(plane));
    }
    for (std::size_t i = reader.count(5); i > 0; --i) {
        TensorShape tensor;
        tensor.name = reader.text();
        const auto axes = reader.number<std::uint8_t>();
        for (int axis = 0; axis < axes; ++axis) tensor.shape.push_back(reader.number<std::int64_t>());
        schedule.tensors.push_back(std::move(tensor));
    }
    for (std::size_t i = reader.count(33); i > 0; --i) schedule.steps.push_back(read_step(reader, schedule));
    for (std::size_t i = reader.count(4); i > 0; --i) {
        schedule.inputs.push_back(plane_number(reader.number<std::uint32_t>(), schedule, "an input"));
    }
    for (std::size_t i = reader.count(8); i > 0; --i) {
        std::string name = reader.text();
        schedule.outputs.emplace_back(std::move(name),
                                      plane_number(reader.number<std::uint32_t>(), schedule, "an output"));
    }
    if (!reader.at_end()) {
        throw ScheduleError("the schedule ends " + std::to_string(reader.left()) +
                            " bytes before the data does; pass exactly what schedule_to_bytes wrote");
    }
    check_schedule(schedule);
    return schedule;
}

std::vector<std::uint8_t> write_schedule(const Schedule& schedule) {
    Writer writer;
    for (const char letter : kMagic) writer.number(static_cast<std::uint8_t>(letter));
    writer.number(kScheduleVersion);
    writer.count(schedule.planes.size());
    for (const Plane& plane : schedule.planes) {
        writer.text(plane.name);
        writer.number(plane.channels);
        writer.number(plane.height);
        writer.number(plane.width);
        writer.number(static_cast<std::uint8_t>(plane.keep ? 1 : 0));
        writer.number(static_cast<std::uint8_t>(plane.dtype));
        writer.real(static_cast<double>(plane.quantisation.scale));
        writer.number(static_cast<std::int64_t>(plane.quantisation.zero_point));
    }
    writer.count(schedule.tensors.size());
    for (const TensorShape& tensor : schedule.tensors) {
        writer.text(tensor.name);
        writer.number(static_cast<std::uint8_t>(tensor.shape.size()));
        for (const std::int64_t length : tensor.shape) writer.number(length);
    }
    writer.count(schedule.steps.size());
    for (const Step& step : schedule.steps) {
        writer.number(static_cast<std::uint8_t>(step.op));
        writer.text(step.name);
        writer.count(step.inputs.size());
        for (const int plane : step.inputs) writer.number(static_cast<std::uint32_t>(plane));
        writer.number(static_cast<std::uint32_t>(step.output));
        writer.count(step.ints.size());
        for (const auto& [key, value] : step.ints) {
            writer.text(key);
            writer.number(value);
        }
        writer.count(step.floats.size());
        for (const auto& [key, value] : step.floats) {
            writer.text(key);
            writer.real(value);
        }
        writer.count(step.tensors.size());
        for (const auto& [key, tensor] : step.tensors) {
            writer.text(key);
            writer.number(static_cast<std::uint32_t>(tensor));
        }
        writer.number(static_cast<std::uint32_t>(step.group));
        writer.count(step.nodes.size());
        for (const std::string& node : step.nodes) writer.text(node);
    }
    writer.count(schedule.inputs.size());
    for (const int plane : schedule.inputs) writer.number(static_cast<std::uint32_t>(plane));
    writer.count(schedule.outputs.size());
    for (const auto& [name, plane] : schedule.outputs) {
        writer.text(name);
        writer.number(static_cast<std::uint32_t>(plane));
    }
    return writer.take();
}

}  // namespace tracenet
