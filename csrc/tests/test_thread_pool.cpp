// The thread pool: every task once, several callers at once, exceptions, nesting, forks, destruction.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/check.hpp"
#include "tracenet/error.hpp"
#include "tracenet/thread_pool.hpp"

namespace {

using tracenet::InputError;
using tracenet::ThreadPool;

// Plain integers on purpose: a task that two threads run is a data race that ThreadSanitizer reports.
void run_and_check(ThreadPool& pool, std::int64_t tasks) {
    std::vector<int> times(static_cast<std::size_t>(tasks), 0);
    std::vector<std::int64_t> per_worker(static_cast<std::size_t>(pool.threads()), 0);
    pool.run(tasks, [&](std::int64_t task, int worker) {
        CHECK(worker >= 0 && worker < pool.threads());
        ++times[static_cast<std::size_t>(task)];
        ++per_worker[static_cast<std::size_t>(worker)];
    });
    CHECK(std::all_of(times.begin(), times.end(), [](int count) { return count == 1; }));
    CHECK(std::accumulate(per_worker.begin(), per_worker.end(), std::int64_t{0}) == std::max<std::int64_t>(tasks, 0));
}

void every_task_once() {
    for (const int threads : {1, 2, 3, 7}) {
        ThreadPool pool(threads);
        CHECK(pool.threads() == threads);
        for (const std::int64_t tasks : {0, 1, 2, 3, 5, 64, 1001}) run_and_check(pool, tasks);
        for (int i = 0; i < 300; ++i) run_and_check(pool, 4);
    }
}

void all_threads_take_part() {
    ThreadPool pool(3);
    std::atomic<int> inside{0};
    // Each task waits for the two others, which only other threads can run.
    pool.run(3, [&](std::int64_t, int) {
        inside.fetch_add(1);
        while (inside.load() < 3) std::this_thread::yield();
    });
    CHECK(inside.load() == 3);
}

void sleeping_workers_wake() {
    ThreadPool pool(4);
    for (int i = 0; i < 5; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(3));
        run_and_check(pool, 9);
    }
}

void number_of_threads() {
    CHECK(ThreadPool().threads() >= 1);
    CHECK(ThreadPool(256).threads() == 256);
    CHECK_THROWS(ThreadPool(-1), InputError);
    CHECK_THROWS(ThreadPool(257), InputError);
    ThreadPool many(64);
    run_and_check(many, 500);
}

void several_callers_at_once() {
    ThreadPool pool(3);
    std::vector<std::thread> callers;
    std::atomic<int> failures{0};
    for (int i = 0; i < 4; ++i) {
        callers.emplace_back([&pool, &failures, i] {
            try {
                for (int k = 0; k < 100; ++k) run_and_check(pool, 3 + (i + k) % 20);
            } catch (const std::exception&) {
                failures.fetch_add(1);
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK(failures.load() == 0);
}

void exception_is_rethrown() {
    ThreadPool pool(3);
    for (int i = 0; i < 50; ++i) {
        std::atomic<int> inside{0};
        std::string message;
        try {
            pool.run(40, [&](std::int64_t task, int) {
                inside.fetch_add(1);
                const std::string name = "task " + std::to_string(task);
                inside.fetch_sub(1);
                if (task % 10 == 7) throw std::runtime_error(name);
            });
        } catch (const std::runtime_error& error) {
            CHECK(inside.load() == 0);  // nobody is left inside
            message = error.what();
        }
        CHECK(message.rfind("task ", 0) == 0 && message.back() == '7');
        run_and_check(pool, 16);  // the pool is as good as new
    }
    CHECK_THROWS(pool.run(1, [](std::int64_t, int) { throw std::logic_error("alone"); }), std::logic_error);
}

void nested_regions_run_inline() {
    ThreadPool pool(3);
    std::vector<int> times(12 * 5, 0);
    pool.run(12, [&](std::int64_t outer, int) {
        const std::thread::id self = std::this_thread::get_id();
        pool.run(5, [&](std::int64_t inner, int worker) {
            CHECK(worker == 0);
            CHECK(std::this_thread::get_id() == self);
            ++times[static_cast<std::size_t>(outer * 5 + inner)];
        });
    });
    CHECK(std::all_of(times.begin(), times.end(), [](int count) { return count == 1; }));
    run_and_check(pool, 12);
}

// 0 where the child ran its regions, 1 where they failed, 2 where it hung.
int run_in_child(ThreadPool& pool) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(20);
        int status = 0;
        try {
            for (int i = 0; i < 20; ++i) run_and_check(pool, 30);
        } catch (const std::exception&) {
            status = 1;
        }
        _exit(status);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}

void fork_after_use() {
    ThreadPool pool(3);
    run_and_check(pool, 10);
    CHECK(run_in_child(pool) == 0);
    run_and_check(pool, 10);
}

void fork_while_regions_run() {
    ThreadPool pool(3);
    std::atomic<bool> stop{false};
    std::thread caller([&] {
        while (!stop.load()) pool.run(8, [](std::int64_t, int) {});
    });
    int worst = 0;
    for (int i = 0; i < 10; ++i) worst = std::max(worst, run_in_child(pool));
    stop.store(true);
    caller.join();
    CHECK(worst == 0);
}

void pools_come_and_go() {
    for (int i = 0; i < 100; ++i) {
        ThreadPool pool(2 + i % 3);
        if (i % 4 != 0) run_and_check(pool, 1 + i % 7);
    }
}

}  // namespace

int main() {
    return tracenet::test::run({
        {"every task runs once", &every_task_once},
        {"all threads take part", &all_threads_take_part},
        {"sleeping workers wake", &sleeping_workers_wake},
        {"number of threads", &number_of_threads},
        {"several callers at once", &several_callers_at_once},
        {"an exception is rethrown", &exception_is_rethrown},
        {"nested regions run inline", &nested_regions_run_inline},
        {"fork after use", &fork_after_use},
        {"fork while regions run", &fork_while_regions_run},
        {"pools come and go", &pools_come_and_go},
    });
}
