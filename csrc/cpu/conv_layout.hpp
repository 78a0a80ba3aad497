// The packed layout of convolution weights: panels of output channels, each [ky][kx][i][lanes], one after another.
#pragma once

#include <cstdint>

#include "cpu/conv_tile.hpp"
#include "tracenet/conv.hpp"

namespace tracenet {

ConvShape conv_shape(Isa isa);

// One input channel per group and one output channel per input channel.
bool is_depthwise(const ConvSpec& spec);

// Throws InputError for a spec that is not a convolution, or whose weights would not fit in memory.
void check_spec(const ConvSpec& spec);

// Where the panels of a convolution lie. Panels do not cross groups, except depthwise, where a panel is a run of
// channels. All panels of a group but the last are of the widest kind; that one is of the narrowest that holds it.
class PanelLayout {
  public:
    PanelLayout(const ConvSpec& spec, Isa isa);

    struct Panel {
        std::int64_t offset = 0;  // of its weights in the packed ones
        std::int64_t first = 0;   // output channel
        std::int64_t channels = 0;
        int kind = 0;            // which of ConvShape::widths
        std::int64_t input = 0;  // first input channel
    };

    std::int64_t panels() const { return groups_ * panels_per_group_; }
    std::int64_t elements() const { return groups_ * group_elements_; }
    std::int64_t taps() const { return taps_; }  // terms of a sum: ky * kx * input channels per group
    std::int64_t width(const Panel& panel) const { return shape_.widths[panel.kind]; }
    Panel panel(std::int64_t index) const;

  private:
    int kind_of(std::int64_t channels) const;

    bool depthwise_;
    std::int64_t groups_;
    std::int64_t outputs_;  // per group
    std::int64_t inputs_;   // per group
    ConvShape shape_;
    std::int64_t width_;  // of a full panel
    std::int64_t taps_;
    std::int64_t panels_per_group_;
    std::int64_t group_elements_;
};

}  // namespace tracenet
