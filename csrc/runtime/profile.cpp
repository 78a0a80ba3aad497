// Profile rows and their printed form.
#include "runtime/profile.hpp"

#include <cstdio>
#include <set>
#include <string>

#include "runtime/pieces.hpp"
#include "runtime/rules.hpp"

namespace tracenet {

namespace {

std::string short_text(const std::vector<Window>& windows) {
    const Window& w = windows.front();
    std::string text = "[" + std::to_string(w.y0) + "," + std::to_string(w.y1) + ")x[" + std::to_string(w.x0) + "," +
                       std::to_string(w.x1) + ")";
    if (windows.size() > 1) text += " +" + std::to_string(windows.size() - 1);
    return text;
}

}  // namespace

ProfileRow profile_row(const Program& program, const Plan& plan, const std::vector<std::size_t>& members,
                       double microseconds) {
    const Schedule& schedule = program.schedule();
    const Step& head = schedule.steps[members.front()];
    ProfileRow row;
    row.name = head.name;
    if (members.size() > 1) row.name += " +" + std::to_string(members.size() - 1);
    row.op = op_name(head.op);
    row.kernel = schedule.is_int8(head) ? int8_kernel_name(active_int8_kernel()) : isa_name(program.isa());
    row.microseconds = microseconds;
    std::set<int> weights;
    const auto bytes_of = [&](int plane, const Window& window) {
        const Plane& of = schedule.planes[static_cast<std::size_t>(plane)];
        return area(window) * of.channels * of.element_bytes();
    };
    for (const std::size_t i : members) {
        const Step& step = schedule.steps[i];
        const Plan::Range range = plan.apart[static_cast<std::size_t>(step.output)];
        for (const Window* piece = plan.begin(range); piece != plan.end(range); ++piece) {
            row.windows.push_back(*piece);
            row.bytes += bytes_of(step.output, *piece);
            const Window inner = inner_window(schedule, step, *piece);
            for (std::size_t position = 0; position < step.inputs.size(); ++position) {
                row.bytes += bytes_of(step.inputs[position], demand(schedule, step, position, inner));
            }
        }
        row.macs += plan.step_macs[i];
        const int weight = step.attributes.weight;
        if (weight >= 0 && weights.insert(weight).second) {
            row.bytes += schedule.tensors[static_cast<std::size_t>(weight)].elements() *
                         (schedule.is_int8(step) ? 1 : static_cast<std::int64_t>(sizeof(float)));
        }
    }
    return row;
}

void print_row(const ProfileRow& row) {
    const double time = row.microseconds > 0 ? row.microseconds : 1e-3;
    std::fprintf(stderr, "%-36s %-11s %-30s %-8s %10.1f us %8.1f GFLOP/s %7.1f GB/s\n", row.name.c_str(),
                 row.op.c_str(), short_text(row.windows).c_str(), row.kernel.c_str(), row.microseconds,
                 2e-3 * static_cast<double>(row.macs) / time, 1e-3 * static_cast<double>(row.bytes) / time);
}

}  // namespace tracenet
