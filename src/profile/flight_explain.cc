#include "profile/flight_explain.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include "profile/flight/forward_pace.h"
#include "profile/flight/group.h"
#include "profile/flight/handover_waits.h"
#include "profile/flight/rank_view.h"

namespace tandem::profile {
namespace {

using Kind = FlightFinding::Kind;

double age_s(int64_t since_ns, int64_t now_ns) { return std::max(0.0, (double(now_ns) - double(since_ns)) / 1e9); }

// "rank 2", "ranks 0, 1 and 2"
std::string ranks_text(const std::vector<int32_t>& ranks) {
  if (ranks.size() == 1) return fmt::format("rank {}", ranks[0]);
  const std::vector<int32_t> first(ranks.begin(), ranks.end() - 1);
  return fmt::format("ranks {} and {}", fmt::join(first, ", "), ranks.back());
}

std::string last_text(const RankView& view, int64_t now_ns) {
  if (view.last == nullptr) return "nothing is written";
  const std::optional<ForwardPace> pace = forward_pace(view, now_ns);
  return fmt::format("its last entry, {:.1f} s old, is '{}'{}", view.age_s(now_ns), describe(*view.last),
                     pace && pace->usual_s >= 0 ? ", " + pace->text() : "");
}

// Silent, but not for longer than its earlier forward passes let expect.
bool is_working(const RankView& view, int64_t now_ns) {
  const std::optional<ForwardPace> pace = forward_pace(view, now_ns);
  return pace && pace->is_work();
}

// Who waits for whom in one server, and which rank is at the bottom of it.
class GroupExplainer {
 public:
  GroupExplainer(const Group& group, int64_t now_ns, double patience_s)
      : group_(group), now_ns_(now_ns), patience_s_(patience_s) {
    for (const auto& [rank, view] : group_.ranks) find_blockers(view);
  }

  std::vector<FlightFinding> findings() {
    compare_decisions();
    name_missing();
    name_circle();
    name_undelivered();
    name_down();
    name_silent();
    name_ended();
    return std::move(findings_);
  }

 private:
  struct Blocked {
    int32_t by = 0;
    FlightWait wait;
  };

  FlightFinding& add(Kind kind, std::vector<int32_t> ranks) {
    FlightFinding& finding = findings_.emplace_back();
    finding.kind = kind;
    finding.is_stuck = true;
    finding.role = group_.first().role();
    finding.ranks = std::move(ranks);
    return finding;
  }

  // The ranks in [first, end) that may be missing: those with a recording, and those that whoever waited long has
  // named. Not all: what a header says of their number is from outside.
  std::set<int32_t> candidates(const RankView& view, const FlightWait& wait) const {
    const auto [first, end] = view.ranks_of(wait);
    std::set<int32_t> ranks;
    for (auto at = group_.ranks.lower_bound(first); at != group_.ranks.lower_bound(end); ++at) ranks.insert(at->first);
    const FlightEntry* const note = view.note_of(wait);
    if (note == nullptr) return ranks;
    const uint32_t listed = std::min<uint32_t>(note->words[1], uint32_t(note->words.size()) - 2);
    for (uint32_t i = 0; i < listed; ++i) {
      const int64_t named = note->words[2 + i];
      if (named >= first && named < end) ranks.insert(int32_t(named));
    }
    return ranks;
  }

  // What a process that is gone waited for counts where the others are down, too: after the end of all.
  void find_blockers(const RankView& view) {
    if (view.log->process == FlightProcess::kStopped) return;
    const bool is_gone = view.is_down();
    const int32_t self = view.header().rank;
    for (const FlightWait& wait : view.open_waits()) {
      const bool is_old = age_s(wait.since_ns, now_ns_) > patience_s_;
      for (const int32_t rank : candidates(view, wait)) {
        if (rank == self) continue;
        const RankView* other = group_.find(rank);
        const bool is_missing = other == nullptr || !other->has_come_to(wait);
        const bool is_down = other && other->is_down();
        if (!is_missing || !(is_down || (is_old && !is_gone))) continue;
        blocked_[self].push_back({rank, wait});
        missing_.insert(rank);
      }
    }
  }

