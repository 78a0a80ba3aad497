#include "cpu/conv_layout.hpp"

#include <algorithm>
#include <string>

#include "tracenet/error.hpp"

namespace tracenet {

ConvShape conv_shape(Isa isa) {
    switch (isa) {
        case Isa::avx512:
            return {{8, 16, 32}, 11};
        case Isa::avx2:
            return {{4, 8, 16}, 6};
        case Isa::neon:
            return {{4, 4, 8}, 12};
        case Isa::portable:
            break;
    }
    return {{4, 4, 8}, 6};
}

bool is_depthwise(const ConvSpec& spec) {
    return spec.groups > 1 && spec.groups == spec.in_channels && spec.out_channels == spec.in_channels;
}

void check_spec(const ConvSpec& spec) {
    const auto refuse = [](const std::string& what) { throw InputError("convolution: " + what); };
    if (spec.in_channels < 1 || spec.out_channels < 1 || spec.groups < 1 || spec.in_channels % spec.groups != 0 ||
        spec.out_channels % spec.groups != 0) {
        refuse(std::to_string(spec.in_channels) + " input and " + std::to_string(spec.out_channels) +
               " output channels in " + std::to_string(spec.groups) +
               " groups; pass multiples of the groups, at least 1");
    }
    for (const AxisGeometry& axis : {spec.y, spec.x}) {
        try {
            check_axis(Span{0, 1}, axis);
        } catch (const WindowError& error) {
            refuse(error.what());
        }
    }
    try {
        // 128 lanes leave room for the padding of every layout.
        const std::int64_t window = checked_mul(spec.y.kernel, spec.x.kernel);
        const std::int64_t taps = checked_mul(window, spec.in_channels);
        checked_mul(checked_mul(taps, checked_add(spec.out_channels, 128)), checked_mul(spec.groups, 512));
    } catch (const WindowError&) {
        refuse("weights for a kernel of " + std::to_string(spec.y.kernel) + " x " + std::to_string(spec.x.kernel) +
               " over " + std::to_string(spec.in_channels) + " channels do not fit in memory; pass smaller ones");
    }
}

PanelLayout::PanelLayout(const ConvSpec& spec, Isa isa)
    : depthwise_(is_depthwise(spec)),
      groups_(depthwise_ ? 1 : spec.groups),
      outputs_(spec.out_channels / groups_),
      inputs_(spec.in_channels / spec.groups),
      shape_(conv_shape(isa)),
      width_(shape_.widths[kPanelWidths - 1]),
      taps_(spec.y.kernel * spec.x.kernel * inputs_),
      panels_per_group_(ceil_div(outputs_, width_)),
      group_elements_(0) {
    const std::int64_t last = (panels_per_group_ - 1) * width_;
    group_elements_ = (last + shape_.widths[kind_of(outputs_ - last)]) * taps_;
}

int PanelLayout::kind_of(std::int64_t channels) const {
    int kind = 0;
    while (kind + 1 < kPanelWidths && shape_.widths[kind] < channels) ++kind;
    return kind;
}

PanelLayout::Panel PanelLayout::panel(std::int64_t index) const {
    const std::int64_t group = index / panels_per_group_;
    const std::int64_t column = index % panels_per_group_ * width_;
    Panel panel;
    panel.offset = group * group_elements_ + column * taps_;
    panel.first = group * outputs_ + column;
    panel.channels = std::min(width_, outputs_ - column);
    panel.kind = kind_of(panel.channels);
    panel.input = depthwise_ ? column : group * inputs_;
    return panel;
}

std::int64_t packed_conv_elements(const ConvSpec& spec, Isa isa) {
    check_spec(spec);
    return PanelLayout(spec, isa).elements();
}

void pack_conv(const ConvSpec& spec, Isa isa, const float* weights, float* packed) {
    check_spec(spec);
    if (weights == nullptr || packed == nullptr) throw InputError("pack_conv: null weights; pass two buffers");
    const PanelLayout layout(spec, isa);
    const std::int64_t inputs = spec.in_channels / spec.groups;
    const std::int64_t window = spec.y.kernel * spec.x.kernel;
    for (std::int64_t p = 0; p < layout.panels(); ++p) {
        const PanelLayout::Panel panel = layout.panel(p);
        const std::int64_t width = layout.width(panel);
        float* to = packed + panel.offset;
        for (std::int64_t k = 0; k < window; ++k) {
            for (std::int64_t i = 0; i < inputs; ++i, to += width) {
                for (std::int64_t o = 0; o < width; ++o) {
                    const std::int64_t row = panel.first + o;
                    to[o] = o < panel.channels ? weights[(row * inputs + i) * window + k] : 0.0F;
                }
            }
        }
    }
}

}  // namespace tracenet
