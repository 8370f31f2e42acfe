// What one rank's log says of where the rank is: its newest entries by kind, and what it may be waiting for. Borrows
// the log. Values.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "profile/flight_reader.h"

namespace tandem::profile {

// An operation that needs other ranks.
struct FlightWait {
  FlightKind kind = FlightKind::kVote;  // kVote, kDispatch, kResults or kAttention
  uint64_t step = 0;
  int32_t layer = -1;
  uint32_t channel = 0;
  uint64_t round = 0;  // kAttention
  int64_t since_ns = 0;
  const FlightEntry* posted = nullptr;  // this rank's own part
};

struct RankView {
  explicit RankView(const FlightLog& log);

  const FlightHeader& header() const { return log->header; }
  // Stopped, or gone without having said why.
  bool is_down() const {
    if (log->process == FlightProcess::kStopped) return true;
    return log->process == FlightProcess::kGone && header().is_closed == 0 && newest(FlightKind::kEnd) == nullptr;
  }
  bool has_ended() const { return header().is_closed != 0 || newest(FlightKind::kEnd) != nullptr; }
  const FlightEntry* newest(FlightKind kind) const { return newest_of[size_t(kind)]; }
  // "rank 3 (decode node 1, pid 4711, stopped)"
  std::string name() const;
  std::string role() const;
  std::string end_reason() const;
  double age_s(int64_t now_ns) const;  // of its last entry

  // What it may wait for at its last entry; it waits for each until all ranks that it needs have come.
  std::vector<FlightWait> open_waits() const;
  bool has_come_to(const FlightWait& wait) const;
  // The note that it wrote while it waited for this; null: it did not wait long.
  const FlightEntry* note_of(const FlightWait& wait) const;
  // Nothing but the note was written since the operation began.
  bool still_waits(const FlightWait& wait) const;
  // The ranks that it needs for it: [first, end).
  std::pair<int32_t, int32_t> ranks_of(const FlightWait& wait) const;

  const FlightLog* log;
  const FlightEntry* last = nullptr;  // of all lanes; null: nothing is written
  std::array<const FlightEntry*, size_t(FlightKind::kCount)> newest_of{};
  struct Channel {
    const FlightEntry *dispatch = nullptr, *results = nullptr;
  };
  std::map<uint32_t, Channel> channels;
};

// "vote for step 812: decode, 3 tokens"
std::string describe(const FlightEntry& entry);
// "voted for step 812"
std::string describe_missing(const FlightWait& wait);
const char* operation_of(FlightKind kind);  // "vote", "dispatch", ...
const char* to_string(FlightMessage message);
const char* to_string(FlightProcess process);

}  // namespace tandem::profile
