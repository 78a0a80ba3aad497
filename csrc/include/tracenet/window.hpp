// Windows on planes and the demands of convolutions, in 64-bit integers.
//
// The torch-free twin of tracenet_kernels/window.py: same vocabulary, same results. Arithmetic that would
// leave 64 bits throws WindowError instead of wrapping round, because a wrapped coordinate is a wild pointer.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace tracenet {

// A window is malformed, or its coordinates do not fit in 64 bits.
class WindowError : public std::invalid_argument {
  public:
    using std::invalid_argument::invalid_argument;
};

inline std::int64_t checked_add(std::int64_t a, std::int64_t b) {
    constexpr auto kMin = std::numeric_limits<std::int64_t>::min();
    constexpr auto kMax = std::numeric_limits<std::int64_t>::max();
    if ((b > 0 && a > kMax - b) || (b < 0 && a < kMin - b)) {
        throw WindowError("coordinate " + std::to_string(a) + " + " + std::to_string(b) + " does not fit in 64 bits");
    }
    return a + b;
}

inline std::int64_t checked_sub(std::int64_t a, std::int64_t b) {
    constexpr auto kMin = std::numeric_limits<std::int64_t>::min();
    constexpr auto kMax = std::numeric_limits<std::int64_t>::max();
    if ((b < 0 && a > kMax + b) || (b > 0 && a < kMin + b)) {
        throw WindowError("coordinate " + std::to_string(a) + " - " + std::to_string(b) + " does not fit in 64 bits");
    }
    return a - b;
}

// a * b for b >= 0, the only products windows need (strides, dilations).
inline std::int64_t checked_mul(std::int64_t a, std::int64_t b) {
    constexpr auto kMin = std::numeric_limits<std::int64_t>::min();
    constexpr auto kMax = std::numeric_limits<std::int64_t>::max();
    if (b > 0 && (a > kMax / b || a < kMin / b)) {
        throw WindowError("coordinate " + std::to_string(a) + " * " + std::to_string(b) + " does not fit in 64 bits");
    }
    return a * b;
}

// Division rounded towards minus infinity, for b > 0.
constexpr std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// Division rounded towards plus infinity, for b > 0.
constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a / b + (a % b > 0 ? 1 : 0); }

// One axis of a window: [begin, end).
struct Span {
    std::int64_t begin = 0;
    std::int64_t end = 0;

    friend bool operator==(const Span& a, const Span& b) { return a.begin == b.begin && a.end == b.end; }
};

// Rows and columns of padding a window needs because it meets the plane's edge.
struct Border {
    std::int64_t top = 0;
    std::int64_t bottom = 0;
    std::int64_t left = 0;
    std::int64_t right = 0;
};

// The half-open rectangle [y0, y1) x [x0, x1).
struct Window {
    std::int64_t y0 = 0;
    std::int64_t y1 = 0;
    std::int64_t x0 = 0;
    std::int64_t x1 = 0;

    bool is_empty() const { return y1 == y0 || x1 == x0; }

    friend bool operator==(const Window& a, const Window& b) {
        return a.y0 == b.y0 && a.y1 == b.y1 && a.x0 == b.x0 && a.x1 == b.x1;
    }
};

// A window from outside: throws where an end lies before its start.
inline Window make_window(std::int64_t y0, std::int64_t y1, std::int64_t x0, std::int64_t x1) {
    if (y1 < y0 || x1 < x0) {
        throw WindowError("window [" + std::to_string(y0) + ", " + std::to_string(y1) + ") x [" + std::to_string(x0) +
                          ", " + std::to_string(x1) +
                          ") ends before it starts; pass (y0, y1, x0, x1) with y0 <= y1 and x0 <= x1");
    }
    return Window{y0, y1, x0, x1};
}

inline void check_plane(std::int64_t height, std::int64_t width) {
    if (height < 0 || width < 0) {
        throw WindowError("plane " + std::to_string(height) + " x " + std::to_string(width) +
                          " has a negative side; pass height >= 0 and width >= 0");
    }
}

// The smallest window containing all; empty ones are ignored, the hull of nothing is {0, 0, 0, 0}.
inline Window hull(const std::vector<Window>& windows) {
    Window whole{};
    for (const Window& window : windows) {
        if (window.is_empty()) continue;
        if (whole.is_empty()) {
            whole = window;
            continue;
        }
        whole = Window{std::min(whole.y0, window.y0), std::max(whole.y1, window.y1), std::min(whole.x0, window.x0),
                       std::max(whole.x1, window.x1)};
    }
    return whole;
}

// The part of a window on a plane; an axis wholly off the plane becomes empty at the edge it passed.
inline Window clip(const Window& window, std::int64_t height, std::int64_t width) {
    check_plane(height, width);
    const auto clamp = [](std::int64_t value, std::int64_t size) {
        return std::min(std::max<std::int64_t>(value, 0), size);
    };
    return Window{clamp(window.y0, height), clamp(window.y1, height), clamp(window.x0, width), clamp(window.x1, width)};
}

