#include "bindings/threads.hpp"

#include <pybind11/pybind11.h>

#include <limits>
#include <string>

#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "tracenet/error.hpp"

namespace py = pybind11;

namespace {

// Guarded by the interpreter lock: only Python calls reach these functions. Never destroyed, because threads may still
// run when the process ends.
std::shared_ptr<tracenet::ThreadPool>& pool_slot() {
    static auto* const slot = new std::shared_ptr<tracenet::ThreadPool>();
    return *slot;
}

void set_threads(py::handle count) {
    const std::int64_t threads = to_integer(count, "threads");
    if (threads < 0 || threads > std::numeric_limits<int>::max()) {
        throw tracenet::InputError("threads is " + std::to_string(threads) +
                                   "; pass a count, or 0 for one per processor");
    }
    pool_slot() = std::make_shared<tracenet::ThreadPool>(static_cast<int>(threads));
}

}  // namespace

std::shared_ptr<tracenet::ThreadPool> shared_pool() {
    auto& slot = pool_slot();
    if (!slot) slot = std::make_shared<tracenet::ThreadPool>();
    return slot;
}

void bind_threads(py::module_& module) {
    module.def("set_threads", &set_threads, py::arg("count"),
               "Threads that kernels use, the caller's included; 0: one per processor this process may run on.");
    module.def("threads", [] { return shared_pool()->threads(); }, "Threads that kernels use.");
}
