// Schedules as bytes, pieces of windows, and sessions: the C++ side alone.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <set>
#include <thread>

#include "runtime/pieces.hpp"
#include "tests/check.hpp"
#include "tests/small_schedule.hpp"

namespace {

using namespace tracenet;
using test::build;
using test::consume;
using test::small_schedule;

Window random_window(std::mt19937& random, std::int64_t height, std::int64_t width) {
    const auto side = [&](std::int64_t size) {
        const std::int64_t a = static_cast<std::int64_t>(random() % static_cast<unsigned>(size));
        const std::int64_t b = static_cast<std::int64_t>(random() % static_cast<unsigned>(size));
        return std::pair{std::min(a, b), std::max(a, b) + 1};
    };
    const auto [y0, y1] = side(height);
    const auto [x0, x1] = side(width);
    return {y0, y1, x0, x1};
}

std::set<std::pair<std::int64_t, std::int64_t>> cells(const std::vector<Window>& windows,
                                                      std::size_t* count = nullptr) {
    std::set<std::pair<std::int64_t, std::int64_t>> found;
    for (const Window& w : windows) {
        for (std::int64_t y = w.y0; y < w.y1; ++y) {
            for (std::int64_t x = w.x0; x < w.x1; ++x) {
                found.insert({y, x});
                if (count != nullptr) ++*count;
            }
        }
    }
    return found;
}

void pieces_cover_what_they_should() {
    std::mt19937 random(1);
    for (int round = 0; round < 400; ++round) {
        std::vector<Window> windows, others;
        for (unsigned i = 0; i < 1 + random() % 7; ++i) windows.push_back(random_window(random, 12, 12));
        for (unsigned i = 0; i < random() % 5; ++i) others.push_back(random_window(random, 12, 12));

        std::vector<Window> rest;
        subtract_all(windows[0], others, rest);
        std::size_t counted = 0;
        auto expected = cells({windows[0]});
        for (const auto& cell : cells(others)) expected.erase(cell);
        CHECK(cells(rest, &counted) == expected);
        CHECK(counted == expected.size());
        CHECK(covers(others, windows[0]) == expected.empty());

        std::vector<Window> merged = windows;
        merge_windows(merged);
        CHECK(!merged.empty() && merged.size() <= kMaxPieces);
        CHECK(std::all_of(windows.begin(), windows.end(), [&](const Window& w) { return covers(merged, w); }));
        std::vector<Window> again = merged;
        merge_windows(again);
        CHECK(cells(again) == cells(merged));

        std::vector<Window> apart = merged;
        make_disjoint(apart);
        counted = 0;
        CHECK(cells(apart, &counted) == cells(merged));
        CHECK(counted == cells(merged).size());

        std::vector<Window> kept;
        for (const Window& window : windows) add_disjoint(kept, window, 100);
        counted = 0;
        CHECK(cells(kept, &counted) == cells(windows));
        CHECK(counted == cells(windows).size());
        for (const Window& window : windows) add_disjoint(kept, window, 2);
        CHECK(kept.size() <= 2);
    }
}

void bytes_give_the_schedule_back() {
    const std::vector<std::uint8_t> bytes = write_schedule(small_schedule());
    CHECK(consume(bytes.data(), bytes.size()));
    for (std::size_t size = 0; size < bytes.size(); ++size) {
        CHECK_THROWS(read_schedule(bytes.data(), size), ScheduleError);
    }
}

void mutated_bytes_are_refused_or_consistent() {
    const std::vector<std::uint8_t> good = write_schedule(small_schedule());
    std::mt19937 random(2);
    int passed = 0;
    for (int round = 0; round < 20000; ++round) {
        std::vector<std::uint8_t> bytes = good;
        for (unsigned i = 0; i < 1 + random() % 3; ++i) {
            const std::size_t at = random() % bytes.size();
            switch (random() % 4) {
                case 0:
                    bytes[at] = static_cast<std::uint8_t>(random());
                    break;
                case 1:
                    bytes[at] = static_cast<std::uint8_t>(bytes[at] ^ (1U << (random() % 8)));
                    break;
                case 2: {
                    const std::int64_t values[] = {-1, 0, 1, 2, 1 << 20, std::int64_t{1} << 62, INT64_MIN};
                    const std::size_t room = std::min<std::size_t>(8, bytes.size() - at);
                    std::memcpy(bytes.data() + at, &values[random() % 7], room);
                    break;
                }
                default:
                    bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(at));
            }
        }
        passed += consume(bytes.data(), bytes.size()) ? 1 : 0;
    }
    CHECK(passed > 0);
}

struct Image {
    std::vector<float> values = std::vector<float>(3 * 24 * 32);

    Image() {
        std::mt19937 random(3);
        for (float& value : values) value = static_cast<float>(random() % 1000) / 500.0F - 1.0F;
    }

