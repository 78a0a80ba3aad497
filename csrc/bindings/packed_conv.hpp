// Packed weights as a Python object.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <string>

#include "tracenet/conv.hpp"

struct AlignedDelete {
    void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
};

// Weights in packed order, and the memory they lie in.
class OwnedConv {
  public:
    OwnedConv(const tracenet::ConvSpec& spec, tracenet::Isa isa, const float* weights) : spec_(spec), isa_(isa) {
        const auto bytes = static_cast<std::size_t>(tracenet::packed_conv_elements(spec, isa)) * sizeof(float);
        memory_.reset(static_cast<float*>(::operator new[](bytes, std::align_val_t(64))));
        tracenet::pack_conv(spec, isa, weights, memory_.get());
    }

    tracenet::PackedConv packed() const { return {spec_, isa_, memory_.get()}; }
    const tracenet::ConvSpec& spec() const { return spec_; }
    std::string isa() const { return tracenet::isa_name(isa_); }

  private:
    tracenet::ConvSpec spec_;
    tracenet::Isa isa_;
    std::unique_ptr<float[], AlignedDelete> memory_;
};
