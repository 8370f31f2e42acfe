// The flight recorder's file: what one rank last did with the other ranks, and with the other side of a handover. A
// header, then 4,096 entries of 64 bytes, little-endian, one file per rank; docs/flight-recorder.md has every byte.
// Entries lie in three lanes, so that the many of one kind do not wash out the few of another:
//   steps      1,024 entries: votes, decisions, forwards, the rank's end
//   exchange   2,048 entries: dispatches, results, rounds of an attention group, waits
//   handover   1,024 entries: connections and messages between prefill and decode
// Values. flight_recorder.h writes them, flight_reader.h reads them, flight_explain.h says what they mean.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace tandem::profile {

inline constexpr std::array<char, 8> kFlightMagic = {'T', 'D', 'F', 'L', 'I', 'G', 'H', 'T'};
inline constexpr uint32_t kFlightVersion = 1;
inline constexpr uint32_t kFlightHeaderBytes = 4096;
inline constexpr uint32_t kFlightEntryBytes = 64;
inline constexpr uint32_t kFlightEntries = 4096;
inline constexpr uint64_t kFlightFileBytes = kFlightHeaderBytes + uint64_t(kFlightEntries) * kFlightEntryBytes;
inline constexpr std::string_view kFlightSuffix = ".flight";

// What the words of an entry are stands behind each kind.
enum class FlightKind : uint8_t {
  kNone,
  // Lane of steps.
  kVote,          // detail: step kind; tokens, sequences, flags, sleep_ms, change_version, profile_version
  kDecision,      // the same of all ranks (tokens: all, then the most of one), then a hash of the whole decision
  kForwardBegin,  // detail: step kind of this rank's own batch; tokens, sequences
  kForwardEnd,    // detail: 1 if it failed
  kEnd,           // the rank gives up; the reason is in the kText entries that follow
  kText,          // 32 bytes of text
  // Lane of exchanges.
  kDispatch,   // rows were sent to the experts' ranks; channel
  kResults,    // this rank's experts answered; channel
  kAttention,  // something was shown to the attention group; round as two words, low first
  kWait,       // detail: the kind that is waited for; channel, number of missing ranks, the first six of them
  // Lane of handovers. step: the room id. All: epoch of the other process as two words, 24 bytes of its address.
  kConnect,    // a connection was begun
  kConnected,  // the other side answered
  kPeerLost,
  kSent,      // detail: FlightMessage
  kReceived,  // detail: FlightMessage
  kCount
};

// As parallel::StepKind and as the order of api::HandoverMessage; asserted where they are written.
enum class FlightStep : uint8_t { kNone, kIdle, kDecode, kExtend };
enum class FlightMessage : uint8_t {
  kHello,
  kHelloReply,
  kWant,
  kSource,
  kAnnounce,
  kConfirm,
  kConfirmed,
  kAck,
  kAbort,
  kQueued
};
enum class FlightRole : int32_t { kCombined, kPrefill, kDecode };

// Flags of a vote and of a decision.
inline constexpr uint32_t kFlightShutdown = 1, kFlightSleepReady = 2, kFlightSplits = 4, kFlightHolds = 8,
                          kFlightFollows = 16;

struct FlightEntry {
  uint64_t sequence = 0;  // from 1 on, over all lanes; 0: nothing here, or it was being written
  int64_t time_ns = 0;    // of the rank's clock
  uint64_t step = 0;
  FlightKind kind = FlightKind::kNone;
  uint8_t detail = 0;
  int16_t layer = -1;
  uint32_t check = 0;  // flight_check() of all the rest
  std::array<uint32_t, 8> words{};
};
static_assert(sizeof(FlightEntry) == kFlightEntryBytes);

// An entry as it lies in the file: eight words of 64 bits. Tells an entry that was being written from a whole one, in a
// file that is copied while it is written, too.
using FlightWords = std::array<uint64_t, 8>;
inline constexpr int kFlightCheckWord = 3;  // whose upper half is the check
uint32_t flight_check(const FlightWords& words);

// Which process observed what became of the one that wrote.
enum class FlightProcess : uint32_t { kUnknown, kRunning, kStopped, kGone };

struct FlightHeader {
  std::array<char, 8> magic = kFlightMagic;
  uint32_t version = kFlightVersion, header_bytes = kFlightHeaderBytes, num_entries = kFlightEntries,
           entry_bytes = kFlightEntryBytes;
  uint64_t epoch = 0;  // of the process, as handover messages carry it
  uint64_t group = 0;  // the same for all ranks of a server
  int32_t pid = 0, role = 0;
  int32_t rank = 0, num_ranks = 0;  // of the server
  int32_t node = 0, num_nodes = 0;
  int32_t num_layers = 0;                   // of the model
  int32_t attention_size = 1;               // ranks of an attention group
  int64_t start_unix_ns = 0, start_ns = 0;  // the same moment by the wall clock and by the rank's
  uint64_t process_start = 0;               // field 22 of /proc/PID/stat: a later process of that number has another
  uint32_t is_closed = 0;                   // 1: the rank ended in order
  FlightProcess observed = FlightProcess::kUnknown;  // in a file: unknown; a server fills it in where it sends a ring
  int64_t observed_unix_ns = 0;                      // when
  std::array<char, 64> host{};
};
static_assert(sizeof(FlightHeader) == 176);

// Lanes: slots [begin, begin + size) of the file's entries.
struct FlightLane {
  uint32_t begin, size;
};
inline constexpr std::array<FlightLane, 3> kFlightLanes = {{{0, 1024}, {1024, 2048}, {3072, 1024}}};
constexpr int flight_lane(FlightKind kind) {
  if (kind >= FlightKind::kConnect) return 2;
  return kind >= FlightKind::kDispatch ? 1 : 0;
}

}  // namespace tandem::profile
