// The interpreter: a program (schedule and packed weights) and sessions that run it on windows.
//
//     auto program = Program::load("network.tnprogram");
//     Session session(program, std::make_shared<ThreadPool>());
//     session.set_pixels(0, photo, norm, nullptr);
//     session.run({{program->schedule().outputs[0].second, {40, 72, 40, 72}, values}}, {});
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tracenet/conv.hpp"
#include "tracenet/conv_int8.hpp"
#include "tracenet/kernels.hpp"
#include "tracenet/schedule.hpp"
#include "tracenet/thread_pool.hpp"
#include "tracenet/window.hpp"

namespace tracenet {

// Counts up whenever a file's layout or the order of packed weights changes.
inline constexpr std::uint32_t kProgramVersion = 1;

// Where a step's weights lie in the packed data.
struct StepWeights {
    PackedConv conv;
    PackedInt8Conv int8;  // instead, where the step is an 8-bit convolution
    const float* bias = nullptr;
    const float* scale = nullptr;
};

// A schedule and its weights in the order the kernels of this processor read them. Immutable, so that sessions share
// it; programs of one network at several sizes share the weights.
class Program {
  public:
    // tensors[i]: the values of schedule.tensors[i], fp32, row-major in torch's layout; needed until the call returns.
    static std::shared_ptr<const Program> build(Schedule schedule, const std::vector<const float*>& tensors);

    // What save() wrote, mapped into memory and not read before it is used. Throws ScheduleError where the file is
    // truncated, foreign, of another version, or packed for another instruction set than active_isa().
    static std::shared_ptr<const Program> load(const std::string& path);

    // Without weights: to plan, not to run.
    static std::shared_ptr<const Program> outline(Schedule schedule);

    std::shared_ptr<const Program> at_size(std::int64_t height, std::int64_t width) const;

    // A file is file_head() followed by the packed data, which then starts at a multiple of 64 bytes.
    std::vector<std::uint8_t> file_head() const;
    const std::uint8_t* packed() const { return packed_.get(); }
    std::size_t packed_bytes() const { return packed_bytes_; }

    const Schedule& schedule() const { return schedule_; }
    const StepWeights& weights(std::size_t step) const { return weights_[step]; }
    Isa isa() const { return isa_; }

    // Steps with equal numbers may run at once; they rise by one.
    const std::vector<int>& launches() const { return launches_; }
    // The step that computes a plane, -1 for inputs and planes that nothing computes.
    int producer(int plane) const { return producers_[static_cast<std::size_t>(plane)]; }
    // The position of an input's plane among the inputs, -1 for other planes.
    int input_position(int plane) const { return input_positions_[static_cast<std::size_t>(plane)]; }
    // Does the plane depend on a flat input? Such planes are not kept, because flat inputs change from run to run.
    bool depends_on_flat(int plane) const { return depends_on_flat_[static_cast<std::size_t>(plane)]; }

    // Multiply-adds per cell of the plane a step convolves (stem: before pooling; mask_head: before upsampling).
    std::int64_t macs_per_cell(std::size_t step) const { return macs_per_cell_[step]; }
    // Of the whole network; external steps not counted.
    std::int64_t full_macs() const { return full_macs_; }

  private:
    Program() = default;
    void index();

    Schedule schedule_;
    Isa isa_ = Isa::portable;
    std::shared_ptr<const std::uint8_t> packed_;
    std::size_t packed_bytes_ = 0;
    std::vector<StepWeights> weights_;
    std::vector<int> launches_;
    std::vector<int> producers_;
    std::vector<int> input_positions_;
    std::vector<bool> depends_on_flat_;
    std::vector<std::int64_t> macs_per_cell_;
    std::int64_t full_macs_ = 0;
};

// A window asked of a plane.
struct Demand {
    int plane = 0;
    Window window;
};

// What one request computes, and where it lies in memory.
struct Plan {
    struct Range {
        std::uint32_t begin = 0;
        std::uint32_t count = 0;
    };

    std::vector<Window> windows;  // per plane: hull of what is demanded; empty where nothing is
    std::vector<Window> extents;  // per plane: hull of what is computed
    std::vector<Range> pieces;    // per plane: what is computed, in `store`; may overlap
    std::vector<Range> apart;     // per plane: the same cells as disjoint windows
    std::vector<Window> store;
    std::vector<std::int64_t> step_macs;
    std::int64_t macs = 0;
    double planning_us = 0;

    std::vector<std::int64_t> offsets;  // per plane: bytes into the workspace, -1: not in it
    std::vector<int> last_launch;       // per plane: the last launch that needs it
    std::int64_t workspace_bytes = 0;

