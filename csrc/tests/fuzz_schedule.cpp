// libFuzzer on the reader of schedules and, where one is small enough, on planning and running it. Run with
// -fork=1 -timeout=10; the first input is worth starting from: fuzz_schedule -runs=0 prints nothing but must not fail.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tests/small_schedule.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    tracenet::test::consume(data, size);
    return 0;
}

// Blind mutation rarely finds a schedule: an empty input starts from one that is right.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned int) {
    if (size < 16) {
        static const auto seed = tracenet::write_schedule(tracenet::test::small_schedule());
        if (seed.size() <= max_size) {
            std::memcpy(data, seed.data(), seed.size());
            size = seed.size();
        }
    }
    return LLVMFuzzerMutate(data, size, max_size);
}