    void give(Session& session) const { session.set_planar(0, values.data(), {0, 24, 0, 32}, 24 * 32, 32, nullptr); }
};

std::vector<float> run(Session& session, int plane, const Window& window, RunReport* report = nullptr) {
    const Plane& p = session.program()->schedule().planes[static_cast<std::size_t>(plane)];
    std::vector<float> values(static_cast<std::size_t>(p.channels * area(window)), -7.0F);
    const RunReport found = session.run({{plane, window, values.data()}}, {}, true);
    if (report != nullptr) *report = found;
    return values;
}

std::vector<float> crop(const std::vector<float>& full, const Plane& plane, const Window& w) {
    std::vector<float> part;
    for (std::int64_t c = 0; c < plane.channels; ++c) {
        for (std::int64_t y = w.y0; y < w.y1; ++y) {
            for (std::int64_t x = w.x0; x < w.x1; ++x) {
                part.push_back(full[static_cast<std::size_t>((c * plane.height + y) * plane.width + x)]);
            }
        }
    }
    return part;
}

void windows_hold_the_bits_of_the_plane() {
    const auto program = build(small_schedule());
    const auto pool = std::make_shared<ThreadPool>(2);
    const Image image;
    Session whole(program, pool, {false, 0, true}), kept(program, pool, {true, 1 << 20, true}),
        bounded(program, pool, {true, 3000, true});
    for (Session* session : {&whole, &kept, &bounded}) image.give(*session);
    std::mt19937 random(4);
    for (const auto& [name, plane] : program->schedule().outputs) {
        const Plane& p = program->schedule().planes[static_cast<std::size_t>(plane)];
        const std::vector<float> full = run(whole, plane, p.whole());
        CHECK(std::none_of(full.begin(), full.end(), [](float value) { return std::isnan(value) || value == -7.0F; }));
        for (int round = 0; round < 40; ++round) {
            if (round == 25) kept.forget();
            const Window window = random_window(random, p.height, p.width);
            for (Session* session : {&whole, &kept, &bounded}) {
                RunReport report;
                CHECK(run(*session, plane, window, &report) == crop(full, p, window));
                CHECK(report.peak_bytes >= report.kept_bytes);
                CHECK(report.kept_bytes == session->kept_bytes());
                CHECK(session != &bounded || report.kept_bytes <= 3000);
                CHECK(session != &whole || report.kept_bytes == 0);
            }
        }
    }
    CHECK(kept.kept_bytes() > 0);
}

