// Assertions of the C++ tests: a failed one says where and what, and the process ends with 1.
//
//     int main() { return tracenet::test::run({{"what is tested", &test_function}, ...}); }
#pragma once

#include <cmath>
#include <cstdio>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#define CHECK(condition) tracenet::test::check((condition), #condition, __FILE__, __LINE__)

// CHECK_NEAR(actual, expected, tolerance): |actual - expected| <= tolerance, or both NaN, or the same infinity.
#define CHECK_NEAR(actual, expected, tolerance) \
    tracenet::test::check_near((actual), (expected), (tolerance), #actual, __FILE__, __LINE__)

// CHECK_THROWS(statement, Error): the statement throws that type or one derived from it.
#define CHECK_THROWS(statement, Error)                                                    \
    do {                                                                                  \
        bool thrown_ = false;                                                             \
        try {                                                                             \
            statement;                                                                    \
        } catch (const Error&) {                                                          \
            thrown_ = true;                                                               \
        }                                                                                 \
        tracenet::test::check(thrown_, #statement " throws " #Error, __FILE__, __LINE__); \
    } while (false)

namespace tracenet::test {

class Failure : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

inline void check(bool condition, const char* text, const char* file, int line) {
    if (condition) return;
    throw Failure(std::string(file) + ":" + std::to_string(line) + ": not true: " + text);
}

inline void check_near(double actual, double expected, double tolerance, const char* text, const char* file, int line) {
    if (actual == expected || (std::isnan(actual) && std::isnan(expected))) return;
    if (std::fabs(actual - expected) <= tolerance) return;
    std::ostringstream message;
    message.precision(9);
    message << file << ":" << line << ": " << text << " is " << actual << ", expected " << expected << " +- "
            << tolerance;
    throw Failure(message.str());
}

struct Case {
    const char* name;
    void (*function)();
};

// Runs all cases, prints one line each, returns 1 where one failed.
inline int run(const std::vector<Case>& cases) {
    int failed = 0;
    for (const Case& test : cases) {
        try {
            test.function();
            std::printf("ok    %s\n", test.name);
        } catch (const std::exception& error) {
            std::printf("FAIL  %s\n      %s\n", test.name, error.what());
            failed = 1;
        }
        std::fflush(stdout);
    }
    return failed;
}

}  // namespace tracenet::test
