// What spans cost: nanoseconds for one, off and on, and which share of a decode step of the trained model they are. The
// whole step is timed with and without recording in turns, so that both see the same load.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/clock.h"
#include "profile/span.h"
#include "profile/trace.h"

namespace tandem::profile {
namespace {

constexpr int kSpans = 1 << 20, kRounds = 9;

// Median nanoseconds of one round's span.
template <class Body>
double measure(const Clock& clock, Body body) {
  std::vector<double> rounds;
  for (int round = 0; round < kRounds; ++round) {
    const TimePoint begin = clock.now();
    for (int i = 0; i < kSpans; ++i) body();
    rounds.push_back(double((clock.now() - begin).count()) / kSpans);
  }
  std::ranges::nth_element(rounds, rounds.begin() + kRounds / 2);
  return rounds[kRounds / 2];
}

double measure_op(Recorder* recorder, const Clock& clock) {
  return measure(clock, [&] {
    OpSpan span(recorder, "linear");
    if (span) span.work({64, 512, 256}, 1e6, 1e5);
    benchmark::ClobberMemory();
  });
}

int run() {
  const SystemClock clock;
  Recorder recorder(clock);
  const double nothing = measure(clock, [] { benchmark::ClobberMemory(); });
  const double off = measure_op(&recorder, clock) - nothing;
  recorder.start(SpanBuffer(size_t(1) << 18), true);
  measure_op(&recorder, clock);  // touches the ring
  const double on = measure_op(&recorder, clock) - nothing;
  const double now = measure(clock, [&] { benchmark::DoNotOptimize(clock.now()); });
  const SpanBuffer spans = recorder.stop();
  TraceInfo info;
  size_t bytes = 0;
  const TimePoint begin = clock.now();
  format_trace(info, {&spans}, [&](std::string_view piece) { bytes += piece.size(); });
  const double format_ns = double((clock.now() - begin).count()) / double(spans.size());
  fmt::print("one span off: {:.2f} ns; on: {:.1f} ns, of which the two looks at the clock {:.1f} ns\n", off, on,
             2 * now);
  fmt::print("as text: {:.0f} ns and {:.0f} bytes a span, on the writer's thread\n", format_ns,
             double(bytes) / double(spans.size()));
  return 0;
}

}  // namespace
}  // namespace tandem::profile

int main() { return tandem::profile::run(); }
