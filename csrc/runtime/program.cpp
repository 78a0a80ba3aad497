// Programs: weights packed once, files that are mapped, other input sizes.
#include <algorithm>
#include <cstring>
#include <map>
#include <new>
#include <tuple>
#include <utility>

#include "runtime/memory.hpp"
#include "tracenet/error.hpp"
#include "tracenet/runtime.hpp"

namespace tracenet {

namespace {

constexpr char kMagic[8] = {'T', 'N', 'P', 'R', 'O', 'G', 'R', 'M'};
constexpr std::size_t kAlignment = 64;
constexpr std::size_t kIsaName = 16;
constexpr std::size_t kHead = sizeof kMagic + 2 * sizeof(std::uint32_t) + kIsaName + 3 * sizeof(std::uint64_t);
// Bytes tell the order of this machine's floats; a file is used as it lies.
constexpr std::uint32_t kOrderMark = 0x01020304;

std::size_t round_up(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// FNV-1a.
std::uint64_t checksum(const std::uint8_t* data, std::size_t size) {
    std::uint64_t hash = 14695981039346656037ULL;
    for (std::size_t i = 0; i < size; ++i) hash = (hash ^ data[i]) * 1099511628211ULL;
    return hash;
}

template <typename T>
void put(std::vector<std::uint8_t>& bytes, T value) {
    const std::size_t start = bytes.size();
    bytes.resize(start + sizeof value);
    std::memcpy(bytes.data() + start, &value, sizeof value);
}

template <typename T>
T get(const std::uint8_t* data, std::size_t& at) {
    T value{};
    std::memcpy(&value, data + at, sizeof value);
    at += sizeof value;
    return value;
}

// Where each tensor lies in the packed data: a pure function of the schedule and the instruction set.
class WeightLayout {
  public:
    // An 8-bit convolution has its scales behind the packed weights.
    enum class Kind { raw, convolution, int8_convolution };

    struct Slot {
        int tensor = -1;
        Kind kind = Kind::raw;
        ConvSpec spec;
        std::size_t offset = 0;
        std::size_t bytes = 0;
    };

    WeightLayout(const Schedule& schedule, Isa isa) : isa_(isa) {
        conv_.assign(schedule.steps.size(), -1);
        bias_ = scale_ = conv_;
        for (std::size_t i = 0; i < schedule.steps.size(); ++i) {
            const Step& step = schedule.steps[i];
            const Attributes& a = step.attributes;
            if (a.weight >= 0) conv_[i] = packed(a.weight, schedule.conv_spec(step), schedule.is_int8(step));
            if (a.bias >= 0) bias_[i] = raw(a.bias, schedule);
            if (a.scale >= 0) scale_[i] = raw(a.scale, schedule);
        }
    }

    const std::vector<Slot>& slots() const { return slots_; }
    std::size_t bytes() const { return bytes_; }

    StepWeights weights(std::size_t step, const std::uint8_t* base) const {
        StepWeights weights;
        if (conv_[step] >= 0 && slot(conv_[step]).kind == Kind::int8_convolution) {
            const Slot& conv = slot(conv_[step]);
            weights.int8 = {conv.spec, reinterpret_cast<const std::int8_t*>(base + conv.offset),
                            reinterpret_cast<const float*>(base + conv.offset + scales_offset(conv.spec))};
        } else if (conv_[step] >= 0) {
            weights.conv = {slot(conv_[step]).spec, isa_, values(conv_[step], base)};
        }
        if (bias_[step] >= 0) weights.bias = values(bias_[step], base);
        if (scale_[step] >= 0) weights.scale = values(scale_[step], base);
        return weights;
    }

    static std::size_t scales_offset(const ConvSpec& spec) {
        return round_up(static_cast<std::size_t>(packed_int8_conv_bytes(spec)));
    }

  private:
    using Key = std::tuple<int, Kind, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                           std::int64_t, std::int64_t, std::int64_t>;

    const Slot& slot(int number) const { return slots_[static_cast<std::size_t>(number)]; }

    const float* values(int number, const std::uint8_t* base) const {
        return reinterpret_cast<const float*>(base + slot(number).offset);
    }

    int place(const Key& key, Slot slot) {
        const auto [found, fresh] = numbers_.emplace(key, static_cast<int>(slots_.size()));
        if (fresh) {
            slot.offset = bytes_;
            bytes_ = round_up(bytes_ + slot.bytes);
            slots_.push_back(slot);
        }
        return found->second;
    }

    int packed(int tensor, const ConvSpec& spec, bool int8) {
        const Kind kind = int8 ? Kind::int8_convolution : Kind::convolution;
        const std::size_t bytes =
            int8 ? scales_offset(spec) + static_cast<std::size_t>(spec.out_channels) * sizeof(float)
                 : static_cast<std::size_t>(packed_conv_elements(spec, isa_)) * sizeof(float);
        const Key key{tensor,          kind,          spec.in_channels, spec.groups,    spec.y.stride, spec.y.padding,
                      spec.y.dilation, spec.x.stride, spec.x.padding,   spec.x.dilation};
        return place(key, {tensor, kind, spec, 0, bytes});
    }

    int raw(int tensor, const Schedule& schedule) {
        const Key key{tensor, Kind::raw, 0, 0, 0, 0, 0, 0, 0, 0};
        const std::int64_t elements = schedule.tensors[static_cast<std::size_t>(tensor)].elements();
        return place(key, {tensor, Kind::raw, {}, 0, static_cast<std::size_t>(elements) * sizeof(float)});
    }

    Isa isa_;
    std::map<Key, int> numbers_;
    std::vector<Slot> slots_;
    std::vector<int> conv_;
    std::vector<int> bias_;
    std::vector<int> scale_;
    std::size_t bytes_ = 0;
};

void pack_int8(const ConvSpec& spec, const float* weights, std::uint8_t* target) {
    const std::int64_t terms = spec.in_channels / spec.groups * spec.y.kernel * spec.x.kernel;
    std::vector<std::int8_t> quantised(static_cast<std::size_t>(spec.out_channels * terms));
    quantise_weights(weights, spec.out_channels, terms, quantised.data(),
                     reinterpret_cast<float*>(target + WeightLayout::scales_offset(spec)));
    pack_int8_conv(spec, quantised.data(), reinterpret_cast<std::int8_t*>(target));
}

}  // namespace

void Program::index() {
    const std::size_t planes = schedule_.planes.size();
    producers_.assign(planes, -1);
    input_positions_.assign(planes, -1);
    depends_on_flat_.assign(planes, false);
    for (std::size_t i = 0; i < schedule_.inputs.size(); ++i) {
        const auto plane = static_cast<std::size_t>(schedule_.inputs[i]);
        input_positions_[plane] = static_cast<int>(i);
        depends_on_flat_[plane] = schedule_.planes[plane].is_flat();
    }
    int launch = -1;
    std::int64_t group = 0;
    for (std::size_t i = 0; i < schedule_.steps.size(); ++i) {
        const Step& step = schedule_.steps[i];
        if (step.group == 0 || step.group != group) ++launch;
        group = step.group;
        launches_.push_back(launch);
        const auto output = static_cast<std::size_t>(step.output);
        producers_[output] = static_cast<int>(i);
        for (const int input : step.inputs) {
            if (depends_on_flat_[static_cast<std::size_t>(input)]) depends_on_flat_[output] = true;
        }
        const Attributes& a = step.attributes;
        const Plane& plane = schedule_.planes[output];
        std::int64_t per_cell = 0, cells = plane.height * plane.width;
        if (a.weight >= 0) per_cell = schedule_.tensors[static_cast<std::size_t>(a.weight)].elements();
        if (step.op == Op::stem) cells = a.conv_height * a.conv_width;
        if (step.op == Op::mask_head) {
            const Plane& features = schedule_.planes[static_cast<std::size_t>(step.inputs[0])];
            per_cell = 10 * 8 + 8 * 8 + 8;
            cells = features.height * features.width;
        }
        macs_per_cell_.push_back(per_cell);
        // A network has its mask logits once, also where one step stops at them and another upsamples them.
        const bool again =
            step.op == Op::mask_head &&
            std::any_of(schedule_.steps.begin(), schedule_.steps.begin() + static_cast<std::ptrdiff_t>(i),
                        [&](const Step& other) { return other.op == Op::mask_head && other.inputs == step.inputs; });
        if (!again) full_macs_ += per_cell * cells;
    }
}

std::shared_ptr<const Program> Program::build(Schedule schedule, const std::vector<const float*>& tensors) {
    if (tensors.size() != schedule.tensors.size()) {
        throw InputError("values of " + std::to_string(tensors.size()) + " tensors came, the schedule has " +
                         std::to_string(schedule.tensors.size()));
    }
    std::shared_ptr<Program> program(new Program());
    program->schedule_ = std::move(schedule);
    program->isa_ = active_isa();
    program->index();
    const WeightLayout layout(program->schedule_, program->isa_);
    const auto block = std::make_shared<Block>(std::max(layout.bytes(), kAlignment), false);
    for (const WeightLayout::Slot& slot : layout.slots()) {
        const float* values = tensors[static_cast<std::size_t>(slot.tensor)];
        auto* target = reinterpret_cast<float*>(block->data() + slot.offset);
        if (values == nullptr) {
            throw InputError("tensor '" + program->schedule_.tensors[static_cast<std::size_t>(slot.tensor)].name +
                             "' has no values");
        }
        switch (slot.kind) {
            case WeightLayout::Kind::raw:
                std::memcpy(target, values, slot.bytes);
                break;
            case WeightLayout::Kind::convolution:
                pack_conv(slot.spec, program->isa_, values, target);
                break;
            case WeightLayout::Kind::int8_convolution:
                pack_int8(slot.spec, values, block->data() + slot.offset);
                break;
        }
    }
    program->packed_ = std::shared_ptr<const std::uint8_t>(block, block->data());
    program->packed_bytes_ = layout.bytes();
    for (std::size_t i = 0; i < program->schedule_.steps.size(); ++i) {
        program->weights_.push_back(layout.weights(i, program->packed_.get()));
    }
    return program;
}

std::shared_ptr<const Program> Program::outline(Schedule schedule) {
    std::shared_ptr<Program> program(new Program());
    program->schedule_ = std::move(schedule);
    program->isa_ = active_isa();
    program->index();
    return program;
}

std::vector<std::uint8_t> Program::file_head() const {
    const std::vector<std::uint8_t> schedule = write_schedule(schedule_);
    std::vector<std::uint8_t> head(kMagic, kMagic + sizeof kMagic);
    put(head, kOrderMark);
    put(head, kProgramVersion);
    char name[kIsaName] = {};
    std::strncpy(name, isa_name(isa_), kIsaName - 1);
    head.insert(head.end(), name, name + kIsaName);
    put(head, static_cast<std::uint64_t>(schedule.size()));
    put(head, static_cast<std::uint64_t>(packed_bytes_));
    put(head, checksum(schedule.data(), schedule.size()));
    head.insert(head.end(), schedule.begin(), schedule.end());
    head.resize(round_up(head.size()));
    return head;
}

std::shared_ptr<const Program> Program::load(const std::string& path) {
    const FileBytes file = map_file(path);
    const std::uint8_t* data = file.data.get();
    if (file.size < kHead || std::memcmp(data, kMagic, sizeof kMagic) != 0) {
        throw ScheduleError(path + " is no program: it does not start with TNPROGRM; pass what Program.save wrote");
    }
    std::size_t at = sizeof kMagic;
    if (get<std::uint32_t>(data, at) != kOrderMark) {
        throw ScheduleError(path + " was written on a machine of other byte order; build it here");
    }
    const auto version = get<std::uint32_t>(data, at);
    if (version != kProgramVersion) {
        throw ScheduleError(path + " has version " + std::to_string(version) + ", this build reads version " +
                            std::to_string(kProgramVersion) + "; build it again");
    }
    const auto* name = reinterpret_cast<const char*>(data + at);
    const std::string isa(name, std::find(name, name + kIsaName, '\0'));
    at += kIsaName;
    if (isa != isa_name(active_isa())) {
        throw ScheduleError(path + " is packed for '" + isa + "', this process runs " + isa_name(active_isa()) +
                            "; build it on this kind of processor");
    }
    const auto schedule_bytes = get<std::uint64_t>(data, at);
    const auto packed_bytes = get<std::uint64_t>(data, at);
    const auto sum = get<std::uint64_t>(data, at);
    if (schedule_bytes > file.size - kHead || round_up(kHead + schedule_bytes) > file.size ||
        packed_bytes != file.size - round_up(kHead + schedule_bytes)) {
        throw ScheduleError(path + " has " + std::to_string(file.size) +
                            " bytes, which is not what its head says; it is truncated, build it again");
    }
    if (checksum(data + kHead, schedule_bytes) != sum) {
        throw ScheduleError(path + " is damaged: its schedule has another checksum; build it again");
    }
    std::shared_ptr<Program> program(new Program());
    program->schedule_ = read_schedule(data + kHead, schedule_bytes);
    program->isa_ = active_isa();
    program->index();
    const WeightLayout layout(program->schedule_, program->isa_);
    if (layout.bytes() != packed_bytes) {
        throw ScheduleError(path + " holds " + std::to_string(packed_bytes) + " bytes of weights, its schedule needs " +
                            std::to_string(layout.bytes()) + "; build it again");
    }
    program->packed_ = std::shared_ptr<const std::uint8_t>(file.data, data + round_up(kHead + schedule_bytes));
    program->packed_bytes_ = packed_bytes;
    for (std::size_t i = 0; i < program->schedule_.steps.size(); ++i) {
        program->weights_.push_back(layout.weights(i, program->packed_.get()));
    }
    return program;
}

std::shared_ptr<const Program> Program::at_size(std::int64_t height, std::int64_t width) const {
    std::shared_ptr<Program> program(new Program());
    program->schedule_ = schedule_at_size(schedule_, height, width);
    program->isa_ = isa_;
    program->packed_ = packed_;
    program->packed_bytes_ = packed_bytes_;
    program->weights_ = weights_;
    program->index();
    return program;
}

}  // namespace tracenet
