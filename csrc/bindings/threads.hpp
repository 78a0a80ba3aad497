// The thread pool that kernels called from Python share.
#pragma once

#include <memory>

#include "tracenet/thread_pool.hpp"

// Keeps its pool alive while a kernel runs, also where another thread asks for a new size meanwhile.
std::shared_ptr<tracenet::ThreadPool> shared_pool();
