#include "profile/flight/forward_pace.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace tandem::profile {
namespace {

struct Pass {
  double duration_s;
  uint32_t num_tokens;
};

// Without overflow, whatever the entries say.
double seconds_between(int64_t begin_ns, int64_t end_ns) {
  return std::max(0.0, (double(end_ns) - double(begin_ns)) / 1e9);
}

uint32_t tokens_of(const FlightEntry& begin) { return std::max(1u, begin.words[0]); }

std::vector<Pass> earlier_passes(const RankView& view, const FlightEntry& current) {
  std::vector<Pass> passes;
  const FlightEntry* begin = nullptr;
  for (const FlightEntry& entry : view.log->entries) {
    if (entry.kind == FlightKind::kForwardBegin) begin = &entry;
    if (entry.kind != FlightKind::kForwardEnd) continue;
    const bool is_whole = begin != nullptr && begin->step == entry.step && entry.detail == 0;
    if (is_whole && begin->detail == current.detail) {
      passes.push_back({seconds_between(begin->time_ns, entry.time_ns), tokens_of(*begin)});
    }
    begin = nullptr;
  }
  return passes;
}

template <class Value>
double median(const std::vector<Pass>& passes, Value value_of) {
  std::vector<double> values;
  for (const Pass& pass : passes) values.push_back(value_of(pass));
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

}  // namespace

std::string ForwardPace::text() const {
  const std::string now = fmt::format("in a forward pass for {:.1f} s", running_s);
  if (usual_s < 0) return now;
  return fmt::format("{} (earlier ones{} took {:.1f} s)", now, expected_s > usual_s ? ", of fewer tokens," : "",
                     usual_s);
}

std::optional<ForwardPace> forward_pace(const RankView& view, int64_t now_ns) {
  if (view.log->process != FlightProcess::kRunning || view.has_ended()) return {};
  const FlightEntry* const begin = view.newest(FlightKind::kForwardBegin);
  if (begin == nullptr) return {};
  for (const FlightKind later : {FlightKind::kForwardEnd, FlightKind::kVote, FlightKind::kDecision}) {
    const FlightEntry* const other = view.newest(later);
    if (other != nullptr && other->sequence > begin->sequence) return {};
  }
  ForwardPace pace;
  pace.running_s = seconds_between(begin->time_ns, now_ns);
  std::vector<Pass> passes = earlier_passes(view, *begin);
  if (passes.empty()) return pace;
  const uint32_t num_tokens = tokens_of(*begin);
  const auto duration_of = [](const Pass& pass) { return pass.duration_s; };
  std::vector<Pass> alike;
  std::ranges::copy_if(passes, std::back_inserter(alike),
                       [&](const Pass& pass) { return pass.num_tokens >= num_tokens - num_tokens / 2; });
  if (!alike.empty()) {
    pace.usual_s = pace.expected_s = median(alike, duration_of);
    return pace;
  }
  pace.usual_s = median(passes, duration_of);
  pace.expected_s =
      median(passes, [&](const Pass& pass) { return pass.duration_s * num_tokens / double(pass.num_tokens); });
  return pace;
}

}  // namespace tandem::profile
