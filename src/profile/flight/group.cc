#include "profile/flight/group.h"

#include <fmt/format.h>

#include <utility>

namespace tandem::profile {

std::string Group::name_of(int32_t rank) const {
  const RankView* view = find(rank);
  return view ? view->name() : fmt::format("rank {} ({}, no recording of it here)", rank, first().role());
}

std::vector<Group> group_logs(const std::vector<FlightLog>& logs) {
  std::map<std::pair<int32_t, uint64_t>, Group> by_id;
  for (const FlightLog& log : logs) {
    Group& group = by_id[{log.header.role, log.header.group}];
    RankView view(log);
    const auto [known, is_new] = group.ranks.emplace(log.header.rank, view);
    if (!is_new && view.log->entries.size() > 0 &&
        (known->second.last == nullptr || view.last->sequence > known->second.last->sequence)) {
      known->second = view;
    }
  }
  std::map<int32_t, bool> lives;  // by role
  const auto is_alive = [](const auto& rank) {
    const FlightLog& log = *rank.second.log;
    return log.process != FlightProcess::kGone && log.header.is_closed == 0;
  };
  for (const auto& [id, group] : by_id) lives[id.first] |= std::ranges::any_of(group.ranks, is_alive);
  std::vector<Group> groups;
  for (auto& [id, group] : by_id) {
    group.is_past = lives[id.first] && std::ranges::none_of(group.ranks, is_alive);
    groups.push_back(std::move(group));
  }
  return groups;
}

}  // namespace tandem::profile