    const Window* begin(Range range) const { return store.data() + range.begin; }
    const Window* end(Range range) const { return store.data() + range.begin + range.count; }
};

// Plans requests for an executor that computes elsewhere, on a GPU, with memory of its own for every plane that is
// kept. It is not safe to call it from several threads at once.
class Planner {
  public:
    // keep: per plane, whether its cells stay where they are once computed. Inputs and planes that depend on flat
    // inputs are never kept.
    Planner(Schedule schedule, const std::vector<bool>& keep);

    const Program& program() const { return *program_; }

    // What a run would compute now; no memory is placed.
    std::shared_ptr<const Plan> plan(const std::vector<Demand>& request);
    // What was planned last is computed, and kept from now on. Throws RequestError where nothing is planned.
    void commit();
    // So is this window, which was planned elsewhere.
    void record(const Demand& computed);
    void forget();
    const std::vector<std::vector<Window>>& kept_windows() const { return kept_; }  // per plane

  private:
    void add(std::size_t plane, const Window& window);

    std::shared_ptr<const Program> program_;
    std::vector<bool> keep_;
    std::vector<std::vector<Window>> kept_;
    std::shared_ptr<const Plan> planned_;
};

// One launch of a run, when profiling.
struct ProfileRow {
    std::string name;
    std::string op;
    std::vector<Window> windows;
    std::string kernel;
    double microseconds = 0;
    std::int64_t macs = 0;
    std::int64_t bytes = 0;  // windows read and written, and weights
};

// A window of a plane, copied to `values` [channels, rows, columns] during a run.
struct OutputRequest {
    int plane = 0;
    Window window;
    float* values = nullptr;
};

// Values of a flat input for one run.
struct FlatValues {
    int input = 0;  // position among the inputs
    const float* values = nullptr;
    std::int64_t count = 0;
};

struct RunReport {
    std::shared_ptr<const Plan> plan;
    std::int64_t peak_bytes = 0;  // workspace and kept cells
    std::int64_t kept_bytes = 0;  // after the run
    std::vector<ProfileRow> profile;
};

struct SessionOptions {
    bool keep = false;  // keep planes that the schedule marks between runs on one image
    std::int64_t max_kept_bytes = std::int64_t{1} << 30;
    bool poison = false;  // for tests: memory holds NaN before it is written
};

// Runs a program. Calls from several threads are safe: they wait for each other; sessions of one program run at once.
// Between begin() and finish() other runs are refused.
class Session {
  public:
    Session(std::shared_ptr<const Program> program, std::shared_ptr<ThreadPool> pool, SessionOptions options = {});
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    const std::shared_ptr<const Program>& program() const { return program_; }

    // Input `index` as planar floats [channels, rows, columns] of `extent`. Read where it lies while runs need it,
    // `owner` keeps it alive. Forgets what was kept.
    void set_planar(int index, const float* values, const Window& extent, std::int64_t channel_stride,
                    std::int64_t row_stride, std::shared_ptr<void> owner);

    // Input `index` as a photo at the plane's upper left corner; what windows need of it is normalised during runs.
    void set_pixels(int index, View<const std::uint8_t> photo, const PixelNorm& norm, std::shared_ptr<void> owner);

    std::shared_ptr<const Plan> plan(const std::vector<Demand>& request) const;
    RunReport run(const std::vector<OutputRequest>& outputs, const std::vector<FlatValues>& flat, bool profile);

    // In parts, for schedules with external steps. begin_windows takes what each plane computes from outside; windows
    // of inputs are added as the steps need them. Throws RequestError where a step would read what nothing computes.
    std::shared_ptr<const Plan> begin(const std::vector<Demand>& request, const std::vector<FlatValues>& flat,
                                      bool profile);
    std::shared_ptr<const Plan> begin_windows(const std::vector<std::vector<Window>>& pieces,
                                              const std::vector<FlatValues>& flat, bool profile);
    void run_steps(std::size_t first, std::size_t last);
    // values: [rows, columns, channels], dense.
    void read(int plane, const Window& window, float* values);
    void write(int plane, const Window& window, const float* values);
    RunReport finish();

    void forget();
    std::vector<std::vector<Window>> kept_windows() const;  // per plane
    std::int64_t kept_bytes() const;

  private:
    struct State;

    std::shared_ptr<const Program> program_;
    std::shared_ptr<ThreadPool> pool_;
    SessionOptions options_;
    mutable std::mutex mutex_;
    std::unique_ptr<State> state_;
};

}  // namespace tracenet
