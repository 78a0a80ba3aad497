// Lists of windows; see pieces.hpp.
#include "runtime/pieces.hpp"

#include <algorithm>
#include <tuple>

#include "tracenet/buffer.hpp"

namespace tracenet {

namespace {

// The cells of a outside b, in the order of subtract().
void append_difference(const Window& a, const Window& b, std::vector<Window>& rest) {
    const Window common = intersect(a, b);
    if (common.is_empty()) {
        rest.push_back(a);
        return;
    }
    const Window parts[4] = {{a.y0, common.y0, a.x0, a.x1},
                             {common.y1, a.y1, a.x0, a.x1},
                             {common.y0, common.y1, a.x0, common.x0},
                             {common.y0, common.y1, common.x1, a.x1}};
    for (const Window& part : parts) {
        if (!part.is_empty()) rest.push_back(part);
    }
}

// Share of the hull of two windows that neither covers.
double waste(const Window& a, const Window& b) {
    const std::int64_t height = std::max(a.y1, b.y1) - std::min(a.y0, b.y0);
    const std::int64_t width = std::max(a.x1, b.x1) - std::min(a.x0, b.x0);
    const std::int64_t common = std::max<std::int64_t>(std::min(a.y1, b.y1) - std::max(a.y0, b.y0), 0) *
                                std::max<std::int64_t>(std::min(a.x1, b.x1) - std::max(a.x0, b.x0), 0);
    return 1.0 - static_cast<double>(area(a) + area(b) - common) / static_cast<double>(height * width);
}

bool larger(const Window& a, const Window& b) {
    return std::make_tuple(-area(a), a.y0, a.y1, a.x0, a.x1) < std::make_tuple(-area(b), b.y0, b.y1, b.x0, b.x1);
}

}  // namespace

void subtract_all(const Window& a, const std::vector<Window>& others, std::vector<Window>& rest) {
    if (a.is_empty()) return;
    const std::size_t start = rest.size();
    rest.push_back(a);
    for (const Window& other : others) {
        if (other.is_empty()) continue;
        const std::size_t end = rest.size();
        for (std::size_t i = start; i < end; ++i) {
            const Window piece = rest[i];
            append_difference(piece, other, rest);
        }
        rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(start), rest.begin() + static_cast<std::ptrdiff_t>(end));
    }
}

bool covers(const std::vector<Window>& windows, const Window& window) {
    std::vector<Window> rest;
    subtract_all(window, windows, rest);
    return rest.empty();
}

void merge_windows(std::vector<Window>& windows) {
    std::sort(windows.begin(), windows.end(), larger);
    std::size_t kept = 0;
    for (const Window& window : windows) {
        const bool covered = std::any_of(windows.begin(), windows.begin() + static_cast<std::ptrdiff_t>(kept),
                                         [&](const Window& other) { return contains(other, window); });
        if (!window.is_empty() && !covered) windows[kept++] = window;
    }
    windows.resize(kept);
    while (windows.size() > 1) {
        double least = 2.0;
        std::size_t first = 0, second = 0;
        for (std::size_t i = 0; i + 1 < windows.size(); ++i) {
            for (std::size_t j = i + 1; j < windows.size(); ++j) {
                const double share = waste(windows[i], windows[j]);
                if (share >= least) continue;
                least = share;
                first = i;
                second = j;
            }
        }
        if (windows.size() <= kMaxPieces && least > kMergeWaste) break;
        const Window merged = join(windows[first], windows[second]);
        windows.erase(std::remove_if(windows.begin(), windows.end(),
                                     [&](const Window& window) { return contains(merged, window); }),
                      windows.end());
        windows.push_back(merged);
    }
}

void make_disjoint(std::vector<Window>& windows) {
    std::vector<Window> apart;
    for (const Window& window : windows) {
        std::vector<Window> fresh;
        subtract_all(window, apart, fresh);
        apart.insert(apart.end(), fresh.begin(), fresh.end());
    }
    windows = std::move(apart);
}

void add_disjoint(std::vector<Window>& windows, const Window& window, std::size_t most) {
    if (window.is_empty()) return;
    windows.erase(
        std::remove_if(windows.begin(), windows.end(), [&](const Window& old) { return contains(window, old); }),
        windows.end());
    std::vector<Window> fresh;
    subtract_all(window, windows, fresh);
    windows.insert(windows.end(), fresh.begin(), fresh.end());
    for (bool joined = true; joined;) {
        joined = false;
        for (std::size_t i = 0; i < windows.size() && !joined; ++i) {
            for (std::size_t j = i + 1; j < windows.size() && !joined; ++j) {
                const Window both = join(windows[i], windows[j]);
                if (area(both) != area(windows[i]) + area(windows[j])) continue;
                windows[i] = both;
                windows.erase(windows.begin() + static_cast<std::ptrdiff_t>(j));
                joined = true;
            }
        }
    }
    while (windows.size() > most) {
        windows.erase(std::min_element(windows.begin(), windows.end(),
                                       [](const Window& a, const Window& b) { return area(a) < area(b); }));
    }
}

}  // namespace tracenet
