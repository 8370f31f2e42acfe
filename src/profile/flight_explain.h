// What flight logs mean: who waits for whom, and which rank, step and operation all wait for. Pure: the same logs give
// the same explanation. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "profile/flight_reader.h"

namespace tandem::profile {

struct ExplainOptions {
  // Younger waits are taken for work under way; those for a process that is stopped or gone are not waited for.
  Duration patience = std::chrono::seconds(3);
};

// One sentence of the explanation and what it says as values.
struct FlightFinding {
  enum class Kind : uint8_t {
    kDecisionsDiffer,  // ranks were not in lockstep
    kRankMissing,      // others wait for it
    kNotDelivered,     // what a rank sent has not come where it is waited for
    kRanksWaitInCircle,
    kProcessDown,  // stopped or gone, and nobody waits for it
    kRankSilent,   // alive, waits for nobody, does nothing
    kGaveUp,       // ended with a reason
    kHandover,     // prefill or decode waits for the other side
    kWorking,      // computes for long, but no longer than its earlier forward passes let expect; never stuck
    kState,        // nothing wrong: what the server does
    kCount
  };
  Kind kind = Kind::kState;
  bool is_stuck = false;
  std::string role;              // of the server: prefill, decode, combined
  std::vector<int32_t> ranks;    // that it is about
  std::vector<int32_t> waiting;  // that wait for them
  uint64_t step = 0;             // kHandover: the room id
  std::string operation;         // "vote", "dispatch", "combine", "attention", a message of the handover; "": none
  int32_t layer = -1;
  double waited_s = 0;
  std::string sentence;
};
const char* to_string(FlightFinding::Kind kind);

struct FlightRow {  // of the table
  std::string role, host;
  int32_t rank = 0, node = 0, pid = 0;
  FlightProcess process = FlightProcess::kUnknown;
  bool is_closed = false;
  uint64_t step = 0;  // the newest that it voted for
  std::string last_entry;
  double age_s = 0;
};

struct Explanation {
  std::vector<FlightFinding> findings;  // what is stuck first
  std::vector<FlightRow> rows;
  bool is_stuck = false;
};

// Logs of any number of servers and processes; several of the same rank: the one that goes further.
Explanation explain(const std::vector<FlightLog>& logs, const ExplainOptions& options = {});

// A table with a row per rank, then the sentences, one a line.
std::string explanation_text(const Explanation& explanation);
// The sentences alone; of an explanation in which nothing is stuck, those of the servers' states.
std::string explanation_sentences(const Explanation& explanation);
std::string explanation_json(const Explanation& explanation);

}  // namespace tandem::profile
