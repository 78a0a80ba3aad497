// tracenet_kernels._C: import it through tracenet_kernels.native.
#include <pybind11/pybind11.h>

#include <exception>

#include "bindings/bindings.hpp"
#include "tracenet/error.hpp"
#include "tracenet/window.hpp"

namespace py = pybind11;

namespace {

void raise(const char* name, const std::exception& error) {
    const py::object type = py::module_::import("tracenet_kernels.errors").attr(name);
    py::set_error(type, error.what());
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "C++ windows, kernels and the schedule interpreter; import it through tracenet_kernels.native.";

    py::register_exception_translator([](std::exception_ptr pending) {
        try {
            if (pending) std::rethrow_exception(pending);
        } catch (const tracenet::WindowError& error) {
            raise("WindowError", error);
        } catch (const tracenet::InputError& error) {
            raise("InputError", error);
        } catch (const tracenet::RequestError& error) {
            raise("RequestError", error);
        } catch (const tracenet::ScheduleError& error) {
            raise("ScheduleError", error);
        } catch (const tracenet::ExecutionError& error) {
            raise("ExecutionError", error);
        }
    });

    bind_windows(module);
    bind_threads(module);
    bind_conv(module);
    bind_window_ops(module);
    bind_conv_int8(module);
    bind_runtime(module);
}
