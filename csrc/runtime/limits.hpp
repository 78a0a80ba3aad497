// What a schedule may ask for at most: far above any network, and small enough that no product leaves 64 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace tracenet {

inline constexpr std::int64_t kMaxSide = std::int64_t{1} << 20;
inline constexpr std::int64_t kMaxCells = std::int64_t{1} << 36;  // of all channels
inline constexpr std::int64_t kMaxAttribute = std::int64_t{1} << 20;
inline constexpr std::int64_t kMaxStepMacs = std::int64_t{1} << 48;
inline constexpr std::size_t kMaxSteps = std::size_t{1} << 14;

inline std::string size_text(std::int64_t height, std::int64_t width) {
    return std::to_string(height) + " x " + std::to_string(width);
}

}  // namespace tracenet