  // All that wait for the rank, some of them for others that do.
  std::vector<int32_t> waiting_for(int32_t rank) const {
    std::set<int32_t> found;
    std::vector<int32_t> next{rank};
    while (!next.empty()) {
      const int32_t missing = next.back();
      next.pop_back();
      for (const auto& [waiting, reasons] : blocked_) {
        const bool waits = std::ranges::any_of(reasons, [&](const Blocked& blocked) { return blocked.by == missing; });
        if (waits && waiting != rank && found.insert(waiting).second) next.push_back(waiting);
      }
    }
    return {found.begin(), found.end()};
  }

  // Where an operation lies in the order in which every rank goes through them.
  static auto place_of(const FlightWait& wait) {
    const int within_layer = wait.kind == FlightKind::kAttention ? 0 : wait.kind == FlightKind::kDispatch ? 1 : 2;
    return std::tuple(wait.step, wait.layer, within_layer, wait.since_ns);
  }

  // Of the operations that the rank is waited for in, the next one for it.
  std::optional<FlightWait> first_wait_for(int32_t rank) const {
    std::optional<FlightWait> first;
    for (const auto& [waiting, reasons] : blocked_) {
      for (const Blocked& blocked : reasons) {
        if (blocked.by == rank && (!first || place_of(blocked.wait) < place_of(*first))) first = blocked.wait;
      }
    }
    return first;
  }

  void set_wait(FlightFinding& finding, const FlightWait& wait) const {
    finding.step = wait.step;
    finding.layer = wait.layer;
    finding.operation = operation_of(wait.kind);
    finding.waited_s = age_s(wait.since_ns, now_ns_);
  }

  // "rank 2 (decode, pid 4711) is in a forward pass for 4.0 s (earlier ones took 1.2 s); ranks 0 and 1 wait for it"
  void set_working(FlightFinding& finding, const RankView& view) const {
    finding.kind = Kind::kWorking;
    finding.is_stuck = false;
    finding.sentence = fmt::format("{} is {}", view.name(), forward_pace(view, now_ns_)->text());
    if (finding.waiting.empty()) return;
    finding.sentence +=
        fmt::format("; {} {} for it", ranks_text(finding.waiting), finding.waiting.size() == 1 ? "waits" : "wait");
  }

  // Decisions of the same step are the same on all ranks.
  void compare_decisions() {
    std::map<uint64_t, const FlightEntry*> by_step;
    std::map<uint64_t, std::pair<int32_t, int32_t>> differ;
    std::map<const FlightEntry*, int32_t> rank_of;
    for (const auto& [rank, view] : group_.ranks) {
      for (const FlightEntry& entry : view.log->entries) {
        if (entry.kind != FlightKind::kDecision) continue;
        const auto [known, is_first] = by_step.emplace(entry.step, &entry);
        if (is_first) rank_of[&entry] = rank;
        const bool same = known->second->words == entry.words && known->second->detail == entry.detail;
        if (!same) differ.emplace(entry.step, std::pair(rank_of[known->second], rank));
      }
    }
    if (differ.empty()) return;
    const auto& [step, ranks] = *differ.begin();
    FlightFinding& finding = add(Kind::kDecisionsDiffer, {ranks.first, ranks.second});
    finding.step = step;
    finding.operation = "vote";
    const auto decided = [&, at = step](int32_t rank) {
      for (const FlightEntry& entry : group_.find(rank)->log->entries) {
        if (entry.kind == FlightKind::kDecision && entry.step == at) return describe(entry);
      }
      return std::string();
    };
    finding.sentence = fmt::format("the ranks of the {} server decided differently: {} has '{}', {} has '{}'",
                                   finding.role, group_.name_of(ranks.first), decided(ranks.first),
                                   group_.name_of(ranks.second), decided(ranks.second));
  }

  // The ranks without a recording here that are waited for in the same operation.
  std::vector<int32_t> unrecorded_like(const FlightWait& wait) const {
    std::vector<int32_t> ranks;
    for (const int32_t rank : missing_) {
      if (group_.find(rank) != nullptr) continue;
      const std::optional<FlightWait> theirs = first_wait_for(rank);
      const bool is_same = theirs && theirs->kind == wait.kind && theirs->step == wait.step &&
                           theirs->layer == wait.layer && theirs->channel == wait.channel;
      if (is_same) ranks.push_back(rank);
    }
    return ranks;
  }

