// Flight logs made by hand, and the sentences of what is stuck in them. All are looked at 20 s after kStart.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "profile/flight_explain.h"

namespace tandem::profile::testing {

inline constexpr int64_t kStart = 1'700'000'000'000'000'000;
inline int64_t at(double s) { return kStart + int64_t(s * 1e9); }

class Log {
 public:
  Log(FlightRole role, int32_t rank, int32_t num_ranks, int32_t node = 0, int32_t num_nodes = 1) {
    log_.header.role = int32_t(role);
    log_.header.rank = rank;
    log_.header.num_ranks = num_ranks;
    log_.header.node = node;
    log_.header.num_nodes = num_nodes;
    log_.header.pid = 4711 + node;
    log_.header.group = 1 + uint64_t(role);
    log_.header.epoch = 10 * (1 + uint64_t(role)) + uint64_t(node);
    log_.host = "host";
    log_.process = FlightProcess::kRunning;
    log_.observed_unix_ns = at(20);
  }
  Log& process(FlightProcess process) {
    log_.process = process;
    if (process == FlightProcess::kGone || process == FlightProcess::kUnknown) log_.observed_unix_ns = 0;
    return *this;
  }
  Log& closed() {
    log_.header.is_closed = 1;
    return process(FlightProcess::kGone);
  }
  Log& attention_size(int32_t size) {
    log_.header.attention_size = size;
    return *this;
  }
  Log& group(uint64_t group) {
    log_.header.group = group;
    return *this;
  }
  Log& add(double s, FlightKind kind, uint64_t step, int32_t layer = -1, std::array<uint32_t, 8> words = {},
           uint8_t detail = 0) {
    FlightEntry entry;
    entry.sequence = log_.entries.size() + 1;
    entry.time_ns = at(s);
    entry.kind = kind;
    entry.step = step;
    entry.layer = int16_t(layer);
    entry.words = words;
    entry.detail = detail;
    log_.entries.push_back(entry);
    return *this;
  }
  Log& vote(double s, uint64_t step) { return add(s, FlightKind::kVote, step, -1, {3}, uint8_t(FlightStep::kDecode)); }
  Log& decision(double s, uint64_t step) {
    return add(s, FlightKind::kDecision, step, -1, {12}, uint8_t(FlightStep::kDecode));
  }
  Log& missing(double s, FlightKind what, uint64_t step, int32_t layer, std::vector<uint32_t> ranks) {
    std::array<uint32_t, 8> words{0, uint32_t(ranks.size())};
    std::copy(ranks.begin(), ranks.end(), words.begin() + 2);
    return add(s, FlightKind::kWait, step, layer, words, uint8_t(what));
  }
  Log& handover(double s, FlightKind kind, FlightMessage message, uint64_t room, uint64_t epoch,
                const std::string& address = "127.0.0.1:8998") {
    FlightEntry entry;
    set_flight_peer(entry, epoch, address);
    return add(s, kind, room, -1, entry.words, uint8_t(message));
  }
  operator FlightLog() const { return log_; }

 private:
  FlightLog log_;
};

inline std::vector<std::string> stuck(const std::vector<FlightLog>& logs) {
  std::vector<std::string> sentences;
  const Explanation explanation = explain(logs);
  for (const FlightFinding& finding : explanation.findings) {
    if (finding.is_stuck) sentences.push_back(finding.sentence);
  }
  EXPECT_EQ(explanation.is_stuck, !sentences.empty());
  return sentences;
}
using Sentences = std::vector<std::string>;

}  // namespace tandem::profile::testing
