// Errors thrown on purpose; each becomes the Python error of the same name (tracenet_kernels/errors.py).
#pragma once

#include <stdexcept>

namespace tracenet {

// A buffer, shape, dtype or attribute is not what the call allows.
class InputError : public std::invalid_argument {
  public:
    using std::invalid_argument::invalid_argument;
};

// A request names an output that is not there, or asks for something a schedule cannot give.
class RequestError : public std::invalid_argument {
  public:
    using std::invalid_argument::invalid_argument;
};

// A step failed while a schedule ran; the message names the step.
class ExecutionError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Serialised data is truncated, foreign, of another version or inconsistent.
class ScheduleError : public std::invalid_argument {
  public:
    using std::invalid_argument::invalid_argument;
};

}  // namespace tracenet