  void name_missing() {
    for (const int32_t rank : missing_) {
      const std::optional<FlightWait> wait = first_wait_for(rank);
      if (!wait || blocked_.contains(rank) || named_.contains(rank)) continue;
      const RankView* view = group_.find(rank);
      const std::vector<int32_t> ranks = view ? std::vector{rank} : unrecorded_like(*wait);
      named_.insert(ranks.begin(), ranks.end());
      const auto process = view ? std::pair(view->header().node, view->header().pid) : std::pair(0, 0);
      if (view && view->is_down() && !down_pids_.insert(process).second) continue;  // said of its process already
      FlightFinding& finding = add(Kind::kRankMissing, ranks);
      set_wait(finding, *wait);
      finding.waiting = waiting_for(rank);
      if (view && is_working(*view, now_ns_)) {
        set_working(finding, *view);
        continue;
      }
      const bool one = ranks.size() == 1;
      const std::string who = one ? group_.name_of(rank)
                                  : fmt::format("{} ({}, no recording of them here)", ranks_text(ranks), finding.role);
      finding.sentence =
          fmt::format("{} {} not {} for {:.1f} s{}; {} {} for {}", who, one ? "has" : "have", describe_missing(*wait),
                      finding.waited_s, view ? ": " + last_text(*view, now_ns_) : "", ranks_text(finding.waiting),
                      finding.waiting.size() == 1 ? "waits" : "wait", one ? "it" : "them");
    }
  }

  // Not by our protocol: there is always a rank that is furthest behind.
  void name_circle() {
    if (blocked_.empty() || !findings_.empty()) return;
    std::vector<int32_t> ranks;
    for (const auto& [rank, reasons] : blocked_) ranks.push_back(rank);
    FlightFinding& finding = add(Kind::kRanksWaitInCircle, ranks);
    set_wait(finding, blocked_.begin()->second.front().wait);
    finding.sentence = fmt::format("{} of the {} server wait for each other: rank {} for rank {}, which has not {}",
                                   ranks_text(ranks), finding.role, ranks.front(), blocked_.begin()->second.front().by,
                                   describe_missing(blocked_.begin()->second.front().wait));
  }

  void name_undelivered() {
    for (const auto& [rank, view] : group_.ranks) {
      if (view.is_down() || blocked_.contains(rank)) continue;
      for (const FlightWait& wait : view.open_waits()) {
        const FlightEntry* note = view.note_of(wait);
        if (note == nullptr || note->words[1] == 0 || age_s(wait.since_ns, now_ns_) <= patience_s_) continue;
        if (!view.still_waits(wait)) continue;
        const auto missing = int32_t(note->words[2]);
        named_.insert(rank);
        FlightFinding& finding = add(Kind::kNotDelivered, {missing});
        finding.waiting = {rank};
        set_wait(finding, wait);
        finding.sentence = fmt::format(
            "{} has {}, but {} has waited for it for {:.1f} s: it does not arrive, so look at the connection between "
            "them",
            group_.name_of(missing), describe_missing(wait), view.name(), finding.waited_s);
        break;
      }
    }
  }

  void name_down() {
    for (const auto& [rank, view] : group_.ranks) {
      if (!view.is_down()) continue;
      const auto process = std::pair(view.header().node, view.header().pid);
      if (!down_pids_.insert(process).second) continue;
      std::vector<int32_t> ranks;
      for (const auto& [other, theirs] : group_.ranks) {
        if (theirs.is_down() && std::pair(theirs.header().node, theirs.header().pid) == process) ranks.push_back(other);
      }
      FlightFinding& finding = add(Kind::kProcessDown, ranks);
      finding.waited_s = view.age_s(now_ns_);
      const bool is_gone = view.log->process == FlightProcess::kGone;
      finding.sentence = fmt::format("the process of {} {}: {}", view.name(),
                                     is_gone ? "ended without a word" : "stands still", last_text(view, now_ns_));
    }
  }

