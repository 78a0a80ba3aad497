// Parallel regions: the caller publishes one, works on it, and idle workers join whichever region has tasks left.
#include "tracenet/thread_pool.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/processors.hpp"
#include "tracenet/error.hpp"

namespace tracenet {

namespace {

constexpr int kMaxThreads = 256;
// Longer than the gap between two steps of a schedule, far shorter than a scheduler's time slice.
constexpr std::chrono::microseconds kSpin{40};

using Body = std::function<void(std::int64_t task, int worker)>;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
}

// Waits for `ready` without sleeping; false where it took too long.
template <typename Ready>
bool spin_until(Ready ready) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 16; ++i) {
            if (ready()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < deadline);
    return ready();
}

// Critical sections here are a few instructions long: sleeping for one would cost more than waiting.
std::unique_lock<std::mutex> lock_soon(std::mutex& mutex) {
    for (int i = 0; i < 64; ++i) {
        if (mutex.try_lock()) return std::unique_lock<std::mutex>(mutex, std::adopt_lock);
        pause();
    }
    return std::unique_lock<std::mutex>(mutex);
}

// A body that runs a region of its own runs it alone: its siblings keep the other processors busy.
thread_local bool inside_region = false;

// Numbers this process among its ancestors: a fork copies memory but no threads.
std::atomic<std::int64_t> generation{0};

std::int64_t current_generation() {
    static const int registered =
        pthread_atfork(nullptr, nullptr, [] { generation.fetch_add(1, std::memory_order_relaxed); });
    if (registered != 0) throw std::system_error(registered, std::generic_category(), "pthread_atfork");
    return generation.load(std::memory_order_relaxed);
}

// One call of run, on the caller's stack. It ends when no task is left and no worker is inside.
struct Region {
    Region(std::int64_t task_count, const Body& task_body) : tasks(task_count), body(task_body) {}

    bool is_open() const { return next.load(std::memory_order_relaxed) < tasks; }

    // Takes tasks until none are left. After an exception, tasks that nobody has begun are dropped.
    void work(int worker) {
        const bool outer = inside_region;
        inside_region = true;
        try {
            for (;;) {
                const std::int64_t task = next.fetch_add(1, std::memory_order_relaxed);
                if (task >= tasks) break;
                body(task, worker);
            }
        } catch (...) {
            if (!failed.exchange(true, std::memory_order_relaxed)) error = std::current_exception();
            next.store(tasks, std::memory_order_relaxed);
        }
        inside_region = outer;
    }

    const std::int64_t tasks;
    const Body& body;
    std::exception_ptr error;  // written by the first to fail, read once `joined` is 0
    std::atomic<bool> failed{false};
    alignas(64) std::atomic<std::int64_t> next{0};
    alignas(64) std::atomic<int> joined{0};  // workers inside; only grows while the region is listed
};

// The workers of one process and what they watch.
class Crew {
  public:
    Crew(std::int64_t born, int threads) : generation(born), workers_wanted_(threads - 1) {
        open_.reserve(16);
        workers_.reserve(static_cast<std::size_t>(workers_wanted_));
    }

