// A small pool for short parallel regions: one per schedule step, tens of microseconds apart.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace tracenet {

// Safe to use from several threads at once (each call is a region of its own) and after fork (a child starts its own
// workers). Workers spin for a short while before they sleep, because the next step usually follows at once.
class ThreadPool {
  public:
    // `threads` counts the calling thread; 0 means one per processor this process may run on.
    explicit ThreadPool(int threads = 0);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const;

    // Calls body(task, worker) for every task in [0, tasks) and returns when all are done. Tasks are handed out in
    // rising order to whichever thread is free; worker is in [0, threads()) and no two threads of one region share it.
    // The first exception is rethrown here, once the region has ended.
    void run(std::int64_t tasks, const std::function<void(std::int64_t task, int worker)>& body);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace tracenet
