// Reads traces in Chrome's JSON form, ours and others' (PyTorch's), gzip or plain. Values; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace tandem::profile {

struct TraceEvent {
  char phase = 0;  // 'X', 'C', 'M', 's', 'f', 'b', 'e', ...
  std::string name, category, id;
  int64_t pid = 0, tid = 0;
  double begin_us = 0, duration_us = 0;
  std::vector<int64_t> dims;                               // all of "Input Dims", one behind the other
  std::vector<std::pair<std::string, double>> numbers;     // of args
  std::vector<std::pair<std::string, std::string>> texts;  // of args

  double number(std::string_view key, double fallback = 0) const;
  std::string_view text(std::string_view key) const;
};

struct Trace {
  std::vector<TraceEvent> events;
  int64_t base_unix_ns = 0;  // of begin_us 0; 0: not said
  int64_t dropped_spans = 0;
};

// name: for messages. Errors: kInvalidInput, saying what is no trace.
Result<Trace> parse_trace(std::string_view json, std::string_view name);
// Errors: also those of read_maybe_gzip(); at most 2 GiB of JSON.
Result<Trace> read_trace(const std::string& path);

// The files as one: a process per rank and file, times moved to one zero, ids kept apart. Written as .json.gz. Errors:
// of reading, of writing; REQUIRES at least one path.
Status merge_traces(const std::vector<std::string>& paths, const std::string& output);

// Per operator: how often, how long, which share of all steps, FLOP rate and bandwidth; steps and waits before it.
std::string operator_table(const Trace& trace);

}  // namespace tandem::profile