void sessions_share_a_program() {
    const auto program = build(small_schedule());
    const auto pool = std::make_shared<ThreadPool>(3);
    const Image image;
    const int plane = program->schedule().outputs[0].second;
    const Plane& p = program->schedule().planes[static_cast<std::size_t>(plane)];
    Session first(program, pool), second(program, pool, {true, 1 << 20, false});
    image.give(first);
    image.give(second);
    const std::vector<float> full = run(first, plane, p.whole());
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 4; ++seed) {
        threads.emplace_back([&, seed] {
            std::mt19937 random(seed);
            for (int round = 0; round < 50; ++round) {
                const Window window = random_window(random, p.height, p.width);
                Session& session = seed % 2 == 0 ? first : second;
                if (run(session, plane, window) != crop(full, p, window)) ++wrong;
                if (round % 10 == 9) second.forget();
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
}

void another_size_gives_the_same_values_where_nothing_changed() {
    const auto program = build(small_schedule());
    const auto larger = program->at_size(40, 48);
    CHECK(larger->packed() == program->packed());
    CHECK(larger->schedule().planes[1].height == 20);
    const auto pool = std::make_shared<ThreadPool>(1);
    Session small(program, pool), large(larger, pool);
    const Image image;
    image.give(small);
    std::vector<float> wide(3 * 40 * 48, 0.0F);
    for (std::size_t c = 0; c < 3; ++c) {
        for (std::size_t y = 0; y < 24; ++y) {
            std::copy_n(image.values.data() + (c * 24 + y) * 32, 32, wide.data() + (c * 40 + y) * 48);
        }
    }
    large.set_planar(0, wide.data(), {0, 40, 0, 48}, 40 * 48, 48, nullptr);
    const int plane = program->schedule().outputs[0].second;
    const Window corner{0, 4, 0, 5};  // far from the border that moved
    CHECK(run(small, plane, corner) == run(large, plane, corner));
    CHECK_THROWS(program->at_size(22, 32), RequestError);  // 11 rows do not pool and enlarge to 11 again
    CHECK_THROWS(program->at_size(0, 32), RequestError);
}

void planners_plan_what_sessions_would() {
    const Schedule schedule = small_schedule();
    const int plane = schedule.outputs[0].second;
    const std::size_t output = static_cast<std::size_t>(plane);
    std::vector<bool> keep;
    for (const Plane& one : schedule.planes) keep.push_back(one.keep);
    Planner planner(small_schedule(), keep);
    const auto first = planner.plan({{plane, {2, 5, 3, 6}}});
    CHECK(first->macs > 0 && first->macs < planner.program().full_macs());
    CHECK((first->windows[output] == Window{2, 5, 3, 6}));
    CHECK(planner.plan({{plane, {2, 5, 3, 6}}})->macs == first->macs);  // nothing was computed
    planner.commit();
    CHECK_THROWS(planner.commit(), RequestError);
    CHECK(planner.plan({{plane, {2, 5, 3, 6}}})->macs < first->macs);
    planner.forget();
    CHECK_THROWS(planner.commit(), RequestError);
    CHECK(planner.plan({{plane, {2, 5, 3, 6}}})->macs == first->macs);
    for (std::size_t i = 0; i < keep.size(); ++i) {
        if (!first->windows[i].is_empty()) planner.record({static_cast<int>(i), first->windows[i]});
    }
    CHECK(planner.plan({{plane, {2, 5, 3, 6}}})->macs < first->macs);
    CHECK_THROWS(planner.plan({}), RequestError);
    CHECK_THROWS(planner.plan({{99, {0, 1, 0, 1}}}), RequestError);
    CHECK_THROWS(planner.record({plane, {0, 13, 0, 1}}), WindowError);
    CHECK_THROWS(Planner(small_schedule(), {}), InputError);
}

void wrong_calls_are_typed_errors() {
    const auto program = build(small_schedule());
    const auto pool = std::make_shared<ThreadPool>(1);
    Session session(program, pool);
    const Image image;
    const int plane = program->schedule().outputs[0].second;
    std::vector<float> values(4096);
    CHECK_THROWS(session.run({{plane, {0, 1, 0, 1}, values.data()}}, {}, false), InputError);
    image.give(session);
    CHECK_THROWS(session.run({}, {}, false), RequestError);
    CHECK_THROWS(session.run({{plane, {0, 1, 0, 1}, nullptr}}, {}, false), InputError);
    CHECK_THROWS(session.run({{99, {0, 1, 0, 1}, values.data()}}, {}, false), RequestError);
    CHECK_THROWS(session.run({{plane, {0, 13, 0, 1}, values.data()}}, {}, false), WindowError);
    CHECK_THROWS(session.run({{plane, {0, 1, 0, 1}, values.data()}}, {{0, values.data(), 3}}, false), InputError);
    CHECK_THROWS(session.set_planar(1, values.data(), {0, 1, 0, 1}, 1, 1, nullptr), InputError);
    CHECK_THROWS(session.set_planar(0, values.data(), {0, 25, 0, 1}, 1, 1, nullptr), WindowError);
    CHECK_THROWS(session.run_steps(0, 1), RequestError);
    CHECK_THROWS(session.finish(), RequestError);
    CHECK_THROWS(Session(nullptr, pool), InputError);
    CHECK_THROWS(Session(program, pool, {true, -1, false}), InputError);
    CHECK_THROWS(Program::build(small_schedule(), {}), InputError);
    CHECK_THROWS(Program::load("/nonexistent"), InputError);

    session.begin({{plane, {2, 5, 3, 6}}}, {}, false);
    CHECK_THROWS(session.run({{plane, {0, 1, 0, 1}, values.data()}}, {}, false), RequestError);
    CHECK_THROWS(session.forget(), RequestError);
    CHECK_THROWS(session.read(plane, {2, 3, 3, 4}, values.data()), RequestError);
    session.run_steps(0, program->schedule().steps.size());
    CHECK_THROWS(session.read(plane, {1, 3, 3, 4}, values.data()), RequestError);
    session.read(plane, {2, 5, 3, 6}, values.data());
    session.finish();
    const std::vector<float> again = run(session, plane, {2, 5, 3, 6});
    CHECK(values[0] == again[0] && values[1] == again[9]);
}

}  // namespace

int main() {
    return tracenet::test::run({
        {"pieces cover what they should", &pieces_cover_what_they_should},
        {"bytes give the schedule back", &bytes_give_the_schedule_back},
        {"mutated bytes are refused or consistent", &mutated_bytes_are_refused_or_consistent},
        {"windows hold the bits of the plane", &windows_hold_the_bits_of_the_plane},
        {"sessions share a program", &sessions_share_a_program},
        {"another size gives the same values where nothing changed",
         &another_size_gives_the_same_values_where_nothing_changed},
        {"planners plan what sessions would", &planners_plan_what_sessions_would},
        {"wrong calls are typed errors", &wrong_calls_are_typed_errors},
    });
}
