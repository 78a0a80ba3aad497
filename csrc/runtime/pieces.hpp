// Lists of windows: what is missing of a demand, and how few windows may cover it.
#pragma once

#include <cstdint>
#include <vector>

#include "tracenet/window.hpp"

namespace tracenet {

// Windows per plane that are computed apart; the ring around one window has four.
inline constexpr std::size_t kMaxPieces = 4;
// Windows kept per plane between runs; planning looks at each of them.
inline constexpr std::size_t kMaxKeptWindows = 24;
// Two pieces become one if their hull holds at most this share of cells that neither needs.
inline constexpr double kMergeWaste = 0.2;

inline std::int64_t area(const Window& window) { return (window.y1 - window.y0) * (window.x1 - window.x0); }

// The smallest window that holds both; an empty one is ignored.
inline Window join(const Window& a, const Window& b) {
    if (a.is_empty()) return b.is_empty() ? Window{} : b;
    if (b.is_empty()) return a;
    return {std::min(a.y0, b.y0), std::max(a.y1, b.y1), std::min(a.x0, b.x0), std::max(a.x1, b.x1)};
}

// Appends the cells of a that are in none of `others` (which may overlap) to `rest`, as disjoint windows.
void subtract_all(const Window& a, const std::vector<Window>& others, std::vector<Window>& rest);

// Is every cell of `window` in one of `windows`, which may overlap?
bool covers(const std::vector<Window>& windows, const Window& window);

// At most kMaxPieces windows that cover `windows`, as tracenet/rft/trace.py chooses them: the pair whose hull wastes
// the smallest share is merged until few enough are left and every further merge would waste more than kMergeWaste.
// They may overlap.
void merge_windows(std::vector<Window>& windows);

// The same cells as disjoint windows.
void make_disjoint(std::vector<Window>& windows);

// Adds the cells of `window` to a list of disjoint windows and joins neighbours that make up one window; of more than
// `most` the smallest is given up.
void add_disjoint(std::vector<Window>& windows, const Window& window, std::size_t most);

}  // namespace tracenet
