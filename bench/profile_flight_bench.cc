// What the flight recorder costs: nanoseconds for an entry, with and without its look at the clock, and for a copy of
// the whole ring, which is made on another thread.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "profile/flight_explain.h"

namespace tandem::profile {
namespace {

constexpr int kEntries = 1 << 20, kRounds = 9;

// Median nanoseconds of one round's entry.
template <class Body>
double measure(const Clock& clock, int count, Body body) {
  std::vector<double> rounds;
  for (int round = 0; round < kRounds; ++round) {
    const TimePoint begin = clock.now();
    for (int i = 0; i < count; ++i) body(i);
    rounds.push_back(double((clock.now() - begin).count()) / count);
  }
  std::ranges::nth_element(rounds, rounds.begin() + kRounds / 2);
  return rounds[kRounds / 2];
}

int run() {
  const SystemClock clock;
  std::string directory = std::filesystem::temp_directory_path() / "tandem-flight-bench-XXXXXX";
  CHECK(mkdtemp(directory.data()) != nullptr);
  auto made = FlightRecorder::create(directory + "/rank-0.flight", {}, clock);
  CHECK(made.has_value());
  FlightRecorder& recorder = **made;
  FlightEntry entry;
  entry.kind = FlightKind::kDispatch;
  const TimePoint now = clock.now();
  const double given = measure(clock, kEntries, [&](int i) {
    entry.step = uint64_t(i);
    recorder.add(entry, now);
  });
  const double timed = measure(clock, kEntries, [&](int i) {
    entry.step = uint64_t(i);
    recorder.add(entry);
  });
  entry.kind = FlightKind::kVote;
  const double quiet = measure(clock, kEntries, [&](int i) {
    entry.step = uint64_t(i);
    recorder.add_quiet(entry, now);
  });
  const FlightRecorder* one[] = {&recorder};
  const double copy = measure(clock, 100, [&](int) { benchmark::DoNotOptimize(copy_flights(one)); });
  const double explained = measure(clock, 100, [&](int) { benchmark::DoNotOptimize(explain(read_flights(one))); });
  fmt::print("one entry: {:.1f} ns, with a look at the clock {:.1f} ns, quiet {:.1f} ns\n", given, timed, quiet);
  fmt::print("a rank's ring: copied in {:.2f} ms, explained in {:.2f} ms, {} bytes\n", copy / 1e6, explained / 1e6,
             kFlightFileBytes);
  std::filesystem::remove_all(directory);
  return 0;
}

}  // namespace
}  // namespace tandem::profile

int main() { return tandem::profile::run(); }
