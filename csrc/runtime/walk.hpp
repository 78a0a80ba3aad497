// One run: the walk over a schedule's steps, launch by launch.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/plane_memory.hpp"
#include "runtime/source.hpp"
#include "tracenet/conv_int8.hpp"
#include "tracenet/runtime.hpp"
#include "tracenet/thread_pool.hpp"

namespace tracenet {

class Walk {
  public:
    Walk(const Program& program, ThreadPool& pool, PlaneMemory& memory, const std::vector<Source>& sources)
        : program_(program), schedule_(program.schedule()), pool_(pool), memory_(memory), sources_(sources) {}

    // Checks that every input the plan reads is there (InputError), and lays out the memory.
    void open(std::shared_ptr<const Plan> plan, const std::vector<FlatValues>& flat, bool profile,
              std::vector<OutputRequest> outputs);
    bool is_open() const { return plan_ != nullptr; }
    const Plan& plan() const { return *plan_; }

    // Steps [first, last), in order. RequestError: out of order, or an external step is not written.
    void run_steps(std::size_t first, std::size_t last);
    void read(int plane, const Window& window, float* values) const;
    void write(int plane, const Window& window, const float* values);

    RunReport close();
    void abandon();

  private:
    void take_flat(const std::vector<FlatValues>& values);
    void check_inputs();
    void load(int plane);
    void execute(std::size_t first, std::size_t last);
    void launch(std::size_t first, std::size_t last);
    void compute(const Step& head);
    void compute_piece(const Step& step, const StepWeights& weights, const Window& piece);
    void convolve();
    void convolve_int8();
    void convert(int from, int to, const Window& piece);
    void deliver(int plane);
    bool is_computed(std::size_t step) const;
    bool is_written(std::size_t step) const;
    void require_written(std::size_t step);
    const Plane& plane(int number) const;

    const Program& program_;
    const Schedule& schedule_;
    ThreadPool& pool_;
    PlaneMemory& memory_;
    const std::vector<Source>& sources_;

    std::shared_ptr<const Plan> plan_;
    std::vector<std::vector<float>> flat_;      // per input
    std::vector<bool> done_;                    // per plane: its pieces are computed
    std::vector<std::vector<Window>> written_;  // per plane of an external step
    std::size_t cursor_ = 0;                    // steps before it have run
    int gone_before_ = 0;                       // planes whose last launch lies before it may be overwritten
    std::vector<OutputRequest> outputs_;
    bool profile_ = false;
    bool print_ = false;
    std::vector<ProfileRow> rows_;
    std::vector<std::size_t> members_;  // steps of the launch at hand
    std::vector<ConvJob> jobs_;
    std::vector<Int8ConvJob> int8_jobs_;
};

}  // namespace tracenet
