// One line of a server's log as a value: what SGLang's servers and ours write about batches, sleeps and profiles. Pure.
// Source: serving.md 3 of the compatibility reference; both spellings, "Decode batch," and "Decode batch.".
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/result.h"

namespace tandem::loadgen {

enum class LogEvent : uint8_t {
  kOther,
  kDecodeBatch,
  kPrefillBatch,
  kSleep,  // slow_down: the next batch's rate has the sleep in it
  kProfileStarts,
  kProfileDone,
  kReady,  // the server's start is over; what came before was warm-up
};

// Texts borrow from the line.
struct LogLine {
  LogEvent event = LogEvent::kOther;
  std::optional<double> stamp_s = {};  // the local time as seconds since 1970, as if it were UTC
  std::string_view clock;              // "23:24:43" of the stamp
  int32_t dp_rank = -1, tp_rank = -1;  // -1: the prefix does not say
  // kDecodeBatch
  int64_t running = 0;
  double accept_length = 1;                   // tokens per request and step; above 1 with speculative decoding
  std::optional<double> gen_throughput = {};  // tokens/s since the rank's last decode line
  // kPrefillBatch
  int64_t new_tokens = 0;
  std::optional<double> input_throughput = {};  // of the batch before, until this line; prefill servers only
  // kProfileStarts
  std::string_view profile_id;
};

// A line that says it is about a batch but lacks its numbers is kCorrupt: the message says what was expected.
Result<LogLine> parse_log_line(std::string_view line);

// "2025-11-22 23:24:43" with an optional fraction, as LogLine::stamp_s has it; nothing for anything else.
std::optional<double> parse_log_stamp(std::string_view text);

}  // namespace tandem::loadgen
