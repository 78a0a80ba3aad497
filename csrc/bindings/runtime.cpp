// Programs, plans and sessions. tracenet/engine/program.py and session.py are their faces; arguments are checked here
// again where a wrong one would read or write wild memory.
#include "tracenet/runtime.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "bindings/threads.hpp"
#include "runtime/pieces.hpp"
#include "tracenet/error.hpp"

namespace py = pybind11;

namespace {

using tracenet::InputError;
using tracenet::Plan;
using tracenet::Program;
using tracenet::Session;
using tracenet::ThreadPool;
using tracenet::Window;

using Floats = py::array_t<float, py::array::c_style>;
using Four = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

Four from_window(const Window& window) { return {window.y0, window.y1, window.x0, window.x1}; }

// pybind11 hands out what it holds as mutable; programs and plans have no method that changes them.
std::shared_ptr<Program> shared(std::shared_ptr<const Program> program) {
    return std::const_pointer_cast<Program>(std::move(program));
}

std::shared_ptr<Plan> shared(std::shared_ptr<const Plan> plan) {
    return std::const_pointer_cast<Plan>(std::move(plan));
}

// Keeps a Python object alive from C++, where the interpreter's lock need not be held.
std::shared_ptr<void> owner_of(const py::object& object) {
    return {new py::object(object), [](void* held) {
                const py::gil_scoped_acquire lock;
                delete static_cast<py::object*>(held);
            }};
}

Floats to_floats(py::handle value, const char* name) {
    const py::array array = to_array(value, py::dtype::of<float>(), false, name);
    if ((array.flags() & py::array::c_style) == 0) {
        throw InputError(std::string(name) + " is not C-contiguous; pass a contiguous array");
    }
    return py::reinterpret_borrow<Floats>(array);
}

tracenet::Schedule to_schedule(const py::bytes& data) {
    const std::string_view bytes = data;
    return tracenet::read_schedule(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
}

py::bytes to_bytes(const std::vector<std::uint8_t>& bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::shared_ptr<Program> build(const py::bytes& data, const std::vector<py::object>& tensors) {
    tracenet::Schedule schedule = to_schedule(data);
    if (tensors.size() != schedule.tensors.size()) {
        throw InputError("values of " + std::to_string(tensors.size()) + " tensors came, the schedule has " +
                         std::to_string(schedule.tensors.size()));
    }
    std::vector<Floats> arrays;
    std::vector<const float*> values;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        arrays.push_back(to_floats(tensors[i], schedule.tensors[i].name.c_str()));
        if (arrays.back().size() != schedule.tensors[i].elements()) {
            throw InputError("tensor '" + schedule.tensors[i].name + "' has " + std::to_string(arrays.back().size()) +
                             " values, its shape " + std::to_string(schedule.tensors[i].elements()));
        }
        values.push_back(arrays.back().data());
    }
    const py::gil_scoped_release unlocked;
    return shared(Program::build(std::move(schedule), values));
}

std::vector<tracenet::Demand> to_demands(const py::sequence& request) {
    std::vector<tracenet::Demand> demands;
    for (const py::handle item : request) {
        const auto pair = py::reinterpret_borrow<py::sequence>(item);
        demands.push_back({pair[0].cast<int>(), to_ordered_window(pair[1], "a window")});
    }
    return demands;
}

std::vector<tracenet::FlatValues> to_flat(const py::sequence& values, std::vector<Floats>& held) {
    std::vector<tracenet::FlatValues> flat;
    for (const py::handle item : values) {
        const auto pair = py::reinterpret_borrow<py::sequence>(item);
        held.push_back(to_floats(pair[1], "a flat input"));
        flat.push_back({pair[0].cast<int>(), held.back().data(), held.back().size()});
    }
    return flat;
}

py::dict to_dict(const tracenet::RunReport& report) {
    py::list rows;
    for (const tracenet::ProfileRow& row : report.profile) {
        py::list windows;
        for (const Window& window : row.windows) windows.append(from_window(window));
        py::dict entry;
        entry["name"] = row.name;
        entry["op"] = row.op;
        entry["windows"] = windows;
        entry["kernel"] = row.kernel;
        entry["microseconds"] = row.microseconds;
        entry["macs"] = row.macs;
        entry["bytes"] = row.bytes;
        rows.append(entry);
    }
    py::dict result;
    result["plan"] = shared(report.plan);
    result["peak_bytes"] = report.peak_bytes;
    result["kept_bytes"] = report.kept_bytes;
    result["profile"] = rows;
    return result;
}

// outputs: (plane, window, array [channels, rows, columns] to write).
py::dict run(Session& session, const py::sequence& outputs, const py::sequence& flat, bool profile) {
    std::vector<tracenet::OutputRequest> requests;
    std::vector<py::array> targets;
    const auto& planes = session.program()->schedule().planes;
    for (const py::handle item : outputs) {
        const auto parts = py::reinterpret_borrow<py::sequence>(item);
        const int plane = parts[0].cast<int>();
        const Window window = to_ordered_window(parts[1], "a window");
        py::array target = to_array(parts[2], py::dtype::of<float>(), true, "an output");
        if (plane < 0 || static_cast<std::size_t>(plane) >= planes.size() ||
            (target.flags() & py::array::c_style) == 0 ||
            !tracenet::contains(planes[static_cast<std::size_t>(plane)].whole(), window) ||
            target.size() !=
                planes[static_cast<std::size_t>(plane)].channels * (window.y1 - window.y0) * (window.x1 - window.x0)) {
            throw InputError("an output's array, window and plane do not fit each other");
        }
        requests.push_back({plane, window, static_cast<float*>(target.mutable_data())});
        targets.push_back(std::move(target));
    }
    std::vector<Floats> held;
    const std::vector<tracenet::FlatValues> values = to_flat(flat, held);
    tracenet::RunReport report;
    {
        const py::gil_scoped_release unlocked;
        report = session.run(requests, values, profile);
    }
    return to_dict(report);
}

void set_planar(Session& session, int index, py::handle value, py::handle extent_value) {
    const Floats array = to_floats(value, "an input");
    const Window extent = to_ordered_window(extent_value, "an input's window");
    const auto& schedule = session.program()->schedule();
    if (index < 0 || static_cast<std::size_t>(index) >= schedule.inputs.size()) {
        throw InputError("input " + std::to_string(index) + " is set; the network has " +
                         std::to_string(schedule.inputs.size()));
    }
    const auto& plane = schedule.planes[static_cast<std::size_t>(schedule.inputs[static_cast<std::size_t>(index)])];
    const std::int64_t rows = tracenet::checked_sub(extent.y1, extent.y0);
    const std::int64_t columns = tracenet::checked_sub(extent.x1, extent.x0);
    if (array.ndim() != 3 || array.shape(0) != plane.channels || array.shape(1) != rows || array.shape(2) != columns) {
        throw InputError("an input's array does not have its plane's channels and its window's sides");
    }
    const float* values = array.data();
    const std::shared_ptr<void> owner = owner_of(array);
    const py::gil_scoped_release unlocked;
    session.set_planar(index, values, extent, rows * columns, columns, owner);
}

void set_pixels(Session& session, int index, py::handle value, const std::array<float, 3>& mean,
                const std::array<float, 3>& std, bool reverse) {
    const py::array photo = to_array(value, py::dtype::of<std::uint8_t>(), false, "a photo");
    if (photo.ndim() != 3 || (photo.flags() & py::array::c_style) == 0) {
        throw InputError("a photo is not a C-contiguous array [rows, columns, 3]");
    }
    tracenet::PixelNorm norm;
    for (std::size_t c = 0; c < 3; ++c) {
        norm.mean[c] = mean[c];
        norm.std[c] = std[c];
    }
    norm.reverse = reverse;
    const std::int64_t height = photo.shape(0), width = photo.shape(1);
    const auto view = tracenet::dense_view(static_cast<const std::uint8_t*>(photo.data()), {0, height, 0, width},
                                           height, width, static_cast<std::int64_t>(photo.shape(2)));
    const std::shared_ptr<void> owner = owner_of(photo);
    const py::gil_scoped_release unlocked;
    session.set_pixels(index, view, norm, owner);
}

std::shared_ptr<Plan> begin(Session& session, const py::sequence& request, const py::sequence& flat, bool profile) {
    std::vector<Floats> held;
    const auto demands = to_demands(request);
    const auto values = to_flat(flat, held);
    const py::gil_scoped_release unlocked;
    return shared(session.begin(demands, values, profile));
}

std::shared_ptr<Plan> begin_windows(Session& session, const py::dict& given, const py::sequence& flat, bool profile) {
    const std::size_t planes = session.program()->schedule().planes.size();
    std::vector<std::vector<Window>> pieces(planes);
    for (const auto& [key, windows] : given) {
        const int plane = key.cast<int>();
        if (plane < 0 || static_cast<std::size_t>(plane) >= planes) {
            throw tracenet::RequestError("windows of plane " + std::to_string(plane) + " came; there are " +
                                         std::to_string(planes));
        }
        for (const py::handle window : windows) {
            pieces[static_cast<std::size_t>(plane)].push_back(to_ordered_window(window, "a window"));
        }
    }
    std::vector<Floats> held;
    const auto values = to_flat(flat, held);
    const py::gil_scoped_release unlocked;
    return shared(session.begin_windows(pieces, values, profile));
}

const tracenet::Plane& plane_of(const Session& session, int plane) {
    const auto& planes = session.program()->schedule().planes;
    if (plane < 0 || static_cast<std::size_t>(plane) >= planes.size()) {
        throw tracenet::RequestError("plane " + std::to_string(plane) + " is named; there are " +
                                     std::to_string(planes.size()));
    }
    return planes[static_cast<std::size_t>(plane)];
}

Floats read_window(Session& session, int plane, py::handle window_value) {
    const Window window = to_ordered_window(window_value, "a window");
    const tracenet::Plane& whole = plane_of(session, plane);
    if (!tracenet::contains(whole.whole(), window)) throw tracenet::WindowError("the window is not on its plane");
    Floats values({window.y1 - window.y0, window.x1 - window.x0, whole.channels});
    float* target = values.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        session.read(plane, window, target);
    }
    return values;
}

void write_window(Session& session, int plane, py::handle window_value, py::handle value) {
    const Window window = to_ordered_window(window_value, "a window");
    const tracenet::Plane& whole = plane_of(session, plane);
    const Floats values = to_floats(value, "the values");
    if (values.ndim() != 3 || values.shape(0) != tracenet::checked_sub(window.y1, window.y0) ||
        values.shape(1) != tracenet::checked_sub(window.x1, window.x0) || values.shape(2) != whole.channels) {
        throw InputError("the values are not [rows, columns, channels] of the window and plane");
    }
    const float* source = values.data();
    const py::gil_scoped_release unlocked;
    session.write(plane, window, source);
}

// The windows every step computes, int32 [steps, kMaxPieces, 4] filled up with empty ones. They may overlap.
py::array_t<std::int32_t> step_pieces(const tracenet::Planner& planner, const Plan& plan) {
    constexpr auto kPieces = static_cast<py::ssize_t>(tracenet::kMaxPieces);
    const auto& steps = planner.program().schedule().steps;
    py::array_t<std::int32_t> pieces({static_cast<py::ssize_t>(steps.size()), kPieces, py::ssize_t{4}});
    std::int32_t* target = pieces.mutable_data();
    std::fill(target, target + pieces.size(), 0);
    for (std::size_t i = 0; i < steps.size(); ++i) {
        const Plan::Range range = plan.pieces[static_cast<std::size_t>(steps[i].output)];
        std::int32_t* row = target + i * tracenet::kMaxPieces * 4;
        for (const Window* piece = plan.begin(range); piece != plan.end(range); ++piece) {
            for (const std::int64_t edge : {piece->y0, piece->y1, piece->x0, piece->x1}) {
                *row++ = static_cast<std::int32_t>(edge);
            }
        }
    }
    return pieces;
}

std::shared_ptr<ThreadPool> make_pool(int threads) {
    if (threads < 0) throw InputError("threads is " + std::to_string(threads) + "; pass 0 or more");
    const py::gil_scoped_release unlocked;
    return std::make_shared<ThreadPool>(threads);
}

py::list window_lists(const std::vector<std::vector<Window>>& lists) {
    py::list result;
    for (const auto& windows : lists) {
        py::list one;
        for (const Window& window : windows) one.append(from_window(window));
        result.append(one);
    }
    return result;
}

}  // namespace

