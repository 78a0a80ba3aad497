// The affinity mask and the control group's quota, as Linux shows them.
#include "cpu/processors.hpp"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace tracenet {

namespace {

int processors_of_mask() {
#if defined(__linux__)
    cpu_set_t set;
    // Fails on machines with more processors than the set holds, where the hint below is as good.
    if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
}

// Quotas are processor time per period; a container for one processor and a half gets two threads.
int processors_of_quota() {
    constexpr int kUnlimited = std::numeric_limits<int>::max();
    double quota = 0.0;
    double period = 0.0;
    std::ifstream version2("/sys/fs/cgroup/cpu.max");  // "max 100000", or numbers
    if (!(version2 >> quota >> period)) {
        std::ifstream quota1("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
        std::ifstream period1("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
        if (!(quota1 >> quota && period1 >> period)) return kUnlimited;
    }
    if (quota <= 0.0 || period <= 0.0 || quota / period > 1e6) return kUnlimited;
    const int whole = static_cast<int>(quota / period);
    return whole < quota / period ? whole + 1 : whole;
}

}  // namespace

int available_processors() { return std::max(1, std::min(processors_of_mask(), processors_of_quota())); }

}  // namespace tracenet
