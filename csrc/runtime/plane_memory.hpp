// Where a session's planes lie: a workspace that every run lays out anew, and planes that are kept between runs.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/memory.hpp"
#include "runtime/planner.hpp"
#include "tracenet/buffer.hpp"
#include "tracenet/runtime.hpp"
#include "tracenet/thread_pool.hpp"

namespace tracenet {

class PlaneMemory {
  public:
    PlaneMemory(const Program& program, const SessionOptions& options);

    bool is_kept(int plane) const { return kept_plane_[static_cast<std::size_t>(plane)]; }
    // Kept planes and flat inputs are not in the workspace.
    const std::vector<bool>& elsewhere() const { return elsewhere_; }

    // Per plane: the windows that are known.
    const KeptWindows& windows() const { return valid_; }
    std::int64_t kept_bytes() const;

    // Memory and views for a run. flat: values of flat inputs, per input. Throws ExecutionError where it runs out.
    void lay_out(const Plan& plan, std::vector<std::vector<float>>& flat);
    // Of planes of that dtype, others have no data; readable for its padding alone where nothing of it is in memory.
    const View<float>& floats(int plane) const { return floats_[static_cast<std::size_t>(plane)]; }
    const View<std::uint8_t>& bytes(int plane) const { return bytes_[static_cast<std::size_t>(plane)]; }

    // A window of a plane as real values; those of a uint8 plane are put into `storage`.
    View<float> real(int plane, const Window& window, std::vector<float>& storage, ThreadPool& pool) const;

    // What is about to be written holds NaN (8 bits: 255), so that a cell that is read before shows.
    void poison(const Plan& plan, int plane);

    // The cells of `plan` are known from now on, if the plane is kept.
    void keep(const Plan& plan, int plane);
    // Pages of kept planes stay for the next image while they are few, unless all are given back.
    void forget(bool give_back);

  private:
    std::int64_t plane_bytes(std::size_t plane) const;
    void poison_all(std::size_t plane);

    const Program& program_;
    SessionOptions options_;
    std::vector<bool> kept_plane_;
    std::vector<bool> elsewhere_;
    KeptWindows valid_;
    std::vector<Block> blocks_;  // per kept plane: all of it, reserved
    std::int64_t touched_bytes_ = 0;
    Block workspace_;
    std::vector<View<float>> floats_;
    std::vector<View<std::uint8_t>> bytes_;
    float nothing_ = 0;
};

}  // namespace tracenet
