// Logs by server. Borrows the logs. Values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "profile/flight/rank_view.h"

namespace tandem::profile {

// A server: its ranks, as far as there are logs of them; never none.
struct Group {
  std::map<int32_t, RankView> ranks;
  bool is_past = false;  // all its processes are gone, and another server of its role lives

  const RankView* find(int32_t rank) const {
    const auto found = ranks.find(rank);
    return found == ranks.end() ? nullptr : &found->second;
  }
  const RankView& first() const { return ranks.begin()->second; }
  // Whether anybody has looked at its processes. A copy from elsewhere stands for their end: they may have waited for
  // hours after the last entry.
  bool is_seen() const {
    return std::ranges::any_of(ranks, [](const auto& r) { return r.second.log->process != FlightProcess::kUnknown; });
  }
  std::string name_of(int32_t rank) const;
};

// Of several logs of the same rank the one that goes further counts.
std::vector<Group> group_logs(const std::vector<FlightLog>& logs);

}  // namespace tandem::profile
