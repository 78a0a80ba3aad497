// The workspace and kept planes; see plane_memory.hpp.
#include "runtime/plane_memory.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <string>

#include "runtime/pieces.hpp"
#include "tracenet/error.hpp"

namespace tracenet {

namespace {

void fill_poison(std::uint8_t* data, std::int64_t bytes, Dtype dtype) {
    if (dtype == Dtype::uint8) {
        std::memset(data, 255, static_cast<std::size_t>(bytes));
        return;
    }
    auto* values = reinterpret_cast<float*>(data);
    std::fill(values, values + bytes / static_cast<std::int64_t>(sizeof(float)),
              std::numeric_limits<float>::quiet_NaN());
}

}  // namespace

PlaneMemory::PlaneMemory(const Program& program, const SessionOptions& options)
    : program_(program), options_(options), valid_(program.schedule().planes.size()), blocks_(valid_.size()) {
    const std::vector<Plane>& planes = program.schedule().planes;
    for (std::size_t i = 0; i < planes.size(); ++i) {
        const int plane = static_cast<int>(i);
        const bool flat_input = planes[i].is_flat() && program.input_position(plane) >= 0;
        kept_plane_.push_back(options.keep && planes[i].keep && !program.depends_on_flat(plane) &&
                              program.producer(plane) >= 0);
        elsewhere_.push_back(kept_plane_[i] || flat_input);
    }
}

std::int64_t PlaneMemory::kept_bytes() const {
    std::int64_t bytes = 0;
    for (std::size_t i = 0; i < valid_.size(); ++i) {
        const Plane& plane = program_.schedule().planes[i];
        for (const Window& window : valid_[i]) bytes += area(window) * plane.channels * plane.element_bytes();
    }
    return bytes;
}

std::int64_t PlaneMemory::plane_bytes(std::size_t plane) const {
    const Plane& p = program_.schedule().planes[plane];
    return p.channels * p.height * p.width * p.element_bytes();
}

void PlaneMemory::lay_out(const Plan& plan, std::vector<std::vector<float>>& flat) {
    const std::vector<Plane>& planes = program_.schedule().planes;
    const auto wanted = static_cast<std::size_t>(plan.workspace_bytes);
    try {
        if (workspace_.size() < wanted) {
            workspace_ = Block();  // not both at once
            workspace_ = Block(wanted, false);
        }
        for (std::size_t i = 0; i < planes.size(); ++i) {
            if (!kept_plane_[i] || plan.pieces[i].count == 0 || blocks_[i].data() != nullptr) continue;
            blocks_[i] = Block(static_cast<std::size_t>(plane_bytes(i)), true);
            if (options_.poison) poison_all(i);
        }
    } catch (const std::bad_alloc&) {
        throw ExecutionError("out of memory: the workspace of this run has " + std::to_string(wanted) +
                             " bytes; ask for smaller windows or a smaller input");
    }
    floats_.assign(planes.size(), {});
    bytes_.assign(planes.size(), {});
    for (std::size_t i = 0; i < planes.size(); ++i) {
        const Plane& p = planes[i];
        const int position = program_.input_position(static_cast<int>(i));
        std::uint8_t* data = reinterpret_cast<std::uint8_t*>(&nothing_);
        Window extent{};
        if (kept_plane_[i] && blocks_[i].data() != nullptr) {
            data = blocks_[i].data();
            extent = p.whole();
        } else if (position >= 0 && p.is_flat() && !flat[static_cast<std::size_t>(position)].empty()) {
            data = reinterpret_cast<std::uint8_t*>(flat[static_cast<std::size_t>(position)].data());
            extent = p.whole();
        } else if (plan.offsets[i] >= 0) {
            data = workspace_.data() + plan.offsets[i];
            extent = plan.extents[i];
        }
        if (p.is_bytes()) {
            bytes_[i] = dense_view(data, extent, p.height, p.width, p.channels);
        } else {
            floats_[i] = dense_view(reinterpret_cast<float*>(data), extent, p.height, p.width, p.channels);
        }
    }
}

View<float> PlaneMemory::real(int plane, const Window& window, std::vector<float>& storage, ThreadPool& pool) const {
    const Plane& p = program_.schedule().planes[static_cast<std::size_t>(plane)];
    if (!p.is_bytes()) return floats(plane);
    storage.resize(static_cast<std::size_t>(area(window) * p.channels));
    const View<float> view = dense_view(storage.data(), window, p.height, p.width, p.channels);
    dequantise(bytes(plane), p.quantisation, view, window, pool);
    return view;
}

void PlaneMemory::poison(const Plan& plan, int plane) {
    const auto i = static_cast<std::size_t>(plane);
    if (!options_.poison || plan.offsets[i] < 0) return;
    const Plane& p = program_.schedule().planes[i];
    fill_poison(workspace_.data() + plan.offsets[i], area(plan.extents[i]) * p.channels * p.element_bytes(), p.dtype);
}

void PlaneMemory::poison_all(std::size_t plane) {
    fill_poison(blocks_[plane].data(), plane_bytes(plane), program_.schedule().planes[plane].dtype);
}

void PlaneMemory::keep(const Plan& plan, int plane) {
    const auto i = static_cast<std::size_t>(plane);
    if (!kept_plane_[i]) return;
    const Plane& p = program_.schedule().planes[i];
    const Plan::Range range = plan.apart[i];
    for (const Window* piece = plan.begin(range); piece != plan.end(range); ++piece) {
        touched_bytes_ += area(*piece) * p.channels * p.element_bytes();
        add_disjoint(valid_[i], *piece, kMaxKeptWindows);
    }
}

void PlaneMemory::forget(bool give_back) {
    for (auto& windows : valid_) windows.clear();
    if (give_back || touched_bytes_ > options_.max_kept_bytes) {
        for (Block& block : blocks_) block.release_pages();
        touched_bytes_ = 0;
    }
    if (!options_.poison) return;
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
        if (blocks_[i].data() != nullptr) poison_all(i);
    }
}

}  // namespace tracenet