void bind_runtime(py::module_& module) {
    module.def(
        "rewrite_schedule", [](const py::bytes& data) { return to_bytes(tracenet::write_schedule(to_schedule(data))); },
        py::arg("data"), "Reads, checks and writes a schedule again: the same bytes, or a ScheduleError.");

    py::class_<ThreadPool, std::shared_ptr<ThreadPool>>(module, "ThreadPool")
        .def(py::init(&make_pool), py::arg("threads") = 0)
        .def_static("shared", &shared_pool, "The pool of this process.")
        .def_property_readonly("threads", &ThreadPool::threads);

    py::class_<Program, std::shared_ptr<Program>>(module, "Program")
        .def(py::init(&build), py::arg("schedule"), py::arg("tensors"))
        .def_static(
            "load",
            [](const std::string& path) {
                const py::gil_scoped_release unlocked;
                return shared(Program::load(path));
            },
            py::arg("path"))
        .def("at_size", [](const Program& self, std::int64_t height,
                           std::int64_t width) { return shared(self.at_size(height, width)); })
        .def_property_readonly("schedule",
                               [](const Program& self) { return to_bytes(tracenet::write_schedule(self.schedule())); })
        .def_property_readonly("file_head", [](const Program& self) { return to_bytes(self.file_head()); })
        .def_property_readonly("packed",
                               [](const std::shared_ptr<Program>& self) {
                                   py::array_t<std::uint8_t> bytes(static_cast<py::ssize_t>(self->packed_bytes()),
                                                                   self->packed(), py::cast(self));
                                   bytes.attr("setflags")(py::arg("write") = false);
                                   return bytes;
                               })
        .def_property_readonly("isa", [](const Program& self) { return tracenet::isa_name(self.isa()); })
        .def_property_readonly("full_macs", &Program::full_macs);

    py::class_<Plan, std::shared_ptr<Plan>>(module, "Plan")
        .def_property_readonly("windows",
                               [](const Plan& self) {
                                   py::list windows;
                                   for (const Window& window : self.windows) windows.append(from_window(window));
                                   return windows;
                               })
        .def_property_readonly("pieces",
                               [](const Plan& self) {
                                   std::vector<std::vector<Window>> lists;
                                   for (const Plan::Range range : self.pieces) {
                                       lists.emplace_back(self.begin(range), self.end(range));
                                   }
                                   return window_lists(lists);
                               })
        .def_readonly("step_macs", &Plan::step_macs)
        .def_readonly("macs", &Plan::macs)
        .def_readonly("planning_us", &Plan::planning_us)
        .def_readonly("workspace_bytes", &Plan::workspace_bytes);

    py::class_<tracenet::Planner>(module, "Planner")
        .def(py::init([](const py::bytes& schedule, const std::vector<bool>& keep) {
                 return std::make_unique<tracenet::Planner>(to_schedule(schedule), keep);
             }),
             py::arg("schedule"), py::arg("keep"))
        .def(
            "plan",
            [](tracenet::Planner& self, const py::sequence& request) {
                const auto plan = self.plan(to_demands(request));
                return py::make_tuple(shared(plan), step_pieces(self, *plan));
            },
            py::arg("request"))
        .def("commit", &tracenet::Planner::commit)
        .def(
            "record",
            [](tracenet::Planner& self, int plane, py::handle window) {
                self.record({plane, to_ordered_window(window, "a window")});
            },
            py::arg("plane"), py::arg("window"))
        .def("forget", &tracenet::Planner::forget)
        .def("kept_windows", [](const tracenet::Planner& self) { return window_lists(self.kept_windows()); })
        .def_property_readonly("full_macs", [](const tracenet::Planner& self) { return self.program().full_macs(); });

    py::class_<Session>(module, "Session")
        .def(py::init([](const std::shared_ptr<Program>& program, const std::shared_ptr<ThreadPool>& pool, bool keep,
                         std::int64_t max_kept_bytes, bool poison) {
                 return std::make_unique<Session>(program, pool,
                                                  tracenet::SessionOptions{keep, max_kept_bytes, poison});
             }),
             py::arg("program"), py::arg("pool"), py::arg("keep"), py::arg("max_kept_bytes"), py::arg("poison"))
        .def("set_planar", &set_planar)
        .def("set_pixels", &set_pixels)
        .def("plan",
             [](const Session& self, const py::sequence& request) {
                 const auto demands = to_demands(request);
                 const py::gil_scoped_release unlocked;
                 return shared(self.plan(demands));
             })
        .def("run", &run)
        .def("begin", &begin)
        .def("begin_windows", &begin_windows)
        .def("run_steps", &Session::run_steps, py::call_guard<py::gil_scoped_release>())
        .def("read", &read_window)
        .def("write", &write_window)
        .def("finish",
             [](Session& self) {
                 tracenet::RunReport report;
                 {
                     const py::gil_scoped_release unlocked;
                     report = self.finish();
                 }
                 return to_dict(report);
             })
        .def("forget", &Session::forget, py::call_guard<py::gil_scoped_release>())
        .def("kept_windows",
             [](const Session& self) {
                 std::vector<std::vector<Window>> lists;
                 {
                     const py::gil_scoped_release unlocked;
                     lists = self.kept_windows();
                 }
                 return window_lists(lists);
             })
        .def("kept_bytes", &Session::kept_bytes, py::call_guard<py::gil_scoped_release>());
}