  // A rank that lives comes by every 20 ms, waiting or not, unless it computes: for how long its own ring can say.
  void name_silent() {
    for (const auto& [rank, view] : group_.ranks) {
      const bool is_clear = view.is_down() || view.has_ended() || blocked_.contains(rank) || named_.contains(rank);
      if (is_clear || view.last == nullptr || view.age_s(now_ns_) <= patience_s_) continue;
      if (view.log->process == FlightProcess::kUnknown) continue;
      FlightFinding& finding = add(Kind::kRankSilent, {rank});
      finding.step = view.last->step;
      finding.waited_s = view.age_s(now_ns_);
      if (is_working(view, now_ns_)) {
        set_working(finding, view);
        continue;
      }
      finding.sentence = fmt::format("{} waits for nobody and has done nothing for {:.1f} s: {}", view.name(),
                                     finding.waited_s, last_text(view, now_ns_));
    }
  }

  void name_ended() {
    std::map<std::pair<uint64_t, std::string>, std::vector<int32_t>> by_reason;
    for (const auto& [rank, view] : group_.ranks) {
      const FlightEntry* end = view.newest(FlightKind::kEnd);
      if (end != nullptr) by_reason[{end->step, view.end_reason()}].push_back(rank);
    }
    for (const auto& [why, ranks] : by_reason) {
      FlightFinding& finding = add(Kind::kGaveUp, ranks);
      finding.step = why.first;
      finding.waited_s = age_s(group_.find(ranks[0])->newest(FlightKind::kEnd)->time_ns, now_ns_);
      finding.sentence =
          fmt::format("{} gave up at step {}: {}",
                      ranks.size() == 1 ? group_.name_of(ranks[0])
                                        : fmt::format("{} of the {} server", ranks_text(ranks), finding.role),
                      why.first, why.second);
    }
  }

  const Group& group_;
  const int64_t now_ns_;
  const double patience_s_;
  std::map<int32_t, std::vector<Blocked>> blocked_;  // by who waits
  std::set<int32_t> missing_;                        // that any of them waits for
  std::set<int32_t> named_;                          // nothing more is to be said of them
  std::set<std::pair<int32_t, int32_t>> down_pids_;
  std::vector<FlightFinding> findings_;
};

// What the server does where nothing is wrong.
FlightFinding state_of(const Group& group) {
  FlightFinding finding;
  finding.role = group.first().role();
  for (const auto& [rank, view] : group.ranks) finding.ranks.push_back(rank);
  const RankView& view = group.first();
  const FlightEntry* const decision = view.newest(FlightKind::kDecision);
  if (group.is_past || std::ranges::all_of(group.ranks, [](const auto& r) { return r.second.has_ended(); })) {
    finding.sentence = fmt::format("the {} server of {} has ended", finding.role, view.name());
    return finding;
  }
  if (decision == nullptr) {
    finding.sentence = fmt::format("the {} server of {} has taken no step yet", finding.role, view.name());
    return finding;
  }
  finding.step = decision->step;
  const bool sleeps = decision->words[3] > 0 && (decision->words[2] & kFlightSleepReady) == 0;
  std::string does = decision->detail == uint8_t(FlightStep::kNone) ? "is idle" : "works";
  if (decision->words[2] & kFlightHolds) does = "holds decode back on request (hold_admission)";
  if (sleeps) does = fmt::format("sleeps on request (slow_down of {:.1f} s)", decision->words[3] / 1e3);
  finding.sentence = fmt::format("the {} server of {} {}: {}", finding.role, view.name(), does, describe(*decision));
  return finding;
}

class HandoverExplainer {
 public:
  HandoverExplainer(const std::vector<Group>& groups, int64_t now_ns, double patience_s)
      : groups_(groups), now_ns_(now_ns), patience_s_(patience_s) {}

  void add_of(const RankView& view, std::vector<FlightFinding>& findings) const {
    if (view.is_down() || view.has_ended()) return;
    for (const HandoverWait& wait : handover_waits(*view.log)) {
      const RankView* peer = find_peer(wait);
      const double waited_s = age_s(wait.since_ns, now_ns_);
      if (waited_s <= patience_s_ && !(peer && peer->is_down())) continue;
      FlightFinding& finding = findings.emplace_back();
      finding.kind = Kind::kHandover;
      finding.role = view.role();
      finding.ranks = {view.header().rank};
      finding.waiting = {view.header().rank};
      finding.step = wait.room;
      finding.operation = wait.awaited;
      finding.waited_s = waited_s;
      finding.is_stuck = is_stuck(wait, peer);
      finding.sentence = sentence_of(view, wait, peer, waited_s);
    }
  }