// What clip cuts off, per side; along each axis the clipped length plus both sides is the window's length.
inline Border border_of(const Window& window, std::int64_t height, std::int64_t width) {
    check_plane(height, width);
    const auto before = [](std::int64_t begin, std::int64_t end) {
        return std::max<std::int64_t>(checked_sub(std::min<std::int64_t>(end, 0), begin), 0);
    };
    const auto after = [](std::int64_t begin, std::int64_t end, std::int64_t size) {
        return std::max<std::int64_t>(checked_sub(end, std::max(begin, size)), 0);
    };
    return Border{before(window.y0, window.y1), after(window.y0, window.y1, height), before(window.x0, window.x1),
                  after(window.x0, window.x1, width)};
}

inline Window shift(const Window& window, std::int64_t dy, std::int64_t dx) {
    return Window{checked_add(window.y0, dy), checked_add(window.y1, dy), checked_add(window.x0, dx),
                  checked_add(window.x1, dx)};
}

// The cells in both; {0, 0, 0, 0} where there are none.
inline Window intersect(const Window& a, const Window& b) {
    const Window common{std::max(a.y0, b.y0), std::min(a.y1, b.y1), std::max(a.x0, b.x0), std::min(a.x1, b.x1)};
    return common.y0 < common.y1 && common.x0 < common.x1 ? common : Window{};
}

// The cells of a that are not in b: at most four disjoint non-empty windows, in the order above, below
// (both as wide as a), left, right.
inline std::vector<Window> subtract(const Window& a, const Window& b) {
    if (a.is_empty()) return {};
    const Window common = intersect(a, b);
    if (common.is_empty()) return {a};
    const std::array<Window, 4> pieces{Window{a.y0, common.y0, a.x0, a.x1}, Window{common.y1, a.y1, a.x0, a.x1},
                                       Window{common.y0, common.y1, a.x0, common.x0},
                                       Window{common.y0, common.y1, common.x1, a.x1}};
    std::vector<Window> rest;
    std::copy_if(pieces.begin(), pieces.end(), std::back_inserter(rest),
                 [](const Window& piece) { return !piece.is_empty(); });
    return rest;
}

// One axis of a convolution or pooling; padding is the leading one.
struct AxisGeometry {
    std::int64_t kernel = 1;
    std::int64_t stride = 1;
    std::int64_t padding = 0;
    std::int64_t dilation = 1;
};

inline void check_axis(const Span& out, const AxisGeometry& axis) {
    if (out.end < out.begin) {
        throw WindowError("span [" + std::to_string(out.begin) + ", " + std::to_string(out.end) +
                          ") ends before it starts; pass begin <= end");
    }
    if (axis.kernel < 1 || axis.stride < 1 || axis.dilation < 1 || axis.padding < 0) {
        throw WindowError("kernel " + std::to_string(axis.kernel) + ", stride " + std::to_string(axis.stride) +
                          ", padding " + std::to_string(axis.padding) + ", dilation " + std::to_string(axis.dilation) +
                          ": pass kernel, stride and dilation >= 1 and padding >= 0");
    }
}

// Unclipped demand of a convolution or pooling for the outputs [a, b):
//     [a * s - p, (b - 1) * s - p + d * (k - 1) + 1)
// No outputs demand nothing: an empty span at a * s - p.
inline Span conv_demand(const Span& out, const AxisGeometry& axis) {
    check_axis(out, axis);
    const std::int64_t begin = checked_sub(checked_mul(out.begin, axis.stride), axis.padding);
    if (out.begin == out.end) return Span{begin, begin};
    const std::int64_t reach = checked_add(checked_mul(axis.kernel - 1, axis.dilation), 1);
    const std::int64_t last = checked_sub(checked_mul(out.end - 1, axis.stride), axis.padding);
    return Span{begin, checked_add(last, reach)};
}

// Unclipped demand of a transposed convolution for the outputs [a, b):
//     [ceil((a + p - d * (k - 1)) / s), floor((b - 1 + p) / s) + 1)
// Empty where the outputs are bias alone. With dilation > 1 it is a hull: not every input in it is read.
inline Span transposed_demand(const Span& out, const AxisGeometry& axis) {
    check_axis(out, axis);
    const std::int64_t reach = checked_mul(axis.kernel - 1, axis.dilation);
    const std::int64_t begin = ceil_div(checked_sub(checked_add(out.begin, axis.padding), reach), axis.stride);
    if (out.begin == out.end) return Span{begin, begin};
    return Span{begin, checked_add(floor_div(checked_add(out.end - 1, axis.padding), axis.stride), 1)};
}

}  // namespace tracenet