    ~Crew() {
        {
            const auto lock = lock_soon(mutex_);
            stop_ = true;
            epoch_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

    void run(Region& region) {
        publish(region);
        busy_.fetch_add(1, std::memory_order_relaxed);
        region.work(0);
        busy_.fetch_sub(1, std::memory_order_relaxed);
        withdraw(region);
    }

    const std::int64_t generation;

  private:
    void publish(Region& region) {
        std::int64_t asleep = 0;
        {
            const auto lock = lock_soon(mutex_);
            start_workers();
            open_.push_back(&region);
            epoch_.fetch_add(1, std::memory_order_release);
            asleep = asleep_;
        }
        // The caller takes a task, and whoever still spins will see the new epoch.
        const std::int64_t wanted = region.tasks - 1 - spinning_.load(std::memory_order_relaxed);
        if (wanted >= asleep) {
            if (asleep > 0) wake_.notify_all();
        } else {
            for (std::int64_t i = 0; i < wanted; ++i) wake_.notify_one();
        }
    }

    void withdraw(Region& region) {
        {
            const auto lock = lock_soon(mutex_);
            open_.erase(std::find(open_.begin(), open_.end(), &region));
        }
        const auto left = [&region] { return region.joined.load(std::memory_order_seq_cst) == 0; };
        if (left() || spin_until(left)) return;
        auto lock = lock_soon(mutex_);
        // Sequentially consistent with `leave`: either this sees no worker, or the last worker sees this waiting.
        waiting_.fetch_add(1, std::memory_order_seq_cst);
        done_.wait(lock, left);
        waiting_.fetch_sub(1, std::memory_order_relaxed);
    }

    // Under the lock. Where the system has no thread to give, fewer do the work.
    void start_workers() {
        if (started_) return;
        started_ = true;
        try {
            for (int i = 1; i <= workers_wanted_; ++i) workers_.emplace_back([this, i] { serve(i); });
        } catch (const std::system_error&) {
        }
    }

    void serve(int worker) {
        for (;;) {
            const std::uint64_t seen = epoch_.load(std::memory_order_acquire);
            Region* region = nullptr;
            {
                auto lock = lock_soon(mutex_);
                if (stop_) return;
                region = join_any();
            }
            if (region != nullptr) {
                busy_.fetch_add(1, std::memory_order_relaxed);
                region->work(worker);
                busy_.fetch_sub(1, std::memory_order_relaxed);
                leave(*region);
                continue;
            }
            if (!spin_for_news(seen)) sleep(seen);
        }
    }

    // Under the lock: a listed region cannot end before its caller has taken the lock to withdraw it.
    Region* join_any() {
        for (Region* region : open_) {
            if (!region->is_open()) continue;
            region->joined.fetch_add(1, std::memory_order_relaxed);
            return region;
        }
        return nullptr;
    }

    void leave(Region& region) {
        // The region is gone once this reaches 0 in its caller's eyes.
        if (region.joined.fetch_sub(1, std::memory_order_seq_cst) != 1) return;
        if (waiting_.load(std::memory_order_seq_cst) == 0) return;
        {
            const auto lock = lock_soon(mutex_);
        }
        done_.notify_all();
    }

    bool spin_for_news(std::uint64_t seen) {
        const auto changed = [this, seen] { return epoch_.load(std::memory_order_acquire) != seen; };
        // A thread that spins on a processor that another needs only delays it. Between regions their callers compute
        // as well, so one processor is theirs.
        const int busy = std::max(1, busy_.load(std::memory_order_relaxed));
        const int spinning = spinning_.fetch_add(1, std::memory_order_relaxed) + 1;
        const bool news = busy + spinning <= processors_ ? spin_until(changed) : changed();
        spinning_.fetch_sub(1, std::memory_order_relaxed);
        return news;
    }

    void sleep(std::uint64_t seen) {
        auto lock = lock_soon(mutex_);
        ++asleep_;
        wake_.wait(lock, [this, seen] { return epoch_.load(std::memory_order_relaxed) != seen; });
        --asleep_;
    }

    const int workers_wanted_;
    const int processors_ = available_processors();
    bool started_ = false;
    bool stop_ = false;
    std::int64_t asleep_ = 0;
    std::vector<Region*> open_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable done_;
    alignas(64) std::atomic<std::uint64_t> epoch_{0};  // grows with every region; idle workers watch it
    alignas(64) std::atomic<int> busy_{0};
    std::atomic<int> spinning_{0};
    std::atomic<int> waiting_{0};  // callers asleep until the last worker leaves
};

int checked_threads(int threads) {
    if (threads < 0 || threads > kMaxThreads) {
        throw InputError("a pool of " + std::to_string(threads) + " threads; pass 1 to " + std::to_string(kMaxThreads) +
                         ", or 0 for one per processor");
    }
    return threads == 0 ? std::min(available_processors(), kMaxThreads) : threads;
}

}  // namespace

struct ThreadPool::State {
    explicit State(int thread_count) : threads(thread_count) {}

    ~State() {
        Crew* last = crew.load(std::memory_order_acquire);
        // A crew from before a fork has no threads to join, and its lock may be held for ever: it is left alone.
        if (last != nullptr && last->generation == current_generation()) delete last;
    }

    Crew& own_crew() {
        Crew* seen = crew.load(std::memory_order_acquire);
        const std::int64_t now = current_generation();
        if (seen != nullptr && seen->generation == now) return *seen;
        auto fresh = std::make_unique<Crew>(now, threads);
        if (crew.compare_exchange_strong(seen, fresh.get(), std::memory_order_acq_rel)) return *fresh.release();
        return *seen;  // another thread was first
    }

    const int threads;
    std::atomic<Crew*> crew{nullptr};
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>(checked_threads(threads))) {}

ThreadPool::~ThreadPool() = default;

int ThreadPool::threads() const { return state_->threads; }

void ThreadPool::run(std::int64_t tasks, const Body& body) {
    if (tasks <= 0) return;
    if (tasks == 1 || state_->threads == 1 || inside_region) {
        for (std::int64_t task = 0; task < tasks; ++task) body(task, 0);
        return;
    }
    Region region(tasks, body);
    state_->own_crew().run(region);
    if (region.error) std::rethrow_exception(region.error);
}

}  // namespace tracenet