 private:
  // The rank of the other process that knows the room, else any of it.
  const RankView* find_peer(const HandoverWait& wait) const {
    const RankView* any = nullptr;
    for (const Group& group : groups_) {
      for (const auto& [rank, view] : group.ranks) {
        if (wait.epoch == 0 || view.header().epoch != wait.epoch) continue;
        if (any == nullptr) any = &view;
        for (const FlightEntry& entry : view.log->entries) {
          if (flight_lane(entry.kind) == 2 && entry.step == wait.room) return &view;
        }
      }
    }
    return any;
  }

  bool is_stuck(const HandoverWait& wait, const RankView* peer) const {
    if (peer == nullptr) return age_s(std::max(wait.since_ns, wait.heard_ns), now_ns_) > patience_s_;
    if (peer->is_down() || peer->has_ended()) return true;
    return peer->age_s(now_ns_) > patience_s_ && !is_working(*peer, now_ns_);
  }

  std::string sentence_of(const RankView& view, const HandoverWait& wait, const RankView* peer, double waited_s) const {
    const std::string what = wait.room == 0 ? wait.awaited : fmt::format("{} of room {}", wait.awaited, wait.room);
    const std::string more = wait.num_rooms > 1 ? fmt::format(" (and of {} more rooms)", wait.num_rooms - 1) : "";
    std::string from = wait.address;
    if (peer != nullptr) {
      from += fmt::format(", {}: {}", peer->name(), last_text(*peer, now_ns_));
    } else if (wait.heard_ns == 0) {
      from += ", which has not answered at all";
    } else {
      from += fmt::format(", of which nothing was heard for {:.1f} s", age_s(wait.heard_ns, now_ns_));
    }
    return fmt::format("{} has waited for {}{} for {:.1f} s, from {}", view.name(), what, more, waited_s, from);
  }

  const std::vector<Group>& groups_;
  const int64_t now_ns_;
  const double patience_s_;
};

// Ages count from here: while a process lives, when it was looked at; after the end of all, the last that was written.
int64_t now_of(const std::vector<FlightLog>& logs) {
  int64_t now_ns = 0;
  for (const FlightLog& log : logs) {
    now_ns = std::max(now_ns, log.observed_unix_ns);
    for (const FlightEntry& entry : log.entries) now_ns = std::max(now_ns, entry.time_ns);
  }
  return now_ns;
}

FlightRow row_of(const RankView& view, int64_t now_ns) {
  FlightRow row;
  row.role = view.role();
  row.host = view.log->host;
  row.rank = view.header().rank;
  row.node = view.header().node;
  row.pid = view.header().pid;
  row.process = view.log->process;
  row.is_closed = view.header().is_closed != 0;
  if (const FlightEntry* vote = view.newest(FlightKind::kVote)) row.step = vote->step;
  row.last_entry = view.last ? describe(*view.last) : "nothing";
  row.age_s = view.age_s(now_ns);
  return row;
}

}  // namespace

Explanation explain(const std::vector<FlightLog>& logs, const ExplainOptions& options) {
  Explanation explanation;
  const std::vector<Group> groups = group_logs(logs);
  const int64_t now_ns = now_of(logs);
  const double patience_s = seconds(options.patience);
  const HandoverExplainer handovers(groups, now_ns, patience_s);
  for (const Group& group : groups) {
    std::vector<FlightFinding> found;
    if (!group.is_past) {
      found = GroupExplainer(group, now_ns, group.is_seen() ? patience_s : -1).findings();
      for (const auto& [rank, view] : group.ranks) {
        handovers.add_of(view, found);
        explanation.rows.push_back(row_of(view, now_ns));
      }
    }
    const bool is_stuck = std::ranges::any_of(found, &FlightFinding::is_stuck);
    if (!is_stuck) found.push_back(state_of(group));
    explanation.is_stuck |= is_stuck;
    explanation.findings.insert(explanation.findings.end(), found.begin(), found.end());
  }
  std::ranges::stable_sort(explanation.findings, [](const FlightFinding& a, const FlightFinding& b) {
    return std::pair(!a.is_stuck, a.kind) < std::pair(!b.is_stuck, b.kind);
  });
  return explanation;
}

}  // namespace tandem::profile
