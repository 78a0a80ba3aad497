// Filling windows of inputs; see source.hpp.
#include "runtime/source.hpp"

namespace tracenet {

void Source::fill(const View<float>& view, const Window& window, ThreadPool& pool) const {
    if (kind == Kind::pixels) {
        normalise_pixels(norm, photo, view, window, pool);
        return;
    }
    // The values know only their own part of the plane, so it is the plane here.
    View<float> part = view;
    part.extent = shift(view.extent, -extent.y0, -extent.x0);
    part.height = extent.y1 - extent.y0;
    part.width = extent.x1 - extent.x0;
    from_planar(planar, channel_stride, row_stride, part, shift(window, -extent.y0, -extent.x0), pool);
}

}  // namespace tracenet
